"""The run folder: all that a training leaves behind, and enough to go on from."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentf.config import dump_yaml, load_yaml
from gentf.data import DataSource, DataSpec
from gentf.errors import UserError
from gentf.files import atomic_write
from gentf.models import build, load_data
from gentf.models.base import GenerativeModel
from gentf.schema import Config
from gentf.training import checkpoint
from gentf.training.checkpoint import Checkpoints


class Run:
    """An existing run folder.

    Args:
        path: of the folder.
    Raises:
        UserError: it is none.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not (self.path / "config.yaml").is_file() or not (self.path / "data.json").is_file():
            raise UserError(f"`run` must be a folder that `gentf train` made. Received: {path}")
        self.config: Config = load_yaml(self.path / "config.yaml")
        self.spec: DataSpec = _read_spec(self.path / "data.json")
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.config.train.keep_checkpoints)

    @classmethod
    def create(cls, path: str | os.PathLike, config: Config, spec: DataSpec) -> "Run":
        """Make the folder. Raises UserError if there is a run (or any file) in it already."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(not _unfinished(entry.name) for entry in path.iterdir())):
            raise UserError(f"`run` must be a new or empty folder, or --resume given to go on. Received: {path}")
        atomic_write(path / "data.json", json.dumps(dataclasses.asdict(spec), indent=1))
        atomic_write(path / "config.yaml", dump_yaml(config))  # last: it is what makes the folder a run
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def step(self) -> int:
        """The step of the last checkpoint; 0 before the first."""
        return max(self.checkpoints.steps(), default=0)

    def load_data(self, progress: Callable[[str, int, int], None] | None = None) -> DataSource:
        """The data the run was trained on."""
        return load_data(self.config, progress)

    def load_model(self, which: str | int = "last", warn: Callable[[str], None] = lambda text: None) -> GenerativeModel:
        """The model at a checkpoint: "last", "best" or a step."""
        values, _ = self.checkpoints.load(which, warn)
        model = build(self.config, self.spec)
        checkpoint.restore(model, values, groups=["model"])
        return model


def _read_spec(path: Path) -> DataSpec:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        plain: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return DataSpec(**plain)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe a data set ({error})") from None


def _unfinished(name: str) -> bool:
    """Whether a file is what a kill inside `Run.create` leaves, before the folder is a run."""
    return name == "data.json" or (name.startswith((".data.json.", ".config.yaml.")) and ".tmp" in name)
