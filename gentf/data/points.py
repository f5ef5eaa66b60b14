"""Points from mixtures whose every mode is known: what tells, without a network that judges, which modes a model lost.

The mixtures are those of Srivastava et al. (2017), "VEEGAN", section 4.1, and of Lin et al. (2018), "PacGAN", section
4.1; the ring is theirs times 4, so that both lie in about [-4, 4]: what is counted does not depend on the scale.
"""

import math
from dataclasses import dataclass

import numpy as np

from gentf.data.examples import Rows
from gentf.data.source import DataSource, DataSpec, of_stores
from gentf.errors import UserError

SIZES = {"train": 100_000, "validation": 10_000, "test": 10_000}
_SEED = 20171204


@dataclass(frozen=True)
class Mixture:
    """Normal modes of one spread and equal weight.

    Args:
        centres: (K, D) float64.
        scale: standard deviation of a mode, along every axis.
    """

    centres: np.ndarray
    scale: float

    def draw(self, num: int, seed: int | list[int]) -> tuple[np.ndarray, np.ndarray]:
        """`num` points (n, D) float32, and their modes (n,) int32."""
        generator = np.random.default_rng(seed)
        modes = generator.integers(0, len(self.centres), num)
        points = self.centres[modes] + self.scale * generator.standard_normal((num, self.centres.shape[1]))
        return points.astype(np.float32), modes.astype(np.int32)


def _ring() -> np.ndarray:
    angles = 2.0 * math.pi * np.arange(8) / 8
    return 4.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _grid() -> np.ndarray:
    places = np.arange(-4.0, 5.0, 2.0)
    return np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)


MIXTURES = {"ring-8": Mixture(_ring(), 0.04), "grid-25": Mixture(_grid(), 0.05)}
EMBEDDED = {
    "ring-8": "8 normal modes on a circle, 120,000 points of 2 numbers (drawn)",
    "grid-25": "25 normal modes on a grid, 120,000 points of 2 numbers (drawn)",
}


def load_points(name: str) -> DataSource:
    """A mixture as three splits of points, {"point": (B, D) float32, "label": int32 (B,)}; the labels are the modes.

    Args:
        name: a key of `MIXTURES`.
    Raises:
        UserError: no such mixture.
    """
    if name not in MIXTURES:
        raise UserError(f"`name` must be one of {', '.join(MIXTURES)} for modality points. Received: name={name!r}")
    mixture = MIXTURES[name]
    stores = {}
    for number, (split, size) in enumerate(SIZES.items()):
        points, modes = mixture.draw(size, [_SEED, number])
        stores[split] = Rows({"point": points, "label": modes})
    names = tuple(str(number) for number in range(len(mixture.centres)))
    spec = DataSpec(name, mixture.centres.shape[1:], "float32", (-4.0, 4.0), names, "none needed", modality="points")
    return of_stores(spec, stores, stores["train"])
