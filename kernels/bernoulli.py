"""Bernoulli log-likelihood of many values from logits, summed: with one exponential a value and few logarithms.

Reference for the stable form: log p(x) = x l - log(1 + exp(l)) = x l - max(l, 0) - log(1 + exp(-|l|)).
"""

import tensorflow as tf

GROUP = 16  # factors in [1, 2] whose product is formed before the logarithm is taken: at most 2**16


def log_prob(logits: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Sum over the last axis of x log s(l) + (1 - x) log s(-l), s the logistic function; in nats.

    The logarithms of `GROUP` factors 1 + exp(-|l|) are taken as one of their product, which is exact to the last bits.
    Gradient: dl = dy (x - s(l)), differentiable again. Stored for the backward pass: the logits.

    Args:
        logits: (..., N) float; N is static.
        x: (..., N) float in [0, 1], broadcast against `logits`. It gets no gradient.
    Returns:
        (...) float32.
    """
    logits, x = tf.convert_to_tensor(logits), tf.stop_gradient(tf.cast(x, tf.float32))
    if logits.shape[-1] is None:
        raise ValueError(f"`logits` must have a static last axis. Received: logits of shape {logits.shape}")
    return _log_prob(logits, x)


@tf.custom_gradient
def _log_prob(logits: tf.Tensor, x: tf.Tensor) -> tuple:
    def grad(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        wide = tf.cast(logits, tf.float32)
        return tf.cast(dy[..., None] * (x - tf.sigmoid(wide)), logits.dtype), None

    wide = tf.cast(logits, tf.float32)
    linear = tf.reduce_sum(x * wide - tf.nn.relu(wide), axis=-1)
    factors = 1.0 + tf.exp(-tf.abs(wide))
    size = logits.shape[-1]
    whole = size // GROUP * GROUP
    logarithms = tf.zeros_like(linear)
    if whole:
        parts = tf.split(factors[..., :whole], GROUP, axis=-1)
        product = parts[0]
        for part in parts[1:]:
            product *= part
        logarithms += tf.reduce_sum(tf.math.log(product), axis=-1)
    if whole < size:
        logarithms += tf.reduce_sum(tf.math.log(factors[..., whole:]), axis=-1)
    return linear - logarithms, grad
