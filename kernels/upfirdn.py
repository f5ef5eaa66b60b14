"""Upsample, pad, filter, downsample: resampling of images, as one linear function whose gradient is of its own kind.

Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN", appendix B, for the function;
Zhang (2019), "Making convolutional networks shift-invariant again", for why networks want it.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from gentf.kernels.tracing import under_xla

JOINT_TAPS = 36  # a separable filter of no more taps than that runs as one two-dimensional pass: memory costs more
Pair = tuple[int, int]
Taps = Sequence | np.ndarray


def upfirdn(
    x: tf.Tensor,
    filter: Taps,
    *,
    up: int | Pair = 1,
    down: int | Pair = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
    flip: bool = False,
) -> tf.Tensor:
    """Put up - 1 zeros behind every pixel, pad with zeros, convolve, keep every down-th pixel; each channel alone.

    Gradient: the same function of dy with `up` and `down` exchanged and the filter reversed, to any order. Nothing is
    stored for it. The filter is a constant, taken as it is: with a sum of 1 (per axis) it keeps the mean of x where
    nothing is inserted, and with gain = up * up where zeros are.

    Args:
        x: (B, H, W, C) float; all but B static.
        filter: numbers known while tracing, (K,) for both axes in turn or (K_h, K_w).
        up, down: factors >= 1, one for both axes or (vertical, horizontal).
        padding: zeros at (top, bottom, left, right) of the upsampled image; negative ones crop.
        gain: factor of the output.
        flip: correlate instead: do not reverse the filter.
    Returns:
        (B, H', W', C) of x's dtype, computed in float32 or wider;
        H' = floor((H * up + top + bottom - K_h) / down) + 1, and W' likewise.
    """
    x = tf.convert_to_tensor(x)
    up, down = pair("up", up), pair("down", down)
    taps = _taps(filter)
    if x.shape.rank != 4 or None in x.shape[1:]:
        raise ValueError(f"`x` must be (B, H, W, C) with a static H, W and C. Received: shape {x.shape}")
    if len(padding) != 4 or any(int(p) != p for p in padding):
        raise ValueError(f"`padding` must be four integers: top, bottom, left, right. Received: padding={padding}")
    if not flip:
        taps = np.flip(taps)
    top, bottom, left, right = (int(p) for p in padding)
    if taps.ndim == 2:
        passes = [(taps, up, down, (top, bottom, left, right))]
    elif taps.size**2 <= JOINT_TAPS * (up[0] * up[1] if under_xla() else 1):
        passes = [(np.outer(taps, taps), up, down, (top, bottom, left, right))]
    else:
        passes = [
            (taps[:, None], (up[0], 1), (down[0], 1), (top, bottom, 0, 0)),
            (taps[None, :], (1, up[1]), (1, down[1]), (0, 0, left, right)),
        ]
        if up[0] > down[0]:  # the pass that makes the image larger comes last
            passes.reverse()
    passes[0] = (gain * passes[0][0], *passes[0][1:])
    for each in passes:
        x = _resample(x, *each)
    return x


def filter2d(x: tf.Tensor, filter: Taps = (1, 3, 3, 1)) -> tf.Tensor:
    """Filter, scaled to a sum of 1; same size. An even filter shifts by half a pixel down and to the right."""
    taps = _low_pass(filter)
    pads = [pad for size in _extent(taps) for pad in (size // 2, (size - 1) // 2)]
    return upfirdn(x, taps, padding=pads)


def upsample2d(x: tf.Tensor, filter: Taps = (1, 3, 3, 1), factor: int = 2) -> tf.Tensor:
    """(B, H, W, C) -> (B, factor * H, factor * W, C), keeping the mean; the filter is scaled to a sum of 1."""
    taps = _low_pass(filter)
    pads = [pad for size in _extent(taps) for pad in ((size + factor - 1) // 2, (size - factor) // 2)]
    return upfirdn(x, taps, up=factor, padding=pads, gain=float(factor**2))


def downsample2d(x: tf.Tensor, filter: Taps = (1, 3, 3, 1), factor: int = 2) -> tf.Tensor:
    """(B, H, W, C) -> (B, H // factor, W // factor, C), keeping the mean; the filter is scaled to a sum of 1."""
    taps = _low_pass(filter)
    pads = [pad for size in _extent(taps) for pad in ((size - factor + 1) // 2, (size - factor) // 2)]
    return upfirdn(x, taps, down=factor, padding=pads)


def dilated(kernel: tf.Tensor, dilation: Pair) -> tf.Tensor:
    """A kernel (K_h, K_w, C_in, C_out) with zeros between its taps, of size (K - 1) * dilation + 1.

    Convolved plainly it is a dilated convolution, of which TensorFlow has no gradient on processors without oneDNN.
    """
    if max(dilation) == 1:
        return kernel
    (height, width), ends = kernel.shape[:2], kernel.shape[2:]
    taps = tf.reshape(kernel, (1, height, width, ends[0] * ends[1]))
    taps = upfirdn(taps, [[1.0]], up=dilation, padding=(0, 1 - dilation[0], 0, 1 - dilation[1]))
    return tf.reshape(taps, (*taps.shape[1:3], *ends))


def _resample(x: tf.Tensor, taps: np.ndarray, up: Pair, down: Pair, padding: tuple[int, ...]) -> tf.Tensor:
    """`upfirdn` by correlation with `taps` (K_h, K_w) in one pass."""
    sizes, pads = x.shape[1:3], (padding[:2], padding[2:])
    out = [(n * u + sum(p) - k) // d + 1 for n, u, p, k, d in zip(sizes, up, pads, taps.shape, down)]
    if min(out) < 1:
        raise ValueError(f"`filter` must fit into the padded image. Received: filter of {taps.shape}, shape {x.shape}")
    # XLA fuses shifts and additions into one loop, and is some 100 times slower at a depthwise convolution; the stock
    # runtime would write every shift to memory.
    form = _shifted if under_xla() else _depthwise
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32

    @tf.custom_gradient
    def run(x):
        back = [
            pad
            for n, u, p, k, d, m in zip(sizes, up, pads, taps.shape, down, out)
            for pad in (k - 1 - p[0], n * u - m * d + p[0] - u + 1)
        ]
        y = tf.cast(form(tf.cast(x, wide), taps, up, down, pads, out), x.dtype)
        return y, lambda dy: _resample(dy, np.flip(taps), down, up, tuple(back))

    return run(x)


def _depthwise(x: tf.Tensor, taps: np.ndarray, up: Pair, down: Pair, pads: tuple, out: list[int]) -> tf.Tensor:
    """One depthwise convolution. It multiplies the inserted zeros: cheaper than to interleave phases in memory."""
    height, width, channels = x.shape[1:]
    if up != (1, 1):  # rows of zeros behind each row, channels of zeros behind each pixel
        x = tf.reshape(x, (-1, 1, width, channels))
        x = tf.pad(x, [[0, 0], [0, up[0] - 1], [0, 0], [0, (up[1] - 1) * channels]])
        x = tf.reshape(x, (-1, height * up[0], width * up[1], channels))
    if any(p < 0 for pair in pads for p in pair):
        crop = [slice(max(0, -p[0]), n + min(0, p[1])) for p, n in zip(pads, x.shape[1:3])]
        x = x[:, crop[0], crop[1]]
    # Both strides of the operation are equal. A filter along one axis has no need of the other one: folded into the
    # channels or the batch, it may stride alone. The rest, rare, computes what it drops.
    height, width = x.shape[1:3]
    if down[0] != down[1] and taps.shape[1] == 1 and down[1] == 1 and pads[1] == (0, 0):
        x, down = tf.reshape(x, (-1, height, 1, width * channels)), (down[0], down[0])
    elif down[0] != down[1] and taps.shape[0] == 1 and down[0] == 1 and pads[0] == (0, 0):
        x, down = tf.reshape(x, (-1, 1, width, channels)), (down[1], down[1])
    strides = down if down[0] == down[1] else (1, 1)
    kernel = tf.broadcast_to(tf.constant(taps[:, :, None, None], x.dtype), (*taps.shape, x.shape[3], 1))
    explicit = [[0, 0], *([max(0, p) for p in pair] for pair in pads), [0, 0]]
    y = tf.nn.depthwise_conv2d(x, kernel, (1, *strides, 1), explicit)
    y = y if strides == down else y[:, :: down[0], :: down[1]]
    return tf.reshape(y, (-1, *out, channels))


def _shifted(x: tf.Tensor, taps: np.ndarray, up: Pair, down: Pair, pads: tuple, out: list[int]) -> tf.Tensor:
    """Polyphase: outputs that meet the same taps are a sum of shifted slices of x. No inserted zero is touched."""
    plans = [_phases(n, k, u, d, p[0], m) for n, k, u, d, p, m in zip(x.shape[1:3], taps.shape, up, down, pads, out)]
    (rows, row_pads, high), (columns, column_pads, wide) = plans
    x = tf.pad(x, [[0, 0], row_pads, column_pads, [0, 0]])

    def phase(row: list, column: list) -> tf.Tensor:
        terms = [float(taps[k, m]) * x[:, i, j] for k, i in row for m, j in column if taps[k, m] != 0.0]
        return tf.add_n(terms) if terms else tf.zeros((tf.shape(x)[0], high, wide, x.shape[3]), x.dtype)

    lines = [tf.stack([phase(row, column) for column in columns], 3) for row in rows]
    y = tf.reshape(tf.stack(lines, 2), (-1, high * len(rows), wide * len(columns), x.shape[3]))
    return y[:, : out[0], : out[1]]


def _phases(size: int, taps: int, up: int, down: int, before: int, out: int) -> tuple[list, Pair, int]:
    """What one axis' outputs read: ([[(tap, slice of the padded x)]], padding of x, outputs of a phase).

    Output n of the padded, upsampled line reads its places n * down + tap - before, and place i * up holds x[i]. So
    outputs that are `count` apart read the same taps, `step` pixels further.
    """
    count, step = up // math.gcd(up, down), down // math.gcd(up, down)
    length = -(-out // count)
    starts = [
        [(k, (n * down + k - before) // up) for k in range(taps) if (n * down + k - before) % up == 0]
        for n in range(count)
    ]
    first = [start for phase in starts for _, start in phase] or [0]
    low = max(0, -min(first))
    high = max(0, max(first) + step * (length - 1) + 1 - size)
    span = step * (length - 1) + 1
    slices = [[(k, slice(low + i, low + i + span, step)) for k, i in phase] for phase in starts]
    return slices, (low, high), length


def _taps(filter: Taps) -> np.ndarray:
    values = tf.get_static_value(filter) if tf.is_tensor(filter) else filter
    taps = np.asarray(values if values is not None else np.nan, np.float64)
    if taps.ndim not in (1, 2) or taps.size == 0 or not np.isfinite(taps).all():
        raise ValueError(f"`filter` must be (K,) or (K_h, K_w) constant numbers. Received: filter={filter}")
    return taps


def _low_pass(filter: Taps) -> np.ndarray:
    taps = _taps(filter)
    if taps.sum() == 0.0:
        raise ValueError(f"`filter` must not have a sum of 0. Received: filter={filter}")
    return taps / taps.sum()


def _extent(taps: np.ndarray) -> Pair:
    return (taps.shape[0], taps.shape[-1])


def pair(name: str, value: int | Pair) -> Pair:
    """(vertical, horizontal), from one positive integer for both or from a pair."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"`{name}` must be a positive integer or a pair of them. Received: {name}={value}")
    return values
