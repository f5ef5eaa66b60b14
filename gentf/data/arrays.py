"""Images held in arrays: given from Python, or in an .npz file."""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from gentf.data.examples import ArrayExamples, MappedExamples, aligned_empty
from gentf.data.order import complete, cut, fixed_order
from gentf.data.source import SPLITS, DataSource, DataSpec, Settings, build
from gentf.errors import UserError

_MAX_CLASSES = 100_000
_CHUNK_BYTES = 2**25


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    class_names: Sequence[str] = (),
    name: str = "arrays",
    licence: str = "not stated",
    settings: Settings | None = None,
) -> DataSource:
    """A source over arrays: checked, split by the shares, classes in equal proportions in each split.

    Args:
        images: (n, H, W) or (n, H, W, C) with C one of 1, 3, 4; uint8 in 0..255 or floating in [-1, 1].
        labels: (n,) integers >= 0, or None.
        class_names: one a class; "0", "1", ... by default.
        name: of the set.
        licence: of the set.
        settings: sizes, channels, shares; the defaults of `load` if None.
    Raises:
        UserError: an array of the wrong shape, type or range; the message names it.
    """
    images = np.asarray(images)
    checked = _check_images(images, name)
    if np.may_share_memory(checked, images):
        aligned = aligned_empty(checked.shape, checked.dtype.name)
        aligned[...] = checked
        checked = aligned
    return _source(checked, labels, class_names, name, licence, settings or Settings())


def _source(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: Sequence[str],
    name: str,
    licence: str,
    settings: Settings,
) -> DataSource:
    """A source over checked images, aligned or mapped, that are not copied again."""
    if labels is not None:
        labels = _check_labels(np.asarray(labels), len(images), name)
        class_names = tuple(class_names) or tuple(str(n) for n in range(int(labels.max()) + 1))
        if labels.max() >= len(class_names):
            raise UserError(
                f"`label` of {name} must be below the number of class names, {len(class_names)}. "
                f"Received: {labels.max()}"
            )
    stored, prepare = images.shape[1:], settings.prepare
    shape = prepare.shape(stored)
    change = prepare if prepare.changes(stored) else None
    kind = MappedExamples if isinstance(images, np.memmap) else ArrayExamples
    store = kind(images, labels, change, shape)
    value_range = (0, 255) if images.dtype == np.uint8 else (-1.0, 1.0)
    spec = DataSpec(name, shape, images.dtype.name, value_range, tuple(class_names), licence)
    orders = cut(fixed_order(len(images), labels), settings.validation_share, settings.test_share, name)
    parts = {split: (store, order) for split, order in zip(SPLITS, orders, strict=True)}
    return build(spec, parts, settings, _content_hash(images, labels))


def load_npz(path: Path, settings: Settings) -> DataSource:
    """Load an .npz file with `image` and, where there are labels, `label`, as `from_arrays` takes them.

    A file with `train`, and `validation` (or `valid`) and `test` where there are such, has its own splits: images as
    above, or (n, D) with D a square number, uint8; where no value is above 1 they are black and white.

    Arrays beyond the cache bound are streamed from the file, which must then be uncompressed
    (`numpy.savez`). Nothing in the file is unpickled.

    Raises:
        UserError: no such file, no such array in it, a damaged file, or values as `from_arrays` says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "train" in names and "image" not in names:
                return _load_splits(archive, names, path, settings)
            if "image" not in names:
                raise UserError(f"{path} must hold an array `image`. Received: {', '.join(names) or 'no array'}")
            images, labels = _image_member(archive, path, settings.cache_mb), None
            if "label" in names:
                with archive.open("label.npy") as file:
                    labels = np.lib.format.read_array(file, allow_pickle=False)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {path}: {reason}") from error
    return _source(_check_images(images, str(path)), labels, (), str(path), "not stated", settings)


def _load_splits(archive: zipfile.ZipFile, names: list[str], path: Path, settings: Settings) -> DataSource:
    """A source of images with splits of their own, in the file's order."""
    found = {}
    for split, keys in (("train", ("train",)), ("validation", ("validation", "valid")), ("test", ("test",))):
        for key in keys:
            if key in names and split not in found:
                with archive.open(f"{key}.npy") as file:
                    images = np.lib.format.read_array(file, allow_pickle=False)
                side = round(images.shape[1] ** 0.5) if images.ndim == 2 else 0
                if side and side * side == images.shape[1]:
                    images = images.reshape(-1, side, side)
                if images.dtype == bool or (
                    images.dtype.kind in "iu" and images.size and 0 <= images.min() <= images.max() <= 1
                ):
                    images = images.astype(np.uint8) * np.uint8(255)
                checked = _check_images(images, f"`{key}` of {path}")
                found[split] = aligned_empty(checked.shape, checked.dtype.name)
                found[split][...] = checked
    if len({(images.shape[1:], images.dtype) for images in found.values()}) > 1:
        raise UserError(f"the splits of {path} must have images of one shape and dtype. Received: several")
    stored, prepare = found["train"].shape[1:], settings.prepare
    shape = prepare.shape(stored)
    change = prepare if prepare.changes(stored) else None
    stores = {split: ArrayExamples(images, None, change, shape) for split, images in found.items()}
    kept = {split: np.arange(len(images)) for split, images in found.items()}
    orders = complete(kept, settings.validation_share, settings.test_share, str(path))
    dtype = found["train"].dtype.name
    spec = DataSpec(str(path), shape, dtype, (0, 255) if dtype == "uint8" else (-1.0, 1.0))
    parts = {split: (stores.get(split, stores["train"]), orders[split]) for split in SPLITS}
    return build(spec, parts, settings, [_content_hash(images, None) for images in found.values()])


