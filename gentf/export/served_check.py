"""Run by path in a process of its own: call an export as a server would, and compare with Python's results.

This file is never imported by the package. It needs TensorFlow and NumPy only: Keras and gentf are made
impossible to import, so that an export which needed them could not pass. XLA is switched off through
TensorFlow's own switch, which is how a stock TF Serving runs, and the model is loaded by the C++ SavedModel
loader behind a session.

Argument: the path of a job in JSON, with the keys
    "folder": the SavedModel;
    "cases": the .npz with inputs and expected outputs (see `gentf.export.check`);
    "xla": leave XLA on;
    "rtol", "atol": for floats; everything else must be equal;
    "report": the path to write to, in JSON: {"signatures": {NAME: {"rows", "max_difference"}},
        "warmup": records replayed} or {"error": text}.
"""

import ctypes
import json
import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
    sys.path.pop(0)  # modules beside this file must not stand in for others
for _name in ("keras", "gentf"):
    sys.modules[_name] = None  # type: ignore[assignment]  # an import of it fails; TensorFlow does without Keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow.core.framework import tensor_pb2  # noqa: E402

WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")


def disable_xla():
    """What `tensorflow_model_server` calls at its start unless it is told to compile."""
    library = ctypes.CDLL(os.path.join(os.path.dirname(tf.__file__), "libtensorflow_cc.so.2"))
    library._ZN10tensorflow21DisableXlaCompilationEv()


class Served:
    """A SavedModel in a session of its own."""

    def __init__(self, folder):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            meta = tf.compat.v1.saved_model.loader.load(self.session, ["serve"], folder)
        self.signatures = {n: s for n, s in meta.signature_def.items() if not n.startswith("__saved_model_")}

    def call(self, name, inputs):
        signature = self.signatures[name]
        feeds = {signature.inputs[key].name: value for key, value in inputs.items()}
        return self.session.run({key: info.name for key, info in signature.outputs.items()}, feeds)


def cases(path):
    """The cases in an .npz: (signature, inputs, expected outputs)."""
    found: dict = {}
    with np.load(path) as file:
        for key in file.files:
            number, signature, kind, name = key.split("|")
            case = found.setdefault(int(number), (signature, {}, {}))
            value = file[key]
            if name.endswith("#lengths"):
                continue
            if name.endswith("#bytes"):  # strings lie there end to end
                lengths = file[key.replace("#bytes", "#lengths")]
                ends, joined = np.cumsum(lengths), value.tobytes()
                value = np.empty(lengths.shape, object)
                for at, start, end in zip(np.ndindex(value.shape), [0, *ends[:-1]], ends, strict=True):
                    value[at] = joined[start:end]
                name = name.removesuffix("#bytes")
            case[1 if kind == "in" else 2][name] = value
    return [found[number] for number in sorted(found)]


def compare(name, output, got, expected, rtol, atol):
    """The largest difference; ValueError if it is larger than allowed."""
    where = f"{name}: `{output}`"
    if got.shape != expected.shape:
        raise ValueError(f"{where} has shape {got.shape} where Python gives {expected.shape}")
    if not np.issubdtype(expected.dtype, np.floating):
        unequal = int(np.sum(got != expected))
        if unequal:
            raise ValueError(f"{where} differs from Python's in {unequal} of {expected.size} values")
        return 0.0
    if not np.isfinite(got).all():
        raise ValueError(f"{where} is not finite")
    difference = np.abs(got.astype(np.float64) - expected)
    if (difference > atol + rtol * np.abs(expected)).any():
        raise ValueError(f"{where} differs from Python's by up to {difference.max():.3g}")
    return float(difference.max(initial=0.0))


def fields(message):
    """(number, value) of each field of an encoded protocol buffer; bytes for those with a length."""

    def varint(at):
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at

    at = 0
    while at < len(message):
        key, at = varint(at)
        value, after = varint(at)
        if key & 7 == 2:
            value, after = message[after : after + value], after + value
        elif key & 7 != 0:
            raise ValueError(f"field type {key & 7} in a warm-up record")
        at = after
        yield key >> 3, value


def warmup_request(record):
    """(signature, inputs) of an encoded PredictionLog: field 6 a PredictLog, its field 1 a PredictRequest."""
    request = dict(fields(dict(fields(record))[6]))[1]
    signature, inputs = "serving_default", {}
    for number, value in fields(request):
        if number == 1:  # ModelSpec, with the signature's name in field 3
            signature = dict(fields(value))[3].decode()
        elif number == 2:  # an entry of the map of inputs: 1 the name, 2 the TensorProto
            entry = dict(fields(value))
            inputs[entry[1].decode()] = tf.make_ndarray(tensor_pb2.TensorProto.FromString(entry[2]))
    return signature, inputs


def check(job):
    if not job["xla"]:
        disable_xla()
    served = Served(job["folder"])
    report: dict = {}
    for signature, inputs, expected in cases(job["cases"]):
        got = served.call(signature, inputs)
        if sorted(got) != sorted(expected):
            raise ValueError(f"{signature} gives {sorted(got)} where Python gives {sorted(expected)}")
        entry = report.setdefault(signature, {"rows": 0, "max_difference": 0.0})
        for name, value in expected.items():
            difference = compare(signature, name, got[name], value, job["rtol"], job["atol"])
            entry["max_difference"] = max(entry["max_difference"], difference)
        entry["rows"] += len(next(iter(inputs.values())))
    unchecked = set(served.signatures) - set(report)
    if unchecked:
        raise ValueError(f"no case for {sorted(unchecked)}")
    replayed = 0
    for record in tf.data.TFRecordDataset(os.path.join(job["folder"], WARMUP)):
        served.call(*warmup_request(record.numpy()))
        replayed += 1
    present = [name for name in ("keras", "gentf") if sys.modules.get(name) is not None]
    if present:
        raise RuntimeError(f"{present} was imported")
    return {"signatures": report, "warmup": replayed}


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    try:
        result = check(job)
    except Exception as error:  # whatever it is, the parent process tells it in one line
        result = {"error": f"{str(error).strip() or type(error).__name__}"}
    with open(job["report"], "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
