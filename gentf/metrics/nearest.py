"""Distance to the nearest training image, and the share of near copies: is the model repeating its data?"""

from collections.abc import Callable, Iterable

import numpy as np

from gentf.metrics.estimate import Estimate, share_of, to_unit

Blocks = np.ndarray | Callable[[], Iterable[np.ndarray]]


def nearest_distances(
    images: np.ndarray,
    train: Blocks,
    *,
    query_block: int = 512,
    train_block: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Distance from each image to its nearest training image.

    The search is a float32 matrix product, block by block. Its rounding can neither change a result nor give
    a
    negative square: every training image that rounding leaves in doubt is compared again pixel by pixel, so a
    copy is at distance 0 exactly.

    Args:
        images: (n, ...) uint8, or float in [-1, 1].
        train: (m, ...) images of the same size, or a function that returns an iterable of such blocks, for
            sets that do not fit in memory; each block is read once.
        query_block, train_block: images compared at once; memory beyond `images` and a block of `train` is
            about 4 * query_block * train_block bytes plus one float32 block of `train`.
        progress: called with the number of training images done.
    Returns:
        (n,) float32 in [0, 1]: root mean square difference per pixel and channel, pixels in [0, 1].
    """
    search = _Search(images, query_block)
    pixels = search.queries.shape[1]
    done = 0
    for block in train() if callable(train) else [train]:
        block = np.asarray(block)
        for start in range(0, len(block), train_block):
            part = to_unit(block[start : start + train_block], "train")
            part = part.reshape(len(part), -1)
            if part.shape[1] != pixels:
                raise ValueError(
                    f"`train` must be images of the size of `images`. Received: {part.shape[1]} and {pixels} pixels"
                )
            search.update(part)
            done += len(part)
            if progress is not None:
                progress(done)
    if not done:
        raise ValueError("`train` must hold at least one image. Received: 0 images")
    return np.sqrt(search.squares / pixels).astype(np.float32)


def near_copies(distances: np.ndarray, real_distances: np.ndarray, quantile: float = 0.01) -> Estimate:
    """Share of samples nearer to a training image than real images hardly ever are.

    Args:
        distances: (n,) of the samples, from `nearest_distances`.
        real_distances: (m,) of held-out real images to the same training images.
        quantile: of `real_distances` that bounds a near copy. Real images themselves score about this share.
    Returns:
        The share, in [0, 1]. The bound is taken as given: the standard error is that of the samples alone.
    """
    return share_of(np.asarray(distances) < copy_threshold(real_distances, quantile))


def copy_threshold(real_distances: np.ndarray, quantile: float = 0.01) -> float:
    """The distance below which a sample counts as a near copy.

    It is the smallest positive float when that quantile is 0 (real sets with duplicates across splits), so
    that exact copies always count.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"`quantile` must lie between 0 and 1. Received: quantile={quantile}")
    real_distances = np.asarray(real_distances, np.float32).reshape(-1)
    if real_distances.size == 0:
        raise ValueError("`real_distances` must hold at least one distance. Received: 0 distances")
    return max(float(np.quantile(real_distances, quantile)), float(np.finfo(np.float32).tiny))


class _Search:
    """Running minimum of the squared distance from each query to the training images seen so far."""

    def __init__(self, images, query_block):
        self.query_block = query_block
        pixels = int(np.prod(np.shape(images)[1:]))
        # The column of ones, with |t|^2 below the training images, makes one product of -2 <q, t> + |t|^2.
        self._augmented = np.ones((len(images), pixels + 1), np.float32)
        self.queries = self._augmented[:, :-1]
        for start in range(0, len(images), 1000):
            block = to_unit(images[start : start + 1000])
            self.queries[start : start + 1000] = block.reshape(len(block), -1)
        self._norms = np.einsum("ij,ij->i", self.queries, self.queries, dtype=np.float64)
        self.squares = np.full(len(images), np.inf)  # the running minima, exact

    def update(self, part):
        """Lower the minima by `part`: (m, pixels) float32 in [0, 1]."""
        # Repeated images (blank ones, say) would all stay in doubt together, and cost as many exact
        # comparisons.
        part = part[list({row.tobytes(): index for index, row in enumerate(part)}.values())]
        norms = np.einsum("ij,ij->i", part, part, dtype=np.float64)
        augmented = np.concatenate([-2 * part, norms[:, None].astype(np.float32)], axis=1).T
        # A float32 dot product of k terms is off by less than k * eps / 2 * |a| |b|, in whatever order it is
        # summed.
        unit = (part.shape[1] + 8) * np.finfo(np.float32).eps / 2
        for start in range(0, len(self.queries), self.query_block):
            rows = slice(start, start + self.query_block)
            slack = unit * (2 * np.sqrt(self._norms[rows] * norms.max()) + norms.max())
            scores = self._augmented[rows] @ augmented
            # The best so far is the lowest here (at most `slack` too low) or the exact one of an earlier
            # block.
            best = np.minimum(scores.min(axis=1) + slack, self.squares[rows] - self._norms[rows])
            query, image = np.nonzero(scores <= (best + slack)[:, None].astype(np.float32))
            self._compare(query + start, image, part)

    def _compare(self, query, image, part):
        """Exact squares of the pairs in doubt, a bounded number at a time."""
        step = max(1, (1 << 22) // part.shape[1])
        for start in range(0, len(query), step):
            chosen = query[start : start + step]
            difference = self.queries[chosen] - part[image[start : start + step]]
            squares = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
            np.minimum.at(self.squares, chosen, squares)
