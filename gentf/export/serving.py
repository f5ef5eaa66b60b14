"""What TensorFlow Serving reads beside the SavedModel: warm-up records, batching, the list of models."""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from gentf.errors import UserError
from gentf.export.saved_model import Arrays
from gentf.files import atomic_write

#: The batch sizes a server runs; a request, or several together, are filled up to the next one.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MAX_WARMUP_RECORDS = 1000  # more, and the server refuses to load the model

EXTRA = "assets.extra"
WARMUP = "tf_serving_warmup_requests"
BATCHING = "batching_params.pbtxt"
MODELS = "models.config"

MODELS_HEADER = """\
# Models for tensorflow_model_server --model_config_file. `gentf export` adds and updates entries here; these
# comments and settings made by hand are kept. base_path must be absolute, as the server sees it.
"""


def check_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes as a tuple. Raises ValueError unless they are positive and increasing."""
    sizes = tuple(batch_sizes)
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"`batch_sizes` must be positive and increasing. Received: batch_sizes={batch_sizes}")
    return sizes


def batching_params(batch_sizes: Sequence[int], ragged: bool = False) -> str:
    """`BatchingParameters` of the TF Serving batcher, in text.

    A batch waits at most a millisecond to fill up, and with a hundred batches waiting requests are turned
    away. There is a thread for each core of this machine.

    Args:
        batch_sizes: that a server runs.
        ragged: whether inputs have lengths of their own, which the server then pads with zeros.
    """
    lines = [
        "# For tensorflow_model_server --enable_batching with --enable_per_model_batching_parameters, or",
        "# --batching_parameters_file and this file's path. The warm-up has requests of each allowed size.",
        f"max_batch_size {{ value: {max(batch_sizes)} }}",
        "batch_timeout_micros { value: 1000 }",
        "max_enqueued_batches { value: 100 }",
        f"num_batch_threads {{ value: {os.cpu_count() or 1} }}",
        *(f"allowed_batch_sizes: {size}" for size in batch_sizes),
        *(["pad_variable_length_inputs: true"] if ragged else []),
    ]
    return "\n".join(lines) + "\n"


def write_warmup(
    folder: Path, name: str, signatures: Mapping[str, Callable[[int], Arrays]], batch_sizes: Sequence[int]
) -> int:
    """Write the requests that a server runs before it takes traffic: each signature at each batch size.

    Args:
        folder: the version folder.
        name: the model's, as the server knows it.
        signatures: name -> rows -> valid inputs.
        batch_sizes: rows of the requests.
    Returns:
        The number of records.
    """
    number = len(signatures) * len(batch_sizes)
    if number > MAX_WARMUP_RECORDS:
        raise ValueError(f"`batch_sizes` must leave at most {MAX_WARMUP_RECORDS} warm-up records. Received: {number}")
    (folder / EXTRA).mkdir(exist_ok=True)
    try:
        with tf.io.TFRecordWriter(str(folder / EXTRA / WARMUP)) as writer:
            for signature, examples in signatures.items():
                for rows in batch_sizes:
                    writer.write(_record(name, signature, examples(rows)))
    except tf.errors.OpError as error:
        raise OSError(f"the warm-up records could not be written: {' '.join(error.message.split())}") from error
    return number


def _record(name: str, signature: str, inputs: Arrays) -> bytes:
    """A request as the server's warm-up reads it."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    return log.SerializeToString(deterministic=True)


def read_models(path: Path) -> model_server_config_pb2.ModelServerConfig:
    """The list of models in `path`, empty if there is no such file.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig())
    except FileNotFoundError:
        return model_server_config_pb2.ModelServerConfig()
    except (text_format.ParseError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} must be a ModelServerConfig in text, so that an entry can be added ({reason})"
        ) from None


def update_models(base: Path, names: Sequence[str], labels: Mapping[str, int] | None = None) -> Path:
    """Give each model an entry in `base`/models.config, in one atomic write.

    Other entries stay as they are. Of an entry that is there already, the base path and the platform are
    set, and what was added by hand (a version policy, labels) stays.

    Args:
        base: the folder that holds the models' folders.
        names: of the models.
        labels: version labels to set, name -> version.
    Returns:
        The path of models.config.
    """
    path = base / MODELS
    with _locked(base):
        models = read_models(path)
        for name in names:
            entry = next((e for e in models.model_config_list.config if e.name == name), None)
            if entry is None:
                entry = models.model_config_list.config.add(name=name)
            entry.base_path = str((base / name).resolve())
            entry.model_platform = "tensorflow"
            for label, version in (labels or {}).items():
                entry.version_labels[label] = version
        atomic_write(path, _header(path) + text_format.MessageToString(models, as_utf8=True))
    return path


def _header(path: Path) -> str:
    """The comment lines that `path` starts with."""
    if not path.exists():
        return MODELS_HEADER
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[:end])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two exports that end at the same time write models.config one after the other."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
