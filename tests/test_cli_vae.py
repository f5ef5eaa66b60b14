"""The command line with variational autoencoders: train, evaluate, draw codes, export, and what is refused."""

import json

import numpy as np
import pytest

from gentf.cli.main import run
from gentf.config import resolve
from gentf.evaluation_likelihood import pixels_apart
from gentf.training import train
from gentf.training.run import Run


def command(capsys, *arguments) -> tuple[int, str, str]:
    status = run([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vae")


@pytest.fixture(scope="module")
def trained(folder):
    overrides = ["model.hidden_units=[24]", "train.epochs=3", "train.jit=false"]
    return train(resolve("vae-digits", overrides), folder / "run").path


def test_epochs_tell_bound_rate_distortion_and_active_units(trained):
    last = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"val_loss", "val_nats", "val_rate", "val_distortion", "val_active_units"} <= last.keys()
    assert last["val_loss"] == pytest.approx(last["val_rate"] + last["val_distortion"], rel=1e-4)
    assert abs(last["val_nats"] - last["val_loss"]) < 3  # of one code an image
    assert Run(trained).checkpoints.steps()


def test_evaluation_tells_a_bound_and_its_errors(capsys, trained):
    quick = ("evaluate", trained, "-n", "50", "--extractors", "0")
    status, out, _ = command(capsys, *quick, "--importance-samples", "40", "--json")
    result = json.loads(out)
    assert status == 0 and result["importance"]["samples"] == 40 and 0 < result["importance"]["stderr"] < 0.5
    metrics = result["metrics"]
    assert metrics["nats_per_image"]["value"] < metrics["nats_per_image_elbo"]["value"]
    parts = metrics["rate"]["value"] + metrics["distortion"]["value"]
    assert parts == pytest.approx(metrics["nats_per_image_elbo"]["value"], rel=1e-4)
    source = Run(trained).load_data()
    images = source.test.arrays()[0]
    assert metrics["nats_per_image"]["ceiling"] == pytest.approx(pixels_apart(source, images, 2), rel=1e-5)
    assert 0 <= metrics["active_units"]["value"] <= metrics["active_units"]["ceiling"] == 8
    nats = -Run(trained).load_model().bound(images, 40, seed=0).log_prob.mean()
    assert metrics["nats_per_image"]["value"] == pytest.approx(nats, rel=1e-4)
    status, out, _ = command(capsys, *quick, "--importance-samples", "2")
    assert status == 0 and "importance-sampled, 2 codes an image" in out


@pytest.mark.parametrize("what", ["reconstruct", "interpolate", "traverse"])
def test_codes_are_drawn(capsys, folder, trained, what):
    out = folder / f"{what}.png"
    status, said, _ = command(capsys, "latents", trained, what, "-n", "4", "--steps", "5", "--out", out)
    assert status == 0 and said.strip() == f"{what}: {out}"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_an_interpolation_starts_and_ends_at_reconstructions(trained):
    from gentf.cli.latents import draw

    model, source = Run(trained).load_model(), Run(trained).load_data()
    images, _ = source.test.arrays(6)
    path = draw(model, "interpolate", images, None, 3, 4, False).reshape(3, 4, 8, 8, 1)
    rebuilt = model.reconstruct(images)
    np.testing.assert_allclose(path[:, 0], rebuilt[:3], atol=1e-4)
    np.testing.assert_allclose(path[:, -1], rebuilt[3:], atol=1e-4)
    above = draw(model, "reconstruct", images, None, 4, 3, False)
    np.testing.assert_array_equal(above[3:6], rebuilt[:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "vae-digits", "image.binarize=none"), "the data must be such as the model is for"),
        (("train", "vae-digits", "model.objective=iwae", "model.posterior=iaf"), "`doubly` must be False"),
        (("train", "vae-digits", "model.latent_dim=0"), "model.latent_dim"),
        (("latents", "RUN", "traverse", "--out", "x.jpg"), "`out` must end in .png"),
        (("latents", "nowhere", "traverse"), "nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, folder, trained, arguments, message, monkeypatch):
    monkeypatch.chdir(folder)
    given = [trained if argument == "RUN" else argument for argument in arguments]
    status, out, err = command(capsys, *given)
    assert status == 1 and err.splitlines()[-1].startswith("Error: ") and message in err.splitlines()[-1]
