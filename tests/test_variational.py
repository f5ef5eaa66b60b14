"""Objectives and estimates of latent variable models, held to models whose likelihood is known in closed form."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf import losses
from gentf.kernels import random
from gentf.models import VAE
from gentf.models.objectives import ELBO, IWAE, BetaTC, Gate, InfoVAE, Look, Terms
from gentf.nn.likelihoods import Gaussian

SHAPE = (2, 3, 1)
PIXELS, LATENTS, SCALE = 6, 3, 0.5


def linear_gaussian(posterior: str = "diagonal", **options) -> tuple[VAE, np.ndarray, np.ndarray]:
    """x = W z + b + noise as a VAE whose encoder passes the image through; the model, W (D, pixels) and b."""
    encoder = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()])
    decoder = keras.Sequential([keras.Input((LATENTS,)), keras.layers.Dense(PIXELS), keras.layers.Reshape(SHAPE)])
    model = VAE(
        SHAPE, latent_dim=LATENTS, encoder=encoder, decoder=decoder, likelihood=Gaussian(1, SCALE),
        posterior=posterior, **options,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(LATENTS, PIXELS)).astype(np.float32) * 0.6
    bias = generator.normal(size=PIXELS).astype(np.float32) * 0.1
    decoder.layers[0].set_weights([weights, bias])
    return model, weights, bias


def exact_posterior(model: VAE, weights: np.ndarray, bias: np.ndarray, inflate: float = 1.0) -> np.ndarray:
    """Give the posterior the true means, and the true variances times `inflate`, as far as its form allows."""
    precision = np.eye(LATENTS) + weights @ weights.T / SCALE**2
    covariance = np.linalg.inv(precision)
    to_mean = weights.T @ covariance / SCALE**2  # x -> mean
    columns = model.posterior.width() - LATENTS
    kernel = np.concatenate([to_mean, np.zeros((PIXELS, columns))], axis=1)
    if model.posterior.name.startswith("posterior") and columns == LATENTS:  # diagonal
        rest = np.log(inflate * np.diag(covariance))
    else:
        factor = np.linalg.cholesky(covariance * inflate)
        rest = np.concatenate([np.log(np.diag(factor)), factor[np.tril_indices(LATENTS, -1)]])
    model.posterior.project.set_weights([kernel, np.concatenate([-bias @ to_mean, rest])])
    return covariance


def draws(weights: np.ndarray, bias: np.ndarray, count: int) -> np.ndarray:
    generator = np.random.default_rng(1)
    z = generator.normal(size=(count, LATENTS))
    x = z @ weights + bias + SCALE * generator.normal(size=(count, PIXELS))
    return x.reshape(count, *SHAPE).astype(np.float32)


def closed_form(images: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    covariance = weights.T @ weights + SCALE**2 * np.eye(PIXELS)
    centred = images.reshape(len(images), -1) - bias
    squares = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    return -0.5 * (squares + np.linalg.slogdet(covariance)[1] + PIXELS * math.log(2 * math.pi))


@pytest.mark.parametrize("jit", [False, True])
def test_importance_sampling_finds_the_closed_form(jit):
    model, weights, bias = linear_gaussian()
    exact_posterior(model, weights, bias, inflate=1.5)
    images = draws(weights, bias, 250)
    truth = closed_form(images, weights, bias)
    bound = model.bound(images, 3000, seed=3, jit=jit)
    z = (bound.log_prob - truth) / bound.stderr
    assert np.mean(np.abs(z) < 3) > 0.98 and np.abs(z).max() < 6  # 3 standard errors of 250 normal numbers
    assert 0.8 < z.std() < 1.3 and abs(z.mean()) < 0.3  # errors as large as is said
    mean_error = np.sqrt(np.sum(bound.stderr**2)) / len(images)
    assert abs(np.mean(bound.log_prob - truth)) < 3 * mean_error + 1e-4
    assert np.mean(bound.elbo) < np.mean(truth) - 0.01


def test_the_true_posterior_has_no_error():
    model, weights, bias = linear_gaussian("full")
    exact_posterior(model, weights, bias)
    images = draws(weights, bias, 20)
    bound = model.bound(images, 7, jit=False)
    np.testing.assert_allclose(bound.log_prob, closed_form(images, weights, bias), atol=1e-4)
    np.testing.assert_allclose(bound.elbo, bound.log_prob, atol=1e-4)
    assert bound.stderr.max() < 1e-3


def test_the_bound_tightens_with_samples_and_its_parts_add_up():
    model, weights, bias = linear_gaussian()
    exact_posterior(model, weights, bias, inflate=3.0)
    images = draws(weights, bias, 400)
    truth = closed_form(images, weights, bias).mean()
    values = [model.bound(images, samples, jit=False).log_prob.mean() for samples in (1, 5, 50, 500)]
    assert values == sorted(values) and values[-1] < truth + 0.02
    assert truth - values[-1] < 0.1 * (truth - values[0])
    bound = model.bound(images, 37, jit=False)  # a last block that is not full
    batch = model.prepare(images)
    rate = tf.reduce_sum(model.posterior.kl(model.infer(batch)[0]), axis=1).numpy()
    np.testing.assert_allclose(-(bound.elbo + bound.distortion).mean(), rate.mean(), rtol=0.05)


def test_an_estimate_is_one_loop_of_one_size_whatever_the_samples():
    model, weights, bias = linear_gaussian()
    images = draws(weights, bias, 10)
    sizes = []
    for samples in (2000, 20_000):
        model.bound(images, samples, jit=False)
        function = model._estimators[(samples, False)]
        assert function.experimental_get_tracing_count() == 1
        image = {"image": tf.TensorSpec((100, *SHAPE))}
        graph = function.get_concrete_function(image, tf.TensorSpec((100, 2), tf.int32)).graph.as_graph_def()
        sizes.append(len(graph.node) + sum(len(part.node_def) for part in graph.library.function))
    assert sizes[0] == sizes[1]


def test_image_estimates_depend_on_their_own_seed_alone():
    model, weights, bias = linear_gaussian()
    images = draws(weights, bias, 130)
    whole, part = model.bound(images, 50, jit=False), model.bound(images[:7], 50, jit=False)
    np.testing.assert_allclose(whole.log_prob[:7], part.log_prob, rtol=1e-5)
    assert np.any(model.bound(images[:7], 50, seed=1).log_prob != part.log_prob)


def gradients(model: VAE, images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the importance-weighted bound, for encoder and decoder, on one draw."""
    batch = model.prepare(images)
    gate = Gate() if model.objective.doubly else None
    with tf.GradientTape() as tape:
        terms = model.draw(model.infer(batch), batch, model.objective.samples, random.spread(seed, len(images)), gate)
        if gate is not None:
            gate.weights = tf.stop_gradient(tf.nn.softmax(terms.log_weights, axis=1))
        loss = model.objective.loss(terms, Look(None, lambda: terms.z, lambda: terms.z))
    found = tape.gradient(loss, [w.value for w in (model.posterior.project.kernel, model.decoder_network.weights[0])])
    return found[0].numpy(), found[1].numpy()


