"""Stores of examples with random access by index, as TF ops in a tf.data graph.

A store answers `batches(indices, ...)`: a dataset of index vectors in, a dataset of batches out. What it
reads for one index never depends on the others, so any order, and any starting point, costs the same.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from gentf.data.image import decode
from gentf.errors import UserError

Element = dict[str, tf.Tensor]
_OPEN_SHARDS = 128
_ALIGNMENT = 64  # bytes; what Eigen asks for with AVX-512, and enough for all others


class Examples:
    """Base of the stores.

    A store gathers a batch of raw tensors at once (`gather`) and, where `finish` is set, completes them one
    by one in parallel (decoding, resizing).

    Args:
        size: number of examples.
        shape: (H, W, C) of the images it delivers.
        dtype: "uint8" or "float32".
        labelled: whether elements hold a "label".
        finish: raw element -> {"image", "label"?} of one example, or None where `gather` is all there is.
    """

    def __init__(self, size: int, shape: Sequence[int], dtype: str, labelled: bool, finish: Callable | None):
        self.size = size
        self.shape = tuple(shape)
        self.dtype = dtype
        self.labelled = labelled
        self._finish = finish

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return self.size * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def resident(self) -> Element | None:
        """The whole store as tensors, from which `select` takes batches, if it is in memory as it is delivered."""
        return None

    def select(self, tensors: Element, rows: tf.Tensor) -> Element:
        """The batch at `rows` (B,) of `resident`; for use inside a compiled step."""
        return {name: tf.gather(values, rows) for name, values in tensors.items()}

    def place(self, indices: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        """The rows, as `gather` and `select` take them, of examples by number.

        Args:
            indices: (n,) int64.
            key: (2,) int64 that is another one in each epoch; None for the examples as they stand.
        """
        return indices

    def gather(self, indices: tf.Tensor) -> Element:
        """(B,) int64 rows -> raw tensors with leading dimension B."""
        raise NotImplementedError

    def batches(self, indices: tf.data.Dataset, batch_size: int, drop_remainder: bool) -> tf.data.Dataset:
        """Batches for a dataset of index vectors of `batch_size` (the last may be shorter)."""
        raw = indices.map(plainly(self.gather))
        finish = self._finish
        if finish is None:
            return raw

        def one(element: Element) -> Element:
            done = finish(element)
            result = {"image": tf.ensure_shape(done["image"], self.shape)}
            if self.labelled:
                result["label"] = tf.ensure_shape(tf.cast(done["label"], tf.int32), ())
            return result

        single = raw.prefetch(2).unbatch()
        finished = single.map(plainly(one), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return finished.batch(batch_size, drop_remainder=drop_remainder)


class ArrayExamples(Examples):
    """Arrays in memory.

    Args:
        images: (n, H, W, C) uint8 or float32, from `aligned_empty`: TensorFlow shares its memory.
        labels: (n,) int32, or None.
        prepare: image -> image, applied at each reading; None where the images are delivered as they are.
        shape: (H, W, C) after `prepare`.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        prepare: Callable | None = None,
        shape: Sequence[int] | None = None,
    ):
        finish = None if prepare is None else (lambda element: {**element, "image": prepare(element["image"])})
        super().__init__(len(images), shape or images.shape[1:], images.dtype.name, labels is not None, finish)
        self.images = images
        self.labels = labels
        if images.ctypes.data % _ALIGNMENT:  # TensorFlow would stop the process, not raise
            raise ValueError(f"`images` must be aligned to {_ALIGNMENT} bytes. Received: {images.ctypes.data:#x}")
        self._images = tf.experimental.dlpack.from_dlpack(images.__dlpack__())  # any other way copies, some twice
        self._labels = None if labels is None else on_host(labels)

    @property
    def plain(self) -> bool:
        """Whether `images` are what is delivered."""
        return self._finish is None

    @property
    def tensors(self) -> Element:
        """The arrays as TensorFlow holds them."""
        return {"image": self._images} | ({"label": self._labels} if self.labelled else {})

    @property
    def resident(self) -> Element | None:
        return self.tensors if self.plain else None

    def gather(self, indices: tf.Tensor) -> Element:
        return self.select(self.tensors, indices)


