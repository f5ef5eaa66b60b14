"""What a run writes down: metrics.jsonl, TensorBoard, and a picture of the curves."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.files import atomic_path, atomic_write

#: Of samples from validation images.
DISTANCE = "val_sliced_wasserstein"


class RunLog:
    """Metrics of a run by step.

    Args:
        path: the run folder.
        step: where the run goes on; what was written beyond it by a run that was killed is dropped.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self._file = path / "metrics.jsonl"
        lines = [line for line in read_metrics(path) if line["step"] <= step]
        atomic_write(self._file, "".join(json.dumps(line) + "\n" for line in lines))
        self._writer = tf.summary.create_file_writer(str(path / "tensorboard"))

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Append one line, and the same numbers for TensorBoard. Numbers that are not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "epoch": round(epoch, 4)} | finite
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show (H, W, C) uint8 in TensorBoard."""
        with self._writer.as_default(step):
            tf.summary.image(name, image[None])

    def text(self, step: int, name: str, texts: list[str]) -> None:
        """Show texts in TensorBoard, as they are."""
        with self._writer.as_default(step):
            tf.summary.text(name, ["    " + text.replace("\n", "\n    ") for text in texts])

    def close(self) -> None:
        self._writer.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl; a last line that a kill cut short is left out."""
    file = Path(path) / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def draw_curves(path: Path) -> None:
    """Draw curves.png from metrics.jsonl: losses, other training numbers, validation, and the distance, by step."""
    from matplotlib.figure import Figure  # half a second to import, and no use before the first epoch ends

    lines = read_metrics(path)
    skip = {"step", "epoch", "steps_per_second", "data_wait"}
    names = sorted({name for line in lines for name in line} - skip)
    groups = {
        "losses": [name for name in names if name.endswith("loss") and not name.startswith("val_")],
        "training": [name for name in names if not name.endswith("loss") and not name.startswith("val_")],
        "validation": [name for name in names if name.startswith("val_") and name != DISTANCE],
        "distance of samples": [name for name in names if name == DISTANCE],
    }
    groups = {title: members for title, members in groups.items() if members}
    if not groups:
        return
    figure = Figure(figsize=(5 * len(groups), 3.6), layout="constrained")
    for axes, (title, members) in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups.items()):
        for name in members:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axes.plot(*zip(*points), label=name, linewidth=1)
        axes.set(title=title, xlabel="step")
        if members == [DISTANCE]:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with atomic_path(path / "curves.png") as temporary:
        figure.savefig(temporary, dpi=100)
