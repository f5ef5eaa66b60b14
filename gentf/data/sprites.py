"""Black and white images of one shape each, drawn from known factors: what a code of images should tell apart.

They are in the manner of dSprites (Matthey et al. 2017), by a renderer of our own: every combination of the factors is
there once. A square looks the same after a quarter of a turn, so all shapes turn by less than that: no two combinations
look the same on purpose, as they do in dSprites.
"""

import functools
import math

import numpy as np

SIZE = 32
SHAPES = ("square", "ellipse", "heart")
#: (name, number of values), in the order of the columns of factors.
FACTORS = (("shape", len(SHAPES)), ("scale", 4), ("orientation", 8), ("x", 16), ("y", 16))
#: Columns whose values have no order.
CATEGORICAL = (0,)
COUNTS = tuple(count for _, count in FACTORS)
NUMBER = math.prod(COUNTS)

_RADII = np.linspace(4.3, 7.0, COUNTS[1])  # pixels
_PATCH = 16  # pixels that hold the largest shape, at any orientation
_FINE = 8  # samples along a pixel's side; a pixel is white where half of them lie inside


def factors_of(indices: np.ndarray) -> np.ndarray:
    """Numbers of images (n,) in [0, `NUMBER`) -> (n, 5) int64, the last factor moving first."""
    return np.stack(np.unravel_index(np.asarray(indices), COUNTS), axis=-1)


def render(factors: np.ndarray) -> np.ndarray:
    """Images (n, 32, 32, 1) uint8 of 0 and 255.

    Args:
        factors: (n, 5) integers, from 0 and below the counts of `FACTORS`.
    """
    factors = np.asarray(factors)
    if factors.ndim != 2 or factors.shape[1] != len(COUNTS) or factors.dtype.kind not in "iu":
        raise ValueError(f"`factors` must be (n, {len(COUNTS)}) integers. Received: {factors.dtype} {factors.shape}")
    if factors.size and (factors.min() < 0 or np.any(factors >= COUNTS)):
        raise ValueError(f"`factors` must be from 0 and below {COUNTS}. Received: {factors.min()} to {factors.max()}")
    shape, scale, orientation, x, y = factors.T
    patches = _patches()[shape, scale, orientation]
    images = np.zeros((len(factors), SIZE, SIZE, 1), np.uint8)
    row, column = np.arange(_PATCH)[None, :, None], np.arange(_PATCH)[None, None, :]
    images[np.arange(len(factors))[:, None, None], y[:, None, None] + row, x[:, None, None] + column, 0] = patches
    return images


def sample(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`num` random images and their factors: (num, 32, 32, 1) uint8 and (num, 5) int64."""
    factors = np.random.default_rng(seed).integers(0, COUNTS, (num, len(COUNTS)))
    return render(factors), factors


def sample_fixed(factor: int, groups: int, size: int, seed: int) -> np.ndarray:
    """Groups of images that have one factor in common: (groups, size, 32, 32, 1) uint8.

    Args:
        factor: the column that is the same within a group.
        groups, size: how many groups, of how many images.
        seed: of the values.
    """
    generator = np.random.default_rng([seed, factor])
    factors = generator.integers(0, COUNTS, (groups, size, len(COUNTS)))
    factors[:, :, factor] = generator.integers(0, COUNTS[factor], (groups, 1))
    return render(factors.reshape(-1, len(COUNTS))).reshape(groups, size, SIZE, SIZE, 1)


@functools.cache
def _patches() -> np.ndarray:
    """Each shape at each scale and orientation, around the middle of a patch: (3, 4, 8, 16, 16) uint8."""
    middle = (np.arange(_PATCH * _FINE) + 0.5) / _FINE - _PATCH / 2
    across, up = np.meshgrid(middle, -middle)
    patches = np.zeros((*COUNTS[:3], _PATCH, _PATCH), np.uint8)
    for scale, radius in enumerate(_RADII):
        for orientation in range(COUNTS[2]):
            angle = orientation / COUNTS[2] * math.pi / 2
            u = (math.cos(angle) * across + math.sin(angle) * up) / radius
            v = (math.cos(angle) * up - math.sin(angle) * across) / radius
            a, b = 1.25 * u, 1.25 * v + 0.1
            inside = (
                np.maximum(abs(u), abs(v)) <= 0.74,
                np.square(u) + np.square(v / 0.5) <= 1.0,
                (a**2 + b**2 - 1.0) ** 3 <= a**2 * b**3,
            )
            for shape, fine in enumerate(inside):
                share = fine.reshape(_PATCH, _FINE, _PATCH, _FINE).mean(axis=(1, 3))
                patches[shape, scale, orientation] = np.where(share >= 0.5, 255, 0)
    return patches
