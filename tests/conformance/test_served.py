"""Exports of every model, asked by processes that have neither Keras nor XLA."""

import numpy as np
import pytest
from consumers import assert_serves
from kits import Kit, kits

from gentf.export import export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Version folder -> the model that was exported to it, of images and points; filled by the first test."""
    return {}, tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("kit", kits(), ids=lambda kit: kit.preset)
def test_an_export_passes_its_check(kit: Kit, exported):
    """Those of texts and music in a process without Keras; images and points are asked below."""
    models, folder = exported
    model = kit.model()
    if kit.config().model.family == "gan":
        for weight in model.generator_ema.weights:
            if weight.name == "kernel":
                weight.assign(weight * 8.0)  # contrast, so that equal pixels mean something
        assert np.ptp(model.sample(2, seed=7)) > 0.2
    image = kit.spec.modality in ("image", "points")
    path = export(model, folder / kit.preset, check=not image, batch_sizes=(1,)).path
    if image:
        models[path] = model


def test_exports_serve_without_xla_and_equal_python(exported):
    """A v1 session and the C API, with XLA switched off: one process each for all models."""
    models, folder = exported
    assert models
    assert_serves(models, folder, ("session", "capi"))
