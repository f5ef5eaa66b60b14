"""Discretized mixture of logistics: log-probability of integer levels, and sampling.

A vector of C channels, each one of L levels, is drawn from one of M components. A component is C logistic
distributions over [-1, 1], each integrated over the bins of the levels; the outermost bins reach to infinity. Level k
stands at 2 k / (L - 1) - 1 and its bin is 2 / (L - 1) wide. Optionally the mean of a channel is shifted, in proportion
to given coefficients, by the levels of the channels before it.

The parameters' rows are those of a network's output: logits (..., M), means and log_scales (..., M, C), coefficients
(..., M, C (C - 1) / 2). In the last the pairs (channel, earlier channel) are in the order (1, 0), (2, 0), (2, 1), ...
They are used as they come: a caller that wants them bounded, as the paper does, applies tanh.

Reference: Salimans, Karpathy, Chen & Kingma (2017), "PixelCNN++", sections 2.1 and 2.2.
"""

from collections.abc import Sequence

import tensorflow as tf

from gentf.kernels import random

LOG_SCALE_LIMIT = 30.0  # exp(30) times means up to 1e16 is held by a float32, and so are products of what comes of it
INFINITE = 1e17  # an outermost bin's outer edge; finite, so that a product with a zero is zero


def log_prob(
    x: tf.Tensor,
    logits: tf.Tensor,
    means: tf.Tensor,
    log_scales: tf.Tensor,
    *,
    levels: int = 256,
    coefficients: tf.Tensor | None = None,
) -> tf.Tensor:
    """Log-probability, in nats, of each vector of levels: summed over its channels within a component.

    With u and l the distances of a bin's upper and lower edge from the mean in scales, a channel's probability is
    s(u) - s(l) = s(u) s(-l) (1 - exp(l - u)), s the logistic function: a product without cancellation, so that the
    logarithm is finite and exact at any distance and scale. Finite for |means| up to 1e16. `log_scales` are clipped to
    [-`LOG_SCALE_LIMIT`, `LOG_SCALE_LIMIT`], without a gradient beyond.

    Gradient, with w the posterior of the components and d = u - l: dlogits = dy (w - softmax(logits)), dmeans =
    dy w (s(l) - s(-u)) / scale, dlog_scales = dy w (l s(l) - u s(-u) - d / (exp(d) - 1)), dcoefficients = dmeans times
    the earlier channel. Differentiable again. Stored for the backward pass: the inputs, from which the rest is computed
    again (in graph mode TensorFlow may keep what it finds computed twice).

    Args:
        x: (..., C) integer, 0 to levels - 1.
        logits: (..., M) float, unnormalized.
        means: (..., M, C) float, in the units of [-1, 1].
        log_scales: (..., M, C) float, natural logarithm.
        levels: L >= 2, the same for every channel.
        coefficients: (..., M, C (C - 1) / 2) float, or None for independent channels.
    Returns:
        (...) float32, <= 0.
    """
    x = tf.convert_to_tensor(x)
    parameters = _parameters(logits, means, log_scales, coefficients, levels)
    if not x.dtype.is_integer or x.shape[-1] != parameters[1].shape[-1]:
        raise ValueError(
            f"`x` must be integer levels of {parameters[1].shape[-1]} channels. "
            f"Received: x of dtype {x.dtype.name} and shape {x.shape}"
        )

    @tf.custom_gradient
    def mixture(x: tf.Tensor, *parameters: tf.Tensor) -> tuple:
        def grad(dy: tf.Tensor) -> tuple:
            logits, means, log_scales, *coefficients = (tf.cast(p, tf.float32) for p in parameters)
            values, terms = _terms(x, means, log_scales, coefficients, levels)
            inverse, upper, lower, width, upper_exp, lower_exp, inside = terms
            above = tf.where(upper >= 0.0, upper_exp, 1.0) / (1.0 + upper_exp)  # s(-u)
            below = tf.where(lower >= 0.0, 1.0, lower_exp) / (1.0 + lower_exp)  # s(l)
            weight = dy[..., None] * tf.nn.softmax(_joint(logits, terms))
            d_logits = weight - dy[..., None] * tf.nn.softmax(logits)
            weight = weight[..., None]
            d_means = weight * inverse * (below - above)
            d_scales = weight * (lower * below - upper * above - width * (1.0 - inside) / inside)
            d_scales = tf.where(tf.abs(log_scales) <= LOG_SCALE_LIMIT, d_scales, 0.0)
            gradients = [d_logits, d_means, d_scales]
            if coefficients:
                columns = tf.split(d_means, means.shape[-1], axis=-1)
                gradients.append(tf.concat([columns[c] * values[j] for c, j in _pairs(means.shape[-1])], axis=-1))
            return None, *(tf.cast(g, p.dtype) for g, p in zip(gradients, parameters))

        logits, means, log_scales, *coefficients = (tf.cast(p, tf.float32) for p in parameters)
        terms = _terms(x, means, log_scales, coefficients, levels)[1]
        return tf.reduce_logsumexp(_joint(logits, terms), axis=-1), grad

    return mixture(x, *parameters)


