"""Runs: exact resumption, damaged checkpoints, signals, full disks, divergence."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from gentf import config as configs
from gentf.cli.main import run as gentf
from gentf.data import DataSpec
from gentf.data.source import Split
from gentf.errors import UserError
from gentf.training import Run, checkpoint, train
from gentf.training.log import read_metrics
from gentf.training.loop import Silent, _crossed
from gentf.training.steps import Steps, call_sizes

OPTIONS = (
    "model.hidden_units=[16]", "model.latent_dim=8", "train.batch_size=128", "train.steps_per_call=4",
    "train.log_every=4", "train.checkpoint_every=4", "train.validation_samples=64", "train.keep_checkpoints=3",
    "train.jit=false",  # compiling costs seconds in each of these runs
)  # fmt: skip
EPOCH = 11  # steps: 1,437 digits are in the train split


def tiny(*overrides: str) -> configs.Config:
    return configs.resolve("gan-digits", [*OPTIONS, *overrides])


def arrays_of(run: Run | Path, which: str | int = "last") -> dict[str, np.ndarray]:
    run = run if isinstance(run, Run) else Run(run)
    return run.checkpoints.load(which)[0]


def assert_same_end(first, second):
    a, b = arrays_of(first), arrays_of(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class Recorder(Silent):
    def __init__(self):
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """Three epochs without a stop."""
    return train(tiny("train.epochs=3"), tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory) -> Path:
    return train(tiny("train.epochs=2"), tmp_path_factory.mktemp("runs") / "begun").path


@pytest.fixture
def begun(two_epochs, tmp_path) -> Path:
    """The same run after its first two epochs: a copy to do with as one likes."""
    return Path(shutil.copytree(two_epochs, tmp_path / "begun"))


def test_run_folder_holds_what_it_should(whole):
    have = {path.name for path in whole.path.iterdir()}
    assert {"config.yaml", "data.json", "metrics.jsonl", "checkpoints", "tensorboard", "samples", "curves.png"} <= have
    assert [path.name for path in sorted((whole.path / "samples").iterdir())][-1] == f"step-{3 * EPOCH:08d}.png"
    assert (whole.path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert whole.checkpoints.steps() == [30, 32, 33]
    assert whole.checkpoints.best()["best"] == pytest.approx(
        min(line["val_sliced_wasserstein"] for line in read_metrics(whole.path) if "val_sliced_wasserstein" in line)
    )
    loaded = keras.models.load_model(whole.path / "model.keras")
    np.testing.assert_array_equal(loaded.sample(3, seed=1), whole.load_model().sample(3, seed=1))
    assert not list(whole.path.rglob("*.tmp*"))


def test_metrics_are_complete_and_finite(whole):
    lines = read_metrics(whole.path)
    steps = [line["step"] for line in lines if "generator_loss" in line]
    assert steps == [4, 8, 11, 15, 19, 20, 22, 26, 30, 32, 33]  # calls of 4, and single steps at an epoch's end
    for line in lines:
        assert all(value is not None and np.isfinite(value) for value in line.values())
    assert {"discriminator_loss", "generator_loss", "steps_per_second", "data_wait"} <= lines[0].keys()


def test_resuming_equals_never_having_stopped(whole, begun):
    resumed = train(tiny("train.epochs=3"), begun, resume=True)
    assert_same_end(whole, resumed)
    drop = {"steps_per_second", "data_wait"}
    logs = [
        [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(r.path)] for r in (whole, resumed)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_damaged_checkpoint_gives_way_to_the_one_before_it(begun, damage):
    make_damage(Run(begun).checkpoints.path(22), damage)
    said: list[str] = []
    values, meta = Run(begun).checkpoints.load("last", said.append)
    assert meta["step"] == 20
    assert len(said) == 1 and "not a whole checkpoint" in said[0] and "using the one before it" in said[0]
    with pytest.raises(UserError, match="not a whole checkpoint"):
        Run(begun).checkpoints.load(22)


def make_damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[len(content) // 2] ^= 0x10
    path.write_bytes({"truncate": content[:-100], "flip": content, "empty": b"", "foreign": b"PK\x03\x04hello"}[kind])


def test_resuming_over_a_damaged_checkpoint_equals_never_having_stopped(whole, begun):
    make_damage(Run(begun).checkpoints.path(22), "flip")
    recorder = Recorder()
    resumed = train(tiny("train.epochs=3"), begun, resume=True, reporter=recorder)
    assert any("not a whole checkpoint" in text and "using the one before it" in text for text in recorder.messages)
    assert any("going on from step 20" in text for text in recorder.messages)
    assert_same_end(whole, resumed)


def test_checkpoint_of_another_model_is_refused_and_nothing_changed(begun, tmp_path):
    other = train(tiny("train.epochs=1", "model.hidden_units=[17]"), tmp_path / "other")
    model = Run(begun).load_model()
    before = checkpoint.arrays(model)
    with pytest.raises(UserError, match="must hold model/"):
        checkpoint.restore(model, arrays_of(other), ["model"])
    for name, value in checkpoint.arrays(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_pickled_checkpoint_is_refused(tmp_path):
    np.savez(tmp_path / "c.npz", meta=np.array([{"step": 1}], dtype=object))
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "c.npz")


def test_existing_folder_needs_resume(begun, capsys):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    assert gentf(["train", "gan-digits", *OPTIONS, "--run", str(begun)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: `run` must be a new or empty folder, or --resume given")
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}


def test_a_folder_killed_before_it_was_a_run_can_be_begun_again(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "data.json").write_text("{")
    (path / ".config.yaml.x1.tmp.yaml").write_text("")
    config, spec = tiny(), DataSpec(name="digits", shape=(8, 8, 1))
    assert Run.create(path, config, spec).config == config


def test_nothing_compiles_after_the_first_epoch(tmp_path, monkeypatch):
    """Whole calls and the single steps left in an epoch are compiled once; three epochs compile no more than one."""
    counts = []
    original = Steps.run

    def counted(self, taken):
        logs = original(self, taken)
        counts.append(self.compilations)
        return logs

    monkeypatch.setattr(Steps, "run", counted)
    train(tiny("train.epochs=3", "train.jit=true"), tmp_path / "run")
    calls_an_epoch = EPOCH // 4 + EPOCH % 4
    assert len(counts) == 3 * calls_an_epoch
    assert set(counts[calls_an_epoch - 1 :]) == {2}


def test_resuming_a_compiled_run_equals_never_having_stopped(tmp_path):
    whole = train(tiny("train.epochs=2", "train.jit=true"), tmp_path / "whole")
    train(tiny("train.epochs=1", "train.jit=true"), tmp_path / "begun")
    again = train(tiny("train.epochs=2", "train.jit=true"), tmp_path / "begun", resume=True)
    assert_same_end(whole, again)


def test_data_in_memory_and_read_data_train_alike(tmp_path, monkeypatch):
    """Batches gathered inside the compiled step are those that a stream delivers."""
    whole = train(tiny("train.epochs=2"), tmp_path / "resident")
    monkeypatch.setattr(Split, "resident", lambda self: None)
    assert_same_end(whole, train(tiny("train.epochs=2"), tmp_path / "read"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.latent_dim=9", "model.latent_dim differ"),
        ("seed=4", "seed differ"),
        ("train.epochs=1", "at least the run's 2"),
    ],
)
def test_resume_of_another_config_is_refused(begun, capsys, override, message):
    assert gentf(["train", "--resume", str(begun), override]) == 1
    assert message in capsys.readouterr().err
    assert Run(begun).config == tiny("train.epochs=2", "train.shards=1")


def test_resume_of_no_run_is_refused(tmp_path, capsys):
    assert gentf(["train", "gan-digits", "--resume", "--run", str(tmp_path / "none")]) == 1
    assert "must be a folder that `gentf train` made" in capsys.readouterr().err


def test_exploding_loss_stops_with_step_checkpoint_and_advice(tmp_path):
    with pytest.raises(UserError) as caught:
        train(tiny("optimizer.learning_rate=10", "model.loss=wasserstein", "train.max_loss=1000"), tmp_path / "run")
    text = str(caught.value)
    assert re.search(r"_loss is -?[\d.e+naif]+ at step \d+", text)
    assert "Try optimizer.learning_rate=5" in text
    assert "checkpoint" in text
    for step in Run(tmp_path / "run").checkpoints.steps():
        assert all(np.all(np.isfinite(value)) for value in arrays_of(tmp_path / "run", step).values())


def test_nan_loss_stops(tmp_path, monkeypatch):
    from gentf.training import steps

    original = steps.Steps.run

    def broken(self, taken):
        logs = original(self, taken)
        logs["generator_loss"] = logs["generator_loss"].copy()
        logs["generator_loss"][-1, 0] = np.nan
        return logs

    monkeypatch.setattr(steps.Steps, "run", broken)
    with pytest.raises(UserError, match="generator_loss is nan at step 4. No checkpoint yet"):
        train(tiny(), tmp_path / "run")


def command(*arguments: object, limit: int | None = None) -> subprocess.Popen:
    program = "import sys; from gentf.cli.main import main; main()"
    if limit is not None:
        program = (
            f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {program}"
        )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_full_disk_loses_nothing_that_was_saved(whole, begun):
    process = command("train", "--resume", begun, "train.epochs=3", limit=20_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("Error: cannot save at step 26: File too large")
    assert "checkpoint-0000000022.npz; free space, then" in error
    assert Run(begun).checkpoints.steps()[-1] == 22 and not list(begun.rglob("*.tmp*"))
    assert_same_end(whole, train(tiny("train.epochs=3"), begun, resume=True))


def test_three_kills_and_a_term_leave_no_trace(tmp_path):
    """kill -9 at three random moments, then SIGTERM, then to the end: the weights of a run that was left alone."""
    options = [*OPTIONS, "train.epochs=40", "train.sample_every=40"]
    path, moments = tmp_path / "killed", random.Random(0)
    arguments: list[object] = ["train", "gan-digits", *options, "--run", path]
    for number in range(4):
        process = command(*arguments)
        started = Run(path).step if number else 0
        wait_for(lambda: (path / "config.yaml").exists() and Run(path).step > started, process)  # noqa: B023
        time.sleep(moments.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it could be stopped"
        process.send_signal(signal.SIGKILL if number < 3 else signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        arguments = ["train", "--resume", path]
    assert process.returncode == 128 + signal.SIGTERM
    saved = re.search(r"stopped by SIGTERM; saved at step (\d+)\. Go on with: gentf train --resume", error)
    assert saved and int(saved[1]) == Run(path).step
    process = command(*arguments)
    assert process.wait(timeout=120) == 0, process.communicate()
    alone = train(configs.resolve("gan-digits", options), tmp_path / "alone")
    assert Run(path).step == 40 * EPOCH
    assert_same_end(alone, path)


def wait_for(condition, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None or process.returncode == 0, process.communicate()
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return
        time.sleep(0.01)


def test_seed_decides_the_run(whole, tmp_path):
    other = train(tiny("train.epochs=3", "seed=1"), tmp_path / "other")
    a, b = arrays_of(whole), arrays_of(other)
    assert any(not np.array_equal(a[name], b[name]) for name in a)


def test_two_devices_train_a_run(tmp_path):
    run = train(tiny("train.epochs=1", "train.devices=2", "model.network=dcgan", "model.width=4"), tmp_path / "run")
    assert run.step == EPOCH
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of 2 devices"):
        train(tiny("train.devices=2", "train.batch_size=33"), tmp_path / "odd")


def test_metrics_cut_short_by_a_kill_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 4}) + "\n" + '{"step": 8, "lo')
    assert read_metrics(tmp_path) == [{"step": 4}]


def test_calls_depend_on_the_step_alone():
    sizes, step = [], 0
    while step < 22:
        sizes.append(call_sizes(step, 11, 4))
        step += sizes[-1]
    assert sizes == [4, 4, 1, 1, 1] * 2
    assert _crossed(3, 4, 4) and not _crossed(4, 7, 4) and _crossed(7, 9, 4)


def test_dry_run_writes_nothing_and_tells_all(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gentf(["train", "gan-digits", *OPTIONS, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in ("latent_dim: 8", "1,437 train", "8 x 8 x 1, 10 classes", "11 an epoch x", "parameters", "ms a step"):
        assert part in text, part
    assert not os.listdir(tmp_path)