class Rows(Examples):
    """Rows of several arrays. Args: arrays: name -> (n, ...)."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        first = next(iter(arrays.values()))
        super().__init__(len(first), first.shape[1:], first.dtype.name, "label" in arrays, None)
        self._tensors = {name: on_host(values) for name, values in arrays.items()}

    @property
    def resident(self) -> Element:
        return self._tensors

    def gather(self, indices: tf.Tensor) -> Element:
        return self.select(self._tensors, indices)


class MappedExamples(Examples):
    """Images in a file mapped into memory, for arrays beyond the cache bound.

    Args: as ArrayExamples; `images` is a numpy.memmap.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, prepare: Callable | None, shape: Sequence[int]):
        finish = None if prepare is None else (lambda element: {**element, "image": prepare(element["image"])})
        super().__init__(len(images), shape, images.dtype.name, labels is not None, finish)
        self._rows = images
        self._labels = None if labels is None else on_host(labels)

    def gather(self, indices: tf.Tensor) -> Element:
        images = tf.numpy_function(lambda rows: np.asarray(self._rows[rows]), [indices], self.dtype)
        result = {"image": tf.ensure_shape(images, (*indices.shape, *self._rows.shape[1:]))}
        if self.labelled:
            result["label"] = tf.gather(self._labels, indices)
        return result


class FileExamples(Examples):
    """Image files, read and decoded when asked for.

    Args:
        paths: one absolute path a file.
        labels: (n,) int32, or None.
        prepare: decoded image -> image of `shape`.
        shape: (H, W, C) of every image after `prepare`.
    """

    def __init__(self, paths: Sequence[str], labels: np.ndarray | None, prepare: Callable, shape: Sequence[int]):
        def finish(element: Element) -> Element:
            return {**element, "image": prepare(decode(tf.io.read_file(element["path"])))}

        super().__init__(len(paths), shape, "uint8", labels is not None, finish)
        self._paths = path_tensor(paths)
        self._labels = None if labels is None else on_host(labels)

    def gather(self, indices: tf.Tensor) -> Element:
        result = {"path": tf.gather(self._paths, indices)}
        if self.labelled:
            result["label"] = tf.gather(self._labels, indices)
        return result


def on_host(values: np.ndarray) -> tf.Tensor:
    """A tensor in the host's memory, whatever devices there are."""
    with tf.device("CPU:0"):  # where tf.data uses it
        return tf.constant(values)


def plainly(function: Callable) -> Callable:
    """Keep AutoGraph off a function that needs no rewriting: it takes longer than the tracing itself."""
    return tf.autograph.experimental.do_not_convert(function)


def options() -> tf.data.Options:
    """Of every pipeline here."""
    chosen = tf.data.Options()
    chosen.deterministic = True
    # Rewriting the graph would copy what it captures, the cached images first of all.
    chosen.experimental_optimization.apply_default_optimizations = False
    # There are no files to deal out among workers: batches are, each to one worker.
    chosen.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return chosen


def path_tensor(paths: Sequence[str]) -> tf.Tensor:
    """(n,) string tensor of paths, in the bytes the file system knows them by."""
    with tf.device("CPU:0"):
        return tf.constant([os.fsencode(path) for path in paths], tf.string, shape=(len(paths),))


@dataclass(frozen=True)
class Records:
    """Where the records of some TFRecord files lie. Arrays are (n,) int64; `shard` indexes `paths`."""

    paths: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray


