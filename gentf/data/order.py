"""Orders of examples: the fixed one of a split, how splits are cut, and the shuffle of each epoch."""

import numpy as np
import tensorflow as tf

from gentf.errors import UserError

# The permutation is a block cipher on the index. The public wrapper uses 4 rounds, which leaves the
# correlation between position and index about twice as large as chance; with 8 it is what chance gives.
_ROUNDS = 8
_FIXED_SEED = 20140610


def epoch_shuffle(positions: tf.Tensor, seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """Where `positions` of an epoch point to, in that epoch's own permutation of `0 .. size - 1`.

    Stateless and without memory: each entry is computed by itself from `(seed, epoch)`.

    Args:
        positions: (B,) int64, in `0 .. size - 1`.
        seed: any integer; taken modulo 2**64.
        epoch: () integer tensor.
        size: number of examples, >= 1.
    Returns:
        (B,) int64.
    """
    wrapped = (seed + 2**63) % 2**64 - 2**63
    # The op looks at a few low bits of each word of its key: 8 up to 65,536 examples. Epochs 0 and 256 would have
    # the same order, as would seeds that differ by 256. So the key is a hash of both.
    key = tf.random.stateless_uniform(
        (3,), tf.stack([tf.constant(wrapped, tf.int64), tf.cast(epoch, tf.int64)]), None, None, tf.uint32, "philox"
    )
    return tf.raw_ops.RandomIndexShuffle(
        index=positions, seed=key, max_index=tf.constant(size - 1, tf.int64), rounds=_ROUNDS
    )


def fixed_order(size: int, labels: np.ndarray | None = None) -> np.ndarray:
    """A permutation of `0 .. size - 1` that depends on nothing but its arguments.

    With labels every prefix holds the classes in their overall proportions, to within about one example a
    class: the examples of each class are shuffled, and the k-th of `m` is placed at random in the k-th of
    `m` equal parts of the order.

    Args:
        size: number of examples.
        labels: (size,) integers, or None.
    Returns:
        (size,) int64.
    """
    # RandomState's streams are frozen by NumPy's own compatibility policy; those of Generator are not.
    random = np.random.RandomState(_FIXED_SEED)
    order = random.permutation(size).astype(np.int64)
    if labels is None or size == 0:
        return order
    shuffled = np.asarray(labels)[order]
    by_class = np.argsort(shuffled, kind="stable")
    counts = np.bincount(shuffled)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranks = np.empty(size)
    ranks[by_class] = np.arange(size) - np.repeat(starts, counts)
    places = (ranks + random.random_sample(size)) / counts[shuffled]
    return order[np.argsort(places, kind="stable")]


def complete(
    orders: dict[str, np.ndarray], validation_share: float, test_share: float, name: str
) -> dict[str, np.ndarray]:
    """All three splits, from those a set has of its own: the others are cut from its train.

    Args:
        orders: split name -> rows; "train" at least.
        validation_share: see `cut`; it has no effect where the set has its own split.
        test_share: the same.
        name: of the set, for messages.
    """
    shares = [0 if "validation" in orders else validation_share, 0 if "test" in orders else test_share]
    train, validation, test = cut(orders["train"], shares[0], shares[1], name)
    return {"validation": validation, "test": test, **orders, "train": train}


def cut(order: np.ndarray, validation_share: float, test_share: float, name: str) -> tuple[np.ndarray, ...]:
    """Cut one order into train, validation and test, in that sequence of results.

    Test takes the first `round(n * test_share)` entries, validation the next `round(n * validation_share)`,
    train the rest; a share above 0 takes at least one entry, a share of 0 none.

    Raises:
        UserError: nothing would be left to train on.
    """
    sizes = held_out_sizes(len(order), validation_share, test_share)
    if sum(sizes) >= len(order):
        raise UserError(
            f"`{name}` has too few images to cut: {len(order)} in all, {sizes[1]} asked for validation and "
            f"{sizes[0]} for test, none left to train on. Lower data.validation_share and data.test_share"
        )
    test, validation, train = np.split(order, np.cumsum(sizes))
    return train, validation, test


def held_out_sizes(size: int, validation_share: float, test_share: float) -> tuple[int, int]:
    """How many of `size` go to test, and how many to validation: see `cut`."""
    test, validation = (max(1, round(size * share)) if share > 0 else 0 for share in (test_share, validation_share))
    return test, validation
