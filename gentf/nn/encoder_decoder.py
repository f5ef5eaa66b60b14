"""The blocks of T5: attention with a bias by relative position, in an encoder, and in a decoder that attends to it.

What T5 does is done here: RMS normalization before each part, no biases in linear layers, no scale of the scores (the
initial weights of queries are small instead), a network with one rectified layer.

Reference: Raffel et al. (2020), "Exploring the limits of transfer learning with a unified text-to-text transformer",
section 2.1.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import attention
from gentf.kernels.quantize import lookup
from gentf.kernels.tracing import size
from gentf.nn.dropout import dropout
from gentf.nn.transformer import Linear, linear

Pair = tuple[tf.Tensor, tf.Tensor]  # keys and values (B, H, S, d)
Noise = tuple[tf.Tensor, float, int]  # row seeds, share left out, first stream


def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance: one each up to half of the buckets, then wider and wider, as logarithms.

    Args:
        buckets: n, at least 2.
        max_distance: m, more than n / 2: distances from here on are in the last bucket.
    Returns:
        (max_distance + 1,) int32: d where d < e = n // 2, else min(n - 1, e + floor((n - e) log(d / e) / log(m / e))).
    """
    exact = buckets // 2
    distance = np.arange(max_distance + 1)
    ratio = np.log(np.maximum(distance, exact) / exact) / math.log(max_distance / exact)
    far = exact + np.floor((buckets - exact) * ratio + 1e-9).astype(np.int64)  # a power stays in its own bucket
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


