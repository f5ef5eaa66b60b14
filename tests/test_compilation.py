"""Compiled programs kept between runs: used while they are whole, dropped when they are not."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gentf import compilation

PROGRAM = """
import time
from gentf import compilation
folder = compilation.use_cache()
import tensorflow as tf
step = tf.function(lambda x: tf.reduce_sum(tf.matmul(tf.sin(x), x)), jit_compile=True)
print(float(step(tf.ones((4, 4)))))
compilation.record(folder)
"""


def run(cache) -> str:
    environment = os.environ | {"GENTF_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_damaged_program_is_compiled_again(tmp_path):
    first = run(tmp_path)
    (program,) = tmp_path.rglob("*.pb")
    whole = program.read_bytes()
    os.utime(program, (1, 1))
    assert run(tmp_path) == first
    assert program.stat().st_mtime == 1, "the kept program was not used"
    program.write_bytes(whole[: len(whole) // 2])  # TensorFlow by itself stops at such a file
    assert run(tmp_path) == first
    assert len(program.read_bytes()) > len(whole) // 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTF_CACHE", str(tmp_path))
    monkeypatch.setenv(compilation.FLAGS, "--tf_xla_enable_lazy_compilation=true")
    made = compilation.use_cache()
    assert made is not None and made.is_relative_to(tmp_path)
    return made


def test_flags_of_the_user_are_kept(folder, monkeypatch):
    flags = os.environ[compilation.FLAGS]
    assert flags.startswith("--tf_xla_enable_lazy_compilation=true ") and str(folder) in flags
    assert compilation.use_cache() is None and os.environ[compilation.FLAGS] == flags


@pytest.mark.parametrize("sums", ["{", "[]", "{}"])
def test_programs_without_a_checksum_are_removed(folder, sums, monkeypatch):
    (folder / "a.pb").write_bytes(b"program")
    compilation.record(folder)
    monkeypatch.delenv(compilation.FLAGS)
    assert compilation.use_cache() == folder and (folder / "a.pb").exists()
    (folder / compilation.SUMS).write_text(sums)
    monkeypatch.delenv(compilation.FLAGS)
    assert compilation.use_cache() == folder and not (folder / "a.pb").exists()


def test_room_is_made(folder, monkeypatch):
    monkeypatch.setattr(compilation, "LIMIT", 25)
    for number in range(4):
        (folder / f"{number}.pb").write_bytes(bytes(10))
        os.utime(folder / f"{number}.pb", (time.time() - number, 1))
    compilation.record(folder)
    assert sorted(path.name for path in folder.glob("*.pb")) == ["0.pb", "1.pb"]
    assert set(json.loads((folder / compilation.SUMS).read_text())) == {"0.pb", "1.pb"}


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENTF_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv(compilation.FLAGS, raising=False)
    assert compilation.use_cache() is None and compilation.FLAGS not in os.environ


def test_a_full_disk_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTF_CACHE", str(tmp_path))
    monkeypatch.delenv(compilation.FLAGS, raising=False)
    monkeypatch.setattr(compilation.shutil, "disk_usage", lambda path: SimpleNamespace(free=compilation.ROOM - 1))
    assert compilation.use_cache() is None and compilation.FLAGS not in os.environ
