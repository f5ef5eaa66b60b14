"""Each kernel in its plainest form: slow, large in memory, differentiated by TensorFlow. The tests' yardstick.

A reference has the kernel's name, arguments and results.
"""

import math

import tensorflow as tf


def bias_act(x, bias=None, *, activation="linear", slope=0.2, gain=None, clamp=None):
    u = x if bias is None else x + bias
    function = {
        "linear": lambda: u,
        "relu": lambda: tf.maximum(u, 0.0),
        "lrelu": lambda: tf.where(u > 0.0, u, slope * u),
        "tanh": lambda: tf.tanh(u),
        "sigmoid": lambda: tf.sigmoid(u),
        "elu": lambda: tf.where(u < 0.0, tf.math.expm1(tf.minimum(u, 0.0)), u),
        "selu": lambda: 1.05070098 * tf.where(u < 0.0, 1.67326324 * tf.math.expm1(tf.minimum(u, 0.0)), u),
        "softplus": lambda: tf.math.log1p(tf.exp(u)),
    }[activation]
    if gain is None:
        gain = math.sqrt(2.0) if activation in ("relu", "lrelu") else 1.0
    y = function() * gain
    return y if clamp is None else tf.where(tf.abs(y) < clamp, y, clamp * tf.sign(y))


# --- recurrent


def rnn(x, kernel, recurrent_kernel, bias, state, *, activation="tanh", mask=None, reverse=False, segment=None):
    activate = {"tanh": tf.tanh, "relu": tf.nn.relu}[activation]

    def step(x, h):
        return (activate(x + h[0] @ recurrent_kernel),)

    outputs, (h,) = _recur(step, x, kernel, bias, (state,), mask, reverse)
    return outputs, h


def lstm(x, kernel, recurrent_kernel, bias, state, *, mask=None, reverse=False, segment=None):
    def step(x, state):
        i, f, g, o = tf.split(x + state[0] @ recurrent_kernel, 4, axis=1)
        c = tf.sigmoid(f) * state[1] + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(c), c

    return _recur(step, x, kernel, bias, state, mask, reverse)


def gru(
    x, kernel, recurrent_kernel, bias, state, *, recurrent_bias=0.0, reset_after=True, mask=None, reverse=False,
    segment=None,
):  # fmt: skip
    def step(x, state):
        (h,) = state
        x_z, x_r, x_c = tf.split(x, 3, axis=1)
        h_z, h_r, h_c = tf.split(h @ recurrent_kernel + recurrent_bias, 3, axis=1)
        z, r = tf.sigmoid(x_z + h_z), tf.sigmoid(x_r + h_r)
        if not reset_after:
            h_c = (r * h) @ tf.split(recurrent_kernel, 3, axis=1)[2]
        c = tf.tanh(x_c + (r * h_c if reset_after else h_c))
        return (z * h + (1 - z) * c,)

    outputs, (h,) = _recur(step, x, kernel, bias, (state,), mask, reverse)
    return outputs, h


def _recur(step, x, kernel, bias, state, mask, reverse):
    if x.dtype.is_integer:
        x = tf.one_hot(x, kernel.shape[0])
    outputs = []
    for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
        new = step(x[t] @ kernel + (0.0 if bias is None else bias), state)
        state = new if mask is None else tuple(tf.where(mask[t][:, None], a, b) for a, b in zip(new, state))
        outputs.append(state[0])
    return tf.stack(outputs), tuple(state)


# --- quantize


def nearest(z, codebook):
    distance = tf.reduce_sum(tf.square(z[..., None, :] - codebook), axis=-1)
    return tf.argmin(distance, axis=-1, output_type=tf.int32)


def lookup(codebook, indices):
    return tf.tensordot(tf.one_hot(indices, codebook.shape[0]), codebook, 1)


def straight_through(z, quantized):
    return z + tf.stop_gradient(quantized - z)


def rotation_trick(z, quantized):
    e, f = (tf.stop_gradient(x / tf.norm(x, axis=-1, keepdims=True))[..., None] for x in (z, quantized))
    r = (e + f) / tf.norm(e + f, axis=-2, keepdims=True)
    turn = tf.eye(z.shape[-1]) - 2.0 * tf.matmul(r, r, transpose_b=True) + 2.0 * tf.matmul(f, e, transpose_b=True)
    scale = tf.stop_gradient(tf.norm(quantized, axis=-1, keepdims=True) / tf.norm(z, axis=-1, keepdims=True))
    return scale * tf.matmul(turn, z[..., None])[..., 0]


def code_statistics(z, indices, size):
    chosen = tf.reshape(tf.one_hot(indices, size), (-1, size))
    rows = tf.stop_gradient(tf.reshape(z, (-1, z.shape[-1])))
    return tf.reduce_sum(chosen, axis=0), tf.matmul(chosen, rows, transpose_a=True)


