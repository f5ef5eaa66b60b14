"""Bias, activation, gain and clamp as one function that stores its output alone.

Plain operations store the input of the activation and of the clamp. Here every derivative is written in terms of the
output, which the next layer keeps anyway.

Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN", appendix B; the clamp is of
Karras et al. (2021), "Alias-free generative adversarial networks".
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

SELU_SCALE = 1.0507009873554805
SELU_SCALE_ALPHA = 1.7580993408473768  # SELU_SCALE * 1.6732632423543772


class Activation(NamedTuple):
    """`function(u, slope)`, and `gradient(dy, a, slope)`: dy times the derivative at u, written in a = function(u)."""

    function: Callable[[tf.Tensor, float], tf.Tensor]
    gradient: Callable[[tf.Tensor, tf.Tensor, float], tf.Tensor]
    gain: float = 1.0


# TensorFlow's own gradient operations read the output (of both ReLUs: a sign that the output shares) in one pass.
ACTIVATIONS = {
    "linear": Activation(lambda u, slope: u, lambda dy, a, slope: dy),
    "relu": Activation(
        lambda u, slope: tf.nn.relu(u),
        lambda dy, a, slope: tf.raw_ops.ReluGrad(gradients=dy, features=a),
        math.sqrt(2.0),
    ),
    "lrelu": Activation(
        lambda u, slope: tf.nn.leaky_relu(u, slope),
        lambda dy, a, slope: tf.raw_ops.LeakyReluGrad(gradients=dy, features=a, alpha=slope),
        math.sqrt(2.0),
    ),
    "tanh": Activation(lambda u, slope: tf.tanh(u), lambda dy, a, slope: tf.raw_ops.TanhGrad(y=a, dy=dy)),
    "sigmoid": Activation(lambda u, slope: tf.sigmoid(u), lambda dy, a, slope: tf.raw_ops.SigmoidGrad(y=a, dy=dy)),
    "elu": Activation(lambda u, slope: tf.nn.elu(u), lambda dy, a, slope: tf.where(a < 0.0, dy * (a + 1.0), dy)),
    "selu": Activation(
        lambda u, slope: tf.nn.selu(u),
        lambda dy, a, slope: dy * tf.where(a < 0.0, a + SELU_SCALE_ALPHA, SELU_SCALE),
    ),
    "softplus": Activation(lambda u, slope: tf.nn.softplus(u), lambda dy, a, slope: -dy * tf.math.expm1(-a)),
}


def bias_act(
    x: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    activation: str = "linear",
    slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> tf.Tensor:
    """y = min(max(activation(x + bias) * gain, -clamp), clamp).

    Gradient: dy * gain * activation'(y / gain) where |y| < clamp, else exactly 0; that of `bias` is its sum over all
    axes but the last. Differentiable any number of times. Stores y alone, for the first gradient; higher ones, the
    input too. In bfloat16, a saturating activation's derivative is as exact as its rounded output.

    Args:
        x: (..., C) float.
        bias: (C,) float, or none.
        activation: a key of `ACTIVATIONS`. Others, swish say, have no derivative in terms of their output.
        slope: of "lrelu" below zero, >= 0.
        gain: > 0; by default sqrt(2) for "relu" and "lrelu", which keeps the variance, and 1 otherwise.
        clamp: > 0, or none for no clamp.
    Returns:
        (..., C), of x's dtype, computed in float32 or wider.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}. Received: activation={activation!r}")
    if slope < 0.0:
        raise ValueError(f"`slope` must not be negative. Received: slope={slope}")
    if gain is not None and gain <= 0.0:
        raise ValueError(f"`gain` must be positive. Received: gain={gain}")
    if clamp is not None and clamp <= 0.0:
        raise ValueError(f"`clamp` must be positive. Received: clamp={clamp}")
    x = tf.convert_to_tensor(x)
    chosen = ACTIVATIONS[activation]
    scale = chosen.gain if gain is None else float(gain)
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32
    # rounded as the output is, so that a clamped output is known by comparison
    limit = None if clamp is None else float(x.dtype.as_numpy_dtype(clamp))

    def forward(x: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        u = tf.cast(x, wide)
        y = chosen.function(u if bias is None else tf.nn.bias_add(u, tf.cast(bias, wide)), slope)
        y = y if scale == 1.0 else y * scale
        return tf.cast(y if limit is None else tf.clip_by_value(y, -limit, limit), x.dtype)

    def backward(dy: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        a, dy = tf.cast(y, wide), tf.cast(dy, wide)
        if limit is not None:
            dy = tf.where(tf.abs(a) < limit, dy, 0.0)
        if scale != 1.0:
            a, dy = a / scale, dy * scale
        return chosen.gradient(dy, a, slope)

    # The `y` that a gradient holds is the one inside, which plain operations tie to x: that is what makes the second
    # gradient, which passes through it, exact.
    @tf.custom_gradient
    def without_bias(x):
        y = forward(x, None)
        return y, lambda dy: tf.cast(backward(dy, y), x.dtype)

    @tf.custom_gradient
    def with_bias(x, bias):
        y = forward(x, bias)

        def gradient(dy):
            dx = backward(dy, y)
            return tf.cast(dx, x.dtype), tf.cast(tf.reduce_sum(tf.reshape(dx, (-1, dx.shape[-1])), 0), bias.dtype)

        return y, gradient

    if bias is None:
        return without_bias(x)
    bias = tf.convert_to_tensor(bias)
    if bias.shape.rank != 1 or bias.shape[0] != x.shape[-1]:
        raise ValueError(f"`bias` must be one number a channel, ({x.shape[-1]},). Received: shape {bias.shape}")
    return with_bias(x, bias)
