"""Attention, its blocks and its cache, beside attention with all scores in memory."""

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import as_array, assert_matches, draw

from gentf.kernels import attention as kernels
from gentf.kernels import reference


def inputs(batch=2, length=13, size=18, heads=4, groups=2, width=4, out=6, dtype=tf.float32):
    shapes = (batch, length, heads, width), (batch, size, groups, width), (batch, size, groups, out)
    return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def step_inputs():
    return [draw(2, 4, 8, seed=1), draw(2, 2, 8, seed=2), draw(2, 2, 8, seed=3), draw(2, 2, 5, 8, seed=4),
            draw(2, 2, 5, 8, seed=5), tf.constant([4, 1])]  # fmt: skip


EXPORTS = {
    "short": (lambda q, k, v, n: kernels.attention(q, k, v, causal=True, lengths=n), [*inputs(), tf.constant([3, 18])]),
    "blocks": (lambda q, k, v: kernels.attention(q, k, v, window=7, block=4), inputs()),
    "rotary": (kernels.rotary, [draw(2, 5, 2, 6), tf.range(5)]),
    "step": (lambda q, k, v, ks, vs, p: kernels.attention_step(q, k, v, (ks, vs), p), step_inputs()),
    "write": (
        lambda ks, vs, k, v, start: kernels.write_cache((ks, vs), k, v, start),
        [draw(2, 2, 5, 8), draw(2, 2, 5, 4), draw(2, 3, 2, 8), draw(2, 3, 2, 4), tf.constant([0, 2])],
    ),
}

BLIND = tf.constant([[1, 0, 1, 1, 0, 1, 0, 0, 1, 1], [0] * 10]) > 0  # the second row sees nothing at all
CASES = {
    "short": (inputs(length=7, size=7), {"causal": True}),
    "short, blind queries": (inputs(length=13, size=10), {"window": 2, "mask": BLIND, "scale": 0.7}),
    "short, padded": (inputs(length=5, size=7), {"lengths": tf.constant([3, 7])}),
    "blocks": (inputs(length=8, size=8, groups=4), {"block": 4}),
    "blocks, causal": (inputs(), {"block": 4, "causal": True}),
    "blocks, padded": (inputs(), {"block": 5, "lengths": tf.constant([0, 17]), "scale": 0.7}),
    "blocks, blind queries": (inputs(length=17, size=10), {"block": 4, "window": 6, "mask": BLIND}),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_matches_reference(case):
    """Batch of unknown size, compiled for the cases that reach most of the code."""
    tensors, options = CASES[case]
    for jit in [False, True] if "blind" in case else [False]:
        assert_matches(
            lambda *x: kernels.attention(*x, **options), lambda *x: reference.attention(*x, **options), tensors,
            jit=jit, dynamic=(0, 1, 2),
        )  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("blocks")])
def test_all_heads_at_once_as_on_a_gpu(case, monkeypatch):
    """The blocks are laid out in another way where there is a GPU: heads of all rows side by side, in one part."""
    tensors, options = CASES[case]
    seen = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: seen.append(kind) or [kind])
    assert_matches(
        lambda *x: kernels.attention(*x, **options), lambda *x: reference.attention(*x, **options), tensors,
        jit=False, dynamic=(0, 1, 2),
    )  # fmt: skip
    assert "GPU" in seen


@pytest.mark.parametrize("block", [4, 32])
def test_bfloat16_is_computed_in_float32(block):
    """Off by the rounding of the results alone, however many keys there are."""
    tensors = inputs(dtype=tf.bfloat16)
    out = kernels.attention(*tensors, causal=True, block=block)
    assert out.dtype == tf.bfloat16
    expected = reference.attention(*(tf.cast(x, tf.float32) for x in tensors), causal=True)
    np.testing.assert_array_equal(as_array(out), as_array(tf.cast(expected, tf.bfloat16)))


