"""TensorFlow's start-up notes, kept off stderr.

While its libraries load, TensorFlow 2.21 writes several lines to stderr whatever `TF_CPP_MIN_LOG_LEVEL` says,
since it reads the variable later. The command line owns its process, so it holds stderr back during that one
import and then passes on what the variable lets through.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

STDERR = 2
# "I0000 00:00:1700000000.117408    7268 port.cc:153] ..." or "2026-01-02 03:04:05.678901: I port.cc:153] ..."
NOTE = re.compile(rb"([IWEF])\d{4} [\d:.]+ +\d+ \S+\] |\d{4}-\d\d-\d\d [\d:.]+: ([IWEF]) ")
PREAMBLE = b"WARNING: All log messages before absl::InitializeLog()"


def quiet_import() -> None:
    """Filter what the coming first import of TensorFlow writes to stderr."""
    if "tensorflow" not in sys.modules and hasattr(os, "memfd_create"):
        sys.meta_path.insert(0, _TensorFlowFinder())


def passed(text: bytes, level: int) -> bytes:
    """The lines of `text` without TensorFlow's notes of a severity (0 info to 3 fatal) below `level`."""

    def passes(line: bytes) -> bool:
        note = NOTE.match(line)
        if note is None:
            return level < 2 or not line.startswith(PREAMBLE)
        return b"IWEF".index(note[1] or note[2]) >= level

    return b"".join(line for line in text.splitlines(keepends=True) if passes(line))


class _TensorFlowFinder(MetaPathFinder):
    """Finds TensorFlow where it is anyway, and has its module executed with stderr filtered."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_quietly(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            with _filtered_stderr():
                execute(module)

        spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec


@contextmanager
def _filtered_stderr() -> Iterator[None]:
    if sys.stderr is None:  # the process was started with stderr closed
        yield
        return
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")
    kept = os.dup(STDERR)
    with open(os.memfd_create("stderr"), "w+b", buffering=0) as held:
        os.dup2(held.fileno(), STDERR)  # the file descriptor itself: the notes come from C++
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, STDERR)
            os.close(kept)
            held.seek(0)
            text = passed(held.read(), int(level) if level.isdigit() else 0)
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()
