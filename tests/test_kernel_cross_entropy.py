"""The fused last layer and its loss beside the plain form, in one chunk and in several."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, derivatives, draw

from gentf.kernels import cross_entropy, reference

WIDTH, VOCABULARY = 5, 11
LABELS = tf.constant([3, 0, 10, 7, 3, 1, 3], tf.int32)
WEIGHTS = tf.constant([0.5, 1.0, 0.0, 2.0, 0.1, 1.0, 0.3])


@pytest.fixture
def chunks(monkeypatch):
    """Chunks of two tokens, for a vocabulary that counts as large."""
    monkeypatch.setattr(cross_entropy, "SMALL", 4)
    monkeypatch.setattr(cross_entropy, "CHUNK", 2 * VOCABULARY)


def inputs_of(dtype=tf.float32, transpose=False):
    kernel = draw(VOCABULARY, WIDTH, seed=1, dtype=dtype) if transpose else draw(WIDTH, VOCABULARY, seed=1, dtype=dtype)
    return [draw(7, WIDTH, dtype=dtype), kernel, draw(VOCABULARY, seed=2, dtype=dtype)]


def pair(weighted=False, labels=LABELS, **options):
    name = "weighted_linear_cross_entropy" if weighted else "linear_cross_entropy"
    extra = (WEIGHTS,) if weighted else ()

    def run(module, hidden, kernel, bias=None):
        return getattr(module, name)(hidden, kernel, bias, labels, *extra, **options)

    return functools.partial(run, cross_entropy), functools.partial(run, reference)


EXPORTS = {
    "plain": (pair()[0], inputs_of()),
    "weighted": (pair(weighted=True, label_smoothing=0.1, ignore=3)[0], inputs_of()),
    "chunked": (
        lambda h, k: cross_entropy.linear_cross_entropy(h, k, None, tf.zeros((9000,), tf.int32)),
        [draw(9000, 1), draw(1, 2000)],
    ),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2, "ignore": 3}, {"transpose": True, "label_smoothing": 0.1}]
)
def test_chunks_match_the_plain_form(chunks, options, weighted, jit):
    assert_matches(*pair(weighted, **options), inputs_of(transpose="transpose" in options), jit=jit)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "ignore": 3}])
def test_a_small_vocabulary_matches_the_plain_form(options, jit):
    assert_matches(*pair(**options), inputs_of()[:2], jit=jit)


@pytest.mark.parametrize("weighted", [False, True])
def test_bfloat16(chunks, weighted):
    assert_matches(*pair(weighted), inputs_of(tf.bfloat16))


@pytest.mark.parametrize("jit", [False, True])
def test_an_open_number_of_tokens(chunks, jit):
    labels = tf.cast(LABELS, tf.float32)

    def opened(module):
        return lambda labels, *rest: module.linear_cross_entropy(*rest, tf.cast(labels, tf.int32))

    inputs = [labels, *inputs_of()]
    assert_matches(opened(cross_entropy), opened(reference), inputs, jit=jit, dynamic=(0, 1))


def test_leading_axes_are_kept():
    hidden, kernel, bias = inputs_of()
    flat = cross_entropy.linear_cross_entropy(hidden[:6], kernel, bias, LABELS[:6])
    shaped = cross_entropy.linear_cross_entropy(
        tf.reshape(hidden[:6], (2, 3, WIDTH)), kernel, bias, tf.reshape(LABELS[:6], (2, 3))
    )
    np.testing.assert_array_equal(tf.reshape(shaped, (6,)), flat)


@pytest.mark.parametrize("weighted", [False, True])
def test_padding_may_hold_anything(chunks, weighted):
    """An ignored token with infinities in it changes no loss and no gradient."""
    ours, _ = pair(weighted, ignore=3)
    hidden, kernel, bias = inputs_of()
    spoiled = tf.where((LABELS == 3)[:, None], np.inf, hidden)
    clean, dirty = (derivatives(ours, [h, kernel, bias]) for h in (hidden, spoiled))
    for a, b in zip(tf.nest.flatten(clean), tf.nest.flatten(dirty), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_label_out_of_range_is_noticed(chunks):
    labels = tf.tensor_scatter_nd_update(LABELS, [[2]], [VOCABULARY])
    losses = pair(labels=labels)[0](*inputs_of()).numpy()
    assert np.isnan(losses[2]) and np.isfinite(np.delete(losses, 2)).all()


def test_the_table_of_logits_is_never_held():
    """Of 64 tokens and 4,096 words in chunks of 8, no tensor of the compiled program is as large as the logits."""
    tokens, vocabulary = 64, 4096
    hidden, kernel, labels = draw(tokens, 4), draw(4, vocabulary), tf.zeros((tokens,), tf.int32)

    def program(function):
        def run(hidden, kernel):
            with tf.GradientTape() as tape:
                tape.watch((hidden, kernel))
                loss = tf.reduce_mean(function(hidden, kernel, None, labels))
            return tape.gradient(loss, (hidden, kernel))

        compiled = tf.function(run, jit_compile=True)
        return compiled.experimental_get_compiler_ir(hidden, kernel)(stage="optimized_hlo")

    table = f"f32[{tokens},{vocabulary}]"
    assert table in program(reference.linear_cross_entropy)
    cross_entropy.CHUNK, whole = 8 * vocabulary, cross_entropy.CHUNK
    try:
        assert table not in program(cross_entropy.linear_cross_entropy)
    finally:
        cross_entropy.CHUNK = whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": tf.zeros((4, 11))}, "`hidden` must be"),
        ({"kernel": tf.zeros((5,))}, "`kernel` must be a matrix"),
        ({"bias": tf.zeros((5,))}, "`bias` must be"),
        ({"labels": tf.zeros((7,))}, "`labels` must be integers"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be in"),
    ],
)
def test_bad_arguments(change, message):
    hidden, kernel, bias = inputs_of()
    given = {"hidden": hidden, "kernel": kernel, "bias": bias, "labels": LABELS} | change
    with pytest.raises(ValueError, match=message):
        cross_entropy.linear_cross_entropy(**given)
