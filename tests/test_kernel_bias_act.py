"""Bias, activation, gain and clamp beside plain operations, up to the gradient of a gradient's norm."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import reference
from gentf.kernels.bias_act import ACTIVATIONS, bias_act

X, BIAS = draw(3, 2, 5), draw(5, seed=1)
EXPORTS = {
    "lrelu": (functools.partial(bias_act, activation="lrelu", clamp=1.0), [X, BIAS]),
    "tanh": (functools.partial(bias_act, activation="tanh", gain=0.5), [X]),
}
SETTINGS = [{}, {"gain": 1.7, "clamp": 0.8}]


def every_activation(function):
    """All activations and settings as outputs of one function, so that one compilation tests them all."""

    def run(*inputs):
        return [function(*inputs, activation=name, **settings) for name in ACTIVATIONS for settings in SETTINGS]

    return run


@pytest.mark.parametrize("jit", [False, True])
def test_every_activation_to_the_second_order(jit):
    kernel, plain = (every_activation(function) for function in (bias_act, reference.bias_act))
    assert_matches(kernel, plain, [X, BIAS], order=2, jit=jit, dynamic=[] if jit else [0])


def test_without_bias():
    kernel, plain = (functools.partial(f, activation="elu", clamp=0.9) for f in (bias_act, reference.bias_act))
    assert_matches(kernel, plain, [X], order=2)


def test_bfloat16():
    inputs = [tf.cast(X, tf.bfloat16), tf.cast(BIAS, tf.bfloat16)]
    for name in ("lrelu", "selu", "softplus"):
        kernel, plain = (functools.partial(f, activation=name) for f in (bias_act, reference.bias_act))
        assert_matches(kernel, plain, inputs)
        assert kernel(*inputs).dtype == tf.bfloat16


RUNS = {"eager": lambda f: f, "graph": tf.function, "jit": tf.function(jit_compile=True)}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_gradient_of_the_gradient_norm(run):
    """What a gradient penalty asks for: here the second derivative cannot hide behind a linear loss."""

    def penalty(function, x, bias):
        settings = [{"activation": "tanh"}, {"activation": "lrelu", "clamp": 1.3}, {"activation": "softplus"}]
        with tf.GradientTape() as outer:
            outer.watch([x, bias])
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = x
                for each in settings:
                    y = function(y, bias, **each)
                loss = tf.reduce_sum(y**3)
            norm = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
        return norm, *outer.gradient(norm, [x, bias])

    ours = run(functools.partial(penalty, bias_act))(X, BIAS)
    for a, b in zip(ours, penalty(reference.bias_act, X, BIAS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_clamped_entries_have_no_gradient_and_others_all(dtype):
    clamp = 0.7  # no binary fraction: its rounding in `dtype` must be the bound of value and gradient alike
    x = tf.constant([-3.0, -0.69, 0.2, 0.69, 0.71, 40.0], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = bias_act(x, clamp=clamp)
    np.testing.assert_array_equal(tf.cast(tape.gradient(y, x), tf.float32), [0, 1, 1, 1, 0, 0])
    assert y[-1] == tf.constant(clamp, dtype) and y[0] == -y[-1]


def test_large_inputs_stay_finite():
    x = tf.constant([-1e4, -90.0, 90.0, 1e4])
    for name in ACTIVATIONS:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = bias_act(x, activation=name)
        gradient = tape.gradient(y, x)
        assert np.isfinite(y).all() and np.isfinite(gradient).all(), name


def test_relus_keep_the_second_moment_by_default():
    x = draw(100_000)
    for name in ("relu", "lrelu"):
        moment = tf.reduce_mean(tf.square(bias_act(x, activation=name, slope=0.0)))
        np.testing.assert_allclose(moment, 1.0, rtol=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"activation": "swish"}, "`activation` must be one of linear, relu"),
        ({"gain": 0.0}, "`gain` must be positive"),
        ({"clamp": -1.0}, "`clamp` must be positive"),
        ({"activation": "lrelu", "slope": -0.1}, "`slope` must not be negative"),
        ({"bias": tf.zeros(4)}, "`bias` must be one number a channel"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        bias_act(X, **arguments)