def test_doubly_reparameterized_gradients_have_the_same_mean_and_less_noise():
    plain, weights, bias = linear_gaussian(objective=IWAE(8, doubly=False))
    doubly, *_ = linear_gaussian(objective=IWAE(8, doubly=True))
    for model in (plain, doubly):
        exact_posterior(model, weights, bias, inflate=2.0)
        kernel, offset = model.posterior.project.get_weights()
        model.posterior.project.set_weights([kernel, offset + np.float32([0.5, -0.4, 0.3, 0.2, 0.2, 0.2])])
    images = np.repeat(draws(weights, bias, 2), 4000, axis=0)  # many draws at once
    a, b = ([gradients(model, images, seed) for seed in range(4)] for model in (plain, doubly))
    for part in (0, 1):
        one, other = (np.stack([draw[part] for draw in found]) for found in (a, b))
        error = np.sqrt(one.var(axis=0, ddof=1) / 4 + other.var(axis=0, ddof=1) / 4).mean()
        np.testing.assert_allclose(one.mean(axis=0), other.mean(axis=0), atol=8 * error)
        assert np.abs(one.mean(axis=0)).max() > 20 * error
    few = np.repeat(images[:1], 1, axis=0)
    noise = [np.stack([gradients(m, few, seed)[0] for seed in range(200)]).std(axis=0).mean() for m in (plain, doubly)]
    assert noise[1] < 0.6 * noise[0]


