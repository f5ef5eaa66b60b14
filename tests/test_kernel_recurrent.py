"""Recurrent kernels beside their references and Keras' layers."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, derivatives, draw

from gentf.kernels import recurrent, reference

STEPS, ROWS, WIDTH, UNITS = 7, 3, 5, 4
MASK = recurrent.lengths_mask(tf.constant([7, 4, 0]), STEPS)
TOKENS = tf.constant(np.random.default_rng(0).integers(0, WIDTH, (STEPS, ROWS)), tf.int32)
GATES = {"rnn": 1, "relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}


def call(module, name, options, x, kernel, recurrent_kernel, bias, *state):
    if name == "lstm":
        return module.lstm(x, kernel, recurrent_kernel, bias, state, **options)
    if name == "gru":
        extra = 0.5 * recurrent_kernel[0]
        return module.gru(x, kernel, recurrent_kernel, bias, state[0], recurrent_bias=extra, **options)
    if name == "gru_reset_before":
        return module.gru(x, kernel, recurrent_kernel, bias, state[0], reset_after=False, **options)
    activation = "relu" if name == "relu" else "tanh"
    return module.rnn(x, kernel, recurrent_kernel, bias, state[0], activation=activation, **options)


def inputs_of(name, dtype=tf.float32, steps=STEPS):
    gates = GATES[name] * UNITS
    states = [0.5 * draw(ROWS, UNITS, seed=5 + i, dtype=dtype) for i in range(1 + (name == "lstm"))]
    weights = (draw(WIDTH, gates, seed=1), draw(UNITS, gates, seed=2), draw(gates, seed=3))
    return [draw(steps, ROWS, WIDTH, dtype=dtype), *(tf.cast(0.5 * w, dtype) for w in weights), *states]


def pair(name, **options):
    return (functools.partial(call, module, name, options) for module in (recurrent, reference))


EXPORTS = {name: (next(iter(pair(name))), inputs_of(name)) for name in GATES} | {
    "lstm_segments": (next(iter(pair("lstm", segment=3, mask=MASK))), inputs_of("lstm"))
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_plain(name, jit):
    assert_matches(*pair(name), inputs_of(name), jit=jit)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
def test_masked_backward_with_an_open_batch(name, jit):
    inputs = inputs_of(name)
    states = range(4, len(inputs))

    def opened(function):  # the batch is the second axis of x: turned to the front, where it can be left open
        return lambda x, *rest: function(tf.transpose(x, (1, 0, 2)), *rest)

    ours, theirs = pair(name, mask=MASK, reverse=True)
    inputs[0] = tf.transpose(inputs[0], (1, 0, 2))
    assert_matches(opened(ours), opened(theirs), inputs, jit=jit, dynamic=(0, *states))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("name", "segment", "mask"), [("rnn", 1, None), ("lstm", 3, MASK), ("gru", 4, None)])
def test_segments_give_the_same(name, segment, mask, jit):
    ours, theirs = pair(name, segment=segment, mask=mask)
    assert_matches(ours, theirs, inputs_of(name), jit=jit)


@pytest.mark.parametrize("segment", [None, 3])
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_integers_stand_for_one_hot_vectors(name, segment):
    options = {"segment": segment}
    ours, theirs = pair(name, **options)
    inputs = inputs_of(name)[1:]
    assert_matches(lambda *w: ours(TOKENS, *w), lambda *w: theirs(TOKENS, *w), inputs)


@pytest.mark.parametrize("name", GATES)
def test_bfloat16(name):
    assert_matches(*pair(name), inputs_of(name, tf.bfloat16), tolerance=5e-2)


def test_a_masked_step_changes_nothing():
    ours, _ = pair("lstm", mask=MASK)
    inputs = inputs_of("lstm")
    outputs, (h, c) = ours(*inputs)
    np.testing.assert_array_equal(outputs[4:, 1], np.repeat(outputs[3:4, 1], 3, 0))
    np.testing.assert_array_equal(h[2], inputs[4][2])
    np.testing.assert_array_equal(c[2], inputs[5][2])
    spoiled = tf.where(MASK[..., None], inputs[0], np.nan)
    gradients = derivatives(ours, [spoiled, *inputs[1:]])
    np.testing.assert_array_equal(gradients[0][0], outputs)


def test_segments_store_no_gate_of_the_whole_sequence():
    steps, units = 16, 8
    inputs = [draw(steps, ROWS, units), draw(units, 4 * units), draw(units, 4 * units), draw(4 * units)]
    state = (draw(ROWS, units), draw(ROWS, units))

    def program(segment):
        def run(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                loss = tf.reduce_sum(recurrent.lstm(*inputs, state, segment=segment)[0] ** 2)
            return tape.gradient(loss, inputs)

        return tf.function(run, jit_compile=True).experimental_get_compiler_ir(*inputs)(stage="optimized_hlo")

    gates = f"f32[{steps},{ROWS},{3 * units}]"
    assert gates in program(None)
    segmented = program(4)
    assert gates not in segmented and f"f32[4,{ROWS},{3 * units}]" in segmented


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, "`segment` must be positive"),
        ({"activation": "gelu"}, "`activation` must be one of tanh, relu"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        recurrent.rnn(*inputs_of("rnn"), **options)
    with pytest.raises(ValueError, match="`recurrent_bias` must be None"):
        recurrent.gru(*inputs_of("gru"), recurrent_bias=tf.zeros(12), reset_after=False)
