"""The block of a Transformer decoder, for a whole sequence, for a prompt and for one token over a cache.

References: Vaswani et al. (2017); pre-normalization, Xiong et al. (2020); the sizes and initial weights of GPT-2,
Radford et al. (2019), section 2.3.
"""

import keras
import tensorflow as tf

from gentf.kernels import attention
from gentf.nn.dropout import dropout


class Normalization(keras.layers.Layer):
    """Layer normalization over the last axis, in float32. Reference: Ba, Kiros & Hinton (2016)."""

    def __init__(self, width: int, bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.gain = self.add_weight(shape=(width,), initializer="ones", name="gain")
        self.shift = self.add_weight(shape=(width,), initializer="zeros", name="shift") if bias else None
        self.built = True

    def values(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        return self.gain.value, None if self.shift is None else self.shift.value


def normalized(x: tf.Tensor, values: tuple[tf.Tensor, tf.Tensor | None], epsilon: float = 1e-5) -> tf.Tensor:
    """`Normalization` with weights at hand."""
    wide = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
    y = (wide - mean) * (tf.math.rsqrt(variance + epsilon) * tf.cast(values[0], tf.float32))
    return tf.cast(y if values[1] is None else y + tf.cast(values[1], tf.float32), x.dtype)


class Linear(keras.layers.Layer):
    """x W + b. Args: inputs, outputs; bias; scale: standard deviation of the initial weights."""

    def __init__(self, inputs: int, outputs: int, bias: bool, scale: float, seed: int, **kwargs):
        super().__init__(**kwargs)
        initializer = keras.initializers.RandomNormal(stddev=scale, seed=seed)
        self.kernel = self.add_weight(shape=(inputs, outputs), initializer=initializer, name="kernel")
        self.bias = self.add_weight(shape=(outputs,), initializer="zeros", name="bias") if bias else None
        self.built = True

    def values(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        kernel = tf.cast(self.kernel.value, self.compute_dtype)
        return kernel, None if self.bias is None else tf.cast(self.bias.value, self.compute_dtype)


def linear(x: tf.Tensor, values: tuple[tf.Tensor, tf.Tensor | None]) -> tf.Tensor:
    """`Linear` with weights at hand."""
    y = tf.matmul(x, values[0])
    return y if values[1] is None else y + values[1]


class Block(keras.layers.Layer):
    """Attention, then a feed-forward network, each added to what passes through: x + f(norm(x)).

    Args:
        width: D, numbers of a token; heads: H of queries; groups: G of keys and values; hidden: of the network.
        rotary: turn queries and keys by their positions; see `attention.rotary`.
        window: keys that a query sees, itself included; None: all before it.
        bias: in linear layers and normalizations.
        branch_scale: standard deviation of the initial weights of what is added to x.
        seed: of the initial weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        groups: int,
        hidden: int,
        rotary: bool,
        window: int | None,
        bias: bool,
        branch_scale: float,
        seed: int,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width, self.heads, self.groups, self.head = width, heads, groups, width // heads
        self.rotary, self.window = rotary, window
        made = {"bias": bias, "dtype": self.dtype_policy}
        self.first = Normalization(width, bias, dtype=self.dtype_policy, name="attention_norm")
        self.second = Normalization(width, bias, dtype=self.dtype_policy, name="network_norm")
        columns = (heads + 2 * groups) * self.head
        self.qkv = Linear(width, columns, scale=0.02, seed=seed, name="qkv", **made)
        self.out = Linear(width, width, scale=branch_scale, seed=seed + 1, name="out", **made)
        self.up = Linear(width, hidden, scale=0.02, seed=seed + 2, name="up", **made)
        self.down = Linear(hidden, width, scale=branch_scale, seed=seed + 3, name="down", **made)
        self.built = True

    def values(self) -> dict:
        """The weights as tensors: to be read once, outside of a loop."""
        parts = ("first", "second", "qkv", "out", "up", "down")
        return {name: getattr(self, name).values() for name in parts}

    def _split(self, y: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(B, T, columns) -> queries (B, T, H, d), keys and values (B, T, G, d)."""
        sizes = [self.heads * self.head, self.groups * self.head, self.groups * self.head]
        length = tf.shape(y)[1] if y.shape[1] is None else y.shape[1]
        q, k, v = (tf.reshape(part, (-1, length, size // self.head, self.head))
                   for part, size in zip(tf.split(y, sizes, axis=-1), sizes))  # fmt: skip
        if self.rotary:
            q, k = attention.rotary(q, positions), attention.rotary(k, positions)
        return q, k, v

    def whole(self, x, values, positions, seed=None, rate=0.0, stream=0):
        """(B, T, D) -> (B, T, D), and the keys and values of each place (B, T, G, d)."""
        q, k, v = self._split(linear(normalized(x, values["first"]), values["qkv"]), positions)
        y = attention.attention(q, k, v, causal=True, window=self.window)
        y = linear(tf.reshape(y, tf.shape(x)), values["out"])
        x += dropout(y, rate, seed, stream) if seed is not None else y
        y = tf.nn.gelu(linear(normalized(x, values["second"]), values["up"]), approximate=True)
        y = linear(y, values["down"])
        return x + (dropout(y, rate, seed, stream + 1) if seed is not None else y), (k, v)

    def step(self, x, values, cache, position):
        """(B, D) -> (B, D), and the cache with the token at `position` (B,) in it."""
        y = linear(normalized(x, values["first"]), values["qkv"])
        q, k, v = (part[:, 0] for part in self._split(y[:, None], position[:, None]))
        y, cache = attention.attention_step(q, k, v, cache, position, window=self.window)
        x += linear(tf.reshape(y, (-1, self.width)), values["out"])
        y = tf.nn.gelu(linear(normalized(x, values["second"]), values["up"]), approximate=True)
        return x + linear(y, values["down"]), cache

    def extend(self, x, values, cache, position):
        """(B, T, D) -> (B, T, D) of tokens that follow one another from `position` (B,), and the cache with them.

        What lies in the cache at `position` and after is written over.
        """
        length, capacity = x.shape[1], cache[0].shape[2] or tf.shape(cache[0])[2]
        places = position[:, None] + tf.range(length)
        q, k, v = self._split(linear(normalized(x, values["first"]), values["qkv"]), places)
        cache = attention.write_cache(cache, k, v, position)
        entry = tf.range(capacity)
        seen = entry <= places[..., None]  # (B, T, S)
        if self.window is not None:
            seen &= entry > places[..., None] - self.window
        share = self.heads // self.groups
        q = tf.transpose(tf.reshape(q, (-1, length, self.groups, share, self.head)), (0, 2, 3, 1, 4))  # B G s T d
        scores = tf.einsum("bgstd,bgkd->bgstk", q * tf.cast(self.head**-0.5, q.dtype), tf.cast(cache[0], q.dtype))
        scores = tf.where(seen[:, None, None], tf.cast(scores, tf.float32), attention.HIDDEN)
        y = tf.einsum("bgstk,bgkd->btgsd", tf.cast(tf.nn.softmax(scores), q.dtype), tf.cast(cache[1], q.dtype))
        x += linear(tf.reshape(y, tf.shape(x)), values["out"])
        y = tf.nn.gelu(linear(normalized(x, values["second"]), values["up"]), approximate=True)
        return x + linear(y, values["down"]), cache
