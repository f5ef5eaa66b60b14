"""Laws of the losses: hand-derived values and gradients, and what each loss is for."""

import math

import numpy as np
import pytest
import tensorflow as tf

from gentf import losses

REAL, FAKE = np.array([0.5, -2.0, 3.0]), np.array([-1.0, 0.25, 2.0])


def softplus(x):
    return np.log1p(np.exp(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


CROSS_ENTROPY = np.mean(softplus(-REAL)) + np.mean(softplus(FAKE))
#: name -> discriminator loss, generator loss, and their derivatives by real and by fake logits
EXPECTED = {
    "minimax": (CROSS_ENTROPY, -np.mean(softplus(FAKE)), -sigmoid(-REAL) / 3, sigmoid(FAKE) / 3, -sigmoid(FAKE) / 3),
    "non_saturating": (
        CROSS_ENTROPY,
        np.mean(softplus(-FAKE)),
        -sigmoid(-REAL) / 3,
        sigmoid(FAKE) / 3,
        -sigmoid(-FAKE) / 3,
    ),
    "least_squares": (
        (np.mean((REAL - 1) ** 2) + np.mean(FAKE**2)) / 2,
        np.mean((FAKE - 1) ** 2) / 2,
        (REAL - 1) / 3,
        FAKE / 3,
        (FAKE - 1) / 3,
    ),
    "hinge": (
        np.mean([0.5, 3.0, 0.0]) + np.mean([0.0, 1.25, 3.0]),
        -np.mean(FAKE),
        np.array([-1.0, -1.0, 0.0]) / 3,
        np.array([0.0, 1.0, 1.0]) / 3,
        -np.ones(3) / 3,
    ),
    "relativistic": (
        np.mean(softplus(FAKE - REAL)),
        np.mean(softplus(REAL - FAKE)),
        -sigmoid(FAKE - REAL) / 3,
        sigmoid(FAKE - REAL) / 3,
        -sigmoid(REAL - FAKE) / 3,
    ),
    "wasserstein": (np.mean(FAKE) - np.mean(REAL), -np.mean(FAKE), -np.ones(3) / 3, np.ones(3) / 3, -np.ones(3) / 3),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", sorted(losses.ADVERSARIAL))
def test_values_and_gradients_are_the_derived_ones(name, jit):
    @tf.function(jit_compile=jit)
    def all_of(real, fake):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([real, fake])
            discriminator, generator = losses.ADVERSARIAL[name](real, fake)
        return discriminator, generator, *tape.gradient(discriminator, [real, fake]), tape.gradient(generator, fake)

    got = all_of(tf.constant(REAL, tf.float32), tf.constant(FAKE, tf.float32))
    for value, expected in zip(got, EXPECTED[name], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.ADVERSARIAL))
def test_each_player_gains_by_moving_its_way(name):
    """A discriminator that tells better loses less; a generator that fools it more loses less."""
    at = [tf.constant(values, tf.float32) for values in (REAL, FAKE)]
    better = losses.ADVERSARIAL[name](tf.zeros(3) + 0.5, tf.zeros(3) - 0.5)[0]
    worse = losses.ADVERSARIAL[name](tf.zeros(3) - 0.5, tf.zeros(3) + 0.5)[0]
    assert better < worse
    fooled = losses.ADVERSARIAL[name](at[0], tf.zeros(3) + 0.5)[1]
    unimpressed = losses.ADVERSARIAL[name](at[0], tf.zeros(3) - 0.5)[1]
    assert fooled < unimpressed


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_cross_entropy_at_chance_is_two_log_two(name):
    np.testing.assert_allclose(losses.ADVERSARIAL[name](tf.zeros(2), tf.zeros(2))[0], 2 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.ADVERSARIAL))
def test_large_logits_stay_finite(name):
    for sign in (1.0, -1.0):
        values = losses.ADVERSARIAL[name](tf.constant([sign * 1e4]), tf.constant([-sign * 1e4]))
        assert np.all(np.isfinite(values))


def test_non_saturating_keeps_a_gradient_where_minimax_has_none():
    logits = tf.constant([-20.0])
    gradients = []
    for name in ("minimax", "non_saturating"):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = losses.ADVERSARIAL[name](logits, logits)[1]
        gradients.append(abs(float(tape.gradient(loss, logits)[0])))
    assert gradients[0] < 1e-8 and gradients[1] > 0.99


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic_is_its_slope_minus_one_squared(slope):
    direction = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    direction *= slope / np.linalg.norm(direction)
    images = [tf.random.stateless_normal((5, 4, 3, 2), seed=(0, k)) for k in (0, 1)]
    penalty = losses.gradient_penalty(
        lambda x: tf.reduce_sum(x * direction, axis=(1, 2, 3)), *images, tf.linspace(0.0, 1.0, 5)
    )
    np.testing.assert_allclose(penalty, (slope - 1) ** 2, rtol=1e-4, atol=1e-5)


def test_gradient_penalty_is_taken_between_the_images_and_differentiable():
    """For the critic w * |x|^2 / 2 the gradient at x is w * x, so the penalty and its derivative by w are known."""
    weight = tf.Variable(0.7)
    real, fake = tf.ones((2, 1, 1, 1)) * 1.0, tf.ones((2, 1, 1, 1)) * 3.0
    mix = tf.constant([0.25, 1.0])  # points 1.5 and 3.0
    with tf.GradientTape() as tape:
        penalty = losses.gradient_penalty(lambda x: weight * tf.reduce_sum(x * x, axis=(1, 2, 3)) / 2, real, fake, mix)
    points = np.array([1.5, 3.0])
    np.testing.assert_allclose(penalty, np.mean((0.7 * points - 1) ** 2), rtol=1e-5)
    expected = np.mean(2 * (0.7 * points - 1) * points)
    np.testing.assert_allclose(tape.gradient(penalty, weight), expected, rtol=1e-5)


def test_a_penalty_may_ask_for_no_slope():
    points = np.array([1.5, 3.0])  # between 1 and 3, of a critic whose slope at x is 0.7 x
    real, fake = tf.ones((2, 1, 1, 1)) * 1.0, tf.ones((2, 1, 1, 1)) * 3.0
    penalty = losses.gradient_penalty(
        lambda x: 0.7 * tf.reduce_sum(x * x, axis=(1, 2, 3)) / 2, real, fake, tf.constant([0.25, 1.0]), slope=0.0
    )
    np.testing.assert_allclose(penalty, np.mean((0.7 * points) ** 2), rtol=1e-5)


def test_relativistic_players_look_at_differences_alone():
    shifted = losses.relativistic(tf.constant(REAL + 7.0), tf.constant(FAKE + 7.0))
    np.testing.assert_allclose(shifted, losses.relativistic(tf.constant(REAL), tf.constant(FAKE)), rtol=1e-12)


def test_r1_of_a_linear_discriminator_is_half_its_squared_slope():
    slope = tf.reshape(tf.range(12.0), (2, 3, 2))
    penalty = losses.slope_penalty(lambda x: tf.reduce_sum(slope * x, axis=(1, 2, 3)), tf.ones((5, 2, 3, 2)))
    np.testing.assert_allclose(penalty, 0.5 * np.sum(np.arange(12.0) ** 2), rtol=1e-6)


def test_r1_looks_at_the_images_given_and_is_differentiable():
    weight = tf.Variable(3.0)
    real = tf.constant([1.0, 2.0], shape=(2, 1, 1, 1))
    with tf.GradientTape() as tape:
        penalty = losses.slope_penalty(lambda x: weight * tf.reduce_sum(x * x, axis=(1, 2, 3)) / 2, real)
    np.testing.assert_allclose(penalty, 0.5 * 9.0 * 2.5, rtol=1e-6)  # slopes are weight x
    np.testing.assert_allclose(tape.gradient(penalty, weight), 3.0 * 2.5, rtol=1e-6)
