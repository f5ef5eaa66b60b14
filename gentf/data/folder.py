"""Folders of image files: inspected once, corrupt files set aside, cached or streamed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from gentf.data.examples import (
    ArrayExamples,
    Examples,
    FileExamples,
    aligned_empty,
    chunk_size,
    options,
    path_tensor,
    plainly,
)
from gentf.data.image import decode
from gentf.data.listing import Listing, list_images, printable
from gentf.data.order import complete, fixed_order
from gentf.data.source import DataSource, DataSpec, Settings, build
from gentf.errors import UserError
from gentf.files import atomic_write, user_cache

_NAMED = 3  # corrupt files named in a message
_FORMAT = 1  # of the cached inspection


@dataclass
class Inspection:
    """What reading every file of a listing found.

    Args:
        shapes: (n, 3) int32 as stored; rows of zeros for files that cannot be read.
        content: hash of the bytes of all readable files.
        images: (n, H, W, C) uint8 where they were kept; rows of unreadable files are undefined.
    """

    shapes: np.ndarray
    content: str
    images: np.ndarray | None = None

    @property
    def readable(self) -> np.ndarray:
        """(n,) bool."""
        return self.shapes[:, 0] > 0


def load_folder(path: Path, settings: Settings) -> DataSource:
    """Load a folder of images; see `gentf.data.listing.list_images` for how it is laid out.

    Every file is decoded once, to find the unreadable ones and the sizes: straight into the cache where the
    images fit the bound. Beyond it what was found is remembered in the user's cache folder, for as long as
    names, sizes and times of the files stay the same.

    Raises:
        UserError: no images, too many unreadable ones, images of mixed sizes without `size`, of mixed channels
            without `channels`.
    """
    listing = list_images(path)
    prepare = settings.prepare
    first = _first_shape(listing)
    shape = prepare.shape(first)
    if len(listing.names) * int(np.prod(shape)) <= settings.cache_mb * 10**6:
        inspection = _inspect(listing, shape, settings, keep=True)
    else:
        key = _listing_key(listing)
        remembered = _recall(key, len(listing.names))
        inspection = remembered or _inspect(listing, shape, settings, keep=False)
        if remembered is None:
            _remember(key, inspection)
    readable = inspection.readable
    corrupt = [printable(name) for name, good in zip(listing.names, readable, strict=True) if not good]
    _check_corrupt(path, corrupt, len(listing.names), settings.max_corrupt_share)
    _check_shapes(listing, inspection.shapes, settings)

    examples: Examples
    if inspection.images is not None:
        examples = ArrayExamples(inspection.images, listing.labels)
    else:
        examples = FileExamples(listing.paths, listing.labels, prepare, shape)
    spec = DataSpec(str(path), shape, class_names=listing.class_names)
    parts = {split: (examples, order) for split, order in _orders(listing, readable, settings).items()}
    names = hashlib.sha256("\0".join(listing.names).encode("utf-8", "surrogateescape")).hexdigest()
    return build(spec, parts, settings, [names, inspection.content], tuple(corrupt))


def _orders(listing: Listing, readable: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """The rows of each split: by folder where it has one, else cut from train."""
    orders = {}
    for split in {"train", *listing.own}:
        rows = np.flatnonzero(readable & (listing.splits == split))
        if not len(rows):
            raise UserError(f"{listing.root} has no readable image in its split {split}")
        orders[split] = rows[fixed_order(len(rows), None if listing.labels is None else listing.labels[rows])]
    return complete(orders, settings.validation_share, settings.test_share, str(listing.root))


def _first_shape(listing: Listing) -> list[int]:
    """[H, W, C], as stored, of the first file that can be read."""
    for path in listing.paths:
        # UnicodeDecodeError: TensorFlow quotes bytes of the file in its message.
        with contextlib.suppress(tf.errors.OpError, UnicodeDecodeError):
            return tf.shape(decode(tf.io.read_file(os.fsencode(path)))).numpy().tolist()
    raise UserError(
        f"none of the {len(listing.names)} image files in {listing.root} can be read, first: "
        f"{printable(listing.names[0])}"
    )


def _inspect(listing: Listing, shape: tuple[int, ...], settings: Settings, keep: bool) -> Inspection:
    """Decode every file once, in parallel.

    A file that cannot be read raises inside the graph and is dropped there; it is known by its missing number.
    A file that does not end up with `shape` is delivered black: the caller turns it away by its stored shape.
    """
    prepare = settings.prepare

    def one(number: tf.Tensor, path: tf.Tensor) -> dict[str, tf.Tensor]:
        data = tf.io.read_file(path)
        image = decode(data)
        # The fingerprint of FarmHash: fixed by its specification, unlike the other hashes of TF.
        result = {"number": number, "shape": tf.shape(image), "hash": tf.strings.to_hash_bucket_fast(data, 2**62)}
        if keep:
            ready = prepare(image)
            fits = tf.reduce_all(tf.shape(ready) == shape)
            result["image"] = tf.ensure_shape(tf.cond(fits, lambda: ready, lambda: tf.zeros(shape, tf.uint8)), shape)
        return result

    total, paths = len(listing.names), path_tensor(listing.paths)
    images = aligned_empty((total, *shape), "uint8") if keep else None
    shapes = np.zeros((total, 3), np.int32)
    hashes = np.zeros(total, np.int64)
    files = tf.data.Dataset.range(total).map(plainly(lambda number: (number, tf.gather(paths, number))))
    read = files.map(plainly(one), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    for batch in read.batch(chunk_size(shape) if keep else 256).prefetch(2).with_options(options()):
        numbers = batch["number"].numpy()
        shapes[numbers] = batch["shape"].numpy()
        hashes[numbers] = batch["hash"].numpy()
        if images is not None:
            images[numbers] = np.asarray(memoryview(batch["image"]))
        _check_shapes(listing, shapes[: numbers[-1] + 1], settings)
        settings.tell("reading images", int(numbers[-1]) + 1, total)
    return Inspection(shapes, hashlib.sha256(hashes.astype("<i8").tobytes()).hexdigest(), images)


def _check_corrupt(path: Path, corrupt: list[str], total: int, max_share: float) -> None:
    if len(corrupt) > max_share * total:
        named = ", ".join(corrupt[:_NAMED]) + (", ..." if len(corrupt) > _NAMED else "")
        raise UserError(
            f"{len(corrupt)} of the {total} image files in {path} cannot be read, more than "
            f"data.max_corrupt_share={max_share:g} allows: {named}"
        )


def _check_shapes(listing: Listing, shapes: np.ndarray, settings: Settings) -> None:
    """Turn mixed sizes and mixed channels away, naming two files."""
    good = np.flatnonzero(shapes[:, 0] > 0)
    if not len(good):
        return
    first = shapes[good[0]]
    size_differs = (shapes[good, :2] != first[:2]).any(1) & (settings.prepare.size is None)
    channels_differ = (shapes[good, 2] != first[2]) & (settings.prepare.channels is None)
    for differs, kind, shown, advice in (
        (size_differs, "sizes (height x width)", lambda s: f"{s[0]}x{s[1]}", "Set image.size=[H,W]"),
        (channels_differ, "numbers of channels", lambda s: f"{s[2]}", "Set image.channels to 1, 3 or 4"),
    ):
        if differs.any():
            other = good[np.argmax(differs)]
            one, two = (f"{printable(listing.names[i])} has {shown(shapes[i])}" for i in (good[0], other))
            raise UserError(f"the images in {listing.root} have mixed {kind}: {one}, {two}. {advice}")


def _listing_key(listing: Listing) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {os.path.abspath(listing.root)}".encode("utf-8", "surrogateescape"))
    for name, path in zip(listing.names, listing.paths, strict=True):
        with contextlib.suppress(OSError):  # a file that cannot be looked at is found unreadable later
            state = os.stat(path)
            line = f"\0{name}\0{state.st_size}\0{state.st_mtime_ns}"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _cache_file(key: str) -> Path:
    return user_cache("inspections") / f"{key[:32]}.json"


def _remember(key: str, inspection: Inspection) -> None:
    runs = [[*map(int, shape), int(count)] for shape, count in _runs(inspection.shapes)]
    text = json.dumps({"key": key, "content": inspection.content, "shapes": runs})
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slower
        atomic_write(_cache_file(key), text)


def _runs(shapes: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Neighbouring equal rows as (row, count)."""
    starts = np.flatnonzero(np.r_[True, (shapes[1:] != shapes[:-1]).any(1)])
    yield from zip(shapes[starts], np.diff(np.r_[starts, len(shapes)]), strict=True)


def _recall(key: str, total: int) -> Inspection | None:
    """What `_remember` wrote, or None for anything that is not exactly that."""
    try:
        stored = json.loads(_cache_file(key).read_text())
        runs = np.array(stored["shapes"], dtype=np.int64).reshape(-1, 4)
        content = stored["content"]
        valid = (
            stored["key"] == key
            and isinstance(content, str)
            and (runs >= 0).all()
            and runs[:, 3].sum() == total
            and ((runs[:, :3] > 0).all(1) | (runs[:, :3] == 0).all(1)).all()
        )
        return Inspection(np.repeat(runs[:, :3], runs[:, 3], axis=0).astype(np.int32), content) if valid else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None
