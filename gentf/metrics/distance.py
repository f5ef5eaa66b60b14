"""Sliced Wasserstein distance between two sets of images."""

import numpy as np

from gentf.metrics.estimate import Estimate, to_signed


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, projections: int = 128, seed: int = 0) -> float:
    """Mean over random unit directions of the Wasserstein-1 distance between the projected sets.

    Args:
        x: (n, ...) images, uint8 or float in [-1, 1]; compared as flat vectors in [-1, 1].
        y: (m, ...) images of the same size; m may differ from n.
        projections: directions drawn, uniform on the sphere.
        seed: of the directions: two calls with one seed compare along the same directions.
    Returns:
        The distance, >= 0, in pixel values of [-1, 1]: sets that differ by one fixed offset are about
        sqrt(2 / pi) = 0.8 times the root mean square of that offset apart. Finite n and m bias it upwards:
        compare with the distance between two real sets of the same counts.
    Reference: Rabin et al. (2011), "Wasserstein barycenter and its application to texture mixing";
        Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures".
    """
    px, py = _project(x, y, projections, seed)
    px.sort(axis=1)
    py.sort(axis=1)
    n, m = px.shape[1], py.shape[1]
    if n == m:
        np.subtract(px, py, out=px)
        np.abs(px, out=px)
        return float(px.mean(dtype=np.float64))
    # Between neighbouring breakpoints i/n and j/m both quantile functions are constant. Breakpoints are held
    # as integers in units of 1 / (n m), so no two of them are told apart by rounding.
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    widths = np.diff(ends, prepend=0) / (n * m)
    gaps = np.abs(px[:, (ends - 1) // m] - py[:, (ends - 1) // n])
    return float((gaps @ widths).mean())


def sliced_wasserstein_estimate(x: np.ndarray, y: np.ndarray, projections: int = 128, seed: int = 0) -> Estimate:
    """`sliced_wasserstein` with its standard error, several times slower.

    The error has two parts, added as variances. Images: by the delta method; the influence of an image on W1
    between F and G is its Kantorovich potential, the integral of sign(F - G) from the image upwards, averaged
    here over the directions. Directions: the variance of W1 over the directions, divided by their count.
    """
    px, py = _project(x, y, projections, seed)
    n, m = px.shape[1], py.shape[1]
    distances = np.empty(projections)
    influence_x, influence_y = np.zeros(n), np.zeros(m)
    for k in range(projections):
        values = np.concatenate([px[k], py[k]]).astype(np.float64)
        order = np.argsort(values, kind="stable")
        # F - G on the interval after each pooled value, in units of 1 / (n m).
        surplus = np.cumsum(np.where(order < n, m, -n))
        widths = np.diff(values[order], append=values[order[-1]])
        distances[k] = np.abs(surplus) @ widths / (n * m)
        potential = np.empty(n + m)
        potential[order] = np.cumsum((np.sign(surplus) * widths)[::-1])[::-1]
        influence_x += potential[:n]
        influence_y += potential[n:]
    variance = 0.0
    for influence in (influence_x / projections, influence_y / projections):
        variance += influence.var(ddof=1) / influence.size if influence.size > 1 else np.nan
    variance += distances.var(ddof=1) / projections if projections > 1 else np.nan
    return Estimate(float(distances.mean()), float(np.sqrt(variance)))


def _project(x, y, projections, seed):
    """The two sets along the same random unit directions: (projections, n) and (projections, m) float32."""
    if projections < 1:
        raise ValueError(f"`projections` must be positive. Received: projections={projections}")
    x, y = to_signed(x, "x"), to_signed(y, "y")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`x` and `y` must be images of one size. Received: {x.shape[1]} and {y.shape[1]} pixels")
    directions = np.random.default_rng(seed).standard_normal((projections, x.shape[1]), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions @ x.T, directions @ y.T
