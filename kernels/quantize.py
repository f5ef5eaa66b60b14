"""Quantizers: nearest code, its statistics and moving averages, finite scalar quantization, a k-means start.

Everything computes in float32, also for bfloat16 inputs. A code's index is int32.

References: van den Oord, Vinyals & Kavukcuoglu (2017), "Neural discrete representation learning" (VQ-VAE); Razavi,
van den Oord & Vinyals (2019), "Generating diverse high-fidelity images with VQ-VAE-2"; Mentzer, Minnen, Agustsson &
Tschannen (2023), "Finite scalar quantization"; Fifty et al. (2024), "Restructuring vector quantization with the
rotation trick".
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from gentf.kernels import random

BLOCK = 2**20  # distances held at a time: 4 MB, which stays in a CPU's cache between the product and its minimum
CODES = 4096  # codes a block, so that a block of a large codebook still has rows enough for an efficient product
BOUND = 1e-3  # how far, of a level, finite scalar quantization keeps inside its outermost levels


def nearest(z: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
    """Index of the code at the least Euclidean distance from each vector (van den Oord et al. 2017, equation 1).

    Distances are compared as |c|^2 / 2 - z.c with the origin moved to a point amid the codebook. Their error is about
    1e-7 of |z| |c|, measured from there, so of two codes that are equally far within this error either may be chosen;
    of codes with the same computed distance, the first. On GPUs that multiply in TensorFloat-32 the error is about
    1e-3 instead. A vector that is not finite gets index 0; a code that is not, or whose square is not, is never chosen.

    Memory: blocks of at most `BLOCK` distances, whatever N and K are. No gradient.

    Args:
        z: (..., D) float; N vectors in all.
        codebook: (K, D) float, K >= 1 static.
    Returns:
        (...) int32 in [0, K).
    """
    z, codebook = tf.convert_to_tensor(z), tf.convert_to_tensor(codebook)
    _check_codebook(codebook, z)
    rows, codes = _float32(tf.stop_gradient(z)), _float32(tf.stop_gradient(codebook))
    width = codebook.shape[1]
    centre = _centre(codes)
    codes = codes - centre
    bias = 0.5 * tf.reduce_sum(tf.square(codes), axis=-1)
    usable = tf.math.is_finite(bias)
    codes, bias = tf.where(usable[:, None], codes, 0.0), tf.where(usable, bias, math.inf)
    rows = tf.reshape(rows, (-1, width))
    valid = tf.reduce_all(tf.math.is_finite(rows), axis=-1)
    rows = tf.where(valid[:, None], rows - centre, 0.0)
    num = rows.shape[0] if rows.shape[0] is not None else tf.shape(rows)[0]
    indices = _nearest_rows(rows, num, codes, bias)
    indices = tf.where(valid, indices, 0)
    return tf.ensure_shape(tf.reshape(indices, tf.shape(z)[:-1]), z.shape[:-1])


def lookup(codebook: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """The codes at `indices`, with a dense gradient: d codebook[k] = sum of dy where indices = k, added in float32.

    Stored for the backward pass: `indices`.

    Args:
        codebook: (K, D) float.
        indices: (...) int32 in [0, K). An index outside is an error or, on devices that do not check, any code.
    Returns:
        (..., D), of the codebook's dtype.
    """
    return _lookup(tf.convert_to_tensor(codebook), tf.convert_to_tensor(indices))


def straight_through(z: tf.Tensor, quantized: tf.Tensor) -> tf.Tensor:
    """The value of `quantized` to the bit, with the gradient of `z`: dz = dy (van den Oord et al. 2017, section 3.2).

    Nothing is stored for the backward pass.

    Args:
        z, quantized: float, of the same shape. `quantized` gets no gradient.
    Returns:
        As `z` in shape and dtype.
    """
    return _straight_through(*_pair(z, quantized))


def rotation_trick(z: tf.Tensor, quantized: tf.Tensor) -> tf.Tensor:
    """The value of `quantized`, with the gradient of the rotation and scaling that take `z` to it.

    With e = z / |z|, f = quantized / |quantized| and r = (e + f) / |e + f|, all held constant (Fifty et al. 2024,
    section 4.2): dz = |quantized| / |z| (dy - 2 r (r.dy) + 2 e (f.dy)). Where either vector is zero, dz = dy; where
    they are opposite, the rotation is a reflection.

    Stored for the backward pass: `z` and `quantized`.

    Args:
        z, quantized: (..., D) float, of the same shape. `quantized` gets no gradient.
    Returns:
        As `z` in shape and dtype.
    """
    return _rotation_trick(*_pair(z, quantized))


def code_statistics(z: tf.Tensor, indices: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """How many vectors each code has, and their sum. No gradient.

    Args:
        z: (..., D) float; fewer than 2**24 vectors a code, beyond which a count is inexact.
        indices: (...) int32 in [0, size). A vector with a negative index is left out.
        size: number of codes K.
    Returns:
        counts (K,) and sums (K, D), float32.
    """
    z = tf.stop_gradient(tf.convert_to_tensor(z))
    indices = tf.reshape(indices, (-1,))
    rows = tf.reshape(_float32(z), (-1, z.shape[-1]))
    counts = tf.math.unsorted_segment_sum(tf.ones_like(indices, tf.float32), indices, size)
    return counts, tf.math.unsorted_segment_sum(rows, indices, size)


def ema_update(
    counts: tf.Tensor,
    sums: tf.Tensor,
    new_counts: tf.Tensor,
    new_sums: tf.Tensor,
    decay: float | tf.Tensor,
    epsilon: float = 1e-5,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Moving averages of the statistics, and the codebook of their means (van den Oord et al. 2017, appendix A.1).

    The counts that divide are smoothed by Laplace's rule, (n_k + epsilon) n / (n + K epsilon) with n = sum of n_k, so
    that a code which is never used stays finite; it shrinks towards 0 as its count falls below `epsilon`, and should
    be placed anew before. Start from counts of one and sums equal to the codebook.

    Args:
        counts, new_counts: (K,) float32.
        sums, new_sums: (K, D) float32.
        decay: weight of the old averages, in [0, 1].
        epsilon: in vectors, > 0.
    Returns:
        counts (K,), sums (K, D), codebook (K, D), float32.
    """
    counts = decay * counts + (1.0 - decay) * new_counts
    sums = decay * sums + (1.0 - decay) * new_sums
    total = tf.reduce_sum(counts)
    smoothed = (counts + epsilon) * total / (total + epsilon * tf.cast(tf.size(counts), tf.float32))
    return counts, sums, tf.math.divide_no_nan(sums, smoothed[:, None])


