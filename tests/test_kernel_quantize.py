"""Nearest codes, their statistics, gradients past a quantizer, finite scalar quantization, a k-means start."""

import functools
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import quantize, reference

SEED = tf.constant([3, 4])
CODES = draw(7, 4, seed=9)
EXPORTS = {
    "nearest": (quantize.nearest, [draw(5, 4), CODES]),
    "lookup": (quantize.lookup, [CODES, tf.constant([[0, 6], [3, 3]])]),
    "straight_through": (quantize.straight_through, [draw(5, 4), draw(5, 4, seed=1)]),
    "rotation_trick": (quantize.rotation_trick, [draw(5, 4), draw(5, 4, seed=1)]),
    "code_statistics": (lambda z, i: quantize.code_statistics(z, i, 3), [draw(4, 2), tf.constant([2, 0, 2, 2])]),
    "ema_update": (
        lambda *x: quantize.ema_update(*x, decay=0.9),
        [tf.ones(7), CODES, tf.constant([1.0, 0, 2, 0, 5, 0, 0]), draw(7, 4)],
    ),
    "perplexity": (quantize.perplexity, [tf.constant([1.0, 0.0, 3.0])]),
    "usage": (quantize.usage, [tf.constant([1.0, 0.0, 3.0])]),
    "fsq": (lambda z: quantize.fsq(z, (8, 5, 3)), [draw(6, 3)]),
    "fsq_codes": (lambda i: quantize.fsq_codes(i, (8, 5, 3)), [tf.range(120)]),
    "kmeans": (lambda z, seed: quantize.kmeans(z, 3, seed, 2), [draw(12, 2), SEED]),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of at most 64 distances and 16 codes, so that small inputs take every path."""
    monkeypatch.setattr(quantize, "BLOCK", 64)
    monkeypatch.setattr(quantize, "CODES", 16)


@pytest.mark.parametrize("jit", [False, True])
def test_nearest_matches_reference(small_blocks, jit):
    """One block; blocks of rows; blocks of codes; both, with a remainder of each; a batch that is not known."""
    shapes = [((3, 4), 5), ((2, 4), 37), ((23, 4), 5), ((5, 9, 3), 37)]
    inputs = [x for shape, size in shapes for x in (draw(*shape), draw(size, shape[-1], seed=2))]
    inputs += [draw(40, 6, dtype=tf.bfloat16), draw(33, 6, seed=2, dtype=tf.bfloat16)]
    kernel, slow = (
        lambda *x, f=function: [f(z, codes) for z, codes in zip(x[::2], x[1::2])]
        for function in (quantize.nearest, reference.nearest)
    )
    assert_matches(kernel, slow, inputs, order=0, jit=jit, dynamic=(4, 6), tolerance=1e-5)


def test_nearest_has_no_gradient():
    inputs = [draw(9, 4), CODES]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        chosen = tf.cast(quantize.nearest(*inputs), tf.float32)
    assert tape.gradient(chosen, inputs) == [None, None]


def test_nearest_of_equal_codes_is_the_first(small_blocks):
    codes = tf.tile(draw(10, 4), [4, 1])
    np.testing.assert_array_equal(quantize.nearest(codes, codes), np.tile(np.arange(10), 4))


def test_nearest_is_exact_far_from_the_origin():
    """The products alone would have an error of 1e6 * 1e-7 there, above the distances, whatever one code does."""
    offset = 1000.0 * tf.ones(8)
    z, codes = offset + 0.01 * draw(200, 8), offset + 0.01 * draw(50, 8, seed=1)
    codes = tf.tensor_scatter_nd_update(codes, [[4]], [tf.fill(8, 1e6)])
    exact = np.square(z.numpy()[:, None].astype(np.float64) - codes.numpy()).sum(-1)
    np.testing.assert_array_equal(quantize.nearest(z, codes), exact.argmin(-1))


def test_nearest_never_holds_all_distances(monkeypatch):
    sizes, matmul = [], tf.matmul

    def recorded(*arguments, **options):
        product = matmul(*arguments, **options)
        sizes.append(product.shape.num_elements())
        return product

    monkeypatch.setattr(tf, "matmul", recorded)
    spec = [tf.TensorSpec((9000, 2)), tf.TensorSpec((6000, 2))]
    tf.function(quantize.nearest, input_signature=spec).get_concrete_function()
    assert sizes and max(sizes) <= quantize.BLOCK


def test_nearest_of_vectors_and_codes_that_are_not_finite(small_blocks):
    codes = CODES.numpy()
    codes[0], codes[2, 1], codes[5] = np.nan, -np.inf, 1e30  # the square of the last is not finite
    z = np.concatenate([CODES, [[np.nan, 0, 0, 0], [0, np.inf, 0, 0]]]).astype(np.float32)
    for jit in (False, True):
        found = tf.function(quantize.nearest, jit_compile=jit)(z, codes).numpy()
        np.testing.assert_array_equal(found[[1, 3, 4, 6]], [1, 3, 4, 6])
        assert not np.isin(found[:7], [0, 2, 5]).any()
        np.testing.assert_array_equal(found[7:], 0)
    np.testing.assert_array_equal(quantize.nearest(z, np.full((3, 4), np.nan, np.float32)), 0)


def test_nearest_of_an_empty_batch():
    run = tf.function(quantize.nearest, input_signature=[tf.TensorSpec((None, 3, 4)), tf.TensorSpec((7, 4))])
    assert run(tf.zeros((0, 3, 4)), CODES).shape == (0, 3)


CASES = {
    "lookup": ([CODES, tf.constant([[0, 6, 3], [3, 3, 3]])], 2, (1,)),
    "straight_through": ([draw(5, 2, 4), draw(5, 2, 4, seed=1)], 2, (0, 1)),
    "rotation_trick": ([draw(5, 2, 4), draw(5, 2, 4, seed=1)], 2, (0, 1)),
    "fsq": ([3.0 * draw(50, 4)], 2, (0,)),
    "code_statistics": ([draw(3, 5, 4), tf.constant([[0, 2, 2, 5, 0]] * 3)], 1, (0, 1)),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_match_reference(name, jit):
    inputs, order, dynamic = CASES[name]
    options = {"fsq": {"levels": (8, 5, 2, 7)}, "code_statistics": {"size": 6}}.get(name, {})
    kernel, slow = (functools.partial(getattr(module, name), **options) for module in (quantize, reference))
    assert_matches(kernel, slow, inputs, order=order, jit=jit, dynamic=dynamic)
    low = [tf.cast(x, tf.bfloat16) if x.dtype.is_floating else x for x in inputs]
    assert_matches(kernel, slow, low, jit=jit)


def test_gradient_of_a_looked_up_variable_is_dense():
    variable, indices = tf.Variable(CODES), tf.constant([1, 1, 4])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantize.lookup(variable, indices))
    gradient = tape.gradient(loss, variable)
    assert isinstance(gradient, tf.Tensor)
    np.testing.assert_array_equal(gradient[:, 0], [0, 2, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("function", [quantize.straight_through, quantize.rotation_trick])
def test_quantized_value_is_kept_to_the_bit(function):
    z, quantized = 1e4 * draw(100, 3), draw(100, 3, seed=1)
    assert np.any(z + (quantized - z) != quantized)  # what adding the difference would give
    np.testing.assert_array_equal(function(z, quantized), quantized)


def test_rotation_trick_at_zero_and_opposite_vectors():
    z = tf.constant([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
    quantized = tf.constant([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.0, -4.0, -4.0], [0.0, 6.0, 0.0]])
    dy = tf.constant([[1.0, 2.0, 3.0]] * 3 + [[0.0, 1.0, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch(z)
        out = quantize.rotation_trick(z, quantized)
    gradient = tape.gradient(out, z, output_gradients=dy).numpy()
    np.testing.assert_array_equal(gradient[:2], dy[:2])
    np.testing.assert_allclose(np.linalg.norm(gradient[2]), 2.0 * np.linalg.norm(dy[2]), rtol=1e-5)
    np.testing.assert_allclose(gradient[3], [2.0, 0.0, 10.0], atol=1e-5)  # a quarter turn back, twice as long


def test_code_statistics_leave_out_negative_indices():
    for jit in (False, True):
        run = tf.function(lambda z, i: quantize.code_statistics(z, i, 3), jit_compile=jit)
        counts, sums = run(tf.constant([[1.0], [2.0], [4.0], [8.0]]), tf.constant([2, -1, 0, 2]))
        np.testing.assert_array_equal(counts, [1, 0, 2])
        np.testing.assert_array_equal(sums[:, 0], [4, 0, 9])


def test_ema_update_averages_and_smooths():
    counts, sums = np.array([4.0, 2.0, 1.0]), np.array([[8.0], [1.0], [3.0]])
    new_counts, new_sums = np.array([10.0, 0.0, 2.0]), np.array([[5.0], [0.0], [8.0]])
    arguments = [tf.constant(x, tf.float32) for x in (counts, sums, new_counts, new_sums)]
    got = quantize.ema_update(*arguments, decay=0.75, epsilon=0.5)
    n, s = 0.75 * counts + 0.25 * new_counts, 0.75 * sums + 0.25 * new_sums
    smooth = (n + 0.5) / (n.sum() + 1.5) * n.sum()
    assert math.isclose(smooth.sum(), n.sum())
    for a, b in zip(got, (n, s, s / smooth[:, None])):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_ema_update_of_codes_that_are_never_used_stays_finite():
    state = (tf.ones(3), tf.ones((3, 2)))
    for _ in range(300):
        *state, codes = quantize.ema_update(
            *state, tf.constant([5.0, 0, 0]), tf.fill((3, 2), 5.0) * [[1], [0], [0]], 0.5
        )
    np.testing.assert_allclose(codes[0], 1.0, rtol=1e-4)
    assert np.isfinite(codes).all()
    codes = quantize.ema_update(tf.zeros(3), tf.zeros((3, 2)), tf.zeros(3), tf.zeros((3, 2)), 0.5)[2]
    np.testing.assert_array_equal(codes, 0)


def test_perplexity_and_usage():
    counts = tf.constant([[5.0, 5.0, 5.0, 5.0], [0.0, 7.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    np.testing.assert_allclose(quantize.perplexity(counts), [4, 1, math.exp(entropy), 1], rtol=1e-6)
    np.testing.assert_allclose(quantize.usage(counts), [1, 0.25, 0.5, 0])


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_every_fsq_code_is_reached_and_inverted(dtype):
    levels = (2, 3, 4, 5, 8)
    ends = tf.constant(list(itertools.product(np.linspace(-4.0, 4.0, 81), repeat=2)), tf.float32)
    reached = [set(quantize.fsq(ends, (a, b))[1].numpy()) for a, b in zip(levels, levels[1:])]
    assert [len(x) for x in reached] == [a * b for a, b in zip(levels, levels[1:])]
    indices = tf.range(math.prod(levels))
    codes = quantize.fsq_codes(indices, levels)
    assert len(np.unique(codes, axis=0)) == len(codes) and np.abs(codes).max() == 1.0
    np.testing.assert_array_equal(quantize.fsq_indices(tf.cast(codes, dtype), levels), indices)
    np.testing.assert_array_equal(
        codes[:4], [[-1, -1, -1, -1, -1], [0, -1, -1, -1, -1], [-1, 0, -1, -1, -1], [0, 0, -1, -1, -1]]
    )
    quantized, indices = quantize.fsq(tf.cast(3.0 * draw(500, 5), dtype), levels)
    assert quantized.dtype == dtype
    np.testing.assert_allclose(tf.cast(quantized, tf.float32), quantize.fsq_codes(indices, levels), atol=2e-3)


def test_fsq_index_of_nan_and_infinity_is_in_range():
    z = tf.constant([[np.nan, np.nan], [np.inf, -np.inf], [-np.inf, np.inf]])
    for jit in (False, True):
        indices = tf.function(lambda z: quantize.fsq(z, (5, 8))[1], jit_compile=jit)(z).numpy()
        assert ((indices >= 0) & (indices < 40)).all()
        np.testing.assert_array_equal(indices[1:], [4, 35])


def clusters(size: int) -> tf.Tensor:
    """`size` well separated clusters of 20 rows, in turn."""
    centres = tf.constant([[100.0 * math.cos(k), 100.0 * math.sin(k)] for k in range(size)])
    return tf.tile(centres, [20, 1]) + draw(20 * size, 2)


@pytest.mark.parametrize("jit", [False, True])
def test_kmeans_finds_separated_clusters(jit):
    z = clusters(6)
    spec = [tf.TensorSpec((None, 2)), tf.TensorSpec((2,), tf.int32)]
    codes = tf.function(lambda z, s: quantize.kmeans(z, 6, s, 5), jit_compile=jit, input_signature=spec)(z, SEED)
    means = z.numpy().reshape(20, 6, 2).mean(0)
    order = quantize.nearest(means, codes).numpy()
    assert sorted(order) == list(range(6))
    np.testing.assert_allclose(codes.numpy()[order], means, atol=1e-3)


def test_kmeans_places_empty_codes_anew(monkeypatch):
    """From two equal codes, the second of which loses every tie."""
    monkeypatch.setattr(quantize, "_spread_rows", lambda z, size, seed: tf.constant([0, 0, 1, 2]))
    z = clusters(4)
    codes = quantize.kmeans(z, 4, SEED, 3)
    assert sorted(quantize.nearest(z[:4], codes).numpy()) == [0, 1, 2, 3]


def test_kmeans_starts_in_proportion_to_squared_distance():
    z = tf.constant([[0.0], [1.0], [3.0]])
    run = tf.function(lambda seed: tf.reduce_sum(quantize.kmeans(z, 2, seed, 0)))
    pairs = np.array([run(tf.constant([7, i])) for i in range(400)])
    # pairs by their sum: the first uniform, the second by squared distance
    expected = {1.0: (1 / 10 + 1 / 5) / 3, 3.0: (9 / 10 + 9 / 13) / 3, 4.0: (4 / 5 + 4 / 13) / 3}
    for total, share in expected.items():
        assert abs(np.mean(pairs == total) - share) < 4 * math.sqrt(share * (1 - share) / 400)


def test_kmeans_of_fewer_distinct_rows_than_codes_repeats_them():
    codes = quantize.kmeans(tf.constant([[1.0], [1.0], [2.0], [2.0]]), 4, SEED, 3).numpy()
    assert set(codes[:, 0]) == {1.0, 2.0}


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`codebook` must be .* Received: codebook of shape"):
        quantize.nearest(draw(3, 4), draw(7, 5))
    with pytest.raises(ValueError, match="`quantized` must be .* Received"):
        quantize.straight_through(draw(3, 4), draw(3, 5))
    with pytest.raises(ValueError, match=r"`levels` must be .* Received: levels=\(8, 1\)"):
        quantize.fsq(draw(3, 2), (8, 1))
    with pytest.raises(ValueError, match="`levels` must be .* Received"):
        quantize.fsq(draw(3, 2), (8, 8, 8))
    with pytest.raises(ValueError, match="`levels` must be .* Received"):
        quantize.fsq_codes(tf.range(3), (2**16, 2**15))
    with pytest.raises(ValueError, match="`z` must be .* Received"):
        quantize.kmeans(draw(3, 4, 5), 2, SEED)
    with pytest.raises(ValueError, match="`size` must be at most the number of rows, 3. Received: size=4"):
        quantize.kmeans(draw(3, 4), 4, SEED)
    dynamic = tf.function(lambda z: quantize.kmeans(z, 4, SEED), input_signature=[tf.TensorSpec((None, 4))])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`size` must be at most"):
        dynamic(draw(3, 4))
