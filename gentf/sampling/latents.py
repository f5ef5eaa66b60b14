"""Ways through a space of codes: between two of them, and along one number of them."""

import numpy as np


def linear(first: np.ndarray, last: np.ndarray, steps: int) -> np.ndarray:
    """Codes on straight lines: (..., D) and (..., D) -> (..., steps, D), both ends included."""
    first, last, share = _ends(first, last, steps)
    return first[..., None, :] + share[:, None] * (last - first)[..., None, :]


def spherical(first: np.ndarray, last: np.ndarray, steps: int) -> np.ndarray:
    """Codes on great circles, with lengths between those of the ends: the shapes of `linear`.

    Codes of a normal prior have about the same length, and points on a line between them have less. Codes that point
    the same way, or opposite ways, or a code of zero, are joined by a line.

    Reference: White (2016), "Sampling generative networks", section 2.
    """
    first, last, share = _ends(first, last, steps)
    lengths = np.linalg.norm(first, axis=-1, keepdims=True), np.linalg.norm(last, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = first / lengths[0], last / lengths[1]
        angle = np.arccos(np.clip(np.sum(units[0] * units[1], axis=-1, keepdims=True), -1.0, 1.0))[..., None, :]
        turned = np.sin((1 - share[:, None]) * angle) * units[0][..., None, :]
        turned = (turned + np.sin(share[:, None] * angle) * units[1][..., None, :]) / np.sin(angle)
    length = lengths[0][..., None, :] * (1 - share[:, None]) + lengths[1][..., None, :] * share[:, None]
    ok = np.isfinite(turned).all(axis=(-2, -1), keepdims=True) & (np.sin(angle) > 1e-4)
    return np.where(ok, length * np.nan_to_num(turned), linear(first, last, steps)).astype(np.float32)


def traverse(code: np.ndarray, dimensions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A code with one of its numbers set to each value in turn.

    Args:
        code: (D,).
        dimensions: (n,) which numbers.
        values: (steps,).
    Returns:
        (n, steps, D) float32.
    """
    code, values = np.asarray(code, np.float32), np.asarray(values, np.float32)
    dimensions = np.asarray(dimensions)
    if code.ndim != 1 or np.any((dimensions < 0) | (dimensions >= len(code))):
        raise ValueError(
            f"`dimensions` must be places of a code of {code.shape[-1]} numbers. Received: {dimensions.tolist()}"
        )
    found = np.tile(code, (len(dimensions), len(values), 1))
    for row, dimension in enumerate(dimensions):
        found[row, :, dimension] = values
    return found


def _ends(first: np.ndarray, last: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if steps < 2:
        raise ValueError(f"`steps` must be at least 2. Received: steps={steps}")
    first, last = np.asarray(first, np.float32), np.asarray(last, np.float32)
    if first.shape != last.shape:
        raise ValueError(f"`last` must be of the shape of `first`, {first.shape}. Received: {last.shape}")
    return first, last, np.linspace(0, 1, steps, dtype=np.float32)
