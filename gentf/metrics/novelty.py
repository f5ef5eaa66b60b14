"""Whether a model makes new things or repeats its training set, seen in a feature space: arrays in, numbers out.

Each number means something only beside the same number of held-out data taken for samples (what a model that learned
would score) and of training data taken for samples (what one that learned by heart would).
"""

from collections.abc import Iterator

import numpy as np

from gentf.metrics.estimate import Estimate, share_of, to_one_space
from gentf.metrics.manifold import squared_distances

ITERATIONS = 20
HELD = 2**16  # log densities at once: half a MiB, so that an iteration reads the distances once and writes nothing
LEAST_SPREAD = 1e-3  # of a normal, in standard deviations of the training features: a copy would have none


def authenticity(train: np.ndarray, generated: np.ndarray) -> Estimate:
    """Share of samples that are farther from the nearest training point than that one is from the nearest other.

    Args:
        train: (n, D) features, n at least 2; generated: (m, D).
    Returns:
        about 1/2 for data like the training set, 0 for copies of it.
    Reference: Alaa et al. (2022), "How faithful is your synthetic data?", section 3.3.
    """
    train, generated = to_one_space(train=train, generated=generated)
    nearest, distances = np.empty(len(generated), np.int64), np.empty(len(generated))
    for rows, squares in squared_distances(generated, train):
        nearest[rows] = squares.argmin(axis=1)
        distances[rows] = squares[np.arange(len(squares)), nearest[rows]]
    asked, place = np.unique(nearest, return_inverse=True)
    own = np.empty(len(asked))
    for rows, squares in squared_distances(train[asked], train):
        squares[np.arange(len(squares)), asked[rows]] = np.inf  # a point is no neighbour of its own
        own[rows] = squares.min(axis=1)
    return share_of(distances > own[place])


def likelihood_gap(train: np.ndarray, held_out: np.ndarray, generated: np.ndarray) -> Estimate:
    """By how much likelier training points are than held-out ones, in nats, under a density that samples stand for.

    The density is a normal around each sample, of equal weight, its variance fitted to the training points: copies
    shrink onto what they copy. Features are brought to the mean 0 and the variance 1 of the training points first.

    Args:
        train: (n, D) features; held_out: (m, D); generated: (k, D); each at least 2.
    Returns:
        mean log density of training points less that of held-out ones; near 0 for a model that learned, large for
        copies. The error is that of other training and held-out points.
    Reference: Jiralerspong et al. (2023), "Feature likelihood divergence", section 3, whose bandwidths are found by
    gradient descent; here by expectation-maximization.
    """
    train, held_out, generated = to_one_space(train=train, held_out=held_out, generated=generated)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a feature that is always off tells nothing
    train, held_out, generated = ((points - mean) / scale for points in (train, held_out, generated))
    dim = train.shape[1]
    squares = _all_squares(train, generated)
    variances = np.maximum(np.full(len(generated), squares.min(axis=1).mean() / dim), LEAST_SPREAD**2)
    for _ in range(ITERATIONS):
        weights, fitted = np.zeros((2, len(generated)))
        for part, logs, most in _log_densities(squares, variances, dim):
            shares = np.exp((logs - most).astype(np.float32))  # in 0..1; in float64 it would be most of the time
            per_row = 1.0 / shares.sum(axis=1, dtype=np.float64)
            weights += per_row @ shares
            fitted += per_row @ (shares * part)
        # a sample that no training point is near says nothing of its variance
        fitted = np.maximum(fitted / np.maximum(dim * weights, 1e-12), LEAST_SPREAD**2)
        variances = np.where(weights > 1e-6, fitted, variances)
    seen = _log_means(squares, variances, dim)
    unseen = _log_means(_all_squares(held_out, generated), variances, dim)
    errors = (values.std(ddof=1) / np.sqrt(len(values)) for values in (seen, unseen))
    return Estimate(float(seen.mean() - unseen.mean()), float(np.hypot(*errors)))


def _log_densities(
    squares: np.ndarray, variances: np.ndarray, dim: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(squared distances, log densities, the largest in each row) of as many rows as caches hold, written over."""
    scales, offsets = -0.5 / variances, -0.5 * dim * np.log(2.0 * np.pi * variances)
    size = max(1, HELD // squares.shape[1])
    for start in range(0, len(squares), size):
        part = squares[start : start + size]
        logs = part * scales
        logs += offsets
        yield part, logs, logs.max(axis=1, keepdims=True)


def _log_means(squares: np.ndarray, variances: np.ndarray, dim: int) -> np.ndarray:
    found = [
        most[:, 0] + np.log(np.exp(logs - most, out=logs).mean(axis=1))
        for _, logs, most in _log_densities(squares, variances, dim)
    ]
    return np.concatenate(found)


def _all_squares(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    found = np.empty((len(one), len(other)))
    for rows, squares in squared_distances(one, other):
        found[rows] = squares
    return found
