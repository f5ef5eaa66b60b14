"""The last layer and its loss in one, with and without weights known beforehand, in chunks and whole."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import cross_entropy, reference

LABELS = tf.constant([0, 10, 3, 3, 7, 0, 9, 2, 10, 5, 3, 1, 8])
EXPORTS = {
    "losses": (cross_entropy.linear_cross_entropy, [draw(4, 3), draw(3, 5), draw(5), tf.constant([0, 4, 2, 2])]),
    "weighted": (
        cross_entropy.weighted_linear_cross_entropy,
        [draw(4, 3), draw(3, 5), draw(5), tf.constant([0, 4, 2, 2]), draw(4)],
    ),
    "chunks": (
        lambda *x: cross_entropy.weighted_linear_cross_entropy(*x, label_smoothing=0.1),
        # 60 MB of logits and a little more: the loop is exported
        [draw(3, 1), draw(1, 2**23), draw(2**23), tf.constant([0, 2**23 - 1, 5]), draw(3)],
    ),
}


@pytest.fixture
def chunks(monkeypatch):
    """Three tokens of 11 logits a chunk, so that 13 tokens are five chunks, the last one filled up."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 40)
    monkeypatch.setattr(cross_entropy, "SMALL", 4)


def both(module):
    """Both functions, over each option and both layouts of the kernel."""

    def run(hidden, kernel, bias, weights, labels, images, table):
        return (
            module.linear_cross_entropy(hidden, kernel, bias, labels, ignore=3),
            module.linear_cross_entropy(images, table, None, tf.reshape(labels[:6], (2, 3)), transpose=True),
            module.weighted_linear_cross_entropy(hidden, kernel, bias, labels, weights, label_smoothing=0.1),
            module.weighted_linear_cross_entropy(
                hidden, table, None, labels, weights, label_smoothing=0.3, ignore=10, transpose=True
            ),
        )

    return run


def inputs(dtype: tf.DType = tf.float32) -> list[tf.Tensor]:
    hidden, kernel, bias, weights = (draw(*s, seed=i) for i, s in enumerate([(13, 5), (5, 11), (11,), (13,)]))
    floats = [hidden, kernel, bias, weights, draw(2, 3, 5, seed=5), draw(11, 5, seed=6)]
    floats = [tf.cast(x, dtype) for x in floats]
    return [*floats[:4], LABELS, *floats[4:]]


@pytest.mark.parametrize("jit", [False, True])
def test_chunks_match_reference(chunks, jit):
    assert_matches(both(cross_entropy), both(reference), inputs(), jit=jit, dynamic=(0, 3, 4))


@pytest.mark.parametrize("jit", [False, True])
def test_whole_logits_match_reference(jit):
    assert_matches(both(cross_entropy), both(reference), inputs(), jit=jit)


def test_bfloat16_is_summed_in_float32(chunks):
    """Losses come in float32 and as exactly as from float32 inputs of the same values; gradients are rounded once."""
    rounded = inputs(tf.bfloat16)
    assert_matches(both(cross_entropy), both(reference), rounded, jit=True, dynamic=(0, 3, 4), tolerance=1e-2)
    assert_matches(both(cross_entropy), both(reference), rounded, order=0, tolerance=1e-6)


@pytest.mark.parametrize("size", [2**24, 40])
def test_ignored_tokens_leave_no_trace(monkeypatch, size):
    """Whatever their hidden values are: the rest's losses and gradients are those of the rest alone."""
    monkeypatch.setattr(cross_entropy, "CHUNK", size)
    monkeypatch.setattr(cross_entropy, "SMALL", 4)
    hidden, kernel, bias, weights = inputs()[:4]
    kept = LABELS != 3
    hidden = tf.where(kept[:, None], hidden, tf.constant([math.nan, math.inf, 0.0, 1.0, -math.inf]))
    some = tf.boolean_mask(hidden, kept), tf.boolean_mask(LABELS, kept), tf.boolean_mask(weights, kept)
    for form in ("losses", "weighted"):
        results = []
        for h, y, w in ((hidden, LABELS, weights), some):
            with tf.GradientTape() as tape:
                tape.watch([h, kernel, bias])
                if form == "losses":
                    losses = cross_entropy.linear_cross_entropy(h, kernel, bias, y, ignore=3, label_smoothing=0.1)
                    total = tf.reduce_sum(w * losses)
                else:
                    total = cross_entropy.weighted_linear_cross_entropy(
                        h, kernel, bias, y, w, ignore=3, label_smoothing=0.1
                    )
            results.append([total, *tape.gradient(total, [h, kernel, bias])])
        assert not tf.boolean_mask(results[0][1], ~kept).numpy().any()
        results[0][1] = tf.boolean_mask(results[0][1], kept)
        for a, b in zip(*results):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2**24, 40])