@pytest.mark.parametrize("jit", [False, True])
def test_lengths_may_be_unknown_when_traced(jit):
    """One trace serves sequences shorter than a block, as long as one, and longer."""
    spec = tf.TensorSpec((None, None, 2, 4))

    @tf.function(input_signature=[spec] * 3, jit_compile=jit)
    def gradients(q, k, v):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = kernels.attention(q, k, v, causal=True, block=4)
            loss = tf.reduce_sum(out**2)
        return out, *tape.gradient(loss, [q, k, v])

    for length, size in [(3, 3), (4, 6), (9, 11)] if not jit else [(9, 11)]:
        q, k, v = inputs(length=length, size=size, heads=2, out=4)
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = reference.attention(q, k, v, causal=True)
            loss = tf.reduce_sum(out**2)
        for got, expected in zip(gradients(q, k, v), [out, *tape.gradient(loss, [q, k, v])], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("block", [4, 16])
def test_large_scores_neither_overflow_nor_lose_the_tie(block):
    q, k, v = inputs(length=16, size=16, heads=2, out=4)
    k = tf.concat([k[:, :8], k[:, :8]], axis=1)  # every key twice, far apart: the two share their weight evenly
    out = kernels.attention(1e3 * q, k, v, block=block)
    best = tf.argmax(tf.einsum("bthd,bshd->bths", q, k[:, :8]), -1)
    halves = tf.transpose(0.5 * (v[:, :8] + v[:, 8:]), (0, 2, 1, 3))
    expected = tf.transpose(tf.gather(halves, tf.transpose(best, (0, 2, 1)), batch_dims=2), (0, 2, 1, 3))
    sure = tf.reduce_max(tf.abs(out - expected), -1) < 1e-4  # the softmax of scores a thousand apart is one-hot
    assert np.mean(sure) > 0.8 and np.isfinite(out).all()


def test_queries_that_see_no_key_give_zeros_and_take_no_gradient():
    q, k, v = inputs(length=9, size=5)
    for block in (4, 16):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = kernels.attention(q, k, v, causal=True, lengths=[5, 0], block=block)
        d_q, d_k, d_v = tape.gradient(out, [q, k, v])
        np.testing.assert_array_equal(out[0, :4], 0.0)  # the first of 9 queries stand before the first of 5 keys
        np.testing.assert_array_equal(d_q[0, :4], 0.0)
        for x in (out, d_q, d_k, d_v):
            np.testing.assert_array_equal(x[1], 0.0)
        assert np.abs(out[0, 4:]).min() > 0.0


@pytest.mark.parametrize("options, poison, sound", [
    ({"causal": True}, slice(12, 16), slice(0, 12)),
    ({"window": 4}, slice(0, 4), slice(8, 16)),
])  # fmt: skip
def test_hidden_blocks_are_skipped(options, poison, sound):
    """A key that is not a number does no harm to queries whose blocks never meet its block, in either pass."""
    q, k, v = inputs(length=16, size=16)
    poisoned = np.array(k)
    poisoned[:, poison] = np.nan
    poisoned = tf.constant(poisoned)
    with tf.GradientTape() as tape:
        tape.watch(q)
        out = kernels.attention(q, poisoned, v, block=4, **options)[:, sound]
    np.testing.assert_allclose(out, kernels.attention(q, k, v, block=4, **options)[:, sound], atol=1e-6)
    assert np.isfinite(tape.gradient(out, q)[:, sound]).all()


def test_no_tensor_is_as_large_as_all_scores():
    """In both passes, for 64 queries and 96 keys in blocks of 8."""

    @tf.function
    def gradients(q, k, v):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = kernels.attention(q, k, v, causal=True, block=8)
        return tape.gradient(out, [q, k, v])

    graph = gradients.get_concrete_function(*inputs(batch=1, length=64, size=96, heads=2, out=4)).graph
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    sizes = [x.shape.num_elements() or 0 for g in graphs for op in g.get_operations() for x in op.outputs
             if x.shape.is_fully_defined()]  # fmt: skip
    assert len(sizes) > 50 and max(sizes) <= 96 * 2 * (4 + 1)  # the inputs, with a column for what is subtracted


def test_attention_maps_over_examples():
    """Gradients of single examples, by tf.vectorized_map."""
    q, k, v = inputs(length=5, size=5, out=4)

    def gradient(x):
        q, k, v = (a[None] for a in x)
        with tf.GradientTape() as tape:
            tape.watch(q)
            loss = tf.reduce_sum(kernels.attention(q, k, v, causal=True) ** 2)
        return tape.gradient(loss, q)[0]

    mapped = tf.vectorized_map(gradient, (q, k, v))
    one_by_one = tf.stack([gradient((q[i], k[i], v[i])) for i in range(2)])
    np.testing.assert_allclose(mapped, one_by_one, atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_rotary_matches_reference(dtype, jit):
    x, positions = draw(2, 5, 3, 6, dtype=dtype), tf.constant([[0, 1, 2, 7, 90], [5, 4, 3, 2, 1]])
    order = 2 if dtype == tf.float32 else 1
    assert_matches(kernels.rotary, reference.rotary, [x, positions], jit=jit, order=order, dynamic=(0, 1))
    assert_matches(
        lambda x: kernels.rotary(x, tf.range(5), 100.0), lambda x: reference.rotary(x, tf.range(5), 100.0), [x]
    )


def test_rotary_scores_depend_on_distance_alone():
    q, k = draw(1, 1, 1, 8, seed=1), draw(1, 1, 1, 8, seed=2)

    def score(i, j):
        return float(tf.reduce_sum(kernels.rotary(q, tf.constant([i])) * kernels.rotary(k, tf.constant([j]))))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2


@pytest.mark.parametrize("jit", [False, True])
def test_steps_over_a_cache_equal_attention_over_the_sequence(jit):
    """A prompt of each row's own length, then one token at a time in a loop, with and without a window."""
    q, k, v = inputs(length=9, size=9, out=6)
    prompt, steps = tf.constant([2, 4]), 5

    @tf.function(jit_compile=jit)
    def decode(q, k, v, window=None):
        cache = kernels.empty_cache(2, 9, 2, 4)[0], kernels.empty_cache(2, 9, 2, 6)[1]
        cache = kernels.write_cache(cache, k[:, :4], v[:, :4])

        def body(i, out, cache):
            now = [tf.gather(x, prompt + i, batch_dims=1) for x in (q, k, v)]
            row, cache = kernels.attention_step(*now, cache, prompt + i, window=window)
            return i + 1, tf.tensor_scatter_nd_update(out, [[i]], row[None]), cache

        return tf.while_loop(lambda i, *_: i < steps, body, (0, tf.zeros((steps, 2, 4, 6)), cache))[1]

    for window in (None, 3):
        whole = reference.attention(q, k, v, causal=True, window=window)
        expected = tf.stack([whole[row, p : p + steps] for row, p in enumerate(prompt.numpy())], axis=1)
        np.testing.assert_allclose(decode(q, k, v, window), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_step_matches_reference(dtype):
    *tensors, _ = (tf.cast(x, dtype) for x in step_inputs())
    for options in ({}, {"window": 2, "scale": 0.7}):

        def call(module, q, k, v, keys, values, options=options):
            return module.attention_step(q, k, v, (keys, values), tf.constant(3), **options)

        assert_matches(
            lambda *x, call=call: call(kernels, *x), lambda *x, call=call: call(reference, *x), tensors,
            dynamic=range(5),
        )  # fmt: skip


def test_step_does_not_read_later_entries():
    q, k, v, keys, values, position = step_inputs()
    later = np.arange(5)[None, None, :, None] > position.numpy()[:, None, None, None]
    out, _ = kernels.attention_step(q, k, v, (keys, values), position)
    changed, _ = kernels.attention_step(q, k, v, (keys + 9.0 * later, values - 9.0 * later), position)
    np.testing.assert_allclose(changed, out, atol=1e-6)


def test_cache_takes_a_chunk_at_each_rows_own_place():
    keys, values, k, v, _ = EXPORTS["write"][1]
    new_keys, new_values = kernels.write_cache((keys, values), k, v, tf.constant([1, 4]))
    expected = np.array(keys), np.array(values)
    for cache, chunk in zip(expected, (k, v)):
        cache[0, :, 1:4] = np.swapaxes(chunk[0], 0, 1)
        cache[1, :, 4:5] = np.swapaxes(chunk[1, :1], 0, 1)  # the rest would lie outside
    np.testing.assert_array_equal(new_keys, expected[0])
    np.testing.assert_array_equal(new_values, expected[1])


@pytest.mark.parametrize("change, message", [
    ({"window": 0}, "`window` must be positive"),
    ({"block": 0}, "`block` must be positive"),
    ({"query": draw(2, 5, 3, 4)}, "`key` must have a number of heads that divides"),
    ({"value": draw(2, 5, 4)}, "`value` must have 4 axes"),
])  # fmt: skip
def test_attention_names_what_does_not_fit(change, message):
    q, k, v = inputs()
    with pytest.raises(ValueError, match=message):
        kernels.attention(**({"query": q, "key": k, "value": v} | change))


def test_rotary_wants_pairs():
    with pytest.raises(ValueError, match="`x` must have an even last axis"):
        kernels.rotary(draw(1, 2, 1, 5), tf.range(2))
