"""Convolutions beside TensorFlow's own and beside plain sums, every formulation, up to the second order."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import convolution, reference
from gentf.kernels.convolution import (
    causal_conv1d,
    causal_conv1d_step,
    causal_window,
    conv2d,
    conv2d_transpose,
    masked_conv2d,
    modulated_conv2d,
    shifted_conv2d,
)

PADS = ((2, 0), (1, 3))
EXPLICIT = dict(padding=PADS)
# (height, width, C_in, C_out, kernel, arguments): narrow input or output, strides that do not divide
CONVOLUTIONS = [
    (7, 6, 1, 5, (4, 4), dict(strides=2)),
    (5, 8, 3, 2, (3, 5), dict(strides=(2, 3), padding="VALID")),
    (6, 5, 6, 1, (3, 3), dict()),
    (6, 5, 1, 6, (2, 3), dict(padding="VALID")),
    (5, 5, 2, 2, (3, 3), EXPLICIT | dict(strides=2)),
    (9, 7, 1, 5, (2, 2), dict(strides=4)),  # pixels that nothing reads
]
WIDE = [
    (5, 7, 9, 6, (1, 3), dict(strides=(2, 1))),
    (4, 5, 6, 7, (1, 1), dict()),
    (6, 6, 5, 6, (3, 2), dict(dilation=2)),
]
# (height, width, C_in, C_out, kernel, arguments)
TRANSPOSED = [
    (4, 4, 5, 1, (4, 4), dict(strides=2, output_size=(7, 8))),
    (3, 4, 6, 3, (3, 5), dict(strides=(2, 3), padding="VALID")),
    (4, 3, 6, 2, (3, 3), dict()),
    (3, 3, 2, 3, (4, 4), dict(strides=2, padding=((1, 1), (2, 0)))),
    (3, 3, 6, 9, (2, 2), dict(strides=2)),
]
X, K = draw(2, 5, 6, 3), draw(3, 3, 3, 6, seed=1)
EXPORTS = {
    "conv": (functools.partial(conv2d, strides=2), [X, K]),
    "transposed": (functools.partial(conv2d_transpose, strides=2), [draw(2, 3, 3, 6), K]),
    "masked": (functools.partial(masked_conv2d, mask="A", colors=3), [X, K]),
    "shifted": (functools.partial(shifted_conv2d, strict=True), [X, K]),
    "causal": (functools.partial(causal_conv1d, dilation=2), [draw(2, 7, 3), draw(2, 3, 4)]),
    "step": (causal_conv1d_step, [draw(2, 3), draw(2, 1, 3), draw(2, 3, 4)]),
    "modulated": (functools.partial(modulated_conv2d, up=2), [X, K, draw(2, 3)]),
}


def squared(function):
    """Convolutions are bilinear: under a square, the second gradients of x by x tell, too."""
    return lambda *inputs: tf.nest.map_structure(tf.square, function(*inputs))


def all_of(name, cases, module):
    function = getattr(module, name)
    return lambda *inputs: [
        tf.square(function(inputs[2 * i], inputs[2 * i + 1], **case[-1])) for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name, cases", [("conv2d", CONVOLUTIONS), ("conv2d_transpose", TRANSPOSED)])
def test_every_form_to_the_second_order(name, cases, jit):
    cases = cases[:5:2] if jit else cases  # to compile is slow; these take every form that XLA gets
    inputs = []
    for number, (height, width, inner, outer, size, _) in enumerate(cases):
        channels = (inner, outer) if name == "conv2d" else (outer, inner)
        inputs += [draw(2, height, width, inner, seed=number), 0.3 * draw(*size, *channels, seed=number + 50)]
    dynamic = [] if jit else range(0, len(inputs), 2)
    kernel, plain = (all_of(name, cases, module) for module in (convolution, reference))
    assert_matches(kernel, plain, inputs, order=2, jit=jit, dynamic=dynamic, tolerance=1e-4)


def test_wide_convolutions():
    for height, width, inner, outer, size, arguments in WIDE:
        inputs = [draw(2, height, width, inner), draw(*size, inner, outer)]
        assert_matches(*(functools.partial(f, **arguments) for f in (conv2d, reference.conv2d)), inputs)


def test_bfloat16():
    for case in CONVOLUTIONS[:3]:
        height, width, inner, outer, size, arguments = case
        inputs = [draw(2, height, width, inner, dtype=tf.bfloat16), draw(*size, inner, outer, dtype=tf.bfloat16)]
        kernel, plain = (functools.partial(f, **arguments) for f in (conv2d, reference.conv2d))
        assert_matches(kernel, plain, inputs)
        assert kernel(*inputs).dtype == tf.bfloat16


def test_unknown_height_and_width():
    run = tf.function(conv2d, input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec(K.shape)])
    np.testing.assert_allclose(run(X, K), reference.conv2d(X, K), atol=1e-4)


def test_gradient_of_the_gradient_norm():
    """A gradient penalty through a discriminator's first two layers, eager and compiled."""
    weights = [0.3 * draw(4, 4, 1, 5), 0.3 * draw(4, 4, 5, 2, seed=1)]

    def penalty(function, x, *weights):
        with tf.GradientTape() as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.tanh(function(tf.tanh(function(x, weights[0], strides=2)), weights[1], strides=2))
            norm = tf.reduce_sum(tf.square(inner.gradient(y, x)))
        return outer.gradient(norm, weights)

    inputs = [draw(2, 8, 8, 1), *weights]
    expected = penalty(reference.conv2d, *inputs)
    for run in (lambda f: f, tf.function(jit_compile=True)):
        for a, b in zip(run(functools.partial(penalty, conv2d))(*inputs), expected):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("jit, order", [(False, 2), (True, 1)])
