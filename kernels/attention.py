"""Attention: exact in blocks, whose memory grows with the length and not with its square; one token over a cache.

A sequence that fits one block takes the short way: two batched matrix products around a softmax, whose probabilities
are kept. Longer ones go block by block (kernels/blockwise.py).

Heads of queries that share a head of keys (grouped queries, Ainslie et al., 2023) are laid under one another as rows of
one matrix, so that keys and values are never repeated.
"""

import math
from typing import Any

import tensorflow as tf

from gentf.kernels.blockwise import HIDDEN, hidden_places, sizes_of
from gentf.kernels.blockwise import attention as _blocked
from gentf.kernels.tracing import Size
from gentf.kernels.tracing import size as _size

Cache = tuple[tf.Tensor, tf.Tensor]


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    *,
    causal: bool = False,
    mask: tf.Tensor | None = None,
    lengths: tf.Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    block: int = 512,
) -> tf.Tensor:
    """softmax(scale * Q K' + visibility) V.

    Gradient: with P the probabilities and O the output, dV = P' dO, dS = P * (dO V' - rowsum(dO * O)),
    dQ = scale * dS K, dK = scale * dS' Q.

    Query i stands at the place S - T + i among the keys, so that the last query sees the last key. Blocks that no query
    may see are skipped in both passes: causal attention costs half, a window costs T * window. A query that sees no key
    gives zeros, and no gradient. Everything is computed in float32.

    Stored for the backward pass: inputs, output and the log-sum-exp of each query, O(B H (T + S) D); a working block is
    (2 heads, block, block), two at a time, and (B, H, block, block) on a GPU. When T and S are static and at most
    `block`: the probabilities, (B, H, T, S).

    Args:
        query: (B, T, H, D) float. B, T and S may be dynamic.
        key: (B, S, G, D), G dividing H; query head h reads key head h // (H / G).
        value: (B, S, G, E).
        causal: a query sees no key after its own place.
        mask: (B, S) bool, False for a key that nothing sees.
        lengths: (B,) int32, the keys of each row; later ones are padding. In [0, S].
        window: a query sees only the last `window` keys up to its own place, itself included. Implies `causal`.
        scale: of the scores; None for 1 / sqrt(D).
        block: rows and columns of a block, at least 1.
    Returns:
        (B, T, H, E), of query's dtype.
    Raises:
        ValueError: if the ranks, H and G, `window` or `block` do not fit.
    """
    query, key, value = (tf.convert_to_tensor(x) for x in (query, key, value))
    _check_ranks(4, query=query, key=key, value=value)
    _check_heads(query.shape[2], key.shape[2])
    _check_positive(block=block, window=window)
    q, k, v = (tf.cast(x, tf.float32) for x in (query, key, value))
    q *= 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    visible = _visible_keys(mask, lengths, _size(key, 1))
    last, first = (0, None if window is None else 1 - window) if causal or window is not None else (None, None)
    sizes = query.shape[1], key.shape[1]
    short = None not in sizes and max(sizes) <= block
    out = (_direct if short else _blocked)(q, k, v, visible, first, last, block)
    return tf.cast(out, query.dtype)


def rotary(x: tf.Tensor, positions: tf.Tensor, base: float = 10000.0) -> tf.Tensor:
    """Rotary position embedding: pair i of a head turns by the angle position * base ** (-2 i / D).

    Su et al. (2021), "RoFormer", equation 34. Pairs are halves: feature i goes with feature i + D / 2, not with its
    neighbour. Gradient: the incoming one turned by minus the angle. Stored for the backward pass: sines and cosines.

    Args:
        x: (B, T, H, D) float, D even.
        positions: (T,) or (B, T) integer; float32 angles are good to 1e-2 radians up to about 1e5.
        base: ratio of the longest wavelength to the shortest.
    Returns:
        Tensor like `x`.
    """
    x, positions = tf.convert_to_tensor(x), tf.convert_to_tensor(positions)
    _check_ranks(4, x=x)
    if x.shape[-1] % 2:
        raise ValueError(f"`x` must have an even last axis. Received: x.shape={x.shape}")
    half = x.shape[-1] // 2
    rates = tf.constant([base ** (-i / half) for i in range(half)], tf.float32)
    angle = tf.cast(positions, tf.float32)[..., None, None] * rates  # (T, 1, D/2) or (B, T, 1, D/2)
    return tf.cast(_rotate(tf.cast(x, tf.float32), tf.cos(angle), tf.sin(angle)), x.dtype)


