"""Distance and variety of sets of images in a feature space: (n, D) arrays in, numbers with standard errors out.

A distance in features means what its extractor means: state which, and how many images, beside every number.
"""

import numpy as np

from gentf.metrics.estimate import Estimate, jackknife, jackknife_error, to_features, to_one_space

SUBSETS = 100
SUBSET_SIZE = 1000


def frechet(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Fréchet distance between two sets, each taken to be normal: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).

    It is biased upwards by about the same for sets of the same sizes: compare with that of two real sets.

    Args:
        one, other: (n, D) and (m, D) features, n and m at least 2.
    Returns:
        the distance, >= 0, with a jackknife standard error of other points being drawn.
    References: Dowson & Landau (1982); Heusel et al. (2017), "GANs trained by a two time-scale update rule", section 2.
    """
    one, other = to_one_space(one=one, other=other)

    def distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
        root = _root(a[1])
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b[1] @ root), 0.0)).sum()
        return float(np.square(a[0] - b[0]).sum() + np.trace(a[1]) + np.trace(b[1]) - 2.0 * cross)

    whole = _moments(one), _moments(other)
    errors = (
        jackknife_error(lambda rows: distance(_moments(one[rows]), whole[1]), len(one)),
        jackknife_error(lambda rows: distance(whole[0], _moments(other[rows])), len(other)),
    )
    return Estimate(max(0.0, distance(*whole)), float(np.hypot(*errors)))


def kid(one: np.ndarray, other: np.ndarray, seed: int = 0) -> Estimate:
    """Kernel distance: the squared maximum mean discrepancy under (x'y / D + 1)^3, unbiased, so that it can be negative
    and does not depend on the sets' sizes in the mean.

    Args:
        one, other: (n, D) and (m, D) features.
        seed: of the `SUBSETS` random subsets of at most `SUBSET_SIZE` that it is the mean of.
    Returns:
        the distance; the error is the spread of subsets over the root of how many disjoint ones there could be.
    Reference: Bińkowski et al. (2018), "Demystifying MMD GANs", section 4.
    """
    one, other = to_one_space(one=one, other=other)
    generator = np.random.default_rng(seed)
    size = min(SUBSET_SIZE, len(one), len(other))
    values = np.empty(SUBSETS)
    for number in range(SUBSETS):
        a, b = (points[generator.choice(len(points), size, replace=False)] for points in (one, other))
        values[number] = _discrepancy(a, b)
    disjoint = max(1.0, min(len(one), len(other)) / size)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(disjoint)))


def vendi(points: np.ndarray) -> Estimate:
    """Vendi score: how many points that have nothing in common a set is worth; 1 where all are the same.

    The exponential of the entropy of the eigenvalues of K / n, K the cosines between points.

    Args:
        points: (n, D) features, n at least 2; a point of zeros has nothing in common with any.
    Returns:
        from 1 to min(n, D), with a jackknife standard error.
    Reference: Friedman & Dieng (2023), "The Vendi score", definition 3.1.
    """
    points = to_features(points, "points")
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    unit = np.divide(points, norms, out=np.zeros_like(points), where=norms > 0)

    def score(rows: np.ndarray) -> float:
        kept = unit[rows]
        n, dim = kept.shape
        gram = (kept.T @ kept if dim < n else kept @ kept.T) / n  # the eigenvalues that are not 0 are the same
        values = np.linalg.eigvalsh(gram)
        values = values[values > 1e-12]
        return float(np.exp(-(values * np.log(values)).sum()))

    return jackknife(score, len(unit))


def _moments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points.mean(axis=0), np.atleast_2d(np.cov(points, rowvar=False))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    dim, n = a.shape[1], len(a)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dim + 1.0) ** 3

    own = sum((np.sum(k) - np.trace(k)) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b)))
    return float(own - 2.0 * kernel(a, b).mean())