def sample(
    seed: tf.Tensor,
    logits: tf.Tensor,
    means: tf.Tensor,
    log_scales: tf.Tensor,
    *,
    levels: int = 256,
    coefficients: tf.Tensor | None = None,
    counter: int | tf.Tensor = 0,
) -> tf.Tensor:
    """Levels drawn from the mixture whose probabilities `log_prob` gives. A row depends on its own seed alone.

    The component is drawn by the Gumbel-max rule, each channel by its inverse distribution function, moved to the
    nearest level in range; the levels of the channels before enter its mean. No gradient.

    Args:
        seed: (B, 2) int32.
        logits, means, log_scales, coefficients: as of `log_prob`, with the batch as the first axis and, between it and
            M, any static axes: (B, ..., M) and so on.
        counter: stream number as of `random.bits`, for instance the step of an autoregressive loop.
    Returns:
        (B, ..., C) int32 in [0, levels).
    """
    parameters = _parameters(logits, means, log_scales, coefficients, levels)
    logits, means, log_scales, *rest = (tf.stop_gradient(tf.cast(p, tf.float32)) for p in parameters)
    components, channels = means.shape[-2:]
    if not logits.shape[1:].is_fully_defined():
        raise ValueError(f"`logits` must be static but for the batch. Received: logits of shape {logits.shape}")
    u = random.uniform(seed, (*logits.shape[1:-1], components + channels), counter)
    component = tf.argmax(logits + random.to_gumbel(u[..., :components]), axis=-1, output_type=tf.int32)
    means, log_scales, *rest = (
        tf.gather(p, component, axis=-2, batch_dims=component.shape.rank) for p in (means, log_scales, *rest)
    )
    u = tf.maximum(u[..., components:], 2.0**-25)  # inside (0, 1): both logarithms are finite
    noise = tf.exp(_clip(log_scales)) * (tf.math.log(u) - tf.math.log1p(-u))
    places: list[tf.Tensor] = []
    values: list[tf.Tensor] = []
    parts = channels if rest else 1  # independent channels are drawn in one go
    for channel, column in enumerate(zip(tf.split(means, parts, axis=-1), tf.split(noise, parts, axis=-1))):
        drawn = tf.add_n([*column, *_shifts(channel, channels, values, rest)])
        places.append(tf.round((tf.clip_by_value(drawn, -1.0, 1.0) + 1.0) * (0.5 * (levels - 1))))
        values.append(places[-1] * (2.0 / (levels - 1)) - 1.0)
    return tf.cast(tf.concat(places, axis=-1), tf.int32)


