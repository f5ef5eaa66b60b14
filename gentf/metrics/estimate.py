"""What every metric returns, and how images and features are read before they are measured."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BLOCKS = 10  # of the jackknife


class Estimate(NamedTuple):
    """A number with its standard error.

    `stderr` is what the value would vary by (one standard deviation) if the images were drawn again.
    """

    value: float
    stderr: float


def mean_of(values: np.ndarray) -> Estimate:
    """Mean of (n,) independent numbers, n >= 1. The standard error of a single number is unknown (NaN)."""
    values = np.asarray(values, np.float64).reshape(-1)
    if values.size == 0:
        raise ValueError("`values` must hold at least one number. Received: 0 numbers")
    spread = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return Estimate(float(values.mean()), float(spread))


def share_of(hits: np.ndarray) -> Estimate:
    """Share of true entries of (n,) bool, n >= 1.

    The standard error is the binomial one at (hits + 1/2) / (n + 1), so that 0 of n and n of n do not claim
    to be without error.
    """
    hits = np.asarray(hits, bool).reshape(-1)
    if hits.size == 0:
        raise ValueError("`hits` must hold at least one entry. Received: 0 entries")
    shrunk = (hits.sum() + 0.5) / (hits.size + 1)
    return Estimate(float(hits.mean()), float(np.sqrt(shrunk * (1 - shrunk) / hits.size)))


def ratio_of(sums: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray) -> Estimate:
    """The mean of all symbols of some groups, with the standard error of other groups being drawn.

    Args:
        sums: (n,) of each group; sizes: (n,) symbols of each, at least one in all.
    Returns:
        sum(sums) / sum(sizes). The error is that of a ratio, by linearization; NaN for a single group.
    """
    total, count = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    mean, num = total.sum() / count.sum(), len(total)
    if num == 1:
        return Estimate(float(mean), float("nan"))
    variance = ((total - mean * count) ** 2).sum() * num / (num - 1)
    return Estimate(float(mean), float(np.sqrt(variance) / count.sum()))


def jackknife_error(score: Callable[[np.ndarray], float], rows: int) -> float:
    """The standard error of a score of `rows` rows, from leaving out one of `BLOCKS` blocks of them at a time.

    Args:
        score: numbers of rows (m,) -> their score.
        rows: how many there are, at least 2.
    """
    numbers, blocks = np.arange(rows), min(BLOCKS, rows)
    without = np.array([score(numbers[numbers % BLOCKS != block]) for block in range(blocks)])
    return float(np.sqrt((blocks - 1) / blocks * np.square(without - without.mean()).sum()))


def jackknife(score: Callable[[np.ndarray], float], rows: int) -> Estimate:
    """`score` of all rows with its `jackknife_error`."""
    return Estimate(score(np.arange(rows)), jackknife_error(score, rows))


def to_features(points: np.ndarray, name: str) -> np.ndarray:
    """Points of a feature space as float64.

    Args:
        points: (n, D) float, n at least 2.
        name: what the error calls them.
    Raises:
        ValueError: another shape or dtype, or entries that are not finite.
    """
    points = np.asarray(points)
    if points.ndim != 2 or len(points) < 2 or not points.shape[1] or not np.issubdtype(points.dtype, np.floating):
        raise ValueError(f"`{name}` must be (n, D) float, n at least 2. Received: {points.dtype} {points.shape}")
    if not np.all(np.isfinite(points)):
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    return points.astype(np.float64)


def to_one_space(**sets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Several sets of points of one feature space, as `to_features` gives each.

    Args:
        sets: name -> (n, D) float.
    Raises:
        ValueError: as of `to_features`, or another D than the first set's.
    """
    points = [to_features(part, name) for name, part in sets.items()]
    first, width = next(iter(sets)), points[0].shape[1]
    for name, part in zip(sets, points):
        if part.shape[1] != width:
            raise ValueError(f"`{name}` must have {width} features, as `{first}` has. Received: {part.shape[1]}")
    return tuple(points)


def to_signed(images: np.ndarray, name: str = "images") -> np.ndarray:
    """Images as float32 in [-1, 1].

    Args:
        images: (n, ...) uint8 in 0..255, or float already in [-1, 1].
        name: what the error calls them.
    Raises:
        ValueError: another dtype, no images, or entries that are not finite.
    """
    images = np.asarray(images)
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"`{name}` must be at least one image of one pixel. Received: shape={images.shape}")
    if images.dtype == np.uint8:
        return images.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"`{name}` must be uint8 or float in [-1, 1]. Received: dtype={images.dtype}")
    images = images.astype(np.float32, copy=False)
    finite = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
    if not finite.all():
        bad = int((~finite).sum())
        raise ValueError(f"`{name}` must be finite. Received: {bad} of {len(images)} images with NaN or infinity")
    return images


def to_unit(images: np.ndarray, name: str = "images") -> np.ndarray:
    """Images as float32 in [0, 1]; see `to_signed` for what is accepted.

    A uint8 pixel u becomes u / 255 exactly as float32 rounds it, so equal pixels stay equal.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8 and images.ndim >= 2 and images.shape[0]:
        return images.astype(np.float32) / np.float32(255)
    return (to_signed(images, name) + np.float32(1)) * np.float32(0.5)
