"""Which image files a folder holds, and how its subfolders name splits and classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gentf.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, sorted by name.

    Args:
        root: the folder.
        names: paths relative to `root`, with "/" between parts.
        splits: the split each file belongs to by its folder; all "train" where there are no split folders.
        labels: (n,) int32 indices of `class_names`, or None where the files lie in no class folders.
        class_names: sorted names of the class folders.
        own: the splits that have a folder.
    """

    root: Path
    names: list[str]
    splits: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    own: tuple[str, ...]

    @property
    def paths(self) -> list[str]:
        """Absolute paths of the files."""
        root = os.path.abspath(self.root)
        return [os.path.join(root, name) for name in self.names]


def list_images(root: Path) -> Listing:
    """List the images below a folder.

    Subfolders named `train`, `validation` (or `valid`, `val`) and `test` are splits if `train` is there and
    nothing beside them holds images. Within a split, or within the folder itself, the first level of
    subfolders gives the classes. Names that begin with a dot are passed over; links are followed.

    Raises:
        UserError: no images, or images both in class folders and beside them, or a class without a place in train.
    """
    names = sorted(walk(root, SUFFIXES))
    if not names:
        raise UserError(f"{root} holds no images: no file in it ends in {', '.join(SUFFIXES)}")
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    by_split = "train" in tops and tops <= set(_SPLIT_FOLDERS)
    splits: list[str] = []
    classes: list[str] = []  # "" for a file in no class folder
    for name in names:
        parts = name.split("/")
        splits.append(_SPLIT_FOLDERS[parts.pop(0)] if by_split else "train")
        classes.append(parts[0] if len(parts) > 1 else "")
    if "" in classes and any(classes):
        loose, sorted_in = names[classes.index("")], next(n for n, c in zip(names, classes, strict=True) if c)
        raise UserError(
            f"{root} holds images both in class folders and outside of them: {printable(sorted_in)} and "
            f"{printable(loose)}. Put every image in a class folder, or none"
        )
    class_names: tuple[str, ...] = ()
    labels = None
    if "" not in classes:
        class_names = tuple(sorted({c for c, s in zip(classes, splits, strict=True) if s == "train"}))
        index = {name: number for number, name in enumerate(class_names)}
        for name, cls in zip(names, classes, strict=True):
            if cls not in index:
                raise UserError(f"{printable(name)} is of a class that {root}/train has no folder for")
        labels = np.array([index[cls] for cls in classes], np.int32)
    own = tuple(dict.fromkeys(splits)) if by_split else ()
    return Listing(root, names, np.array(splits), labels, tuple(printable(n) for n in class_names), own)


def printable(name: str) -> str:
    """A file's name as it can be shown on one line, whatever bytes it has."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    return shown if shown.isprintable() else ascii(shown)[1:-1]


def walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Relative names of the files that end in one of `suffixes`, with "/" between parts.

    Names that begin with a dot are passed over; links are followed, and each folder is visited once however many lead
    to it.

    Raises:
        UserError: a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        folder = os.path.join(root, prefix)
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        pending.append(f"{prefix}{entry.name}/")
                    elif entry.name.lower().endswith(suffixes):
                        yield prefix + entry.name
        except OSError as error:
            raise UserError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error
