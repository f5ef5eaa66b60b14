"""Files that are either the old one or the new one, never something between; and where caches are kept."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def user_cache(name: str) -> Path:
    """The folder `name` in $GENTF_CACHE, else in $XDG_CACHE_HOME/gentf, else in ~/.cache/gentf."""
    own, shared = os.environ.get("GENTF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own).expanduser() if own else Path(shared or "~/.cache").expanduser() / "gentf") / name


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed over `path` when the block ends without an error.

    The bytes are flushed to the disk before the rename, so that a power cut leaves the old file or the new one.
    On any error (a full disk, an interrupt) the temporary file is removed and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: str | os.PathLike, content: bytes | str) -> None:
    """Write `content` to `path` as a whole or not at all. Text is UTF-8."""
    atomic_save(path, lambda file: file.write(content.encode() if isinstance(content, str) else content))


def atomic_save(path: str | os.PathLike, save: Callable[[BinaryIO], object]) -> None:
    """Call `save(binary file)`, then move the file to `path`; on an error `path` is as it was."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        save(file)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