def _image_member(archive: zipfile.ZipFile, path: Path, cache_mb: float) -> np.ndarray:
    """The array `image` of the archive: read where it fits the bound, mapped where it does not."""
    info = archive.getinfo("image.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise UserError(f"`image` of {path} is stored in .npy version {version}: save it with numpy.savez")
        shape, fortran, dtype = headers[version](file)
        if dtype.kind not in "biufc" or not dtype.isnative:
            raise UserError(f"`image` of {path} must be uint8, or float in [-1, 1]. Received: dtype={dtype}")
        header, size = file.tell(), int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if header + size != info.file_size:
            raise UserError(f"cannot read {path}: `image` holds {info.file_size - header} bytes, {size} expected")
        if size <= cache_mb * 10**6:
            array = aligned_empty(shape, dtype.name)
            rows, done = array.reshape(-1).view(np.uint8), 0
            while done < size:  # the archive checks the CRC when it reaches the end
                part = file.read(min(size - done, _CHUNK_BYTES)) or _cut_short(path)
                rows[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
            if fortran:
                columns, array = array.reshape(-1), aligned_empty(shape, dtype.name)
                array[...] = columns.reshape(shape, order="F")
            return array
    if info.compress_type != zipfile.ZIP_STORED or fortran:
        raise UserError(
            f"`image` of {path} takes {size / 1e6:.0f} MB, more than cache_mb={cache_mb:g}, and is "
            f"{'in Fortran order' if fortran else 'compressed'}: raise data.cache_mb, or save it in C order with "
            "numpy.savez, which can be streamed"
        )
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # in the member's own header: lengths of its name and its extras
        lengths = file.read(4)
    start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    if start + header + size > path.stat().st_size:
        _cut_short(path)
    return np.memmap(path, dtype, "r", start + header, shape)


def _cut_short(path: Path) -> NoReturn:
    raise UserError(f"cannot read {path}: the file is cut short")


def _check_images(images: np.ndarray, name: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise UserError(
            f"`image` of {name} must have shape (n, H, W) or (n, H, W, C), n, H, W > 0 and C one of 1, 3, 4. "
            f"Received: shape={images.shape}"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f" or images.dtype.itemsize > 8:
        raise UserError(f"`image` of {name} must be uint8, or float in [-1, 1]. Received: dtype={images.dtype}")
    if isinstance(images, np.memmap) and images.dtype != np.float32:
        raise UserError(f"`image` of {name} must be uint8 or float32 to be streamed. Received: dtype={images.dtype}")
    bad = sum(int((~((rows >= -1) & (rows <= 1))).sum()) for rows in _chunks(images))
    if bad:
        missing = sum(int((~np.isfinite(rows)).sum()) for rows in _chunks(images))
        raise UserError(
            f"`image` of {name} must be float in [-1, 1] or uint8. Received: {bad} values outside, {missing} of them "
            "NaN or infinite"
        )
    if images.dtype == np.float32:
        return images
    narrow = aligned_empty(images.shape, "float32")
    narrow[...] = images
    return narrow


def _check_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"`label` of {name} must be integers of shape ({count},), one an image. "
            f"Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    bad = int(((labels < 0) | (labels >= _MAX_CLASSES)).sum())
    if bad:
        raise UserError(f"`label` of {name} must be in 0..{_MAX_CLASSES - 1}. Received: {bad} values outside")
    return labels.astype(np.int32)


def _chunks(images: np.ndarray):
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    return (images[start : start + step] for start in range(0, len(images), step))


def _content_hash(images: np.ndarray, labels: np.ndarray | None) -> str:
    digest = hashlib.sha256(repr((images.shape, images.dtype.name)).encode())
    for rows in _chunks(images):
        digest.update(np.ascontiguousarray(rows).data)
    if labels is not None:
        digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()
