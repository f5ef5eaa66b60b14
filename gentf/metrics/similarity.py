"""How alike images are among themselves."""

import numpy as np
import tensorflow as tf

from gentf.metrics.estimate import Estimate, mean_of, to_unit

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first
FILTER = 11
BATCH = 250


def pair_similarity(
    images: np.ndarray, classes: np.ndarray | None = None, *, pairs: int = 2000, seed: int = 0
) -> Estimate:
    """Mean multi-scale structural similarity of random pairs: 1 where all images are one, lower the more they vary.

    Images that are small have fewer of the five scales, whose weights are then made to sum to 1, and below 11 pixels a
    smaller window: compare with real images of the same size.

    Args:
        images: (n, H, W, C) uint8 or float in [-1, 1], n at least 2.
        classes: (n,) integers; pairs are then of one class, as variety between classes hides the lack of it inside.
        pairs: how many are drawn; with classes in the proportions of the images.
        seed: of the pairs.
    References: Wang, Simoncelli & Bovik (2003), "Multiscale structural similarity"; Odena, Olah & Shlens (2017),
    section 4.2, for its use.
    """
    unit = to_unit(images)
    if unit.ndim != 4 or len(unit) < 2:
        raise ValueError(f"`images` must be at least two of shape (H, W, C). Received: shape={unit.shape}")
    first, second = _pairs(len(unit), classes, pairs, np.random.default_rng(seed))
    side = min(unit.shape[1:3])
    window = min(FILTER, side)
    scales = 1
    while scales < len(WEIGHTS) and side // 2**scales >= window:
        scales += 1
    weights = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    found = []
    for start in range(0, len(first), BATCH):
        one, other = (tf.constant(unit[rows[start : start + BATCH]]) for rows in (first, second))
        found.append(tf.image.ssim_multiscale(one, other, 1.0, tuple(weights), filter_size=window).numpy())
    return mean_of(np.concatenate(found))


def _pairs(count: int, classes: np.ndarray | None, pairs: int, generator) -> tuple[np.ndarray, np.ndarray]:
    if classes is None:
        first = generator.integers(0, count, pairs)
        return first, (first + generator.integers(1, count, pairs)) % count
    classes = np.asarray(classes)
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes)
    usable = np.flatnonzero(sizes[classes[order]] > 1)  # places in the order whose class has another image
    if not len(usable):
        raise ValueError("`classes` must hold a class of two images. Received: none")
    places = generator.choice(usable, pairs)
    size, start = sizes[classes[order[places]]], (np.cumsum(sizes) - sizes)[classes[order[places]]]
    other = start + (places - start + 1 + (generator.random(pairs) * (size - 1)).astype(np.int64)) % size
    return order[places], order[other]
