"""Data sources: three splits of one kind of example, read at random, cached or streamed."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.data.examples import (
    ArrayExamples,
    Examples,
    aligned_empty,
    chunk_size,
    materialise,
    on_host,
    options,
    plainly,
)
from gentf.data.image import Preparation
from gentf.data.order import epoch_shuffle
from gentf.errors import UserError

Progress = Callable[[str, int, int], None]
SPLITS = ("train", "validation", "test")
_BINARIZE_SEED = 20080705


@dataclass(frozen=True)
class DataSpec:
    """What the examples of a data set are.

    Args:
        name: of the set: an embedded name, a builder's name, or a path.
        shape: (H, W, C) of an image; (D,) of a point; (block,) of tokens; (block, 88) of frames; (longest source,
            target) of pairs.
        dtype: "uint8" or "float32" of images and frames, "int32" of tokens.
        value_range: (0, 255) for uint8 and (-1.0, 1.0) for float32 images; of points, about where they lie; of
            tokens, the first and the last.
        class_names: one a label; empty where the set has none.
        licence: as far as it is known.
        modality: "image", "text", "music", "pairs" or "points".
        tokenizer: text and pairs: what `gentf.data.tokenizers.Tokenizer.from_dict` takes; music: {"kind": "frames",
            "chords" or "events"}; None for images.
        start: the tokens that stand before a text where no prompt is given.
        boundary: whether token 0 occurs, between texts or pieces: what is generated can then end by itself.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "uint8"
    value_range: tuple[float, float] = (0, 255)
    class_names: tuple[str, ...] = ()
    licence: str = "not stated"
    modality: str = "image"
    tokenizer: Mapping[str, Any] | None = None
    start: tuple[int, ...] = ()
    boundary: bool = False

    @property
    def vocabulary(self) -> int:
        """Number of tokens; 0 where there are none."""
        return int(self.value_range[1]) + 1 if self.dtype == "int32" else 0

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where the set has no labels."""
        return len(self.class_names)


@dataclass(frozen=True)
class Settings:
    """How a set is loaded: the arguments of `load`, checked.

    Args:
        prepare: size, channels and fit.
        cache_mb: bound on decoded images held in memory, in MB (10**6 bytes); beyond it they are streamed.
        validation_share: part of train that becomes validation where the set has none, in [0, 1).
        test_share: the same for test.
        max_corrupt_share: part of the files that may be unreadable, in [0, 1].
        progress: called with (label, done, total) now and then, or None.
        binarize: "none"; "threshold": pixels from 128 on are white; "fixed": each is white with the chance of its grey
            level, drawn once for all (Salakhutdinov & Murray, 2008, section 5.1).
        join_validation: make the validation split a part of train, and leave none: for a last run, when all is chosen.
    """

    prepare: Preparation = Preparation()
    cache_mb: float = 1024
    validation_share: float = 0.1
    test_share: float = 0.1
    max_corrupt_share: float = 0.01
    progress: Progress | None = None
    binarize: str = "none"
    join_validation: bool = False

    def __post_init__(self):
        if self.binarize not in ("none", "threshold", "fixed"):
            raise UserError(f"`binarize` must be none, threshold or fixed. Received: binarize={self.binarize!r}")
        shares = {name: getattr(self, name) for name in ("validation_share", "test_share", "max_corrupt_share")}
        for name, share in shares.items():
            high = 1.0 if name == "max_corrupt_share" else math.nextafter(1.0, 0.0)
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= high:
                raise UserError(f"`{name}` must be in [0, 1{']' if high == 1 else ')'}. Received: {name}={share!r}")
        if self.validation_share + self.test_share >= 1:
            raise UserError(
                "`validation_share` and `test_share` must leave something to train on. Received: "
                f"validation_share={self.validation_share}, test_share={self.test_share}"
            )
        if isinstance(self.cache_mb, bool) or not isinstance(self.cache_mb, (int, float)) or not self.cache_mb >= 0:
            raise UserError(f"`cache_mb` must not be negative. Received: cache_mb={self.cache_mb!r}")

    def tell(self, label: str, done: int, total: int) -> None:
        """Report progress, if anyone listens."""
        if self.progress is not None:
            self.progress(label, done, total)


class Split:
    """One part of a data set, in a fixed order that was shuffled once.

    Args:
        name: "train", "validation" or "test".
        examples: the store.
        order: (n,) int64, the rows of the store in the split's order.
    """

    def __init__(self, name: str, examples: Examples, order: np.ndarray):
        self.name = name
        self._examples = examples
        self._order = np.asarray(order, np.int64)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def labelled(self) -> bool:
        """Whether elements hold a "label"."""
        return self._examples.labelled

    def steps(self, batch_size: int) -> int:
        """Full batches in an epoch.

        Raises:
            UserError: the split has less than one batch.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise UserError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
        if batch_size > len(self):
            raise UserError(
                f"`batch_size` must be at most the number of examples in the {self.name} split, {len(self)}. "
                f"Received: batch_size={batch_size}"
            )
        return len(self) // int(batch_size)

    def arrays(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """The first `limit` examples (all by default) in the split's order.

        Returns:
            images (n, H, W, C) in the set's dtype, and labels (n,) int32 or None.
        """
        if limit is not None and limit < 0:
            raise UserError(f"`limit` must not be negative. Received: limit={limit}")
        rows = self._order[:limit]
        store = self._examples
        if isinstance(store, ArrayExamples) and store.plain:
            return store.images[rows], None if store.labels is None else store.labels[rows]
        images = np.empty((len(rows), *store.shape), store.dtype)
        labels = np.empty(len(rows), np.int32) if store.labelled else None
        done = 0
        for batch in self._fixed(rows, chunk_size(store.shape, store.dtype)):
            part = slice(done, done + len(batch["image"]))
            images[part] = np.asarray(memoryview(batch["image"]))
            if labels is not None:
                labels[part] = batch["label"].numpy()
            done = part.stop
        return images, labels

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """The split once, in its order; the last batch may be smaller."""
        if batch_size < 1:
            raise UserError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
        return self._fixed(self._order, batch_size)

    def stream(self, batch_size: int, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """Batches without end, shuffled anew every epoch; the batch of a step depends on `(seed, step)` alone.

        An epoch is `steps(batch_size)` full batches of distinct examples; the remainder, different in each
        epoch, is dropped. Starting at any step costs nothing: what comes before is not read.

        Args:
            batch_size: B.
            seed: any integer.
            start_step: the first step delivered, >= 0.
        Returns:
            elements {"image": (B, H, W, C), "label": int32 (B,) where labelled}; for sequences see
            `gentf.data.sequences`.
        """
        if start_step < 0:
            raise UserError(f"`start_step` must not be negative. Received: start_step={start_step}")
        rows = self.rows(batch_size, seed)
        steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
        indices = steps.map(plainly(lambda step: rows(step, 1)[0]))
        return _finished(self._examples.batches(indices, batch_size, drop_remainder=True))

    def rows(self, batch_size: int, seed: int) -> Callable[[tf.Tensor, int | tf.Tensor], tf.Tensor]:
        """Which examples `stream` delivers.

        Returns:
            (step () int64, count) -> (count, B) int64 rows of the store, and of `resident`, for `count` steps of one
            epoch from `step` on.
        """
        steps, seed, size = self.steps(batch_size), int(seed), len(self)
        order = on_host(self._order)
        wrapped = (seed + 2**63) % 2**64 - 2**63

        def rows(step: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
            positions = (step % steps) * batch_size + tf.range(tf.cast(count, tf.int64) * batch_size)
            numbers = tf.gather(order, epoch_shuffle(positions, seed, step // steps, size))
            key = tf.stack([tf.constant(wrapped, tf.int64), tf.cast(step // steps, tf.int64)])
            return tf.reshape(self._examples.place(numbers, key), (-1, batch_size))

        return rows

    def resident(self) -> dict[str, tf.Tensor] | None:
        """The whole store as tensors, from which `select` takes batches, if it is in memory; else None."""
        return self._examples.resident

    def select(self, tensors: dict[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """The batch at `rows` (B,) of `resident`; for use inside a compiled step."""
        return self._examples.select(tensors, rows)

    def contents(self) -> dict[str, np.ndarray]:
        """Sequences: the arrays of the split, see `gentf.data.sequences`; of windows the stream that they lie in."""
        tensors = self._examples.resident or {}
        if "stream" in tensors:
            return {"stream": tensors["stream"].numpy()}
        return {name: values.numpy()[self._order] for name, values in tensors.items()}

    def _fixed(self, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        rows = self._examples.place(on_host(rows))
        indices = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
        return _finished(self._examples.batches(indices, batch_size, drop_remainder=False))


def _finished(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options())


class DataSource:
    """Three splits and what they hold.

    Args:
        spec: what the examples are.
        splits: "train", "validation" and "test" -> Split.
        corrupt: names of the files that could not be read and were left out.
        fingerprint: hexadecimal; equal for equal data, splits and preparation.
        cached: whether the images are held in memory.
    """

    def __init__(
        self, spec: DataSpec, splits: Mapping[str, Split], corrupt: tuple[str, ...], fingerprint: str, cached: bool
    ):
        self.spec = spec
        self.train, self.validation, self.test = (splits[name] for name in SPLITS)
        self.corrupt = corrupt
        self.fingerprint = fingerprint
        self.cached = cached

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {split.name: split for split in (self.train, self.validation, self.test)}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(split)}" for name, split in self.splits.items())
        return f"DataSource({self.spec.name!r}, shape={self.spec.shape}, {sizes})"


def build(
    spec: DataSpec,
    parts: Mapping[str, tuple[Examples, np.ndarray]],
    settings: Settings,
    identity: object,
    corrupt: tuple[str, ...] = (),
) -> DataSource:
    """Put a source together from stores and orders, reading the stores into memory where they fit.

    Args:
        spec: what the examples are.
        parts: split name -> (store, rows of it in the split's order); splits may share a store.
        settings: as given to `load`.
        identity: JSON-serialisable value that tells these data from all others.
        corrupt: names of files left out.
    """
    stores = {id(store): store for store, _ in parts.values()}
    cached = sum(store.nbytes for store in stores.values()) <= settings.cache_mb * 10**6
    if cached:
        total, before = sum(store.size for store in stores.values()), 0

        def tell(before: int, done: int) -> None:
            settings.tell("reading images", before + done, total)

        for key, store in stores.items():
            if not (isinstance(store, ArrayExamples) and store.plain):
                stores[key] = materialise(store, partial(tell, before))
            before += store.size
    if settings.binarize != "none":
        if not cached or spec.dtype != "uint8":
            raise UserError(
                f"`binarize` must be none for images that are not uint8 in memory (cache_mb). Received: {spec.dtype} "
                f"images{'' if cached else ', streamed'}"
            )
        stores = {key: _binarized(store, settings.binarize) for key, store in stores.items()}
    read = {name: (stores[id(store)], order) for name, (store, order) in parts.items()}
    if settings.join_validation:
        read["train"] = _joined(read["train"], read["validation"])
        read["validation"] = (read["validation"][0], read["validation"][1][:0])
    splits = {name: Split(name, *part) for name, part in read.items()}
    prepare = settings.prepare
    about = [spec.name, spec.shape, spec.dtype, spec.class_names, prepare.size, prepare.channels, prepare.fit, identity]
    about += [settings.binarize] if settings.binarize != "none" else []
    about += ["joined"] if settings.join_validation else []
    digest = hashlib.sha256(json.dumps(about).encode())
    for name in SPLITS:
        order = parts[name][1]
        digest.update(f"{name} {len(order)} ".encode() + order.astype("<i8").tobytes())
    return DataSource(spec, splits, corrupt, digest.hexdigest(), cached)


def of_stores(spec: DataSpec, stores: Mapping[str, Examples], none: Examples) -> DataSource:
    """A source of whole stores; a split without one is empty."""
    digest = hashlib.sha256(json.dumps([spec.name, spec.shape, spec.tokenizer]).encode())
    splits = {}
    for name in SPLITS:
        store = stores.get(name, none)
        splits[name] = Split(name, store, np.arange(store.size if name in stores else 0))
        for key, values in (store.resident or {}).items() if name in stores else ():
            digest.update(f"{name} {key} {values.shape} ".encode() + values.numpy().tobytes())
    return DataSource(spec, splits, (), digest.hexdigest(), cached=True)


def _joined(first: tuple[Examples, np.ndarray], second: tuple[Examples, np.ndarray]) -> tuple[Examples, np.ndarray]:
    """Two splits, each a store and rows of it, as one."""
    (one, rows), (other, more) = first, second
    if one is other:
        return one, np.concatenate([rows, more])
    if not (isinstance(one, ArrayExamples) and isinstance(other, ArrayExamples) and one.plain and other.plain):
        raise UserError(
            "`join_validation` must be false for splits that are streamed each by itself (cache_mb). Received: true"
        )
    images = aligned_empty((len(rows) + len(more), *one.images.shape[1:]), one.dtype)
    images[: len(rows)], images[len(rows) :] = one.images[rows], other.images[more]
    labels = None
    if one.labels is not None and other.labels is not None:
        labels = np.concatenate([one.labels[rows], other.labels[more]])
    return ArrayExamples(images, labels), np.arange(len(images))


def _binarized(store: Examples, how: str) -> ArrayExamples:
    """Pixels of 0 and 255 in place of grey levels, by the store's own order."""
    assert isinstance(store, ArrayExamples)
    images = aligned_empty(store.images.shape, "uint8")
    random = np.random.RandomState(_BINARIZE_SEED)
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        grey = store.images[part]
        bound = 127.5 if how == "threshold" else random.random_sample(grey.shape) * 255.0
        images[part] = np.where(grey > bound, 255, 0)
    return ArrayExamples(images, store.labels)