class RecordExamples(Examples):
    """Records of TFRecord files, read at their offsets.

    Args:
        records: from `scan_records`.
        deserialize: serialized record -> {"image", "label"?}.
        prepare: image -> image of `shape`.
        shape: (H, W, C) of every image after `prepare`.
        labelled: whether `deserialize` gives a label.
    """

    def __init__(
        self, records: Records, deserialize: Callable, prepare: Callable, shape: Sequence[int], labelled: bool
    ):
        def finish(element: Element) -> Element:
            example = deserialize(element["record"])
            return {**example, "image": prepare(example["image"])}

        super().__init__(len(records.offset), shape, "uint8", labelled, finish)
        self._records = records
        self._descriptors: dict[str, int] = {}

    def __del__(self):
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def gather(self, indices: tf.Tensor) -> Element:
        data = tf.numpy_function(self._read, [indices], tf.string)
        return {"record": tf.ensure_shape(data, indices.shape)}

    def _read(self, indices: np.ndarray) -> np.ndarray:
        records = self._records
        shards, offsets, lengths = (a[indices].tolist() for a in (records.shard, records.offset, records.length))
        rows = [self._read_at(records.paths[s], o, n) for s, o, n in zip(shards, offsets, lengths, strict=True)]
        return np.array(rows, dtype=object)

    def _read_at(self, path: str, offset: int, length: int) -> bytes:
        if len(self._records.paths) > _OPEN_SHARDS:  # stay far from the limit on open files
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        else:
            if path not in self._descriptors:
                opened = os.open(path, os.O_RDONLY)
                if self._descriptors.setdefault(path, opened) != opened:  # another thread was first
                    os.close(opened)
            data = os.pread(self._descriptors[path], length, offset)
        if len(data) != length:
            raise OSError(f"{path} ends early: {length} bytes expected at {offset}, {len(data)} read")
        return data


def scan_records(paths: Sequence[str], counts: Sequence[int]) -> Records:
    """Find the records of TFRecord files from their framing alone, without reading what they hold.

    A record is: length (uint64, little-endian), 4 bytes of checksum, the data, 4 bytes of checksum.

    Args:
        paths: the files.
        counts: how many records each must have.
    Raises:
        UserError: a file is missing, cut short, or has another number of records.
    """
    shards, offsets, lengths = [], [], []
    for number, (path, count) in enumerate(zip(paths, counts, strict=True)):
        try:
            with open(path, "rb") as file:
                file.seek(0, os.SEEK_END)
                end, at = file.tell(), 0
                found = 0
                while at < end:
                    file.seek(at)
                    header = file.read(8)
                    length = int.from_bytes(header, "little")
                    if len(header) < 8 or at + 16 + length > end:
                        raise UserError(f"{path} is damaged or cut short at byte {at}: prepare the data set again")
                    offsets.append(at + 12)
                    lengths.append(length)
                    at += 16 + length
                    found += 1
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        if found != count:
            raise UserError(f"{path} is damaged: it must have {count} records, it has {found}")
        shards.append(np.full(found, number, np.int64))
    return Records(tuple(paths), np.concatenate(shards), np.array(offsets, np.int64), np.array(lengths, np.int64))


def aligned_empty(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An uninitialised array whose buffer TensorFlow can share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def chunk_size(shape: Sequence[int], dtype: str = "uint8") -> int:
    """Images to read at once when going through a whole set: up to 256, and about 8 MiB."""
    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return int(np.clip(2**23 // size, 1, 256))


def materialise(examples: Examples, progress: Callable[[int], None] | None = None) -> ArrayExamples:
    """Read a whole store once into arrays, in its own order.

    Args:
        examples: the store.
        progress: called with the number of images read so far.
    """
    images = aligned_empty((examples.size, *examples.shape), examples.dtype)
    labels = np.empty(examples.size, np.int32) if examples.labelled else None
    chunk = chunk_size(examples.shape, examples.dtype)
    indices = tf.data.Dataset.range(examples.size).batch(chunk)
    done = 0
    for batch in examples.batches(indices, chunk, drop_remainder=False).prefetch(2).with_options(options()):
        rows = slice(done, done + len(batch["image"]))
        images[rows] = np.asarray(memoryview(batch["image"]))
        if labels is not None:
            labels[rows] = batch["label"].numpy()
        done = rows.stop
        if progress is not None:
            progress(done)
    return ArrayExamples(images, labels)