# Objectives on terms that are given


def terms(kl=None, likelihood=(-3.0, -1.0)) -> Terms:
    one = tf.constant([likelihood])
    return Terms(one, one * 0.0, one * 0.0 + 2.0, tf.zeros((1, 2, 3)), kl)


def look(step=None) -> Look:
    return Look(None if step is None else tf.constant(step), lambda: tf.zeros((1, 1, 3)), lambda: tf.zeros((1, 3)))


def test_elbo_prices_the_rate():
    kl = tf.constant([[0.5, 2.0, 0.1]])
    assert float(ELBO().loss(terms(), look())) == pytest.approx(2.0 + 2.0)
    assert float(ELBO().loss(terms(kl), look())) == pytest.approx(2.0 + 2.6)
    assert float(ELBO(beta=4.0).loss(terms(kl), look())) == pytest.approx(2.0 + 4 * 2.6)
    assert float(ELBO(anneal_steps=10).loss(terms(kl), look(3))) == pytest.approx(2.0 + 0.3 * 2.6)
    assert float(ELBO(anneal_steps=10).loss(terms(kl), look())) == pytest.approx(2.0 + 2.6)
    assert float(ELBO(beta=10.0, capacity=4.0).loss(terms(kl), look())) == pytest.approx(2.0 + 10 * 1.4)
    rising = ELBO(beta=10.0, capacity=4.0, capacity_steps=8).loss(terms(kl), look(2))
    assert float(rising) == pytest.approx(2.0 + 10 * 1.6)
    assert float(ELBO(free_bits=0.4).loss(terms(kl), look())) == pytest.approx(2.0 + 0.5 + 2.0 + 0.4)
    with pytest.raises(ValueError, match="`free_bits` must be 0 where the rate has no closed form"):
        ELBO(free_bits=0.4).loss(terms(), look())
    with pytest.raises(ValueError, match="`free_bits` must be 0 with a capacity"):
        ELBO(free_bits=0.4, capacity=1.0)
    with pytest.raises(ValueError, match="`beta` must be at least 0"):
        ELBO(beta=-1.0)


def test_iwae_is_the_log_of_the_mean_weight():
    expected = -np.log(np.mean(np.exp([-5.0, -3.0])))
    assert float(IWAE(2).loss(terms(), look())) == pytest.approx(expected)


def test_objectives_are_saved_with_what_they_are():
    for objective in (ELBO(beta=2.0), IWAE(3), BetaTC(beta=5.0, free_bits=1.0), InfoVAE(alpha=0.5)):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
        assert again == objective


def test_total_correlation_of_normal_codes():
    """Of codes drawn from one correlated normal distribution, with posteriors that are nearly points."""
    generator = np.random.default_rng(0)
    rho = 0.9
    z = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 1500).astype(np.float32)
    variance = 0.03

    def estimate(means):
        drawn = means + np.sqrt(variance) * generator.normal(size=means.shape)
        pairs = -0.5 * ((drawn[:, None] - means[None]) ** 2 / variance + np.log(2 * np.pi * variance))
        return float(tf.reduce_mean(losses.total_correlation(tf.constant(pairs, tf.float32))))

    correlation = rho / (1 + variance)
    assert estimate(z) == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.1)
    shuffled = np.stack([z[:, 0], generator.permutation(z[:, 1])], axis=1)
    assert abs(estimate(shuffled)) < 0.12


def test_mean_discrepancy_tells_sets_apart():
    generator = np.random.default_rng(0)
    x, y, far = (generator.normal(shift, 1, (400, 3)).astype(np.float32) for shift in (0, 0, 2))
    assert abs(float(losses.maximum_mean_discrepancy(x, y))) < 5e-3
    assert float(losses.maximum_mean_discrepancy(x, far)) > 0.2
    scale, cross = 6.0, ((x[:5, None] - y[None, :5]) ** 2).sum(-1)
    kernel = lambda d: scale / (scale + d)  # noqa: E731
    own = [kernel(((a[:, None] - a[None]) ** 2).sum(-1)) for a in (x[:5], y[:5])]
    by_hand = sum((k.sum() - 5) / 20 for k in own) - 2 * kernel(cross).mean()
    assert float(losses.maximum_mean_discrepancy(x[:5], y[:5])) == pytest.approx(by_hand, abs=1e-5)
