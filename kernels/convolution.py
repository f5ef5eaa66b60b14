"""Convolutions of generative models: narrow images, masks, causality, modulation.

Wide convolutions are TensorFlow's own: they run near the speed of a matrix product. Where one side has few channels, as
next to an image, TensorFlow on a CPU is two to four times slower than that, and other formulations of the same sums
take its place. A kernel is (K_h, K_w, C_in, C_out) throughout, and images are (B, H, W, C).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gentf.kernels.tracing import under_xla, widened
from gentf.kernels.upfirdn import Pair, dilated, pair, upfirdn

NARROW = 4  # channels up to which a side counts as narrow, and NARROW_BLOCKS of a strided convolution's input
NARROW_BLOCKS = 8
Padding = str | Sequence[Sequence[int]]


class Geometry(NamedTuple):
    """A convolution with static sizes: of its input, kernel and strides; padding is "SAME" or "VALID"."""

    size: Pair
    kernel: Pair
    channels: Pair
    strides: Pair
    padding: str

    @property
    def out(self) -> Pair:
        """Height and width of the output."""
        (h, w), (k, m), (s, t) = self.size, self.kernel, self.strides
        return (-(-h // s), -(-w // t)) if self.padding == "SAME" else ((h - k) // s + 1, (w - m) // t + 1)

    @property
    def before(self) -> Pair:
        """Zeros above and to the left of the input."""
        if self.padding == "VALID":
            return 0, 0
        wanted = [(o - 1) * s + k - n for o, s, k, n in zip(self.out, self.strides, self.kernel, self.size)]
        return max(0, wanted[0]) // 2, max(0, wanted[1]) // 2

    @property
    def taps(self) -> Pair:
        """Height and width of the kernel in blocks of the strides' size."""
        return -(-self.kernel[0] // self.strides[0]), -(-self.kernel[1] // self.strides[1])

    @property
    def blocks(self) -> Pair:
        """Height and width of the padded input in blocks of the strides' size."""
        return self.out[0] + self.taps[0] - 1, self.out[1] + self.taps[1] - 1


def conv2d(
    x: tf.Tensor,
    kernel: tf.Tensor,
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
    dilation: int | Pair = 1,
) -> tf.Tensor:
    """`tf.nn.conv2d`, y[i, j] = sum over k, l of x[i * s + k - before, j * s + l - before] kernel[k, l].

    Gradients: dx is `conv2d_transpose` of dy, the kernel's a correlation of x with dy; each is differentiable in turn,
    to any order. Stores x and the kernel. Static sizes decide how it is computed, and whether XLA compiles it.

    Args:
        x: (B, H, W, C_in) float.
        kernel: (K_h, K_w, C_in, C_out), of x's dtype.
        strides, dilation: one for both axes or (vertical, horizontal); not both above 1.
        padding: "SAME", "VALID" or zeros ((top, bottom), (left, right)).
    Returns:
        (B, H', W', C_out), of x's dtype.
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    strides, dilation = pair("strides", strides), pair("dilation", dilation)
    _check_kernel(kernel, x.shape[-1], 2)
    if max(strides) > 1 and max(dilation) > 1:
        raise ValueError(f"`dilation` must be 1 with strides. Received: dilation={dilation}, strides={strides}")
    name, pads = _named(padding)
    x, kernel = tf.pad(x, [[0, 0], *pads, [0, 0]]) if pads else x, dilated(kernel, dilation)
    if _static(x, kernel):
        g = Geometry(tuple(x.shape[1:3]), tuple(kernel.shape[:2]), tuple(kernel.shape[2:]), strides, name)
        if g.kernel == strides == (1, 1):
            return _multiply(x, kernel[0, 0])
        if min(g.out) > 0 and _has_narrow_side(g):
            return _forward(x, kernel, g)
    return tf.nn.conv2d(x, kernel, strides, name)


def conv2d_transpose(
    x: tf.Tensor,
    kernel: tf.Tensor,
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
    output_size: Sequence[int] | None = None,
) -> tf.Tensor:
    """`tf.nn.conv2d_transpose`, the input gradient of the `conv2d` with these arguments.

    Gradients, storage and choice of formulation are as of `conv2d`. An `output_size` below the default costs less than
    to crop.

    Args:
        x: (B, H, W, C_in) float.
        kernel: (K_h, K_w, C_out, C_in): as of the convolution that maps the output to x.
        strides, padding: of that convolution.
        output_size: (H', W'), of which that convolution makes (H, W). Default: H * s for "SAME", H * s + max(K - s, 0)
            for "VALID", (H - 1) * s + K less the padding where it is explicit.
    Returns:
        (B, H', W', C_out), of x's dtype.
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    strides = pair("strides", strides)
    if kernel.shape.rank != 4 or kernel.shape[3] != x.shape[-1]:
        raise ValueError(f"`kernel` must be (K_h, K_w, C_out, {x.shape[-1]}). Received: shape {kernel.shape}")
    if not _static(x, kernel):
        raise ValueError(f"`x` must be (B, H, W, C) with a static H, W and C. Received: shape {x.shape}")
    extent, size = tuple(kernel.shape[:2]), tuple(x.shape[1:3])
    name, pads = _named(padding)
    if output_size is None:
        if pads:
            output_size = [(n - 1) * s + k - sum(p) for n, s, k, p in zip(size, strides, extent, pads)]
        else:
            extra = [0 if name == "SAME" else max(k - s, 0) for k, s in zip(extent, strides)]
            output_size = [n * s + e for n, s, e in zip(size, strides, extra)]
    (top, bottom), (left, right) = pads or ((0, 0), (0, 0))
    padded = (output_size[0] + top + bottom, output_size[1] + left + right)
    g = Geometry(padded, extent, tuple(kernel.shape[2:]), strides, name)
    if min(g.size) < 1 or g.out != size:
        raise ValueError(f"`output_size` must be one that convolves to {size}. Received: output_size={output_size}")
    y = _input_gradient(x, kernel, g) if _has_narrow_side(g) else _native_input_gradient(x, kernel, g)
    return y[:, top : padded[0] - bottom, left : padded[1] - right] if pads else y


def masked_conv2d(x: tf.Tensor, kernel: tf.Tensor, *, mask: str = "B", colors: int = 1) -> tf.Tensor:
    """Convolution of stride 1 that sees only the pixels before its own in raster order.

    The kernel's unseen rows are cut off, not multiplied by zero, so that a square kernel costs about half. The seen
    weights' gradient is that of `conv2d`, the others' is 0.

    Args:
        x: (B, H, W, C_in) float.
        kernel: (K_h, K_w, C_in, C_out), K_h and K_w odd.
        mask: "A" leaves the pixel itself out; "B" keeps it.
        colors: groups of channels, in order, as of R, G and B: at the pixel itself a group sees the groups before it,
            and its own with "B".
    Returns:
        (B, H, W, C_out).
    Reference: van den Oord, Kalchbrenner & Kavukcuoglu (2016), "Pixel recurrent neural networks", section 3.4.
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    _check_kernel(kernel, x.shape[-1], 2)
    height, width, inputs, outputs = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"`kernel` must have an odd height and width. Received: shape {kernel.shape}")
    if mask not in ("A", "B"):
        raise ValueError(f"`mask` must be 'A' or 'B'. Received: mask={mask!r}")
    if colors < 1 or inputs % colors or outputs % colors:
        raise ValueError(f"`colors` must divide C_in={inputs} and C_out={outputs}. Received: colors={colors}")
    rows, middle = height // 2 + 1, width // 2
    seen = np.ones((rows, width, inputs, outputs), bool)
    seen[-1, middle + 1 :] = False
    group_in, group_out = np.arange(inputs) * colors // inputs, np.arange(outputs) * colors // outputs
    order = np.less if mask == "A" else np.less_equal
    seen[-1, middle] = order(group_in[:, None], group_out[None, :])
    weights = tf.where(tf.constant(seen), kernel[:rows], tf.zeros((), kernel.dtype))
    return conv2d(x, weights, padding=((rows - 1, 0), (middle, middle)))


def shifted_conv2d(x: tf.Tensor, kernel: tf.Tensor, *, direction: str = "down", strict: bool = False) -> tf.Tensor:
    """Causal convolution of stride 1 by padding alone, with no blind spot when both directions are used.

    Args:
        x: (B, H, W, C_in) float.
        kernel: (K_h, K_w, C_in, C_out); K_w odd for "down".
        direction: "down" sees the pixel's row and those above it, to the left and right alike; "down_right" sees what
            is neither below nor to the right of the pixel.
        strict: leave out the pixel's own row ("down") or column ("down_right"), as a network's first layer must.
    Returns:
        (B, H, W, C_out).
    Reference: Salimans, Karpathy, Chen & Kingma (2017), "PixelCNN++", section 2.4.
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    _check_kernel(kernel, x.shape[-1], 2)
    height, width = kernel.shape[:2]
    if direction not in ("down", "down_right"):
        raise ValueError(f"`direction` must be 'down' or 'down_right'. Received: direction={direction!r}")
    if direction == "down":
        if width % 2 == 0:
            raise ValueError(f"`kernel` must have an odd width. Received: shape {kernel.shape}")
        columns, rows = (width // 2, width // 2), (height - 1 + strict, 0)
        x = x[:, :-1] if strict else x
    else:
        columns, rows = (width - 1 + strict, 0), (height - 1, 0)
        x = x[:, :, :-1] if strict else x
    return conv2d(x, kernel, padding=(rows, columns))


def causal_conv1d(x: tf.Tensor, kernel: tf.Tensor, *, dilation: int = 1) -> tf.Tensor:
    """y[t] = sum over k of x[t - (K - 1 - k) * dilation] kernel[k], with zeros before the start.

    Time is laid out as an image of `dilation` columns, in which a dilated convolution is a plain one down the rows.

    Args:
        x: (B, T, C_in) float.
        kernel: (K, C_in, C_out).
    Returns:
        (B, T, C_out).
    Reference: van den Oord et al. (2016), "WaveNet", sections 2.1 and 2.2.
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    _check_kernel(kernel, x.shape[-1], 1)
    _check_dilation(dilation)
    length = tf.shape(x)[1] if x.shape[1] is None else x.shape[1]
    image = tf.pad(x, [[0, 0], [0, -length % dilation], [0, 0]])
    rows = -1 if x.shape[1] is None else image.shape[1] // dilation
    image = tf.reshape(image, (tf.shape(x)[0], rows, dilation, x.shape[2]))
    y = conv2d(image, kernel[:, None], padding=((kernel.shape[0] - 1, 0), (0, 0)))
    return tf.reshape(y, (tf.shape(x)[0], -1, kernel.shape[2]))[:, :length]


def causal_window(x: tf.Tensor, kernel_size: int, dilation: int = 1) -> tf.Tensor:
    """What `causal_conv1d_step` needs of the past: the last (kernel_size - 1) * dilation inputs, oldest first.

    Args:
        x: (B, T, C), the inputs so far; T = 0 gives the window of a start.
    Returns:
        (B, (kernel_size - 1) * dilation, C), zeros where there was no input yet.
    """
    _check_dilation(dilation)
    size = (kernel_size - 1) * dilation
    past = tf.pad(x, [[0, 0], [size, 0], [0, 0]])
    return tf.reshape(past[:, tf.shape(x)[1] :], (-1, size, x.shape[2]))


def causal_conv1d_step(
    x: tf.Tensor, window: tf.Tensor, kernel: tf.Tensor, *, dilation: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """One position of `causal_conv1d`.

    Args:
        x: (B, C_in), the input at the position.
        window: (B, (K - 1) * dilation, C_in), of the positions before it, oldest first; see `causal_window`.
        kernel: (K, C_in, C_out).
    Returns:
        (B, C_out), and the window of the next position.
    """
    x, window, kernel = (tf.convert_to_tensor(value) for value in (x, window, kernel))
    _check_kernel(kernel, x.shape[-1], 1)
    _check_dilation(dilation)
    taps, inputs, outputs = kernel.shape
    if window.shape[1] != (taps - 1) * dilation:
        raise ValueError(f"`window` must hold {(taps - 1) * dilation} positions. Received: shape {window.shape}")
    seen = tf.concat([window, x[:, None]], 1)
    read = tf.reshape(seen[:, ::dilation], (-1, taps * inputs))
    return tf.matmul(read, tf.reshape(kernel, (taps * inputs, outputs))), seen[:, 1:]


def modulated_conv2d(
    x: tf.Tensor,
    kernel: tf.Tensor,
    style: tf.Tensor,
    *,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    filter: Sequence = (1, 3, 3, 1),
    epsilon: float = 1e-8,
) -> tf.Tensor:
    """Convolution by style[b] * kernel, its outputs scaled to unit variance for inputs of unit variance.

    y = demodulation * conv(style * x) with the kernel that all images share: no grouped convolution. The factor is
    1 / sqrt(sum over taps and inputs of (style * kernel)^2 + epsilon). Any order of gradients.

    Args:
        x: (B, H, W, C_in) float.
        kernel: (K, K, C_in, C_out), K odd.
        style: (B, C_in), factors of the inputs.
        up, down: one of them above 1: resample, with the zero-inserted image filtered after the convolution, or the
            image filtered before a strided one.
        filter: (K,), scaled to a sum of 1.
    Returns:
        (B, H * up / down, W * up / down, C_out), of x's dtype.
    Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN", equations 1 to 3.
    """
    x, kernel, style = (tf.convert_to_tensor(value) for value in (x, kernel, style))
    _check_kernel(kernel, x.shape[-1], 2)
    size = kernel.shape[0]
    if size != kernel.shape[1] or size % 2 == 0:
        raise ValueError(f"`kernel` must be square, of odd size. Received: shape {kernel.shape}")
    if min(up, down) < 1 or min(up, down) > 1:
        raise ValueError(f"`up` and `down` must be positive, and one of them 1. Received: up={up}, down={down}")
    taps = np.asarray(filter, np.float64) / np.sum(filter)
    scale = tf.cast(style, x.dtype)[:, None, None, :]
    if up > 1:
        weights = tf.transpose(tf.reverse(kernel, [0, 1]), (0, 1, 3, 2))  # a transposed convolution would flip them
        y = conv2d_transpose(x * scale, weights, strides=up, padding="VALID")
        # both convolutions together reach as far as a centred kernel and a centred filter do
        longer = max(size - up, 0) - size // 2
        before, after = (taps.size + up - 1) // 2 - size // 2, (taps.size - up) // 2 - longer
        y = upfirdn(y, taps, padding=(before, after, before, after), gain=float(up * up))
    elif down > 1:
        before, after = (taps.size - down + 1) // 2 + size // 2, (taps.size - down) // 2 + size // 2
        y = upfirdn(x * scale, taps, padding=(before, after, before, after))
        y = conv2d(y, kernel, strides=down, padding="VALID")
    else:
        y = conv2d(x * scale, kernel)
    if demodulate:
        power = tf.reduce_sum(tf.square(tf.cast(kernel, tf.float32)), (0, 1))
        variance = tf.matmul(tf.square(tf.cast(style, tf.float32)), power)
        y *= tf.cast(tf.math.rsqrt(variance + epsilon), y.dtype)[:, None, None, :]
    return y


# What follows is bilinear in two of image x, kernel and output y of one convolution, and gives the third. So each one's
# gradients are the two others, at any order.


def _forward(x: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    @tf.custom_gradient
    def run(x, kernel):
        if g.strides == (1, 1) and g.channels[1] <= NARROW:
            form = _sum_of_shifts
        elif under_xla() and g.strides != (1, 1) and g.channels[0] <= NARROW:
            form = _convolve_blocks
        else:
            form = _native_forward
        return form(x, kernel, g), lambda dy: (_input_gradient(dy, kernel, g), _kernel_gradient(x, dy, g))

    return run(x, kernel)


def _input_gradient(y: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    @tf.custom_gradient
    def run(y, kernel):
        strided = g.strides != (1, 1)
        if g.channels[0] > (NARROW_BLOCKS if strided else NARROW):
            form = _native_input_gradient
        elif strided and not under_xla():
            form = _transpose_to_blocks
        else:
            form = _shifts_to_blocks
        return form(y, kernel, g), lambda dx: (_forward(dx, kernel, g), _kernel_gradient(dx, y, g))

    return run(y, kernel)


def _kernel_gradient(x: tf.Tensor, y: tf.Tensor, g: Geometry) -> tf.Tensor:
    @tf.custom_gradient
    def run(x, y):
        form = _correlate if g.strides == (1, 1) and g.channels[1] <= NARROW else _native_kernel_gradient
        return form(x, y, g), lambda dk: (_input_gradient(y, dk, g), _forward(x, dk, g))

    return run(x, y)


def _native_forward(x: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    return tf.nn.conv2d(x, kernel, g.strides, g.padding)


def _native_input_gradient(y: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    return tf.nn.conv2d_transpose(y, kernel, (tf.shape(y)[0], *g.size, g.channels[0]), g.strides, g.padding)


def _native_kernel_gradient(x: tf.Tensor, y: tf.Tensor, g: Geometry) -> tf.Tensor:
    sizes, strides = (*g.kernel, *g.channels), (1, *g.strides, 1)
    return tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=sizes, out_backprop=y, strides=strides, padding=g.padding
    )


def _sum_of_shifts(x: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    """Forward, stride 1, few outputs: every tap's product in one matrix product, and the narrow products are moved."""
    weights = tf.reshape(tf.transpose(kernel, (2, 0, 1, 3)), (g.channels[0], -1))
    products = _multiply(widened(x), widened(weights))
    rows, columns = ([a - t for a in range(k)] for k, t in zip(g.kernel, g.before))
    return tf.cast(_add_shifted(products, rows, columns, g.out), x.dtype)


def _shifts_to_blocks(y: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    """Input gradient, few inputs: as `_sum_of_shifts`, onto blocks of the strides' size."""
    weights = tf.reshape(_kernel_to_blocks(widened(kernel), g), (-1, g.channels[1]))
    products = _multiply(widened(y), weights, transpose=True)
    rows, columns = ([-a for a in range(t)] for t in g.taps)
    return tf.cast(_from_blocks(_add_shifted(products, rows, columns, g.blocks), g), y.dtype)


def _transpose_to_blocks(y: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    """Input gradient, few inputs: a convolution of stride 1 that makes blocks, one channel a pixel of the block."""
    weights = tf.transpose(tf.reverse(_kernel_to_blocks(kernel, g), [0, 1]), (0, 1, 3, 2))
    (rows, columns) = g.taps
    y = tf.pad(y, [[0, 0], [rows - 1, rows - 1], [columns - 1, columns - 1], [0, 0]])
    return _from_blocks(tf.nn.conv2d(y, weights, 1, "VALID"), g)


def _convolve_blocks(x: tf.Tensor, kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    """Forward, few inputs: a convolution of stride 1 over blocks of the strides' size."""
    return tf.nn.conv2d(_to_blocks(x, g), _kernel_to_blocks(kernel, g), 1, "VALID")


def _correlate(x: tf.Tensor, y: tf.Tensor, g: Geometry) -> tf.Tensor:
    """Kernel gradient, stride 1, few outputs: the narrow y is moved, not x, and one matrix product does the rest."""
    height, width = g.size
    rows, columns = ([t - a for a in range(k)] for k, t in zip(g.kernel, g.before))
    y, low = _pad_to_reach(y, rows, columns, g.size)
    window = tf.constant([-1, height, width, g.channels[1]])
    moved = [tf.slice(y, [0, low[0] + i, low[1] + j, 0], window) for i in rows for j in columns]
    flat = tf.reshape(tf.concat(moved, -1), (-1, len(moved) * g.channels[1]))
    weights = tf.matmul(tf.reshape(x, (-1, g.channels[0])), flat, transpose_a=True)
    return tf.transpose(tf.reshape(weights, (g.channels[0], *g.kernel, g.channels[1])), (1, 2, 0, 3))


def _add_shifted(products: tf.Tensor, rows: list[int], columns: list[int], size: Pair) -> tf.Tensor:
    """y[i, j] = sum over taps a, b of products[i + rows[a], j + columns[b], (a, b)], zero outside; y is of `size`."""
    (height, width), channels = size, products.shape[3] // (len(rows) * len(columns))
    products, low = _pad_to_reach(products, rows, columns, size)
    window = tf.constant([-1, height, width, channels])  # `tf.slice` traces in half the time that brackets take
    shifts = [(low[0] + i, low[1] + j) for i in rows for j in columns]
    return tf.add_n([tf.slice(products, [0, *at, tap * channels], window) for tap, at in enumerate(shifts)])


def _pad_to_reach(y: tf.Tensor, rows: list[int], columns: list[int], size: Pair) -> tuple[tf.Tensor, Pair]:
    """Pad so that windows of `size` at all the shifts lie inside; with the place of shift (0, 0)."""
    pads = [
        (max(0, -min(shifts)), max(0, max(shifts) + n - have))
        for shifts, n, have in zip((rows, columns), size, y.shape[1:3])
    ]
    return tf.pad(y, [[0, 0], *pads, [0, 0]]), (pads[0][0], pads[1][0])


def _to_blocks(x: tf.Tensor, g: Geometry) -> tf.Tensor:
    """(B, H, W, C) -> (B, blocks, blocks, s * s * C), padded or cropped to what the convolution reads."""
    pads = [(t, s * n - size - t) for t, s, n, size in zip(g.before, g.strides, g.blocks, g.size)]
    x = tf.pad(x, [[0, 0], *([low, max(0, high)] for low, high in pads), [0, 0]])
    (high, wide), (s, t) = g.blocks, g.strides
    x = tf.reshape(x[:, : s * high, : t * wide], (-1, high, s, wide, t * g.channels[0]))
    return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4)), (-1, high, wide, s * t * g.channels[0]))


def _from_blocks(z: tf.Tensor, g: Geometry) -> tf.Tensor:
    """The transpose of `_to_blocks`."""
    (high, wide), (s, t), (top, left), (height, width) = g.blocks, g.strides, g.before, g.size
    x = tf.transpose(tf.reshape(z, (-1, high, wide, s, t * g.channels[0])), (0, 1, 3, 2, 4))
    x = tf.reshape(x, (-1, s * high, t * wide, g.channels[0]))[:, top : top + height, left : left + width]
    return tf.pad(x, [[0, 0], [0, height - x.shape[1]], [0, width - x.shape[2]], [0, 0]])


def _kernel_to_blocks(kernel: tf.Tensor, g: Geometry) -> tf.Tensor:
    """(K_h, K_w, C_in, C_out) -> (taps, taps, s * s * C_in, C_out), padded with zeros to whole blocks."""
    (s, t), (rows, columns) = g.strides, g.taps
    kernel = tf.pad(kernel, [[0, s * rows - g.kernel[0]], [0, t * columns - g.kernel[1]], [0, 0], [0, 0]])
    kernel = tf.reshape(kernel, (rows, s, columns, t, *g.channels))
    return tf.reshape(tf.transpose(kernel, (0, 2, 1, 3, 4, 5)), (rows, columns, s * t * g.channels[0], g.channels[1]))


def _multiply(x: tf.Tensor, weights: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    """(B, H, W, C) by (C, D), or by (D, C) transposed -> (B, H, W, D)."""
    y = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), weights, transpose_b=transpose)
    return tf.reshape(y, (-1, *x.shape[1:3], weights.shape[0 if transpose else 1]))


def _has_narrow_side(g: Geometry) -> bool:
    if tf.config.list_physical_devices("GPU"):  # cuDNN has its own forms
        return False
    if g.strides == (1, 1):
        return min(g.channels) <= NARROW
    return g.channels[0] <= NARROW_BLOCKS


def _static(x: tf.Tensor, kernel: tf.Tensor) -> bool:
    return None not in x.shape[1:] and None not in kernel.shape


def _named(padding: Padding) -> tuple[str, list[tuple[int, ...]]]:
    """The padding's name, and the zeros for each axis to put there first."""
    if isinstance(padding, str) and padding in ("SAME", "VALID"):
        return padding, []
    pads = [] if isinstance(padding, str) else [tuple(pair) for pair in padding]
    if [len(pair) for pair in pads] != [2, 2] or min(map(min, pads)) < 0:
        raise ValueError(
            f"`padding` must be 'SAME', 'VALID' or ((top, bottom), (left, right)). Received: padding={padding!r}"
        )
    return "VALID", pads


def _check_kernel(kernel: tf.Tensor, channels: int, axes: int) -> None:
    if kernel.shape.rank != axes + 2 or kernel.shape[axes] != channels:
        sizes = "K, " if axes == 1 else "K_h, K_w, "
        raise ValueError(f"`kernel` must be ({sizes}{channels}, C_out). Received: shape {kernel.shape}")


def _check_dilation(dilation: int) -> None:
    if dilation < 1:
        raise ValueError(f"`dilation` must be positive. Received: dilation={dilation}")