class RelativeBias(keras.layers.Layer):
    """A number for each head and bucket of distance, added to scores; shared by all layers of a stack.

    Args:
        heads: H.
        buckets: rows of the table. With `both` half of them are for keys that come after the query.
        max_distance: see `distance_buckets`.
        both: whether a query sees keys on both sides; else a key after it counts as one at distance 0.
        scale: standard deviation of the initial numbers.
        seed: of them.
    """

    def __init__(self, heads: int, buckets: int, max_distance: int, both: bool, scale: float, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.both, self.side = both, buckets // 2 if both else buckets
        self.of_distance = distance_buckets(self.side, max_distance)
        initializer = keras.initializers.RandomNormal(stddev=scale, seed=seed)
        self.table = self.add_weight(
            shape=(2 * self.side if both else self.side, heads), initializer=initializer, name="relative_bias"
        )
        self.built = True

    def bucket(self, relative: tf.Tensor) -> tf.Tensor:
        """The row of the table, int32, for key position - query position, int32 of any shape."""
        back = tf.abs(relative) if self.both else tf.maximum(-relative, 0)
        found = tf.gather(self.of_distance, tf.minimum(back, len(self.of_distance) - 1))
        return found + tf.where(relative > 0, self.side, 0) if self.both else found

    def biases(self, table: tf.Tensor, queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """(..., H, T, S) float32 for positions of queries (..., T) and of keys (S,)."""
        found = lookup(table, self.bucket(keys - queries[..., None]))
        rank = found.shape.rank
        return tf.transpose(found, (*range(rank - 3), rank - 1, rank - 3, rank - 2))


class RMSNormalization(keras.layers.Layer):
    """x / sqrt(mean(x^2)) times a gain, over the last axis, in float32. Reference: Zhang & Sennrich (2019)."""

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.gain = self.add_weight(shape=(width,), initializer="ones", name="gain")
        self.built = True

    def values(self) -> tf.Tensor:
        return tf.cast(self.gain.value, tf.float32)


def rms_normalized(x: tf.Tensor, gain: tf.Tensor, epsilon: float = 1e-6) -> tf.Tensor:
    """`RMSNormalization` with the gain at hand."""
    wide = tf.cast(x, tf.float32)
    return tf.cast(wide * tf.math.rsqrt(tf.reduce_mean(wide**2, axis=-1, keepdims=True) + epsilon) * gain, x.dtype)


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """softmax(Q K' + bias) V.

    Args:
        query: (B, H, T, d); key, value: (B, H, S, d).
        bias: float32, broadcast to (B, H, T, S); `attention.HIDDEN` hides a key.
    Returns:
        (B, H, T, d), of query's dtype; the softmax is taken in float32.
    """
    scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32) + bias
    return tf.matmul(tf.cast(tf.nn.softmax(scores), value.dtype), value)


def write_cache(cache: Pair, key: tf.Tensor, value: tf.Tensor, place: tf.Tensor) -> Pair:
    """Keys and values (B, H, T, d) of places from `place` (B,) on, put into a cache (B, H, S, d)."""
    if key.shape[2] == 1:  # a scatter is done in place inside a loop
        rows, heads = size(key, 0), key.shape[1]
        index = tf.stack([
            tf.broadcast_to(tf.range(rows)[:, None], (rows, heads)), tf.broadcast_to(tf.range(heads), (rows, heads)),
            tf.broadcast_to(place[:, None], (rows, heads)),
        ], axis=-1)  # fmt: skip
        keys, values = (
            tf.tensor_scatter_nd_update(old, index, tf.cast(new[:, :, 0], old.dtype))
            for old, new in zip(cache, (key, value))
        )
        return keys, values
    key, value = (tf.transpose(x, (0, 2, 1, 3)) for x in (key, value))
    return attention.write_cache(cache, key, value, place)


class Attention(keras.layers.Layer):
    """The linear layers of attention with H heads of width / H. Args: as of `EncoderBlock`."""

    def __init__(self, width: int, heads: int, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.head = heads, width // heads
        made = {"bias": False, "dtype": self.dtype_policy}
        scale = width**-0.5
        self.query = Linear(width, width, scale=scale * self.head**-0.5, seed=seed, name="query", **made)
        self.key_value = Linear(width, 2 * width, scale=scale, seed=seed + 1, name="key_value", **made)
        self.out = Linear(width, width, scale=scale, seed=seed + 2, name="out", **made)
        self.built = True

    def values(self) -> dict:
        return {name: getattr(self, name).values() for name in ("query", "key_value", "out")}

    def queries(self, x: tf.Tensor, values: dict) -> tf.Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        return self._split(linear(x, values["query"]))

    def keys_values(self, x: tf.Tensor, values: dict) -> Pair:
        """(B, S, D) -> two of (B, H, S, d)."""
        key, value = tf.split(linear(x, values["key_value"]), 2, axis=-1)
        return self._split(key), self._split(value)

    def joined(self, y: tf.Tensor, values: dict) -> tf.Tensor:
        """(B, H, T, d) -> (B, T, D)."""
        y = tf.reshape(tf.transpose(y, (0, 2, 1, 3)), (-1, size(y, 2), self.heads * self.head))
        return linear(y, values["out"])

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(x, (-1, size(x, 1), self.heads, self.head)), (0, 2, 1, 3))


class EncoderBlock(keras.layers.Layer):
    """Attention, then a feed-forward network, each added to what passes through: x + f(norm(x)).

    Args:
        width: D, numbers of a token; heads: H, dividing it; hidden: of the network.
        seed: of the initial weights, which takes up 8 numbers.
    """

    parts: tuple[str, ...] = ("attention_norm", "attention", "network_norm", "up", "down")

    def __init__(self, width: int, heads: int, hidden: int, seed: int, **kwargs):
        super().__init__(**kwargs)
        made = {"bias": False, "dtype": self.dtype_policy}
        self.attention_norm = RMSNormalization(width, dtype=self.dtype_policy, name="attention_norm")
        self.attention = Attention(width, heads, seed, dtype=self.dtype_policy, name="attention")
        self.network_norm = RMSNormalization(width, dtype=self.dtype_policy, name="network_norm")
        self.up = Linear(width, hidden, scale=width**-0.5, seed=seed + 3, name="up", **made)
        self.down = Linear(hidden, width, scale=hidden**-0.5, seed=seed + 4, name="down", **made)
        self.built = True

    def values(self) -> dict:
        """The weights as tensors: to be read once, outside of a loop."""
        return {name: getattr(self, name).values() for name in self.parts}

    def run(self, x: tf.Tensor, values: dict, bias: tf.Tensor, noise: Noise | None = None) -> tf.Tensor:
        """(B, S, D) -> (B, S, D). Args: bias: as of `attend`; noise: dropout of 2 streams, None for none."""
        y = rms_normalized(x, values["attention_norm"])
        weights = values["attention"]
        y = attend(self.attention.queries(y, weights), *self.attention.keys_values(y, weights), bias)
        x += _dropped(self.attention.joined(y, weights), noise, 0)
        return x + _dropped(self._network(x, values), noise, 1)

    def _network(self, x, values):
        y = tf.nn.relu(linear(rms_normalized(x, values["network_norm"]), values["up"]))
        return linear(y, values["down"])


class DecoderBlock(EncoderBlock):
    """Attention to the tokens before, attention to the source, and a feed-forward network. Args: as of the base."""

    parts = (*EncoderBlock.parts, "cross_norm", "cross")

    def __init__(self, width: int, heads: int, hidden: int, seed: int, **kwargs):
        super().__init__(width, heads, hidden, seed, **kwargs)
        self.cross_norm = RMSNormalization(width, dtype=self.dtype_policy, name="cross_norm")
        self.cross = Attention(width, heads, seed + 5, dtype=self.dtype_policy, name="cross")

    def source(self, x: tf.Tensor, values: dict) -> Pair:
        """Keys and values of the encoded source (B, S, D): the same for all tokens of the target."""
        return self.cross.keys_values(x, values["cross"])

    def decode(
        self,
        x: tf.Tensor,
        values: dict,
        bias: tf.Tensor,
        source: Pair,
        hidden_source: tf.Tensor,
        cache: Pair | None = None,
        place: tf.Tensor | None = None,
        noise: Noise | None = None,
    ) -> tuple[tf.Tensor, Pair]:
        """(B, T, D) -> (B, T, D), and the keys and values that it attended to.

        Args:
            bias: as of `attend`, which hides what comes after each token.
            source: from `source`; hidden_source: (B, 1, 1, S) float32, as `bias`.
            cache: keys and values of the tokens before; None: x is the whole target.
            place: (B,) int32, of the first token in the cache.
            noise: dropout of 3 streams; None for none.
        """
        weights = values["attention"]
        y = rms_normalized(x, values["attention_norm"])
        pair = self.attention.keys_values(y, weights)
        if cache is not None:
            pair = write_cache(cache, *pair, place)
        y = attend(self.attention.queries(y, weights), *pair, bias)
        x += _dropped(self.attention.joined(y, weights), noise, 0)
        weights = values["cross"]
        y = self.cross.queries(rms_normalized(x, values["cross_norm"]), weights)
        y = attend(y, *source, hidden_source)
        x += _dropped(self.cross.joined(y, weights), noise, 1)
        return x + _dropped(self._network(x, values), noise, 2), pair


def _dropped(x: tf.Tensor, noise: Noise | None, number: int) -> tf.Tensor:
    return x if noise is None else dropout(x, noise[1], noise[0], noise[2] + number)
