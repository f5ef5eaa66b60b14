"""How points cover a mixture of normal modes that is known: no judge but the mixture itself.

Reference: Srivastava et al. (2017), "VEEGAN", section 4.1, for which points and which modes count; Lin et al. (2018),
"PacGAN", section 4.1, for the divergence.
"""

import numpy as np

from gentf.metrics import modes
from gentf.metrics.estimate import Estimate, jackknife, share_of, to_features

WITHIN = 3.0  # standard deviations of a mode, from its centre: beyond them a point is of low quality


def coverage(points: np.ndarray, centres: np.ndarray, scale: float, *, seed: int = 0) -> dict[str, Estimate]:
    """Modes found, and in what shares.

    Args:
        points: (n, D) float, n at least 2.
        centres: (K, D) of modes of equal weight; scale: their standard deviation along each axis.
        seed: of the bootstrap.
    Returns:
        "modes": how many have a point within `WITHIN` standard deviations; "high_quality": share of such points;
        "reverse_kl": KL of the shares of modes among all points, each counted for the nearest, from equal ones, in
        nats; "spread": root mean square distance of the points of high quality from their centres over what it is in
        the mixture: 1 where a mode is filled as it should be, 0 where it is a single point (NaN without such points).
    """
    points = to_features(points, "points")
    centres = np.asarray(centres, np.float64)
    if centres.ndim != 2 or centres.shape[1] != points.shape[1]:
        raise ValueError(f"`centres` must be (K, {points.shape[1]}). Received: {centres.shape}")
    if not scale > 0.0:
        raise ValueError(f"`scale` must be positive. Received: scale={scale}")
    squares = np.square(points[:, None] - centres).sum(axis=2)
    nearest = squares.argmin(axis=1)
    distances = np.sqrt(squares.min(axis=1)) / scale
    good, number = distances <= WITHIN, len(centres)
    found = modes.class_counts(nearest[good], number)
    shares = np.append(found, len(points) - found.sum()) / len(points)
    drawn = np.random.default_rng(seed).multinomial(len(points), shares, size=1000)[:, :-1]
    equal = np.full(number, 10**9)
    inside = distances[good]
    expected = _root_mean_square(points.shape[1])
    spread = Estimate(float("nan"), float("nan"))
    if len(inside) > 1:
        spread = jackknife(lambda rows: float(np.sqrt(np.square(inside[rows]).mean()) / expected), len(inside))
    return {
        "modes": Estimate(float((found > 0).sum()), float((drawn > 0).sum(axis=1).std(ddof=1))),
        "high_quality": share_of(good),
        "reverse_kl": modes.reverse_kl(modes.class_counts(nearest, number), equal, seed=seed),
        "spread": spread,
    }


def _root_mean_square(dim: int) -> float:
    """Of the length of N(0, I) in `dim` dimensions, of the lengths up to `WITHIN`."""
    radii = np.linspace(0.0, WITHIN, 100_001)[1:]
    density = radii ** (dim - 1) * np.exp(-0.5 * np.square(radii))
    return float(np.sqrt((density * np.square(radii)).sum() / density.sum()))
