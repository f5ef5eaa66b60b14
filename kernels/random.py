"""Counter-based random numbers: each row of a batch has its own seed, and depends on nothing else.

A generator with state gives a sample that depends on what was drawn before it and on the batch it came in. Here
word `i` of a row is a pure function of the row's seed, a stream number (`counter`) and `i`: the Threefry-2x32 block
cipher with 20 rounds, encrypting the block number under the seed. So the same seed gives the same numbers at any batch
size, on any device, compiled or not, and in an exported model.

Reference: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", section 4.2.
"""

import functools
import math
from collections.abc import Sequence

import tensorflow as tf

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
KEY_PARITY = 0x1BD11BDA
FOLD_COUNTER = 0xFFFFFFFF  # a stream that `bits` leaves to `fold_in`


def threefry(key: tuple[tf.Tensor, tf.Tensor], block: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Encrypt two 32-bit words under two 32-bit words, in 20 rounds.

    Args:
        key, block: pairs of uint32 tensors; all four broadcast against each other.
    Returns:
        A pair of uint32 tensors.
    """
    words = [tf.convert_to_tensor(word, tf.uint32) for word in (*key, *block)]
    shape = functools.reduce(tf.broadcast_static_shape, [word.shape for word in words])
    return tuple(tf.ensure_shape(word, shape) for word in _rounds(*words))


@tf.function(input_signature=[tf.TensorSpec(None, tf.uint32)] * 4, autograph=False)  # 200 operations, traced once
def _rounds(key0: tf.Tensor, key1: tf.Tensor, x0: tf.Tensor, x1: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    keys = (key0, key1, tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(key0, key1), _word(KEY_PARITY)))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = tf.bitwise.bitwise_xor(_rotate_left(x1, distance), x0)
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + _word(group + 1)
    return x0, x1


def bits(seed: tf.Tensor, shape: Sequence[int], counter: int | tf.Tensor = 0) -> tf.Tensor:
    """Uniform 32-bit words.

    Args:
        seed: (B, 2) int32, one seed a row.
        shape: static shape of one row's words.
        counter: stream number, scalar or (B,), 0 <= counter < 2**32 - 1. Different counters give independent words.
    Returns:
        (B, *shape) uint32.
    """
    words = math.prod(shape)
    blocks = max(1, -(-words // 2))
    key0, key1 = _key(seed)
    index = tf.bitcast(tf.range(blocks, dtype=tf.int32), tf.uint32)[None, :]
    stream = tf.reshape(_counter_word(counter), (-1, 1))
    x0, x1 = threefry((key0, key1), (index, stream))
    x = tf.reshape(tf.stack([x0, x1], axis=-1), (-1, 2 * blocks))
    return tf.reshape(x[:, :words], (-1, *shape))


def uniform(seed: tf.Tensor, shape: Sequence[int], counter: int | tf.Tensor = 0) -> tf.Tensor:
    """(B, *shape) float32, uniform on the multiples of 2**-24 in [0, 1). Arguments as of `bits`."""
    return _to_unit(bits(seed, shape, counter))


def normal(seed: tf.Tensor, shape: Sequence[int], counter: int | tf.Tensor = 0) -> tf.Tensor:
    """(B, *shape) float32, standard normal; |value| <= 5.77. Arguments as of `bits`.

    Reference: Box & Muller (1958).
    """
    size = math.prod(shape)
    pairs = max(1, -(-size // 2))
    u = _to_unit(bits(seed, (2, pairs), counter))
    radius = tf.sqrt(-2.0 * tf.math.log(u[:, 0] + 2.0**-24))  # the shift makes it (0, 1]: log(0) cannot occur
    angle = (2.0 * math.pi) * u[:, 1]
    z = tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=1)
    return tf.reshape(z[:, :size], (-1, *shape))


def categorical(seed: tf.Tensor, logits: tf.Tensor, counter: int | tf.Tensor = 0) -> tf.Tensor:
    """One index a row, with probability softmax(logits), by the Gumbel-max rule.

    Args:
        seed: (B, 2) int32.
        logits: (B, K) float; -inf excludes an index. K is static.
        counter: as of `bits`.
    Returns:
        (B,) int32 in [0, K).
    """
    gumbel = to_gumbel(uniform(seed, (logits.shape[-1],), counter))
    return tf.argmax(tf.cast(logits, tf.float32) + gumbel, axis=-1, output_type=tf.int32)


def to_gumbel(u: tf.Tensor) -> tf.Tensor:
    """Standard Gumbel numbers from what `uniform` gives; finite for each of its values, 0 included."""
    return -tf.math.log(-tf.math.log(tf.maximum(u, 2.0**-25)))


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """New seeds from `seed` and an integer, independent of every stream of `seed`.

    Args:
        seed: (B, 2) int32.
        data: scalar or (B,) integer, taken modulo 2**32.
    Returns:
        (B, 2) int32.
    """
    x0, x1 = threefry(_key(seed), (tf.reshape(_counter_word(data), (-1, 1)), _word(FOLD_COUNTER)))
    return tf.bitcast(tf.concat([x0, x1], axis=1), tf.int32)


def spread(seed: int | tf.Tensor, num: int | tf.Tensor, start: int | tf.Tensor = 0) -> tf.Tensor:
    """Row seeds from one integer: row i is [seed, start + i].

    The rule is kept this plain so that a client of a served model can write the same seeds by hand.

    Returns:
        (num, 2) int32.
    """
    rows = tf.cast(start, tf.int32) + tf.range(tf.cast(num, tf.int32))
    return tf.stack([tf.fill(tf.shape(rows), tf.cast(seed, tf.int32)), rows], axis=1)


def _key(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    words = tf.bitcast(tf.cast(seed, tf.int32), tf.uint32)
    return words[:, :1], words[:, 1:]


def _counter_word(counter: int | tf.Tensor) -> tf.Tensor:
    if isinstance(counter, int):
        return _word(counter % 2**32)
    # by way of int32, since casts from int64 to uint32 are not to be had on every device
    return tf.bitcast(tf.cast(tf.bitwise.bitwise_and(tf.cast(counter, tf.int64), 0xFFFFFFFF), tf.int32), tf.uint32)


def _to_unit(words: tf.Tensor) -> tf.Tensor:
    # 24 bits: what a float32 holds exactly, so that 1.0 cannot come out
    return tf.cast(tf.bitcast(tf.bitwise.right_shift(words, _word(8)), tf.int32), tf.float32) * 2.0**-24


def _rotate_left(x: tf.Tensor, distance: int) -> tf.Tensor:
    return tf.bitwise.bitwise_or(
        tf.bitwise.left_shift(x, _word(distance)), tf.bitwise.right_shift(x, _word(32 - distance))
    )


def _word(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)
