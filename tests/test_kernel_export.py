"""Every kernel serves: exported without an XLA, cuDNN or Python operation, and equal with XLA switched off.

A test module of kernels, `test_kernel_NAME.py` for `kernels/NAME.py`, lists in `EXPORTS` what is exported: name ->
(function, inputs).
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gentf.export import graph

KERNELS = Path(__file__).parent.parent / "kernels"
# random is in every export of a model, blockwise in attention's
NOT_FUNCTIONS = {"__init__", "reference", "random", "optimizer", "tracing", "blockwise"}
NAMES = sorted({path.stem for path in KERNELS.glob("*.py")} - NOT_FUNCTIONS)

SERVE = """
import ctypes, json, os, sys
import numpy as np
import tensorflow as tf
library = os.path.join(os.path.dirname(tf.__file__), "libtensorflow_cc.so.2")
ctypes.CDLL(library)._ZN10tensorflow21DisableXlaCompilationEv()
folder, requests, answers = sys.argv[1:]
loaded, results = tf.saved_model.load(folder), {}
asked = {}
with np.load(requests) as file:
    for key in file.files:
        name, argument = key.rsplit("|", 1)
        asked.setdefault(name, {})[argument] = file[key]
for name, inputs in asked.items():
    outputs = loaded.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
    for key, value in outputs.items():
        results[f"{name}|{key}"] = value.numpy()
np.savez(answers, **results)
assert not [m for m in sys.modules if m.split(".")[0] == "gentf"]
"""


def named(function):
    """`function` with its outputs as y0, y1, ..."""
    return lambda *arguments: {f"y{i}": y for i, y in enumerate(tf.nest.flatten(function(*arguments)))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of one SavedModel with every kernel's cases, and what Python and the served model answer."""
    folder = tmp_path_factory.mktemp("kernels")
    module, signatures, requests, expected = tf.Module(), {}, {}, {}
    for kernel in NAMES:
        for case, (function, inputs) in importlib.import_module(f"test_kernel_{kernel}").EXPORTS.items():
            name = f"{kernel}_{case}"
            specs = [tf.TensorSpec(x.shape, x.dtype, name=f"x{i}") for i, x in enumerate(inputs)]
            signatures[name] = tf.function(named(function), input_signature=specs)
            setattr(module, name, signatures[name])
            requests |= {f"{name}|x{i}": x.numpy() for i, x in enumerate(inputs)}
            expected |= {f"{name}|{key}": value.numpy() for key, value in signatures[name](*inputs).items()}
    # as gentf.export saves: a server asks for no gradients
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder / "model"), signatures=signatures, options=options)
    np.savez(folder / "requests.npz", **requests)
    paths = [str(folder / name) for name in ("model", "requests.npz", "answers.npz")]
    done = subprocess.run([sys.executable, "-c", SERVE, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "answers.npz") as file:
        answers = {key: file[key] for key in file.files}
    return folder / "model", expected, answers


@pytest.mark.parametrize("kernel", NAMES)
def test_served_kernel_equals_python(exported, kernel):
    _, expected, answers = exported
    keys = [key for key in expected if key.startswith(f"{kernel}_")]
    assert keys, f"EXPORTS of test_kernel_{kernel}.py is empty"
    for key in keys:
        np.testing.assert_allclose(answers[key], expected[key], rtol=1e-6, atol=1e-6, err_msg=json.dumps(key))


def test_exports_hold_plain_operations_alone(exported):
    graph.check_plain(graph.read(exported[0]))
