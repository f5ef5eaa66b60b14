"""The folders that a server watches: names, version numbers, and how a version appears in one move."""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gentf.errors import UserError

MAX_VERSION = 2**63 - 1
TEMPORARY = ".tmp-"  # a version in the making: no integer, so that a server does not take it for a version

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ABANDONED = 24 * 3600  # seconds after which a version in the making is one of an export that was killed


def versions(folder: Path) -> list[int]:
    """The version numbers in a model's folder, as TF Serving reads them: folders whose names are integers."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"[0-9]+", path.name) and path.is_dir())


def check_name(target: Path, given: str | os.PathLike) -> None:
    """Hold a model's folder to what servers and addresses can use; `given` is what a UserError names."""
    if not _NAME.fullmatch(target.name):
        accepted = "a folder whose name has letters, digits, '_', '-' and '.', and does not start with '.' or '-'"
        raise UserError(f"`to` must be {accepted}. Received: to={os.fspath(given)!r}")
    if target.name.isdigit():
        raise UserError(f"`to` must be the model's folder, and `version` the number. Received: to={os.fspath(given)!r}")
    for path in (target, *target.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"`to` must be a folder. Received: {path}, which is a file")


def free_version(folders: Sequence[Path], version: int | None) -> int:
    """The wanted version, or the next one; UserError if one of the models' folders has it already."""
    taken = {number: folder for folder in folders for number in versions(folder)}
    if version is None:
        return max(taken, default=0) + 1
    if not 1 <= version <= MAX_VERSION:
        raise UserError(f"`version` must be from 1 to 2**63 - 1. Received: version={version}")
    if version in taken:
        path = taken[version] / str(version)
        raise UserError(f"`version` must be a new one: {path} is not overwritten. Received: version={version}")
    return version


def make(folders: Sequence[Path]) -> list[Path]:
    """Create the models' folders, and remove what killed exports left. Returns the new, innermost first."""
    created = []
    for folder in folders:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        created += missing
        for path in folder.glob(f"{TEMPORARY}*"):
            if path.is_dir() and time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
    return sorted(set(created), key=lambda path: -len(path.parts))


def temporary(folder: Path, version: int) -> Path:
    """A new folder to write a version to, which `publish` then gives its name."""
    return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{version}-", dir=folder))


def publish(temporary: Path, final: Path) -> Path:
    """Give the finished folder its name, with its files safe on the disk.

    Raises:
        UserError: another export took the number meanwhile.
    """
    for path in temporary.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    os.chmod(temporary, 0o755)  # mkdtemp's folders are their owner's alone; a server may be another user
    if final.exists():
        raise UserError(f"`version` must be a new one: {final} was written by another export meanwhile")
    os.rename(temporary, final)
    return final


def remove_empty(folder: Path) -> None:
    """Remove a folder unless there is something in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
