"""TensorFlow is imported once, with two logical devices, for the tests that train on several."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Most of the suite's time is compiling: machine code that is not polished takes half of it. `XLA_FLAGS=` undoes it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture
def two_devices() -> tf.distribute.Strategy:
    from gentf.training.devices import make_strategy

    return make_strategy(2)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind():
    """Models and graphs of a module that only refer to each other go before the next one starts."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    """Caches of classifiers and scans are made in the session's own folder, never in the user's."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one for all processes
    monkeypatch.setenv("GENTF_CACHE", str(base / "cache"))
    monkeypatch.setenv("TF_XLA_FLAGS", "")  # which `gentf train` sets: not for the next test