def test_label_out_of_range_is_noticed(monkeypatch, size):
    monkeypatch.setattr(cross_entropy, "CHUNK", size)
    monkeypatch.setattr(cross_entropy, "SMALL", 4)
    hidden, kernel, bias, weights = inputs()[:4]
    for wrong in (-1, 11):
        labels = tf.tensor_scatter_nd_update(LABELS, [[2]], [wrong])
        losses = cross_entropy.linear_cross_entropy(hidden, kernel, bias, labels)
        assert np.flatnonzero(np.isnan(losses)).tolist() == [2]
        total = cross_entropy.weighted_linear_cross_entropy(hidden, kernel, bias, labels, weights)
        assert np.isnan(total)
        ignored = cross_entropy.linear_cross_entropy(hidden, kernel, bias, labels, ignore=wrong)
        np.testing.assert_array_equal(ignored[2], 0.0)


def test_logits_of_any_size_give_finite_losses(chunks):
    hidden, kernel, bias = inputs()[:3]
    got = cross_entropy.linear_cross_entropy(1e6 * hidden, kernel, bias, LABELS)
    expected = reference.linear_cross_entropy(1e6 * hidden, kernel, bias, LABELS)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_no_tokens_no_loss(chunks):
    """An empty batch has no losses, and a gradient of zero."""
    kernel = draw(5, 11)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        weights = tf.zeros(0)
        total = cross_entropy.weighted_linear_cross_entropy(
            tf.zeros((0, 5)), kernel, None, tf.zeros(0, tf.int32), weights
        )
    assert total == 0.0 and not tape.gradient(total, kernel).numpy().any()


def compiled(function, *arguments) -> str:
    return tf.function(function, jit_compile=True).experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")


def largest(program: str) -> int:
    return max(math.prod(int(n) for n in shape.split(",")) for shape in re.findall(r"f32\[([\d,]+)\]", program))


def test_compiled_program_never_holds_the_logits(monkeypatch):
    """And multiplies matrices once for the loss alone, three times with its gradient, or four without weights."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 500)
    monkeypatch.setattr(cross_entropy, "SMALL", 4)
    tokens, width, size = 120, 3, 50
    arguments = draw(tokens, width), draw(width, size), draw(size), tf.zeros(tokens, tf.int32), tf.ones(tokens)

    def weighted(hidden, kernel, bias, labels, weights):
        return cross_entropy.weighted_linear_cross_entropy(hidden, kernel, bias, labels, weights)

    def losses(hidden, kernel, bias, labels, weights):
        return tf.reduce_sum(weights * cross_entropy.linear_cross_entropy(hidden, kernel, bias, labels))

    def with_gradient(function):
        def run(*x):
            with tf.GradientTape() as tape:
                tape.watch(x[:3])
                total = function(*x)
            return total, tape.gradient(total, x[:3])

        return run

    for function, products in ((weighted, 3), (losses, 4)):
        for program, expected in (
            (compiled(function, *arguments), 1),
            (compiled(with_gradient(function), *arguments), products),
        ):
            assert largest(program) <= 600 < tokens * size
            assert len(re.findall(r" dot\(", program)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": draw(5)}, "`kernel` must be a matrix"),
        ({"hidden": draw(13, 4)}, r"`hidden` must be \(..., 5\)"),
        ({"bias": draw(5)}, r"`bias` must be \(11,\)"),
        ({"labels": LABELS[:4]}, "`labels` must be integers of shape"),
        ({"labels": draw(13)}, "`labels` must be integers of shape"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\)"),
        ({"transpose": True}, r"`hidden` must be \(..., 11\)"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = dict(zip(("hidden", "kernel", "bias"), inputs())) | {"labels": LABELS} | change
    with pytest.raises(ValueError, match=message):
        cross_entropy.linear_cross_entropy(**arguments)


def test_weights_have_the_shape_of_the_labels():
    hidden, kernel, bias = inputs()[:3]
    with pytest.raises(ValueError, match="`weights` must be"):
        cross_entropy.weighted_linear_cross_entropy(hidden, kernel, bias, LABELS, tf.constant(1.0))
