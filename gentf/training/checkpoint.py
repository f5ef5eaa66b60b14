"""Checkpoints: one file each, written as a whole or not at all, checked when read.

A file is an uncompressed .npz: an array for each variable, and "meta", JSON in UTF-8. Zip keeps a CRC-32 of every
array, so a truncated or changed file is noticed; pickled objects are refused. Everything random is a function of the
step, so that weights, optimizers and the step are the whole state of a run.
"""

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.errors import UserError
from gentf.files import atomic_save
from gentf.models.base import GenerativeModel

PATTERN = re.compile(r"checkpoint-(\d{10})\.npz")
BEST = "best.npz"


def state(model: GenerativeModel) -> dict[str, list]:
    """The variables of a run, by group: the model's own, then each optimizer's, by the first phase that it serves."""
    groups, seen = {"model": list(model.weights)}, set()
    for phase in model.phases():
        if id(phase.optimizer) not in seen:
            groups[f"optimizer.{phase.name}"] = list(phase.optimizer.variables)
            seen.add(id(phase.optimizer))
    return groups


def arrays(model: GenerativeModel) -> dict[str, np.ndarray]:
    """The values of `state`, named group/index."""
    return {
        f"{group}/{index:04d}": variable.value.numpy()
        for group, variables in state(model).items()
        for index, variable in enumerate(variables)
    }


def save(path: Path, values: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write the arrays and `meta` to `path`, atomically."""
    content = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8), **values}
    atomic_save(path, lambda file: np.savez(file, allow_pickle=False, **content))


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and meta in `path`. Raises UserError if it is missing, damaged or no checkpoint."""
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        meta = json.loads(values.pop("meta").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is not a whole checkpoint ({type(error).__name__}: {error})") from None
    return values, meta


def restore(model: GenerativeModel, values: dict[str, np.ndarray], groups: Sequence[str] | None = None) -> None:
    """Assign the values to the model's variables (of `groups` only, if given).

    Raises:
        UserError: a value is missing or has another shape; then no variable was changed.
    """
    pairs = []
    for group, variables in state(model).items():
        for index, variable in enumerate(variables):
            if groups is not None and group not in groups:
                continue
            name = f"{group}/{index:04d}"
            found = values.get(name)
            if found is None or found.shape != tuple(variable.shape):
                raise UserError(
                    f"the checkpoint must hold {name} of shape {tuple(variable.shape)} ({variable.path}). "
                    f"Received: {None if found is None else found.shape}"
                )
            pairs.append((variable, found))
    for variable, value in pairs:
        variable.assign(tf.cast(value, variable.dtype))


class Checkpoints:
    """The checkpoints in a run folder: the last few by step, and the best.

    Args:
        folder: where they lie.
        keep: how many of the last are kept.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, rising."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := PATTERN.fullmatch(path.name)))

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:010d}.npz"

    def save(self, model: GenerativeModel, meta: dict[str, Any], best: bool) -> None:
        """Save at `meta["step"]`, as the best too if it is; then remove what is older than the last `keep`."""
        values = arrays(model)
        broken = [name for name, value in values.items() if not np.all(np.isfinite(value))]
        if broken:
            raise FloatingPointError(f"{len(broken)} weights are not finite")
        save(self.path(meta["step"]), values, meta)
        if best:
            save(self.folder / BEST, values, meta)
        for step in self.steps()[: -self.keep]:
            self.path(step).unlink(missing_ok=True)

    def best(self) -> dict[str, Any] | None:
        """The meta of the best checkpoint, or None where there is none that can be read."""
        try:
            return load(self.folder / BEST)[1]
        except UserError:
            return None

    def load(
        self, which: str | int = "last", warn: Callable[[str], None] = lambda text: None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The checkpoint "last", "best" or of a step.

        Where the last is damaged the one before it is used, and `warn` is called with a line that says so.

        Raises:
            UserError: there is none that can be used.
        """
        if which == "best":
            return load(self.folder / BEST)
        steps = self.steps()
        if which != "last":
            if which not in steps:
                have = ", ".join(map(str, steps)) or "none"
                raise UserError(f"`checkpoint` must be last, best or one of the steps {have}. Received: {which}")
            return load(self.path(int(which)))
        for step in reversed(steps):
            try:
                return load(self.path(step))
            except UserError as error:
                warn(f"{error}; using the one before it")
        raise UserError(f"{self.folder} holds no usable checkpoint; train the run first")