def perplexity(counts: tf.Tensor) -> tf.Tensor:
    """exp(entropy of the codes' frequencies): between 1 and K; 1 where every count is 0.

    Args:
        counts: (..., K), >= 0.
    Returns:
        (...) float32.
    """
    counts = _float32(counts)
    share = tf.math.divide_no_nan(counts, tf.reduce_sum(counts, axis=-1, keepdims=True))
    return tf.exp(-tf.reduce_sum(tf.math.xlogy(share, share), axis=-1))


def usage(counts: tf.Tensor) -> tf.Tensor:
    """Share of the codes that have a count above 0. counts: (..., K); returns (...) float32 in [0, 1]."""
    return tf.reduce_mean(tf.cast(tf.convert_to_tensor(counts) > 0, tf.float32), axis=-1)


def fsq(z: tf.Tensor, levels: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Finite scalar quantization: each entry is bounded to its own few levels and rounded (Mentzer et al. 2023).

    With L levels, h = (L - 1)(1 - `BOUND`) / 2 and o = 0 for odd L, 1/2 for even: the value is
    round(h tanh(z + tan(o / h)) - o) / floor(L / 2), and its gradient that of the same without rounding, dz =
    h (1 - tanh^2) / floor(L / 2) dy. An even L reaches -1 but not 1.

    Args:
        z: (..., d) float.
        levels: d numbers of levels, each >= 2; their product is the number of codes, < 2**31.
    Returns:
        quantized: (..., d) in [-1, 1], of the dtype of `z`.
        indices: (...) int32 in [0, product of levels).
    """
    z = tf.convert_to_tensor(z)
    levels = _levels(levels, z.shape[-1])
    half = [(level - 1) * (1.0 - BOUND) / 2.0 for level in levels]
    offset = [0.0 if level % 2 else 0.5 for level in levels]
    shift = tf.constant([math.tan(o / h) for o, h in zip(offset, half)])
    bounded = tf.tanh(_float32(z) + shift) * tf.constant(half) - tf.constant(offset)
    quantized = _straight_through(bounded, tf.round(bounded)) / _half_width(levels)
    return tf.cast(quantized, z.dtype), fsq_indices(quantized, levels)


def fsq_indices(quantized: tf.Tensor, levels: Sequence[int]) -> tf.Tensor:
    """The one number of each vector of levels; the first entry counts fastest.

    Args:
        quantized: (..., d) float as of `fsq`; rounded to the nearest level. A bfloat16 holds up to 256 levels apart.
    Returns:
        (...) int32.
    """
    quantized = tf.convert_to_tensor(quantized)
    levels = _levels(levels, quantized.shape[-1])
    width = _half_width(levels)
    digits = tf.cast(tf.round(_float32(quantized) * width) + width, tf.int32)
    digits = tf.clip_by_value(digits, 0, tf.constant(levels) - 1)  # as integers: a NaN comes out as a level too
    return tf.reduce_sum(digits * tf.constant(_place_values(levels)), axis=-1)


def fsq_codes(indices: tf.Tensor, levels: Sequence[int]) -> tf.Tensor:
    """The vectors of `fsq` from their numbers: the inverse of `fsq_indices`.

    Args:
        indices: (...) int32 in [0, product of levels).
    Returns:
        (..., d) float32 in [-1, 1].
    """
    levels = _levels(levels, None)
    digits = tf.convert_to_tensor(indices)[..., None] // tf.constant(_place_values(levels)) % tf.constant(levels)
    return tf.cast(digits, tf.float32) / _half_width(levels) - 1.0


def kmeans(z: tf.Tensor, size: int, seed: tf.Tensor, iterations: int = 10) -> tf.Tensor:
    """A codebook to start from: rows chosen with probability proportional to squared distance, then Lloyd's steps.

    A code that has lost all its vectors is placed on the vector that is farthest from its own code (the second such
    code on the second farthest, ...). No gradient. Rows that are equal count each; with fewer distinct rows than
    codes, codes repeat.

    Args:
        z: (N, D) float, finite.
        size: number of codes K, 1 <= K <= N.
        seed: (2,) int32. The same seed and rows give the same codebook.
        iterations: Lloyd's steps; 0 gives the chosen rows.
    Returns:
        (K, D) float32.
    Errors: ValueError for K > N; an InvalidArgumentError at the call where N is not static.

    References: Arthur & Vassilvitskii (2007), "k-means++"; Lloyd (1982).
    """
    z = tf.stop_gradient(_float32(z))
    if z.shape.rank != 2:
        raise ValueError(f"`z` must be of shape (N, D). Received: z of shape {z.shape}")
    if size < 1:
        raise ValueError(f"`size` must be at least 1. Received: size={size}")
    if z.shape[0] is not None and z.shape[0] < size:
        raise ValueError(f"`size` must be at most the number of rows, {z.shape[0]}. Received: size={size}")
    enough = tf.debugging.assert_greater_equal(tf.shape(z)[0], size, "`size` must be at most the number of rows of `z`")
    with tf.control_dependencies([enough] if enough is not None else []):
        z = tf.identity(z)

    def lloyd(step: tf.Tensor, codebook: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        indices = nearest(z, codebook)
        counts, sums = code_statistics(z, indices, size)
        empty = counts == 0.0
        farthest = tf.math.top_k(_squared_distance(z, tf.gather(codebook, indices)), size).indices
        spare = tf.gather(z, tf.gather(farthest, tf.cumsum(tf.cast(empty, tf.int32), exclusive=True)))
        return step + 1, tf.where(empty[:, None], spare, sums / tf.maximum(counts, 1.0)[:, None])

    start = tf.ensure_shape(tf.gather(z, _spread_rows(z, size, seed)), (size, z.shape[1]))
    return tf.while_loop(lambda step, _: step < iterations, lloyd, (0, start), parallel_iterations=1)[1]


def _centre(codes: tf.Tensor) -> tf.Tensor:
    """(D,): the median of up to 32 codes, which a few codes that have strayed do not move, as they would a mean."""
    some = codes[:: -(-codes.shape[0] // 32)]
    some = tf.sort(tf.where(tf.math.is_finite(some), some, math.inf), axis=0)
    middle = some[(some.shape[0] - 1) // 2]
    return tf.where(tf.math.is_finite(middle), middle, 0.0)


def _nearest_rows(rows: tf.Tensor, num: int | tf.Tensor, codes: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """(num,) indices of the least bias - row.code, in blocks of rows and of codes."""
    size, width = codes.shape
    parts, part = _divide(size, CODES)
    spare = parts * part - size
    codes = tf.reshape(tf.pad(codes, [[0, spare], [0, 0]]), (parts, part, width))
    bias = tf.reshape(tf.pad(bias, [[0, spare]], constant_values=math.inf), (parts, part))

    def least(block: tf.Tensor, number: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        distance = bias[number] - tf.matmul(block, codes[number], transpose_b=True)
        index = tf.argmin(distance, axis=-1, output_type=tf.int32)
        return tf.reduce_min(distance, axis=-1), index + number * part

    def block_indices(block: tf.Tensor) -> tf.Tensor:
        if parts == 1:
            return least(block, 0)[1]

        def step(number: tf.Tensor, distance: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            other, place = least(block, number)
            closer = other < distance
            return number + 1, tf.where(closer, other, distance), tf.where(closer, place, index)

        start = (1, *least(block, 0))
        return tf.while_loop(lambda number, *_: number < parts, step, start, parallel_iterations=1)[2]

    blocks, each = _divide(num, BLOCK // part)
    if isinstance(blocks, int) and blocks == 1:
        return block_indices(rows)
    rows = tf.reshape(tf.pad(rows, [[0, blocks * each - num], [0, 0]]), tf.stack([blocks, each, width]))
    found = tf.TensorArray(tf.int32, blocks, element_shape=(each if isinstance(each, int) else None,))
    found = tf.while_loop(
        lambda i, _: i < blocks,
        lambda i, found: (i + 1, found.write(i, block_indices(rows[i]))),
        (0, found),
        parallel_iterations=1,  # more would hold as many blocks at a time
    )[1]
    return tf.reshape(found.stack(), (-1,))[:num]


def _divide(total: int | tf.Tensor, largest: int) -> tuple:
    """How many parts of at most `largest` make `total`, and the size of each; the last lacks fewer than `parts`."""
    parts = -(-total // largest)
    parts = max(parts, 1) if isinstance(parts, int) else tf.maximum(parts, 1)
    return parts, -(-total // parts)


def _spread_rows(z: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """(size,) indices of rows of z: the first uniform, each next in proportion to its squared distance from those."""
    seed = tf.reshape(seed, (1, 2))

    def choose(weight: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
        # strictly above u * total: a row of weight 0, one that is chosen already, is never the first to be so
        share = tf.cumsum(weight)
        below = share <= random.uniform(seed, (), counter=number) * share[-1]
        return tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32)), tf.shape(z)[0] - 1)

    def step(number: tf.Tensor, chosen: tf.TensorArray, distance: tf.Tensor) -> tuple:
        row = choose(distance, number)
        closer = tf.minimum(distance, _squared_distance(z, tf.gather(z, row)))
        return number + 1, chosen.write(number, row), closer

    first = choose(tf.ones_like(z[:, 0]), 0)
    chosen = tf.TensorArray(tf.int32, size, element_shape=()).write(0, first)
    state = (1, chosen, _squared_distance(z, tf.gather(z, first)))
    return tf.while_loop(lambda number, *_: number < size, step, state, parallel_iterations=1)[1].stack()


def _squared_distance(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.math.squared_difference(a, b), axis=-1)


@tf.custom_gradient
def _lookup(codebook: tf.Tensor, indices: tf.Tensor) -> tuple:
    def grad(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        rows = tf.reshape(_float32(dy), (-1, codebook.shape[-1]))
        size = codebook.shape[0] or tf.shape(codebook)[0]
        return tf.cast(tf.math.unsorted_segment_sum(rows, tf.reshape(indices, (-1,)), size), codebook.dtype), None

    return tf.gather(codebook, indices), grad


@tf.custom_gradient
def _straight_through(z: tf.Tensor, quantized: tf.Tensor) -> tuple:
    return tf.cast(quantized, z.dtype), lambda dy: (dy, None)


@tf.custom_gradient
def _rotation_trick(z: tf.Tensor, quantized: tf.Tensor) -> tuple:
    def grad(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        a, b, wide = _float32(tf.stop_gradient(z)), _float32(tf.stop_gradient(quantized)), _float32(dy)
        a_norm, b_norm = tf.norm(a, axis=-1, keepdims=True), tf.norm(b, axis=-1, keepdims=True)
        e, f = tf.math.divide_no_nan(a, a_norm), tf.math.divide_no_nan(b, b_norm)
        r = tf.math.divide_no_nan(e + f, tf.norm(e + f, axis=-1, keepdims=True))
        along_r, along_f = (tf.reduce_sum(x * wide, axis=-1, keepdims=True) for x in (r, f))
        turned = tf.math.divide_no_nan(b_norm, a_norm) * (wide - 2.0 * r * along_r + 2.0 * e * along_f)
        return tf.cast(tf.where(a_norm * b_norm > 0.0, turned, wide), dy.dtype), None

    return tf.cast(quantized, z.dtype), grad


def _pair(z: tf.Tensor, quantized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z, quantized = tf.convert_to_tensor(z), tf.convert_to_tensor(quantized)
    if not z.shape.is_compatible_with(quantized.shape):
        raise ValueError(
            f"`quantized` must be of the shape of `z`, {z.shape}. Received: quantized of {quantized.shape}"
        )
    return z, quantized


def _check_codebook(codebook: tf.Tensor, z: tf.Tensor) -> None:
    shape = codebook.shape
    if shape.rank != 2 or not shape.is_fully_defined() or shape[0] < 1 or shape[1] != z.shape[-1]:
        raise ValueError(
            f"`codebook` must be of static shape (K, D) with K >= 1 and D that of `z`, {z.shape[-1]}. "
            f"Received: codebook of shape {shape}"
        )


def _levels(levels: Sequence[int], width: int | None) -> tuple[int, ...]:
    levels = tuple(levels)
    if not levels or min(levels) < 2 or math.prod(levels) >= 2**31:
        raise ValueError(f"`levels` must be numbers >= 2 with a product below 2**31. Received: levels={levels}")
    if width is not None and width != len(levels):
        raise ValueError(f"`levels` must be as many as the entries of a vector, {width}. Received: levels={levels}")
    return levels


def _place_values(levels: tuple[int, ...]) -> list[int]:
    return [math.prod(levels[:i]) for i in range(len(levels))]


def _half_width(levels: tuple[int, ...]) -> tf.Tensor:
    return tf.constant([float(level // 2) for level in levels])


def _float32(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)
