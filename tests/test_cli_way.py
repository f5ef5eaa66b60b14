"""The whole way through real processes: data, train, sample, evaluate, export, and sample from the export."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gentf.training.log import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("way")


def gentf(folder, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    """Run the command line in `folder`, as a user does: with the log level it chooses, not the tests' own."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "gentf", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(folder):
    arguments = ["model.conditional=true", "model.hidden_units=[32, 64]", "train.epochs=3", "--run", "runs/a"]
    return gentf(folder, "train", "gan-digits", *arguments, "--seed", "3")


@pytest.fixture(scope="module")
def exported(folder, trained):
    return gentf(folder, "export", "runs/a", "--to", "saved_models/a")


def test_training_tells_an_epoch_a_line_and_writes_the_run(folder, trained):
    epochs = [line for line in trained.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    for part in ("discriminator_loss", "generator_loss", "steps/s", "left", "waiting for data"):
        assert part in epochs[-1], part
    assert "\x1b" not in trained.stderr and "\r" not in trained.stderr
    assert trained.stdout.startswith("trained: runs/a")
    assert read_metrics(folder / "runs/a")[-1]["epoch"] == 3
    assert "seed: 3" in (folder / "runs/a/config.yaml").read_text()


def test_run_and_export_draw_the_same_pixels(folder, exported):
    assert "rows agree with Python" in exported.stdout
    for source, name in (("runs/a", "run"), ("saved_models/a", "export")):
        gentf(folder, "sample", source, "-n", "11", "--seed", "5", "--label", "3", "--out", f"{name}.png")
        gentf(folder, "sample", source, "-n", "11", "--seed", "5", "--label", "3", "--out", f"{name}.npz")
    assert (folder / "run.png").read_bytes() == (folder / "export.png").read_bytes()
    arrays = [np.load(folder / f"{name}.npz") for name in ("run", "export")]
    np.testing.assert_array_equal(arrays[0]["image"], arrays[1]["image"])
    assert arrays[0]["image"].shape == (11, 8, 8, 1) and set(arrays[0]["label"]) == {3}


def test_a_folder_of_samples_is_numbered(folder, trained):
    gentf(folder, "sample", "runs/a", "-n", "3", "--out", "pictures")
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [f"{i:06d}.png" for i in range(3)]


def test_evaluation_is_json_with_references(folder, trained):
    result = json.loads(gentf(folder, "evaluate", "runs/a", "-n", "200", "--extractors", "1", "--json").stdout)
    assert {"run", "model", "data", "split", "samples", "seed", "metrics"} <= result.keys()
    assert {"classes_covered", "reverse_kl", "confidence", "class_agreement"} <= result["metrics"].keys()
    for entry in result["metrics"].values():
        assert entry.keys() == {"value", "stderr", "floor", "ceiling"}
    assert json.loads((folder / "runs/a/evaluation.json").read_text()) == result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "runs/a", "--label", "11"), "`--label` must be one of 0, 1, 2"),
        (("sample", "runs/a", "--out", "x.jpg"), "`--out` must end in .png or .npz"),
        (("sample", "nowhere"), "`run` must be a run folder or an export"),
        (("train", "gan-digits", "--data", "missing-folder/"), "missing-folder"),
        (("train", "gan-digits", "model.latnt_dim=8"), "did you mean model.latent_dim"),
    ],
)
def test_mistakes_are_one_line(folder, trained, arguments, message):
    error = gentf(folder, *arguments, status=1).stderr.strip()
    assert len(error.splitlines()) == 1 and error.startswith("Error: ") and message in error
