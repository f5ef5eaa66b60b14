"""What loads an export besides gentf: a v1 session, TensorFlow's C API, and `saved_model_cli`.

Run as a script in a process of its own it holds the first two; it imports neither Keras nor gentf, and
switches XLA off as a stock TF Serving does:

    python tests/consumers.py session|capi FOLDERS.json REQUESTS.npz ANSWERS.npz

REQUESTS holds arrays named NUMBER|SIGNATURE|INPUT, to be asked of FOLDERS[NUMBER]. ANSWERS gets
NUMBER|OUTPUT; strings become uint8 (rows, longest) with the lengths in NUMBER|OUTPUT#lengths.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 9: np.int64}  # DataType of TensorFlow
STRING = 7
TSTRING_SIZE = 24  # bytes of a TF_TString


Request = tuple[Path, str, dict]  # version folder, signature, inputs


def ask(consumer: str, requests: list[Request], scratch: Path) -> list[dict]:
    """The answers of one consumer ("session", "capi" or "cli") to the requests."""
    scratch.mkdir()
    if consumer == "cli":
        return [ask_cli(*request, scratch / str(number)) for number, request in enumerate(requests)]
    packed = {f"{i}|{s}|{name}": value for i, (_, s, inputs) in enumerate(requests) for name, value in inputs.items()}
    np.savez(scratch / "requests.npz", **packed)
    (scratch / "folders.json").write_text(json.dumps([str(folder) for folder, _, _ in requests]))
    names = ("folders.json", "requests.npz", "answers.npz")
    command = [sys.executable, __file__, consumer, *(str(scratch / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    answers: list[dict] = [{} for _ in requests]
    with np.load(scratch / "answers.npz") as file:
        for key in file.files:
            number, name = key.split("|")
            if not name.endswith("#lengths"):
                value = file[key]
                if f"{key}#lengths" in file.files:
                    lengths = file[f"{key}#lengths"]
                    value = [row[:length].tobytes() for row, length in zip(value, lengths, strict=True)]
                answers[int(number)][name] = value
    return answers


def assert_serves(models: dict, scratch: Path, consumers=("session", "capi", "cli"), seed: int = 7) -> None:
    """Hold exports to Python: consumers give the bytes of `model.sample`, in a request of 8 and in 8 of 1.

    Args:
        models: version folder -> the model that was exported to it.
        scratch: a folder that is there, for the processes' files.
        consumers: which of them to ask. "cli" is asked for the batch only: each request costs a process.
    """
    scratch = Path(scratch)
    rows = np.stack([np.full(8, seed), np.arange(8)], axis=1).astype(np.int32)
    for consumer in consumers:
        requests: list[Request] = []
        for folder, model in models.items():
            inputs = {"seed": rows}
            if model.num_classes:
                inputs["label"] = np.arange(8, dtype=np.int32) % model.num_classes
            requests.append((folder, "serving_default", inputs))
            if consumer != "cli":
                for i in range(8):
                    one = {name: value[i : i + 1] for name, value in inputs.items()}
                    requests.append((folder, "serving_default", one))
        answers = iter(ask(consumer, requests, scratch / consumer))
        for folder, model in models.items():
            condition = np.arange(8) % model.num_classes if model.num_classes else None
            expected = model.sample(8, condition=condition, seed=seed)
            batch = next(answers)
            np.testing.assert_array_equal(batch[model.example], expected, err_msg=f"{consumer} {folder}")
            if "image_bytes" in batch:
                assert [decode_png(png).tobytes() for png in batch["image_bytes"]] == [
                    image.tobytes() for image in to_uint8(expected)
                ], f"{consumer} {folder}"
            if consumer != "cli":
                singles = [next(answers) for _ in range(8)]
                for name in batch:
                    single = [one[name][0] for one in singles]
                    same = [bytes(a) == bytes(b) for a, b in zip(single, batch[name], strict=True)]
                    assert all(same), f"{consumer} {folder} {name}: rows differ between one request of 8 and 8 of 1"


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 0..255, rounded to the nearest."""
    return np.clip(np.round((images + np.float32(1.0)) * np.float32(127.5)), 0, 255).astype(np.uint8)


def decode_png(content: bytes) -> np.ndarray:
    import tensorflow as tf

    return tf.io.decode_png(content).numpy()