def fsq(z, levels):
    columns, index, place = [], 0, 1
    for column, level in zip(tf.unstack(z, axis=-1), levels):
        half, offset = (level - 1) * 0.999 / 2, 0.5 * (level % 2 == 0)
        bounded = half * tf.tanh(column + math.tan(offset / half)) - offset
        rounded = bounded + tf.stop_gradient(tf.round(bounded) - bounded)
        columns.append(rounded / (level // 2))
        index += place * (tf.cast(tf.round(rounded), tf.int32) + level // 2)
        place *= level
    return tf.stack(columns, axis=-1), index


# --- bernoulli


def bernoulli_log_prob(logits: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Two logarithms a value, added up."""
    logits, x = tf.cast(logits, tf.float32), tf.stop_gradient(tf.cast(x, tf.float32))
    terms = x * tf.math.log_sigmoid(logits) + (1.0 - x) * tf.math.log_sigmoid(-logits)
    return tf.reduce_sum(terms, axis=-1)


# --- mixture


def log_prob(x, logits, means, log_scales, *, levels=256, coefficients=None):
    logits, means, log_scales = (tf.cast(p, tf.float64) for p in (logits, means, log_scales))
    x = tf.cast(x, tf.float64)[..., None, :]
    value, half = 2.0 * x / (levels - 1) - 1.0, 1.0 / (levels - 1)
    if coefficients is not None:
        c, channels = tf.unstack(tf.cast(coefficients, tf.float64), axis=-1), tf.unstack(means, axis=-1)
        pairs = [(i, j) for i in range(len(channels)) for j in range(i)]
        for coefficient, (i, j) in zip(c, pairs):
            channels[i] += coefficient * value[..., j]
        means = tf.stack(channels, axis=-1)
    upper, lower = ((value + edge - means) / tf.exp(log_scales) for edge in (half, -half))
    right = upper + lower > 0.0  # the bin is measured from its nearer tail, where its ends differ most
    far, near = tf.where(right, -lower, upper), tf.where(right, -upper, lower)
    far, near = tf.math.log_sigmoid(far), tf.math.log_sigmoid(near)
    logarithm = far + tf.math.log1p(-tf.exp(near - far))
    logarithm = tf.where(x == 0.0, tf.math.log_sigmoid(upper), logarithm)
    logarithm = tf.where(x == levels - 1.0, tf.math.log_sigmoid(-lower), logarithm)
    joint = tf.nn.log_softmax(logits) + tf.reduce_sum(logarithm, axis=-1)
    return tf.cast(tf.reduce_logsumexp(joint, axis=-1), tf.float32)


def upfirdn(x, filter, *, up=1, down=1, padding=(0, 0, 0, 0), gain=1.0, flip=False):
    taps = tf.convert_to_tensor(filter, x.dtype)
    taps = tf.tensordot(taps, taps, 0) if len(taps.shape) == 1 else taps
    taps = taps if flip else tf.reverse(taps, [0, 1])
    (up_y, up_x), (down_y, down_x) = ((n, n) if isinstance(n, int) else n for n in (up, down))
    height, width, channels = x.shape[1:]
    x = tf.pad(x[:, :, None, :, None], [[0, 0], [0, 0], [0, up_y - 1], [0, 0], [0, up_x - 1], [0, 0]])
    x = tf.reshape(x, (-1, height * up_y, width * up_x, channels))
    top, bottom, left, right = padding
    x = tf.pad(x, [[0, 0], [max(0, top), max(0, bottom)], [max(0, left), max(0, right)], [0, 0]])
    x = x[:, max(0, -top) : x.shape[1] - max(0, -bottom), max(0, -left) : x.shape[2] - max(0, -right)]
    alone = tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (-1, *x.shape[1:3], 1))
    y = tf.nn.conv2d(alone, taps[:, :, None, None], 1, "VALID")
    y = tf.transpose(tf.reshape(y, (-1, channels, *y.shape[1:3])), (0, 2, 3, 1))
    return gain * y[:, ::down_y, ::down_x]


def conv2d(x, kernel, *, strides=1, padding="SAME", dilation=1):
    if not isinstance(padding, str):
        x, padding = tf.pad(x, [[0, 0], *padding, [0, 0]]), "VALID"
    dilations = (dilation, dilation) if isinstance(dilation, int) else dilation
    for axis, apart in enumerate(dilations):  # zeros between the taps: not every processor has gradients of dilations
        kernel = _spread(kernel, axis, apart)
    return tf.nn.conv2d(x, kernel, strides, padding)


def _spread(kernel, axis, apart):
    taps = tf.split(kernel, kernel.shape[axis], axis=axis)
    zeros = [tf.zeros_like(taps[0])] * (apart - 1)
    return tf.concat([part for tap in taps for part in (tap, *zeros)][: len(taps) * apart - apart + 1], axis=axis)


def conv2d_transpose(x, kernel, *, strides=1, padding="SAME", output_size=None):
    """The input gradient of `conv2d`, column by column of its matrix."""
    s = (strides, strides) if isinstance(strides, int) else strides
    if output_size is None:
        sizes = zip(x.shape[1:3], s, kernel.shape[:2], (0, 1))
        output_size = [
            n * t
            if padding == "SAME"
            else n * t + max(k - t, 0)
            if padding == "VALID"
            else (n - 1) * t + k - sum(padding[i])
            for n, t, k, i in sizes
        ]
    (height, width), channels = output_size, kernel.shape[2]
    pixels = tf.reshape(tf.eye(height * width * channels), (-1, height, width, channels))
    matrix = conv2d(pixels, kernel, strides=strides, padding=padding)
    return tf.reshape(tf.einsum("bijc,pijc->bp", x, matrix), (-1, height, width, channels))


def masked_conv2d(x, kernel, *, mask="B", colors=1):
    height, width, inputs, outputs = kernel.shape
    rows = []
    for k in range(height):
        for m in range(width):
            for i in range(inputs):
                before, at = (k, m) < (height // 2, width // 2), (k, m) == (height // 2, width // 2)
                for o in range(outputs):
                    of, to = i // (inputs // colors), o // (outputs // colors)
                    rows.append(before or (at and (of < to or (mask == "B" and of == to))))
    return tf.nn.conv2d(x, kernel * tf.reshape(tf.cast(rows, x.dtype), kernel.shape), 1, "SAME")


def shifted_conv2d(x, kernel, *, direction="down", strict=False):
    height, width = kernel.shape[:2]
    left, right = (width // 2, width // 2) if direction == "down" else (width - 1, 0)
    y = tf.nn.conv2d(tf.pad(x, [[0, 0], [height - 1, 0], [left, right], [0, 0]]), kernel, 1, "VALID")
    if strict and direction == "down":
        return tf.concat([tf.zeros_like(y[:, :1]), y[:, :-1]], 1)
    return tf.concat([tf.zeros_like(y[:, :, :1]), y[:, :, :-1]], 2) if strict else y


def causal_conv1d(x, kernel, *, dilation=1):
    taps, length = kernel.shape[0], x.shape[1]
    return sum(tf.pad(x, [[0, 0], [(taps - 1 - k) * dilation, 0], [0, 0]])[:, :length] @ kernel[k] for k in range(taps))


def modulated_conv2d(x, kernel, style, *, demodulate=True, up=1, down=1, filter=(1, 3, 3, 1), epsilon=1e-8):
    """Each image by its own kernel; what lies around the image is zero up to 4 pixels away, then cut off."""
    margin, half = 4, kernel.shape[0] // 2
    taps = tf.cast(filter, x.dtype) / float(sum(filter))
    images = []
    for b in range(x.shape[0]):
        weights = kernel * style[b][:, None]
        if demodulate:
            weights = weights / tf.sqrt(tf.reduce_sum(weights**2, (0, 1, 2)) + epsilon)
        image = x[b : b + 1]
        if up > 1:
            image = upfirdn(image, [[1.0]], up=up, padding=(margin,) * 4)
            image = upfirdn(tf.nn.conv2d(image, weights, 1, "VALID"), taps, gain=float(up * up))
            first = margin - half - (len(filter) + up - 1) // 2
            size = [n * up for n in x.shape[1:3]]
            image = image[:, first : first + size[0], first : first + size[1]]
        elif down > 1:
            before, after = (len(filter) - down + 1) // 2 + half, (len(filter) - down) // 2 + half
            image = upfirdn(image, taps, padding=(before, after, before, after))
            image = tf.nn.conv2d(image, weights, 1, "VALID")[:, ::down, ::down]
        else:
            image = tf.nn.conv2d(image, weights, 1, "SAME")
        images.append(image)
    return tf.concat(images, 0)


# --- attention


def attention(query, key, value, *, causal=False, mask=None, lengths=None, window=None, scale=None, block=None):
    (length, heads, width), (size, groups) = query.shape[1:], key.shape[1:3]
    key, value = tf.repeat(key, heads // groups, axis=2), tf.repeat(value, heads // groups, axis=2)
    scores = tf.einsum("bthd,bshd->bhts", query, key) * (1.0 / math.sqrt(width) if scale is None else scale)
    ahead = tf.range(size)[None, :] - tf.range(size - length, size)[:, None]
    seen = tf.ones_like(scores, tf.bool)
    if causal or window is not None:
        seen &= ahead <= 0
    if window is not None:
        seen &= ahead > -window
    if mask is not None:
        seen &= mask[:, None, None, :]
    if lengths is not None:
        seen &= tf.sequence_mask(lengths, size)[:, None, None, :]
    scores = tf.where(seen, scores, -1e9)
    weight = tf.where(seen, tf.exp(scores - tf.reduce_max(scores, -1, keepdims=True)), 0.0)
    return tf.einsum("bhts,bshd->bthd", tf.math.divide_no_nan(weight, tf.reduce_sum(weight, -1, keepdims=True)), value)


def rotary(x, positions, base=10000.0):
    half = x.shape[-1] // 2
    angle = tf.cast(positions, tf.float32)[..., None] * base ** (-tf.range(half, dtype=tf.float32) / half)
    turn = tf.exp(tf.complex(tf.zeros_like(angle), angle))[..., None, :]
    z = tf.complex(x[..., :half], x[..., half:]) * turn
    return tf.concat([tf.math.real(z), tf.math.imag(z)], axis=-1)


def attention_step(query, key, value, cache, position, *, window=None, scale=None):
    here = (tf.range(cache[0].shape[2]) == tf.reshape(position, (-1, 1)))[:, None, :, None]
    keys, values = tf.where(here, key[:, :, None], cache[0]), tf.where(here, value[:, :, None], cache[1])
    age = tf.reshape(position, (-1, 1)) - tf.range(keys.shape[2])
    seen = (age >= 0) if window is None else (age >= 0) & (age < window)
    seen = tf.broadcast_to(seen, (keys.shape[0], keys.shape[2]))
    swapped = (tf.transpose(x, (0, 2, 1, 3)) for x in (keys, values))
    return attention(query[:, None], *swapped, mask=seen, scale=scale)[:, 0], (keys, values)


# --- cross_entropy


def linear_cross_entropy(hidden, kernel, bias, labels, *, label_smoothing=0.0, ignore=None, transpose=False):
    logits = hidden @ (tf.transpose(kernel) if transpose else kernel)
    logits = logits if bias is None else logits + bias
    size = logits.shape[-1]
    target = (1.0 - label_smoothing) * tf.one_hot(labels, size) + label_smoothing / size
    losses = -tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=-1)
    losses = tf.where((labels >= 0) & (labels < size), losses, float("nan"))
    return losses if ignore is None else tf.where(labels == ignore, 0.0, losses)


def weighted_linear_cross_entropy(hidden, kernel, bias, labels, weights, **options):
    return tf.reduce_sum(weights * linear_cross_entropy(hidden, kernel, bias, labels, **options))


# --- filters


def temperature(logits, t):
    greedy = tf.one_hot(tf.argmax(logits, axis=1), logits.shape[1], 0.0, -math.inf)
    return tf.where(t[:, None] > 1e-6, logits / tf.maximum(t, 1e-6)[:, None], logits + greedy)


def top_k(logits, k):
    return _first(logits, tf.where(k <= 0, logits.shape[1], k))


def top_p(logits, p):
    probs = tf.sort(tf.nn.softmax(tf.cast(logits, tf.float64)), direction="DESCENDING")
    before = tf.cumsum(probs, axis=1, exclusive=True)
    count = tf.reduce_sum(tf.cast(before < tf.cast(p, tf.float64)[:, None], tf.int32), axis=1)
    return _first(logits, tf.where(p >= 1.0, logits.shape[1], tf.maximum(count, 1)))


def min_p(logits, p):
    probs = tf.nn.softmax(tf.cast(logits, tf.float64))
    lowest = tf.cast(tf.clip_by_value(p, 0.0, 1.0), tf.float64)[:, None] * tf.reduce_max(probs, axis=1, keepdims=True)
    return tf.where(probs >= lowest, logits, -math.inf)


def repetition(logits, tokens, lengths, penalty):
    seen = _times(logits, tokens, lengths) > 0
    penalised = tf.where(logits > 0, logits / penalty[:, None], logits * penalty[:, None])
    return tf.where(seen, penalised, logits)


def occurrence(logits, tokens, lengths, presence, frequency):
    times = _times(logits, tokens, lengths)
    return logits - presence[:, None] * tf.cast(times > 0, tf.float32) - frequency[:, None] * times


def _first(logits, count):
    rank = tf.argsort(tf.argsort(logits, direction="DESCENDING", stable=True))
    return tf.where(rank < count[:, None], logits, -math.inf)


def _times(logits, tokens, lengths):
    counted = tf.sequence_mask(lengths, tokens.shape[1], tf.float32)
    return tf.reduce_sum(tf.one_hot(tokens, logits.shape[1]) * counted[:, :, None], axis=1)