def test_causal_convolutions(jit, order):
    def everything(module):
        def run(x, kernel, sound, taps):
            return [
                module.masked_conv2d(x, kernel, mask="A", colors=3),
                module.shifted_conv2d(x, kernel, direction="down", strict=True),
                module.shifted_conv2d(x, kernel, direction="down_right", strict=True),
                module.causal_conv1d(sound, taps, dilation=3),
                *([module.masked_conv2d(x, kernel), module.shifted_conv2d(x, kernel)] if not jit else []),
            ]

        return squared(run)

    inputs = [X, K, draw(2, 8, 4, seed=2), draw(3, 4, 6, seed=3)]
    kernel, plain = everything(convolution), everything(reference)
    assert_matches(kernel, plain, inputs, order=order, jit=jit, dynamic=[] if jit else [0, 2], tolerance=5e-5)


def test_two_masked_layers_see_only_earlier_pixels_and_colours():
    """The property itself, by the Jacobian: in raster order, and at a pixel in the order R, G, B."""
    first, second = draw(3, 3, 3, 6), draw(3, 3, 6, 3, seed=1)
    x = draw(1, 4, 4, 3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = masked_conv2d(masked_conv2d(x, first, mask="A", colors=3), second, colors=3)
    size = 4 * 4 * 3
    jacobian = np.abs(tape.jacobian(y, x).numpy().reshape(size, size))
    assert not np.triu(jacobian).any()
    assert jacobian[1, 0] > 0 and jacobian[2, 1] > 0 and jacobian[5 * 3, 2 * 3] > 0  # G sees R, B sees G, up right


def test_steps_equal_the_whole_sequence():
    sound, taps, dilation = draw(2, 11, 3), draw(3, 3, 4, seed=1), 2
    whole = causal_conv1d(sound, taps, dilation=dilation)
    for start in (0, 2, 7):  # a prefix shorter than the window, and one longer
        window = causal_window(sound[:, :start], 3, dilation)
        for t in range(start, 11):
            y, window = causal_conv1d_step(sound[:, t], window, taps, dilation=dilation)
            np.testing.assert_allclose(y, whole[:, t], atol=1e-5)
    kernel = functools.partial(causal_conv1d_step, dilation=dilation)

    def by_sum(x, window, taps):
        seen = tf.concat([window, x[:, None]], 1)
        return reference.causal_conv1d(seen, taps, dilation=dilation)[:, -1], seen[:, 1:]

    inputs = [sound[:, 0], sound[:, 1:5], taps]
    assert_matches(squared(kernel), squared(by_sum), inputs, jit=True)


def test_a_sequence_of_unknown_length():
    sound, taps = draw(2, 11, 3), draw(3, 3, 4, seed=1)
    run = tf.function(functools.partial(causal_conv1d, dilation=4))
    spec = [tf.TensorSpec((None, None, 3)), tf.TensorSpec(taps.shape)]
    np.testing.assert_allclose(
        run.get_concrete_function(*spec)(sound, taps), causal_conv1d(sound, taps, dilation=4), atol=1e-5
    )


@pytest.mark.parametrize(
    "cases, jit, order",
    [([dict(), dict(up=2)], False, 2), ([dict(down=2, demodulate=False), dict(up=3, filter=(1, 2, 1))], True, 1)],
)
def test_modulation(cases, jit, order):
    def everything(module):
        return squared(lambda *inputs: [module.modulated_conv2d(*inputs, **case) for case in cases])

    inputs = [draw(2, 2, 4, 3), draw(3, 3, 3, 5, seed=1), draw(2, 3, seed=2)]
    assert_matches(everything(convolution), everything(reference), inputs, order=order, jit=jit, tolerance=1e-4)


def test_demodulation_keeps_unit_variance():
    x, kernel = draw(8, 16, 16, 16), 5.0 * draw(3, 3, 16, 32, seed=1)
    y = modulated_conv2d(x, kernel, tf.exp(draw(8, 16, seed=2)))[:, 1:-1, 1:-1]
    np.testing.assert_allclose(tf.math.reduce_variance(y, (0, 1, 2)), np.ones(32), rtol=0.3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: conv2d(X, K[..., :2, :]), "`kernel` must be"),
        (lambda: conv2d(X, K, strides=0), "`strides` must be a positive"),
        (lambda: conv2d(X, K, strides=2, dilation=2), "`dilation` must be 1"),
        (lambda: conv2d(X, K, padding="FULL"), "`padding` must be"),
        (lambda: conv2d(X, K, padding=((1, 1), (-1, 0))), "`padding` must be"),
        (lambda: conv2d_transpose(X, K), "`kernel` must be"),
        (lambda: conv2d_transpose(X[..., :1], K[..., :1], output_size=(9, 9)), "`output_size` must be"),
        (lambda: masked_conv2d(X, K[:2]), "`kernel` must have an odd"),
        (lambda: masked_conv2d(X, K, mask="C"), "`mask` must be"),
        (lambda: masked_conv2d(X, K, colors=2), "`colors` must divide"),
        (lambda: shifted_conv2d(X, K, direction="up"), "`direction` must be"),
        (lambda: shifted_conv2d(X, K[:, :2]), "`kernel` must have an odd width"),
        (lambda: causal_conv1d(X[0], K[0], dilation=0), "`dilation` must be positive"),
        (lambda: causal_conv1d_step(X[0, 0], X[0, :, :4], K[0]), "`window` must hold 2"),
        (lambda: modulated_conv2d(X, K, tf.ones((2, 3)), up=2, down=2), "`up` and `down` must be"),
        (lambda: modulated_conv2d(X, K[:, :2], tf.ones((2, 3))), "`kernel` must be square"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
