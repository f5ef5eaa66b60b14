"""`load`: one way in for embedded sets, TFDS builders, files and folders, of every modality."""

import contextlib
import inspect
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gentf.data import listing, points, sequences, stacked, text
from gentf.data.arrays import load_npz
from gentf.data.builders import builder_names, load_builder, prepared_folder
from gentf.data.embedded import EMBEDDED, load_embedded
from gentf.data.folder import load_folder
from gentf.data.image import Preparation
from gentf.data.names import find
from gentf.data.source import DataSource, Progress, Settings
from gentf.errors import UserError

MIDI = (".mid", ".midi")


def load(name_or_path: str | os.PathLike, *, modality: str = "image", **options: Any) -> DataSource:
    """Load a set as three splits.

    Args:
        name_or_path: see the modality's own function.
        modality: "image" (`load_images`), "text" (`gentf.data.sequences.load_text`), "music" (`load_music`), "pairs"
            (`load_pairs`) or "points" (`gentf.data.points.load_points`).
        options: arguments of that function. Those of `load_images` about caching and corrupt files, and `progress`, are
            accepted for every modality.
    Raises:
        UserError: anything about the arguments or the data that the user can put right, in one line.
    """
    loaders: dict[str, Callable[..., DataSource]] = {
        "image": load_images,
        "text": sequences.load_text,
        "music": sequences.load_music,
        "pairs": sequences.load_pairs,
        "points": points.load_points,
    }
    if modality not in loaders:
        raise UserError(f"`modality` must be one of {', '.join(loaders)}. Received: modality={modality!r}")
    loader = loaders[modality]
    known = inspect.signature(loader).parameters
    general = {"cache_mb", "max_corrupt_share", "progress"}
    general |= {"pairs": {"documents", "block"}, "points": {"validation_share", "test_share"}}.get(modality, set())
    unknown = set(options) - set(known) - general
    if unknown:
        accepted = ", ".join(list(known)[1:]) or "none"
        raise UserError(f"`{sorted(unknown)[0]}` is no option of modality {modality}. It has: {accepted}")
    return loader(name_or_path, **{name: value for name, value in options.items() if name in known})


def modality_of(name_or_path: str | os.PathLike) -> str:
    """The modality that a set most likely has, from its name and what lies there; nothing is loaded or downloaded.

    An embedded set has its own. A prepared TFDS builder with a text feature and no image is text. Of files the ending
    decides: .mid, .midi, .mat and .json are music, .tsv pairs, other text files text; an .npz file is music if it holds
    `train_length`. In a folder the first ending of pictures, MIDI or text that occurs decides, in that order. All else
    is taken for images.

    Returns:
        "image", "text", "music", "pairs" or "points".
    """
    name = os.fspath(name_or_path)
    if name in text.EMBEDDED:
        return "text"
    if name in sequences.EMBEDDED:
        return "music" if name == "chorales" else "pairs"
    if name in points.EMBEDDED:
        return "points"
    if name in EMBEDDED:
        return "image"
    by_name = not name.startswith((".", "/", "~"))
    if by_name and (re.split("[/:]", name)[0] in builder_names() or prepared_folder(name)):
        return "text" if _holds_text(name) else "image"
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        for modality, suffixes in (("image", listing.SUFFIXES), ("music", MIDI), ("text", text.SUFFIXES)):
            if next(listing.walk(path, suffixes), None) is not None:
                return modality
    elif suffix == ".npz":
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return "music" if "train_length.npy" in archive.namelist() else "image"
    elif suffix in (*MIDI, ".mat", ".json"):
        return "music"
    elif suffix in text.SUFFIXES:
        return "pairs" if suffix == ".tsv" else "text"
    return "image"


def _holds_text(name: str) -> bool:
    """Whether a prepared TFDS builder has text and no images."""
    folder = prepared_folder(name)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"] if folder else {}
        texts = [feature for feature in features.values() if feature["pythonClassName"].endswith(".Text")]
        return bool(texts) and "image" not in features
    return False


def load_images(
    name_or_path: str | os.PathLike,
    *,
    size: Sequence[int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    cache_mb: float = 1024,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    max_corrupt_share: float = 0.01,
    progress: Progress | None = None,
    binarize: str = "none",
    join_validation: bool = False,
) -> DataSource:
    """Load images as three splits, cached in memory where they fit and streamed where they do not.

    Args:
        name_or_path: an embedded set ("digits"), a TFDS image builder ("mnist", "name/config:version"), "stacked-mnist"
            (`gentf.data.stacked`), a folder
            of PNG, JPEG, BMP or GIF files, or an .npz file. A single word is a name before it is a path.
        size: (H, W) to resize to, in pixels; None keeps the size.
        channels: 1, 3 or 4; None keeps them.
        fit: "crop" or "stretch"; see `gentf.data.image.Preparation`.
        cache_mb: bound on decoded images held in memory, in MB (10**6 bytes).
        validation_share: part of train cut off for validation where the set has none of its own.
        test_share: the same for test.
        max_corrupt_share: part of a folder's files that may be unreadable before it is an error.
        progress: called with (label, done, total) now and then.
        binarize: "none", "threshold" or "fixed"; see `gentf.data.source.Settings`.
        join_validation: make the validation split a part of train.
    Raises:
        UserError: anything about the arguments or the data that the user can put right, in one line.
    """
    settings = Settings(
        Preparation(size, channels, fit), cache_mb, validation_share, test_share, max_corrupt_share, progress,
        binarize, join_validation,
    )  # fmt: skip
    if name_or_path == stacked.NAME:
        return stacked.load_stacked(settings)
    name, path = find(name_or_path, EMBEDDED, (".npz", ".zip"), "data set")
    if path is not None:
        return _load_path(path, settings)
    return load_embedded(name, settings) if name in EMBEDDED else load_builder(name, settings)


def _load_path(path: Path, settings: Settings) -> DataSource:
    if path.is_dir():
        return load_folder(path, settings)
    if not path.exists():
        raise UserError(f"no such folder or file: {path}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return load_npz(path, settings)
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise UserError(f"{path} is an archive: unpack it and give the folder")
    raise UserError(f"{path} is neither a folder of images nor an .npz file")
