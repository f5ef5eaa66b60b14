"""Variational autoencoders of images: their parts, and every combination of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.kernels import random
from gentf.models import VAE, LadderVAE
from gentf.nn.likelihoods import LIKELIHOODS, MIN_SCALE, Bernoulli, Gaussian
from gentf.nn.posteriors import POSTERIORS, log_normal
from gentf.nn.priors import PRIORS, MixturePrior
from gentf.training.steps import Steps

SHAPE = (8, 8, 1)


def small(**options) -> VAE:
    model = VAE(options.pop("image_shape", SHAPE), **({"latent_dim": 4, "hidden_units": (16,)} | options))
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    return model


def black_and_white(count: int, shape=SHAPE) -> np.ndarray:
    """Bars: one of eight columns is white."""
    images = np.zeros((count, *shape), np.uint8)
    images[np.arange(count), :, np.random.default_rng(0).integers(0, shape[1], count)] = 255
    return images


def train(model, images, steps=150, **extra) -> dict[str, np.ndarray]:
    run = Steps(model, tf.distribute.get_strategy(), 10, False)
    batch = {"image": tf.constant(images)} | {name: tf.constant(value) for name, value in extra.items()}
    logs = [run.run([batch] * 10) for _ in range(steps // 10)]
    return {name: np.concatenate([part[name][:, 0] for part in logs]) for name in logs[0]}


# Likelihoods


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_likelihoods_are_distributions(name, channels):
    """Probabilities of one pixel sum to one, and draws have them as their frequencies and the mean as theirs."""
    options = {"gaussian": {"scale": 0.2}, "mixture": {"components": 2}}.get(name, {})
    likelihood = LIKELIHOODS[name](channels, **options)
    scale = 0.3 if name != "mixture" else 0.6
    outputs = np.random.default_rng(0).normal(0, scale, (1, likelihood.outputs)).astype(np.float32)
    if name == "mixture":
        outputs[:, -2 * channels * 2 :] *= 0.5
    values = np.linspace(-1, 1, 2 if likelihood.levels == 2 else 256).astype(np.float32)
    if channels == 1:
        nats = likelihood.log_prob(outputs, values[:, None]).numpy()
        if name == "gaussian":
            wide = np.linspace(-4, 4, 4001).astype(np.float32)
            density = np.exp(likelihood.log_prob(outputs, wide[:, None]).numpy())
            assert np.trapezoid(density, wide) == pytest.approx(1, abs=1e-3)
        else:
            assert np.exp(nats).sum() == pytest.approx(1, abs=1e-4)
    count = 4000
    drawn = likelihood.sample(np.repeat(outputs, count, axis=0), random.spread(1, count)).numpy()
    assert drawn.shape == (count, channels) and np.abs(drawn).max() <= 1
    error = drawn.std(axis=0) / np.sqrt(count)
    slack = {"mixture": 0.1, "gaussian": 0.02}.get(name, 0.0)  # of means clipped to the range
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - likelihood.mean(outputs)[0]), 5 * error + slack)
    cold = likelihood.sample(np.repeat(outputs, 50, axis=0), random.spread(2, 50), 0, tf.zeros((50,))).numpy()
    assert np.ptp(cold, axis=0).max() < 0.02 or name == "mixture"


def test_a_draw_depends_on_its_own_seed():
    likelihood = Bernoulli(1)
    outputs = np.zeros((6, 4, 4, 1), np.float32)
    whole = likelihood.sample(outputs, random.spread(3, 6)).numpy()
    np.testing.assert_array_equal(whole[:2], likelihood.sample(outputs[:2], random.spread(3, 2)))
    assert np.any(whole != likelihood.sample(outputs, random.spread(3, 6), 1).numpy())


def test_a_learned_scale_cannot_collapse():
    likelihood = Gaussian(1)
    outputs = np.array([[0.3, -1e4]], np.float32)
    highest = -0.5 * np.log(2 * np.pi) - np.log(MIN_SCALE)
    assert likelihood.log_prob(outputs, np.float32([[0.3]])).numpy() == pytest.approx(highest, rel=1e-5)


def test_collapsed_scales_are_said():
    flat = np.zeros((64, *SHAPE), np.uint8)
    model = small(likelihood="gaussian")
    bias = model.decoder_network.to_image.bias
    bias.assign(np.tile(np.float32([0.0, -30.0]), 64))  # what training on flat images is on the way to
    values = {f"val_{name}": value for name, value in model.summarize([{"image": flat}]).items()}
    assert values["val_narrow_scales"] > 0.5 and "learned scales" in model.remark(values)
    noise = np.random.default_rng(0).integers(0, 256, (64, *SHAPE)).astype(np.uint8)
    other = small(likelihood="gaussian")
    assert other.summarize([{"image": noise}])["narrow_scales"] < 0.1


# Posteriors and priors


@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors_know_their_density(name):
    posterior = POSTERIORS[name](3, seed=1)
    posterior.build((None, 5))
    features = tf.constant(np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32))
    parameters = posterior(features)
    noise = random.normal(random.spread(0, 4), (8000, 3))
    z, log_prob = posterior.draw(parameters, noise)
    assert z.shape == (4, 8000, 3) and log_prob.shape == (4, 8000)
    np.testing.assert_allclose(posterior.log_prob(parameters, z), log_prob, atol=2e-3)
    # E 1 / q over a box that holds a share of the draws is the box's volume
    centre = posterior.mean(parameters)[:, None]
    inside = np.all(np.abs((z - centre).numpy()) < 0.7, axis=-1)
    volume = np.mean(np.where(inside, np.exp(-log_prob.numpy()), 0.0), axis=1)  # of 1.4 a side
    np.testing.assert_allclose(volume, 1.4**3, atol=0.5)
    kl = posterior.kl(parameters)
    if kl is not None:
        sampled = tf.reduce_mean(log_prob - log_normal(z, 0.0, 0.0), axis=1)
        np.testing.assert_allclose(tf.reduce_sum(kl, axis=1), sampled, atol=0.2)


@pytest.mark.parametrize("name", PRIORS)
def test_priors_draw_what_their_density_says(name):
    options = {"vamp": {"data_shape": (5,), "components": 4}, "mixture": {"components": 4}}.get(name, {})
    prior = PRIORS[name](2, seed=3, **options)
    for weight in prior.weights:
        weight.assign(
            weight
            + (0.05 if name == "flow" else 0.3) * np.random.default_rng(1).normal(size=weight.shape).astype(np.float32)
        )
    encode = lambda x: (x[:, :2] * 2.0, 0.3 * x[:, 2:4])  # noqa: E731
    parameters = prior.density(encode)
    side = np.linspace(-9, 9, 721).astype(np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(1, -1, 2)
    density = np.exp(prior.log_prob(parameters, tf.constant(grid)).numpy()) * 0.025**2
    assert density.sum() == pytest.approx(1, abs=5e-3)
    drawn = prior.draw(parameters, random.spread(0, 4000)).numpy()
    mean = (density[0, :, None] * grid[0]).sum(axis=0)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=5 * drawn.std() / np.sqrt(4000))
    second = (density[0, :, None] * grid[0] ** 2).sum(axis=0)
    np.testing.assert_allclose((drawn**2).mean(axis=0), second, rtol=0.12)


# The model


@pytest.mark.parametrize("posterior", ["full", "iaf"])
def test_pseudo_inputs_need_a_diagonal_posterior(posterior):
    with pytest.raises(ValueError, match="`prior` may be vamp"):
        small(posterior=posterior, prior="vamp")


@pytest.mark.parametrize(
    ("posterior", "prior"), [("full", "mixture"), ("diagonal", "vamp"), ("iaf", "flow"), ("iaf", "normal")]
)
def test_posteriors_and_priors_combine(posterior, prior):
    model = small(posterior=posterior, prior=prior, prior_components=5, flow_hidden=16)
    images = black_and_white(64)
    losses = train(model, images)["loss"]
    assert losses[-10:].mean() < 0.75 * losses[:10].mean()
    assert model.sample(3, seed=1).shape == (3, *SHAPE)


@pytest.mark.parametrize("objective", ["elbo", "iwae", "beta_tc", "info"])
def test_objectives_train(objective):
    model = small(objective=objective, samples=5 if objective == "iwae" else None)
    images = black_and_white(64)
    before = model.bound(images, 50, jit=False).log_prob.mean()
    train(model, images, 200)
    bound = model.bound(images, 50, jit=False)
    assert bound.log_prob.mean() > before + 15
    assert np.all(bound.log_prob >= bound.elbo - 1e-4)


def test_conditions_are_classes_or_vectors():
    images = black_and_white(64)
    column = (images[:, 0, :, 0] > 0).argmax(axis=1)
    by_class = small(num_classes=8)
    train(by_class, images, 300, label=column.astype(np.int32))
    drawn = by_class.sample(8, condition=np.arange(8), seed=1)
    np.testing.assert_array_equal(drawn.mean(axis=(1, 3)).argmax(axis=1), np.arange(8))
    with pytest.raises(ValueError, match="`label` must be given"):
        by_class.bound(images)
    vectors = np.eye(8, dtype=np.float32)[column]
    by_vector = small(condition_dim=8)
    train(by_vector, images, 300, condition=vectors)
    drawn = by_vector.sample(8, condition=np.eye(8), seed=1)
    np.testing.assert_array_equal(drawn.mean(axis=(1, 3)).argmax(axis=1), np.arange(8))
    known = by_vector.bound(images, 20, condition=vectors, jit=False).log_prob.mean()
    wrong = by_vector.bound(images, 20, condition=np.roll(vectors, 1, axis=1), jit=False).log_prob.mean()
    assert known > wrong + 10
    with pytest.raises(ValueError, match="`condition` must be given"):
        by_vector.bound(images)
    with pytest.raises(ValueError, match="`condition` must be vectors"):
        by_vector.sample(2)


def test_users_bring_their_own_networks(tmp_path):
    encoder = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(16, "tanh")])
    decoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64), keras.layers.Reshape(SHAPE)])
    model = small(encoder=encoder, decoder=decoder)
    images = black_and_white(64)
    train(model, images, 50)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.sample(3, seed=1), loaded.sample(3, seed=1))
    np.testing.assert_array_equal(model.encode(images), loaded.encode(images))
    wrong = keras.Sequential([keras.Input((4,)), keras.layers.Dense(63)])
    with pytest.raises(ValueError, match=r"`decoder` must give \(B, 8, 8, 1\)"):
        small(decoder=wrong)


def test_a_fitted_prior_samples_where_codes_are(tmp_path):
    images = black_and_white(256)
    model = small(latent_dim=2, beta=0.05, hidden_units=(32,))
    train(model, images, 400)
    codes = model.encode(images)
    for kind in ("mixture", "flow"):
        fitted = model.with_fitted_prior(images, kind, components=8, steps=300)
        np.testing.assert_array_equal(fitted.encode(images), codes)
        z = fitted.prior.draw(fitted.density(), random.spread(0, 500)).numpy()
        nearest = np.sqrt(((z[:, None] - codes[None]) ** 2).sum(-1)).min(axis=1)
        far = np.sqrt(((np.random.default_rng(0).normal(size=(500, 1, 2)) - codes[None]) ** 2).sum(-1)).min(axis=1)
        assert np.median(nearest) < (0.7 if kind == "mixture" else 1.0) * np.median(far)
        fitted.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(fitted.sample(3, seed=1), loaded.sample(3, seed=1))
    with pytest.raises(ValueError, match="`kind` must be mixture or flow"):
        model.with_fitted_prior(images, "kernel")


def test_collapse_is_seen_and_said():
    images = black_and_white(64)
    model = small(beta=100.0)
    train(model, images, 150)
    values = {f"val_{name}": value for name, value in model.summarize([{"image": images}]).items()}
    assert values == {"val_active_units": 0.0}
    assert "collapsed" in model.remark(values)
    used = small(beta=0.1)
    train(used, images, 150)
    assert used.summarize([{"image": images[:30]}, {"image": images[30:]}])["active_units"] >= 2
    assert used.remark({"val_active_units": 4.0}) is None and "1 of 4" in used.remark({"val_active_units": 1.0})


def test_values_outside_the_support_are_refused():
    model = small()
    grey = np.full((3, *SHAPE), 100, np.uint8)
    assert "black and white" in model.problem({"image": grey}) and model.problem({"image": black_and_white(3)}) is None
    with pytest.raises(ValueError, match="`images` must be values of the likelihood"):
        model.bound(grey)
    assert small(likelihood="gaussian").problem({"image": grey}) is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"latent_dim": 0}, "`latent_dim` must be at least 1"),
        ({"network": "vgg"}, "`network` must be one of mlp, conv"),
        ({"prior": "student"}, "`prior` must be one of"),
        ({"objective": "iwae", "posterior": "iaf"}, "`doubly` must be False"),
        ({"objective": "beta_tc", "posterior": "full"}, "`posterior` must be diagonal"),
        ({"num_classes": 2, "condition_dim": 3}, "`condition_dim` must be 0"),
        ({"likelihood": "gaussian", "scale": -1.0}, "`scale` must be positive"),
        ({"prior": MixturePrior(5)}, "must be over 4 latents"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_encode_decode_and_reconstruct():
    images = black_and_white(64)
    model = small()
    train(model, images, 300)
    z = model.encode(images)
    assert z.shape == (64, 4) and z.dtype == np.float32
    rebuilt = model.decode(z)
    np.testing.assert_array_equal(rebuilt, model.reconstruct(images))
    assert np.mean(np.sign(rebuilt) == np.where(images > 0, 1, -1)) > 0.97
    with pytest.raises(ValueError, match=r"`z` must be \(n, 4\)"):
        model.decode(z[:, :3])


def test_a_sample_may_be_a_draw_of_its_pixels():
    model = small(shown="sample")
    drawn = model.sample(4, seed=0)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    np.testing.assert_array_equal(drawn[:2], model.sample(2, seed=0))


# Ladders


def test_a_ladder_merges_what_the_image_says_with_what_is_above():
    model = LadderVAE(SHAPE, latent_dims=(3, 2), hidden_units=(16, 8))
    batch = model.prepare(black_and_white(5))
    posteriors = model.infer(batch)[0]
    layers = model._descend(random.spread(0, 5), 2, posteriors)
    _, (mean, log_var), (above, above_var) = layers[0]
    said, said_var = (part[:, None] for part in posteriors[0])
    np.testing.assert_allclose(np.exp(-log_var), np.exp(-said_var) + np.exp(-above_var), rtol=1e-4)
    np.testing.assert_allclose(
        mean * np.exp(-log_var), said * np.exp(-said_var) + above * np.exp(-above_var), rtol=1e-3, atol=1e-5
    )
    terms = model.draw(model.infer(batch), batch, 400, random.spread(1, 5))
    sampled = tf.reduce_mean(terms.log_posterior - terms.log_prior, axis=1)
    np.testing.assert_allclose(terms.rate, sampled, atol=0.3)
    assert terms.z.shape == (5, 400, 5) and terms.kl.shape == (5, 5)


def test_a_ladder_trains_and_uses_both_layers(tmp_path):
    images = black_and_white(128)
    model = LadderVAE(SHAPE, latent_dims=(4, 2), hidden_units=(32, 16), anneal_steps=100)
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    before = model.bound(images, 20, jit=False).log_prob.mean()
    train(model, images, 400)
    assert model.bound(images, 20, jit=False).log_prob.mean() > before + 25
    assert model.encode(images).shape == (128, 6)
    assert np.mean(np.sign(model.reconstruct(images)) == np.where(images > 0, 1, -1)) > 0.95
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.sample(3, seed=1), loaded.sample(3, seed=1))
    with pytest.raises(ValueError, match="as many as `hidden_units`"):
        LadderVAE(SHAPE, latent_dims=(4, 2), hidden_units=(32,))
