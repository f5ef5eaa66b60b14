"""Exports of every model, asked by processes that have neither Keras nor XLA."""

import numpy as np
from consumers import assert_serves
from kits import kits

from gentf.export import export


def test_exports_serve_without_xla_and_equal_python(tmp_path):
    """Each model's export passes its own check, in a process without Keras; those of images answer a v1 session and
    the C API too, with XLA switched off: one process each for all models."""
    models = {}
    for kit in kits():
        model = kit.model()
        if kit.config().model.family == "gan":
            for weight in model.generator_ema.weights:
                if weight.name == "kernel":
                    weight.assign(weight * 8.0)  # contrast, so that equal pixels mean something
            assert np.ptp(model.sample(2, seed=7)) > 0.2
        image = kit.spec.modality in ("image", "points")
        path = export(model, tmp_path / kit.preset, check=not image, batch_sizes=(1,)).path
        if image:
            models[path] = model
    assert_serves(models, tmp_path, ("session", "capi"))
