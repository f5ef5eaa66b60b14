"""The mixture of discretized logistics: values and gradients, also at its edges, and samples that follow it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, derivatives, draw

from gentf.kernels import mixture, random, reference


def parameters(*shape: int, channels: int, coefficients: bool, dtype: tf.DType = tf.float32) -> list[tf.Tensor]:
    """logits (*shape), means and log-scales (*shape, channels), and coefficients if wanted."""
    values = [draw(*shape, dtype=dtype), 0.7 * draw(*shape, channels, seed=1, dtype=dtype)]
    values.append(draw(*shape, channels, seed=2, dtype=dtype) - 2.0)
    if coefficients:
        values.append(0.5 * draw(*shape, channels * (channels - 1) // 2, seed=3, dtype=dtype))
    return values


def levels_of(*shape: int, levels: int = 256, dtype: tf.DType = tf.int32) -> tf.Tensor:
    """Uniform levels, with both ends among them."""
    x = tf.random.stateless_uniform(shape, (0, 5), 0, levels, tf.int32).numpy()
    x.flat[:2] = 0, levels - 1
    return tf.constant(x, dtype)


def bound(function, levels: int):
    """`function` with the coefficients as its last positional argument."""
    return lambda x, *p: function(x, *p[:3], levels=levels, coefficients=p[3] if len(p) > 3 else None)


RGB = parameters(2, 3, 4, channels=3, coefficients=True)
GREY = parameters(2, 5, channels=1, coefficients=False)
SEEDS = random.spread(11, 2)
EXPORTS = {
    "log_prob": (bound(mixture.log_prob, 256), [levels_of(2, 3, 3), *RGB]),
    "log_prob_grey": (bound(mixture.log_prob, 16), [levels_of(2, 1, levels=16), *GREY]),
    "sample": (bound(mixture.sample, 256), [SEEDS, *RGB]),
    "sample_grey": (bound(mixture.sample, 16), [SEEDS, *GREY]),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("x", "values", "levels", "order"),
    [
        (levels_of(2, 3, 3), RGB, 256, 2),
        (levels_of(2, 1, levels=2, dtype=tf.uint8), GREY, 2, 1),
        (levels_of(3, 2, levels=8), parameters(3, 4, channels=2, coefficients=False, dtype=tf.bfloat16), 8, 1),
        (levels_of(3, 4, levels=8), parameters(3, 2, channels=4, coefficients=True, dtype=tf.bfloat16), 8, 1),
    ],
    ids=["rgb", "grey", "bfloat16", "bfloat16-coefficients"],
)
def test_log_prob_matches_reference(x, values, levels, order, jit):
    inputs = [x, *values]
    dynamic = range(len(inputs)) if order == 1 else ()
    kernel, slow = bound(mixture.log_prob, levels), bound(reference.log_prob, levels)
    assert_matches(kernel, slow, inputs, order=order, jit=jit, dynamic=dynamic, tolerance=1e-4 if order == 2 else None)
    assert kernel(*inputs).dtype == tf.float32


@pytest.mark.parametrize("jit", [False, True])
def test_value_and_gradient_far_away_and_at_small_and_large_scales(jit):
    """One component and one channel, relative to the reference's float64: the bin's neighbours give no help here."""
    x, mean, log_scale = (
        np.array(v).T
        for v in zip(*itertools.product((0, 1, 128, 254, 255), (-50.0, -1.0, 0.3, 9.0), (-7.0, -4.0, 0.0, 6.0)))
    )
    shape = (len(x), 1, 1)
    inputs = [tf.constant(x[:, None]), tf.zeros(shape[:2])]
    inputs += [tf.constant(v.reshape(shape), tf.float32) for v in (mean, log_scale)]
    ours = derivatives(bound(mixture.log_prob, 256), inputs, jit=jit)
    theirs = derivatives(bound(reference.log_prob, 256), inputs)
    for got, expected in zip([ours[0][0], *ours[1][1:]], [theirs[0][0], *theirs[1][1:]], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_extreme_parameters_give_finite_values_and_gradients(jit):
    extremes = itertools.product(
        (0, 7, 255), (-1e16, -1.0, 7 * 2 / 255 - 1, 1e16), (-1e9, -80.0, -30.0, 30.0, 80.0, 1e9)
    )
    x, mean, log_scale = (np.array(v) for v in zip(*extremes))
    both = [np.stack([v, np.roll(v, 5)], axis=-1)[..., None] for v in (mean, log_scale)]  # two components
    inputs = [tf.constant(x[:, None]), *(tf.constant(v, tf.float32) for v in (0 * both[0][..., 0], *both))]
    values, gradients = derivatives(bound(mixture.log_prob, 256), inputs, jit=jit)
    for tensor in (*values, *gradients):
        assert np.isfinite(tensor).all()
    assert (values[0] <= 0.0).all()
    assert not gradients[2][np.abs(both[1]) > mixture.LOG_SCALE_LIMIT].any()


def test_probabilities_of_all_levels_sum_to_one():
    """Over all vectors of two channels with a coefficient, for scales and means from within a bin to far outside."""
    levels = 6
    x = tf.constant(list(itertools.product(range(levels), repeat=2)))
    for log_scale, mean in itertools.product((-12.0, -7.0, -2.0, 0.0, 5.0), (-4.0, -1.0, 0.11, 0.2, 30.0)):
        values = [tf.zeros((len(x), 1)), tf.fill((len(x), 1, 2), mean), tf.fill((len(x), 1, 2), log_scale)]
        total = tf.reduce_sum(
            tf.exp(mixture.log_prob(x, *values, levels=levels, coefficients=0.4 * tf.ones((len(x), 1, 1))))
        )
        np.testing.assert_allclose(total, 1.0, rtol=2e-5, err_msg=f"log_scale={log_scale}, mean={mean}")
    x = tf.range(256)[:, None]
    values = [tf.tile(p[:1], [256] + [1] * (p.shape.rank - 1)) for p in GREY]
    np.testing.assert_allclose(tf.reduce_sum(tf.exp(mixture.log_prob(x, *values))), 1.0, rtol=2e-5)


@pytest.mark.parametrize(("channels", "coefficients", "levels"), [(3, True, 3), (1, False, 16), (2, False, 4)])
def test_samples_follow_the_probabilities(channels, coefficients, levels):
    num, cells = 20000, list(itertools.product(range(levels), repeat=channels))
    one = parameters(1, 3, channels=channels, coefficients=coefficients)
    one[2] += 1.5  # wide enough that every cell is met
    drawn = bound(mixture.sample, levels)(random.spread(1, num), *(tf.repeat(p, num, axis=0) for p in one))
    counts = np.bincount(np.ravel_multi_index(drawn.numpy().T, (levels,) * channels), minlength=len(cells))
    repeated = [tf.repeat(p, len(cells), axis=0) for p in one]
    expected = num * np.exp(bound(mixture.log_prob, levels)(tf.constant(cells), *repeated))
    assert expected.min() > 1.0
    statistic, freedom = np.sum((counts - expected) ** 2 / expected), len(cells) - 1
    assert statistic < freedom + 4.0 * np.sqrt(2.0 * freedom)


@pytest.mark.parametrize("jit", [False, True])
def test_a_row_of_samples_depends_on_its_own_seed_alone(jit):
    values = parameters(6, 3, 4, channels=3, coefficients=True)
    specs = [tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in (random.spread(2, 6), *values)]
    run = tf.function(bound(mixture.sample, 256), jit_compile=jit, input_signature=specs)
    whole = run(random.spread(2, 6), *values).numpy()
    part = run(random.spread(2, 2, start=3), *(v[3:5] for v in values)).numpy()
    assert whole.shape == (6, 3, 3) and whole.dtype == np.int32
    np.testing.assert_array_equal(whole[3:5], part)
    np.testing.assert_array_equal(whole, bound(mixture.sample, 256)(random.spread(2, 6), *values))


def test_streams_of_samples_differ():
    first, again, other = (mixture.sample(SEEDS, *RGB[:3], counter=c).numpy() for c in (1, tf.constant(1), 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_samples_of_extreme_parameters_are_levels():
    mean = tf.constant([-1e16, -2.0, 0.0, 1.0, 1e16])[:, None, None]
    for log_scale in (-1e9, 30.0, 1e9):
        drawn = mixture.sample(random.spread(0, 5), tf.zeros((5, 1)), mean, tf.fill((5, 1, 1), log_scale)).numpy()
        assert ((drawn >= 0) & (drawn <= 255)).all()
        if log_scale < 0:
            np.testing.assert_array_equal(drawn[[0, 1, 3, 4], 0], [0, 0, 255, 255])
            assert drawn[2, 0] in (127, 128)


def test_errors_name_the_argument():
    x = levels_of(2, 3, 3)
    with pytest.raises(ValueError, match="`levels` must be at least 2. Received: levels=1"):
        mixture.log_prob(x, *RGB[:3], levels=1)
    with pytest.raises(ValueError, match="`x` must be integer .* Received: x of dtype float32"):
        mixture.log_prob(tf.cast(x, tf.float32), *RGB[:3])
    with pytest.raises(ValueError, match="`x` must be integer levels of 3 channels"):
        mixture.log_prob(x[..., :1], *RGB[:3])
    with pytest.raises(ValueError, match=r"`log_scales` must be .*\(\.\.\., 4, 3\).* Received: log_scales of shape"):
        mixture.log_prob(x, RGB[0], RGB[1], RGB[2][..., :2])
    with pytest.raises(ValueError, match="`coefficients` must be .* Received: coefficients of shape"):
        mixture.log_prob(x, *RGB[:3], coefficients=RGB[3][..., :2])
    with pytest.raises(ValueError, match="`logits` must be static but for the batch"):
        spec = [tf.TensorSpec((2, None, *p.shape[2:])) for p in RGB[:3]]
        tf.function(lambda *p: mixture.sample(SEEDS, *p), input_signature=spec).get_concrete_function()
