"""Dropout whose pattern is a function of row seeds: the same for a row on any device and in any batch."""

import math

import tensorflow as tf

from gentf.kernels import random


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor, stream: int = 0, shared: int | None = None) -> tf.Tensor:
    """Set numbers to 0 with probability `rate`, to the nearest 256th, and scale up the others.

    Args:
        x: (B, ...) float; static but for B.
        rate: in [0, 1). 0 does nothing.
        seed: (B, 2) int32 row seeds.
        stream: a number for each use of a seed.
        shared: an axis along which the pattern is the same, such as time.
    Returns:
        Tensor like `x`.
    Reference: Srivastava et al. (2014); with `shared`, Gal & Ghahramani (2016), section 4.
    """
    dropped = round(256 * rate)
    if not dropped:
        return x
    shape = [1 if axis == shared else size for axis, size in enumerate(x.shape) if axis]
    size = math.prod(shape)
    words = random.bits(seed, (-(-size // 4),), stream)
    octets = tf.reshape(tf.bitcast(words, tf.uint8), (-1, 4 * words.shape[1]))[:, :size]  # four decisions a word
    kept = tf.reshape(tf.cast(octets, tf.int32) >= dropped, (-1, *shape))
    return tf.where(kept, x * tf.cast(256 / (256 - dropped), x.dtype), tf.zeros((), x.dtype))