def ask_cli(folder, signature: str, inputs: dict, scratch: Path) -> dict:
    """The answer of `saved_model_cli run`."""
    scratch.mkdir()
    for name, value in inputs.items():
        np.save(scratch / f"{name}.npy", value)
    given = ";".join(f"{name}={scratch / name}.npy" for name in inputs)
    tool = Path(sys.executable).with_name("saved_model_cli")
    program = str(tool) if tool.exists() else shutil.which("saved_model_cli")
    command = [
        program,
        "run",
        "--dir",
        folder,
        "--tag_set",
        "serve",
        "--signature_def",
        signature,
        "--inputs",
        given,
    ]
    done = subprocess.run(
        [*map(str, command), "--outdir", str(scratch / "out"), "--overwrite"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    # the tool writes strings as pickled objects; this file was written a moment ago by ourselves
    answers = {path.stem: np.load(path, allow_pickle=True) for path in (scratch / "out").iterdir()}
    return {name: list(value) if value.dtype == object else value for name, value in answers.items()}


class Session:
    """A v1 session on the C++ SavedModel loader, as in TF Serving."""

    def __init__(self, folder: str):
        import tensorflow as tf

        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            meta = tf.compat.v1.saved_model.loader.load(self.session, ["serve"], folder)
        self.signatures = meta.signature_def

    def call(self, signature: str, inputs: dict) -> dict:
        definition = self.signatures[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        return self.session.run({name: info.name for name, info in definition.outputs.items()}, feeds)


class Output(ctypes.Structure):
    """TF_Output: an operation, and which of its outputs."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]


class CAPI:
    """The C API alone: no Python TensorFlow takes part in loading or running the model."""

    def __init__(self, folder: str):
        self.c = load_library()
        self.status = self._pointer("TF_NewStatus")
        self.graph = self._pointer("TF_NewGraph")
        options = self._pointer("TF_NewSessionOptions")
        meta = Buffer(None, 0, None)
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = self._pointer(
            "TF_LoadSessionFromSavedModel",
            ctypes.c_void_p(options), None, folder.encode(), tags, 1, ctypes.c_void_p(self.graph),
            ctypes.byref(meta), ctypes.c_void_p(self.status),
        )  # fmt: skip
        self._check()
        from tensorflow.core.protobuf import meta_graph_pb2  # the message's definition only

        content = ctypes.string_at(meta.data, meta.length)
        self.signatures = meta_graph_pb2.MetaGraphDef.FromString(content).signature_def

    def call(self, signature: str, inputs: dict) -> dict:
        definition = self.signatures[signature]
        fed = [self._output(definition.inputs[name].name) for name in inputs]
        values = [self._tensor(value, definition.inputs[name].dtype) for name, value in inputs.items()]
        names = list(definition.outputs)
        fetched = [self._output(definition.outputs[name].name) for name in names]
        results = (ctypes.c_void_p * len(names))()
        self.c.TF_SessionRun(
            ctypes.c_void_p(self.session), None,
            (Output * len(fed))(*fed), (ctypes.c_void_p * len(values))(*values), len(values),
            (Output * len(fetched))(*fetched), results, len(names), None, 0, None,
            ctypes.c_void_p(self.status),
        )  # fmt: skip
        self._check()
        return {name: self._array(results[i]) for i, name in enumerate(names)}

    def _output(self, name: str) -> Output:
        operation, _, index = name.partition(":")
        pointer = self._pointer("TF_GraphOperationByName", ctypes.c_void_p(self.graph), operation.encode())
        return Output(pointer, int(index))

    def _tensor(self, value: np.ndarray, dtype: int) -> int:
        value = np.ascontiguousarray(value, DTYPES[dtype])
        shape = (ctypes.c_int64 * value.ndim)(*value.shape)
        tensor = self._pointer("TF_AllocateTensor", dtype, shape, value.ndim, ctypes.c_size_t(value.nbytes))
        ctypes.memmove(self._pointer("TF_TensorData", ctypes.c_void_p(tensor)), value.ctypes.data, value.nbytes)
        return tensor

    def _array(self, tensor: int) -> np.ndarray:
        pointer = ctypes.c_void_p(tensor)
        self.c.TF_Dim.restype = ctypes.c_int64
        shape = [self.c.TF_Dim(pointer, i) for i in range(self.c.TF_NumDims(pointer))]
        data = self._pointer("TF_TensorData", pointer)
        dtype = self.c.TF_TensorType(pointer)
        if dtype == STRING:
            strings = [self._string(data + i * TSTRING_SIZE) for i in range(int(np.prod(shape)))]
            return np.array([*strings, None], object)[:-1].reshape(shape)
        self.c.TF_TensorByteSize.restype = ctypes.c_size_t
        content = ctypes.string_at(data, self.c.TF_TensorByteSize(pointer))
        return np.frombuffer(content, DTYPES[dtype]).reshape(shape)

    def _string(self, address: int) -> bytes:
        self.c.TF_StringGetSize.restype = ctypes.c_size_t
        size = self.c.TF_StringGetSize(ctypes.c_void_p(address))
        return ctypes.string_at(self._pointer("TF_StringGetDataPointer", ctypes.c_void_p(address)), size)

    def _pointer(self, function: str, *arguments) -> int:
        call = getattr(self.c, function)
        call.restype = ctypes.c_void_p
        return call(*arguments)

    def _check(self) -> None:
        if self.c.TF_GetCode(ctypes.c_void_p(self.status)):
            self.c.TF_Message.restype = ctypes.c_char_p
            raise RuntimeError(self.c.TF_Message(ctypes.c_void_p(self.status)).decode())


def load_library() -> ctypes.CDLL:
    import tensorflow as tf  # for its shared libraries: this one sees the other, which has part of TF_*

    return ctypes.CDLL(os.path.join(os.path.dirname(tf.__file__), "libtensorflow_cc.so.2"))


def main(consumer: str, folders: str, requests: str, answers: str) -> None:
    load_library()._ZN10tensorflow21DisableXlaCompilationEv()
    paths = json.loads(Path(folders).read_text())
    models = {path: {"session": Session, "capi": CAPI}[consumer](path) for path in set(paths)}
    asked: dict[str, tuple[str, dict]] = {}
    with np.load(requests) as file:
        for key in file.files:
            number, signature, name = key.split("|")
            asked.setdefault(number, (signature, {}))[1][name] = file[key]
    found = {}
    for number, (signature, inputs) in asked.items():
        for name, value in models[paths[int(number)]].call(signature, inputs).items():
            if value.dtype == object:
                lengths = [len(item) for item in value]
                found[f"{number}|{name}#lengths"] = np.array(lengths)
                value = np.array([list(item.ljust(max(lengths), b"\0")) for item in value], np.uint8)
            found[f"{number}|{name}"] = value
    present = [name for name in ("keras", "gentf") if sys.modules.get(name) is not None]
    if present:
        raise RuntimeError(f"{present} was imported")
    np.savez(answers, **found)


if __name__ == "__main__":
    for blocked in ("keras", "gentf"):
        sys.modules[blocked] = None  # type: ignore[assignment]  # an import of it fails
    main(*sys.argv[1:])