def empty_cache(batch: Size, size: int, heads: int, width: int, dtype: tf.DType = tf.float32) -> Cache:
    """Keys and values of `size` tokens for `attention_step`: two zero tensors (batch, heads, size, width)."""
    zeros = tf.zeros((batch, heads, size, width), dtype)
    return zeros, zeros


def write_cache(cache: Cache, key: tf.Tensor, value: tf.Tensor, start: int | tf.Tensor = 0) -> Cache:
    """Put T tokens into a cache at once, as a prompt does.

    Args:
        cache: keys (B, G, S, D) and values (B, G, S, E).
        key, value: (B, T, G, D) and (B, T, G, E).
        start: scalar or (B,) integer, the place of the first token. What falls outside [0, S) is dropped.
    Returns:
        The new cache, of the old one's dtype.
    """
    _check_ranks(4, key=key, value=value)
    size, length = _size(cache[0], 2), _size(key, 1)
    source = tf.range(size) - tf.reshape(tf.cast(start, tf.int32), (-1, 1))  # (B or 1, S): which token goes there
    source = tf.broadcast_to(source, (_size(key, 0), size))
    inside = ((source >= 0) & (source < length))[:, None, :, None]
    source = tf.clip_by_value(source, 0, length - 1)

    def write(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        new = tf.transpose(tf.gather(tf.cast(new, old.dtype), source, batch_dims=1), (0, 2, 1, 3))
        return tf.where(inside, new, old)

    return write(cache[0], key), write(cache[1], value)


def attention_step(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    cache: Cache,
    position: int | tf.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[tf.Tensor, Cache]:
    """Write one token's key and value at `position`, and attend from it to the entries up to there.

    A cache is one pair a layer, heads before tokens: both products then read a contiguous matrix a head. In a loop that
    XLA compiles the cache must be a loop variable that nothing else reads, and is updated in place.

    Products are taken in the cache's dtype, the softmax in float32.

    Args:
        query: (B, H, D) float.
        key, value: (B, G, D) and (B, G, E), G dividing H.
        cache: keys (B, G, S, D) and values (B, G, S, E); entries after `position` are not read.
        position: scalar or (B,) integer in [0, S).
        window: attend to the last `window` entries only, the new one included.
        scale: of the scores; None for 1 / sqrt(D).
    Returns:
        (B, H, E) of query's dtype, and the new cache.
    Raises:
        ValueError: if the ranks, H and G or `window` do not fit.
    """
    query, key, value = (tf.convert_to_tensor(x) for x in (query, key, value))
    _check_ranks(3, query=query, key=key, value=value)
    heads, groups, width = query.shape[1], key.shape[1], query.shape[2]
    _check_heads(heads, groups)
    _check_positive(window=window)
    batch, size = _size(query, 0), _size(cache[0], 2)
    position = tf.reshape(tf.cast(position, tf.int32), (-1, 1))  # (B or 1, 1)

    place = tf.broadcast_to(tf.range(groups), (batch, groups))
    index = tf.stack([tf.broadcast_to(tf.range(batch)[:, None], (batch, groups)), place,
                      tf.broadcast_to(position, (batch, groups))], axis=-1)  # fmt: skip
    keys, values = (tf.tensor_scatter_nd_update(c, index, tf.cast(x, c.dtype)) for c, x in zip(cache, (key, value)))

    entry = tf.range(size)
    seen = entry <= position
    if window is not None:
        seen &= entry > position - window
    hidden = tf.where(seen, 0.0, HIDDEN)[:, None, None, :]
    rows = query * tf.cast(1.0 / math.sqrt(width) if scale is None else scale, query.dtype)
    rows = tf.cast(tf.reshape(rows, (batch, groups, heads // groups, width)), keys.dtype)
    scores = tf.cast(tf.matmul(rows, keys, transpose_b=True), tf.float32) + hidden
    out = tf.matmul(tf.cast(tf.nn.softmax(scores), values.dtype), values)  # (B, G, H/G, E)
    return tf.cast(tf.reshape(out, (batch, heads, values.shape[-1])), query.dtype), (keys, values)


# --- one block


def _direct(query, key, value, visible, first, last, block):
    """Attention with its scores in memory. `first`, `last`: the keys seen, counted from a query's own place."""
    batch, (length, heads, _), (size, groups, _) = _size(query, 0), sizes_of(query), sizes_of(key)
    bias: Any = None
    if last is not None:
        bias = hidden_places(tf.range(length) + size - length, tf.range(size), first, last)[None, None, None]
    if visible is not None:
        keys = tf.where(visible, 0.0, HIDDEN)[:, None, None, None, :]
        bias = keys if bias is None else bias + keys
    # a softmax over hidden keys alone is not zero: such rows are struck out of the output and of its gradient
    may_be_blind = visible is not None or (last is not None and length > size)
    sees = tf.cast(tf.reduce_any(bias > 0.5 * HIDDEN, axis=-1), tf.float32)[..., None] if may_be_blind else None

    def strike(rows):  # (B, G, H/G * T, E)
        if sees is None:
            return rows
        split = tf.reshape(rows, (batch, groups, heads // groups, length, rows.shape[-1]))
        return tf.reshape(split * sees, tf.shape(rows))

    @tf.custom_gradient
    def run(query, key, value):
        q, k, v = _rows(query, groups), _swap(key), _swap(value)
        scores = tf.matmul(q, k, transpose_b=True)
        if bias is not None:
            scores = tf.reshape(scores, (batch, groups, heads // groups, length, size)) + bias
            scores = tf.reshape(scores, (batch, groups, heads // groups * length, size))
        p = tf.nn.softmax(scores)
        out = strike(tf.matmul(p, v))

        def grad(upstream):
            d_out = strike(_rows(upstream, groups))
            d_v = tf.matmul(p, d_out, transpose_a=True)
            delta = tf.reduce_sum(d_out * out, axis=-1, keepdims=True)
            d_s = p * (tf.matmul(d_out, v, transpose_b=True) - delta)
            d_q, d_k = tf.matmul(d_s, k), tf.matmul(d_s, q, transpose_a=True)
            return _from_rows(d_q, heads), _swap(d_k), _swap(d_v)

        return _from_rows(out, heads), grad

    return run(query, key, value)


# --- shared


def _visible_keys(mask: tf.Tensor | None, lengths: tf.Tensor | None, size: Size) -> tf.Tensor | None:
    if lengths is None:
        return mask if mask is None else tf.cast(mask, tf.bool)
    within = tf.range(size) < tf.cast(lengths, tf.int32)[:, None]
    return within if mask is None else within & tf.cast(mask, tf.bool)


def _rows(x: tf.Tensor, groups: int) -> tf.Tensor:
    """(B, T, H, D) to (B, G, H/G * T, D)."""
    length, heads, width = sizes_of(x)
    if heads == groups:
        return _swap(x)
    x = tf.reshape(x, (_size(x, 0), length, groups, heads // groups, width))
    return tf.reshape(tf.transpose(x, (0, 2, 3, 1, 4)), (_size(x, 0), groups, heads // groups * length, width))


def _from_rows(x: tf.Tensor, heads: int) -> tf.Tensor:
    """(B, G, H/G * T, D) to (B, T, H, D)."""
    groups, rows, width = x.shape[1:]
    if heads == groups:
        return _swap(x)
    x = tf.reshape(x, (_size(x, 0), heads, rows * groups // heads, width))
    return _swap(x)


def _swap(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, (0, 2, 1, 3))


def _rotate(x: tf.Tensor, cos: tf.Tensor, sin: tf.Tensor) -> tf.Tensor:
    @tf.custom_gradient
    def run(x):
        a, b = tf.split(x, 2, axis=-1)
        return tf.concat([a * cos - b * sin, b * cos + a * sin], axis=-1), lambda upstream: _rotate(upstream, cos, -sin)

    return run(x)


def _check_ranks(rank: int, **tensors: tf.Tensor) -> None:
    for name, x in tensors.items():
        if x.shape.rank != rank:
            raise ValueError(f"`{name}` must have {rank} axes. Received: {name}.shape={x.shape}")


def _check_heads(heads: int, groups: int) -> None:
    if heads % groups:
        raise ValueError(f"`key` must have a number of heads that divides query's {heads}. Received: {groups} heads")


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be positive. Received: {name}={number}")