def _terms(
    x: tf.Tensor, means: tf.Tensor, log_scales: tf.Tensor, coefficients: list[tf.Tensor], levels: int
) -> tuple[list[tf.Tensor], tuple[tf.Tensor, ...]]:
    """The channels' values in [-1, 1], (..., 1, 1) each, and what value and gradient are made of, (..., M, C) each.

    The latter: 1 / scale, distances u and l, u - l, exp(-|u|), exp(-|l|) and 1 - exp(l - u). They hold every
    transcendental function that the gradient needs; the value needs one logarithm more.
    """
    channels, step = means.shape[-1], 2.0 / (levels - 1)
    place = tf.cast(x, tf.float32)[..., None, :]
    value = place * step - 1.0
    values = tf.split(value, channels, axis=-1)
    if coefficients:
        columns = tf.split(means, channels, axis=-1)
        columns = [tf.add_n([m, *_shifts(c, channels, values, coefficients)]) for c, m in enumerate(columns)]
        means = tf.concat(columns, axis=-1)
    first, last = place == 0.0, place == levels - 1.0
    inverse = tf.exp(-_clip(log_scales))
    upper = inverse * (tf.where(last, INFINITE, value + 0.5 * step) - means)
    lower = inverse * (tf.where(first, -INFINITE, value - 0.5 * step) - means)
    width = inverse * tf.where(tf.logical_or(first, last), INFINITE, step)
    inside = -tf.math.expm1(-width)
    return values, (inverse, upper, lower, width, tf.exp(-tf.abs(upper)), tf.exp(-tf.abs(lower)), inside)


def _joint(logits: tf.Tensor, terms: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """(..., M): log-probability of each component and, under it, of the levels."""
    _, upper, lower, _, upper_exp, lower_exp, inside = terms
    logarithm = tf.math.log(inside / ((1.0 + upper_exp) * (1.0 + lower_exp)))
    channels = tf.minimum(upper, 0.0) - tf.maximum(lower, 0.0) + logarithm
    return tf.nn.log_softmax(logits) + tf.reduce_sum(channels, axis=-1)


def _shifts(channel: int, channels: int, values: Sequence[tf.Tensor], coefficients: list[tf.Tensor]) -> list[tf.Tensor]:
    """What the channels before add to a channel's mean: products of a coefficient and a value."""
    if not coefficients:
        return []
    pairs = _pairs(channels)
    columns = tf.split(coefficients[0], len(pairs), axis=-1)
    return [column * values[j] for column, (c, j) in zip(columns, pairs) if c == channel]


def _pairs(channels: int) -> list[tuple[int, int]]:
    return [(c, j) for c in range(channels) for j in range(c)]


def _clip(log_scales: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(log_scales, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)


def _parameters(
    logits: tf.Tensor, means: tf.Tensor, log_scales: tf.Tensor, coefficients: tf.Tensor | None, levels: int
) -> list[tf.Tensor]:
    """The parameters as tensors; coefficients only where there are any."""
    if levels < 2:
        raise ValueError(f"`levels` must be at least 2. Received: levels={levels}")
    logits, means, log_scales = (tf.convert_to_tensor(p) for p in (logits, means, log_scales))
    components, channels = logits.shape[-1], means.shape[-1]
    for name, p in (("means", means), ("log_scales", log_scales)):
        if p.shape[-2:] != (components, channels):
            raise ValueError(
                f"`{name}` must be of shape (..., {components}, {channels}), by `logits` and `means`. "
                f"Received: {name} of shape {p.shape}"
            )
    if coefficients is None:
        return [logits, means, log_scales]
    coefficients = tf.convert_to_tensor(coefficients)
    count = channels * (channels - 1) // 2
    if coefficients.shape[-2:] != (components, count) or count == 0:
        raise ValueError(
            f"`coefficients` must be of shape (..., {components}, {count}), or None for one channel. "
            f"Received: coefficients of shape {coefficients.shape}"
        )
    return [logits, means, log_scales, coefficients]
