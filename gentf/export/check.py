"""Hold a written export to Python's results, in a process that has neither Keras nor gentf."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gentf.export.saved_model import Arrays

SCRIPT = Path(__file__).with_name("served_check.py")
TIMEOUT = 1800  # seconds: a large model that XLA compiles for every batch size takes minutes


@dataclass(frozen=True)
class Case:
    """A request and the answer that Python gave to it."""

    signature: str
    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class SignatureReport:
    """What the check found for one signature.

    Attributes:
        name: of the signature.
        rows: rows that were compared.
        max_difference: of floats, over all of them; strings and integers were equal.
    """

    name: str
    rows: int
    max_difference: float


def check(
    folder: Path, cases: Sequence[Case], *, xla: bool = False, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[list[SignatureReport], int]:
    """Answer `cases` from the SavedModel `folder` in a fresh process, and compare.

    Args:
        folder: a version folder with warm-up records, which are replayed too.
        cases: at least one for each signature.
        xla: leave XLA on, for the compiled variant. Otherwise it is switched off, as a stock TF Serving has
            it.
        rtol, atol: for floats: |difference| <= atol + rtol * |Python's|. Everything else must be equal.
    Returns:
        A report for each signature, and the number of warm-up records.
    Raises:
        ValueError: says in one line what differs or fails.
    """
    with tempfile.TemporaryDirectory(prefix="gentf-check-") as scratch:
        cases_path, report_path = Path(scratch, "cases.npz"), Path(scratch, "report.json")
        job = {
            "folder": str(folder),
            "cases": str(cases_path),
            "report": str(report_path),
            "xla": xla,
            "rtol": rtol,
            "atol": atol,
        }
        np.savez(cases_path, **_packed(cases))  # type: ignore[arg-type]  # names are not known beforehand
        Path(scratch, "job.json").write_text(json.dumps(job))
        report = _run([sys.executable, str(SCRIPT), os.path.join(scratch, "job.json")], report_path)
    if "error" in report:
        raise ValueError(one_line(report["error"]))
    return [SignatureReport(name, **found) for name, found in report["signatures"].items()], report["warmup"]


def _run(command: list[str], report: Path) -> dict[str, Any]:
    """What the process reports, or how it ended without a report."""
    try:
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"the process did not end within {TIMEOUT} s"}
    try:
        return json.loads(report.read_text())
    except (OSError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"the process ended with status {done.returncode}: {last}"}


def one_line(text: object, limit: int = 300) -> str:
    """The first `limit` characters of `text` on one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[:limit] + "..."


def _packed(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Arrays for an .npz that needs no pickle: strings lie end to end, with their lengths beside them."""
    packed: dict[str, np.ndarray] = {}
    for number, case in enumerate(cases):
        for kind, arrays in (("in", case.inputs), ("out", case.outputs)):
            for name, value in arrays.items():
                key = f"{number}|{case.signature}|{kind}|{name}"
                if value.dtype.kind in "OS":
                    parts = [bytes(item) for item in value.ravel().tolist()]
                    packed[f"{key}#bytes"] = np.frombuffer(b"".join(parts), np.uint8)
                    lengths = np.array([len(part) for part in parts], np.int64)
                    packed[f"{key}#lengths"] = lengths.reshape(value.shape)
                else:
                    packed[key] = value
    return packed


def _environment() -> dict[str, str]:
    """The environment with a stock server's defaults: no XLA flags, and no GPU, which we may hold."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TF_XLA_FLAGS", "XLA_FLAGS")}
    return environment | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
