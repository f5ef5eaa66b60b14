"""Programs that XLA has compiled, kept on disk: a second run of the same step starts at once.

TensorFlow keeps them itself where a flag in the environment says so, but it stops at a file that is damaged. So a file
is used only if it is what was there at the end of an earlier run, by its checksum; any other is removed and compiled
again. Programs of another TensorFlow or another processor lie in a folder of their own.
"""

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import zlib
from importlib import metadata
from pathlib import Path

from gentf.files import atomic_write, user_cache

FLAGS = "TF_XLA_FLAGS"
OPTION = "--tf_xla_persistent_cache_directory"
LIMIT = 512 * 2**20  # bytes kept; the files that were used least recently go first
ROOM = 128 * 2**20  # bytes that must be free
SUMS = "sums.json"


def use_cache() -> Path | None:
    """Have TensorFlow keep what it compiles; must be called before it is imported.

    Returns:
        The folder, for `record`. None, and nothing changed, if the user has set a folder, or if ours cannot be made or
        has no room: TensorFlow stops where it cannot write a program.
    """
    flags = os.environ.get(FLAGS, "")
    if OPTION in flags:
        return None
    folder = user_cache("xla") / _here()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _has_room(folder):
            return None
        _remove_unknown(folder)
    except OSError:
        return None
    os.environ[FLAGS] = f"{flags} {OPTION}={folder}".strip()
    return folder


def record(folder: Path) -> None:
    """Note the checksums of the programs in `folder`, and make room."""
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slower
        programs = sorted(folder.glob("*.pb"), key=lambda path: path.stat().st_atime, reverse=True)
        total = 0
        for path in list(programs):
            total += path.stat().st_size
            if total > LIMIT:
                programs.remove(path)
                path.unlink()
        atomic_write(folder / SUMS, json.dumps({path.name: _sum(path) for path in programs}))


def _has_room(folder: Path) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return shutil.disk_usage(folder).free >= ROOM and (limit == resource.RLIM_INFINITY or limit >= ROOM)


def _remove_unknown(folder: Path) -> None:
    try:
        known = json.loads((folder / SUMS).read_text())
    except (OSError, ValueError):
        known = {}
    for path in folder.glob("*.pb"):
        if not isinstance(known, dict) or known.get(path.name) != _sum(path):
            path.unlink(missing_ok=True)


def _sum(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _here() -> str:
    """A name for this TensorFlow on this kind of processor: what is compiled here may not run elsewhere."""
    processor = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return hashlib.sha256(f"{metadata.version('tensorflow')} {processor}".encode()).hexdigest()[:16]
