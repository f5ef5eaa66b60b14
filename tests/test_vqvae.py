"""Autoencoders with integer codes: codes and images, what is minimised, what is counted, and what an export answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.kernels.optimizer import Adam
from gentf.models import VQVAE
from gentf.nn.autoencoder import RandomFeatures, ResidualDecoder, ResidualEncoder, feature_distance
from gentf.training.steps import Steps

SHAPE = (12, 9, 3)
SMALL = {"width": 8, "residual_width": 4, "residual_layers": 1, "code_dim": 6, "codes": 16, "levels": (5, 4)}
QUICK = {"kmeans": False}  # tracing k-means takes longer than all the rest


def images_of(number: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Smooth pictures, uint8: a colour gradient in a random direction each."""
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    slopes = generator.normal(0, 60, (number, 2, 1, 1, shape[2]))
    middle = generator.uniform(60, 190, (number, 1, 1, shape[2]))
    waves = middle + slopes[:, 0] * y[None, :, :, None] + slopes[:, 1] * x[None, :, :, None]
    return np.clip(waves, 0, 255).astype(np.uint8)


def small(**options) -> VQVAE:
    model = VQVAE(SHAPE, **(SMALL | QUICK | options))
    model.compile(optimizer=Adam(1e-2))
    return model


def train(model: VQVAE, images: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    run = Steps(model, tf.distribute.get_strategy(), 10, False)
    logs = [run.run([{"image": tf.constant(images)}] * 10) for _ in range(steps // 10)]
    return {name: np.concatenate([part[name][:, 0] for part in logs]) for name in logs[0]}


@pytest.fixture(scope="module")
def trained() -> tuple[VQVAE, dict[str, np.ndarray]]:
    """A model that starts by k-means, after a hundred steps on the same 16 images."""
    model = small(kmeans=True)
    return model, train(model, images_of(16), 100)


# Networks


@pytest.mark.parametrize("shape", [(12, 9, 3), (7, 5, 1), (8, 8, 2)])
@pytest.mark.parametrize("downsamples", [1, 2, 3])
def test_a_grid_is_made_of_an_image_and_back(shape, downsamples):
    options = {"width": 6, "residual_width": 4, "residual_layers": 2, "downsamples": downsamples}
    encoder, decoder = ResidualEncoder(shape, 5, **options), ResidualDecoder(shape, 5, **options)
    encoder.build()
    decoder.build()
    code = encoder(tf.zeros((2, *shape)))
    assert code.shape == (2, -(-shape[0] // 2**downsamples), -(-shape[1] // 2**downsamples), 5)
    assert decoder(code).shape == (2, *shape)


def test_features_are_the_same_everywhere_and_see_texture():
    features = RandomFeatures(3, width=4, scales=2)
    features.build()
    again = RandomFeatures.from_config(features.get_config())
    again.build()
    image = tf.constant(images_of(2), tf.float32) / 127.5 - 1.0
    for one, other in zip(features(image), again(image)):
        np.testing.assert_array_equal(one, other)
    assert [part.shape for part in features(image)] == [(2, 12, 9, 4), (2, 6, 5, 8)]
    assert not features.trainable_variables and len(features.non_trainable_variables) == 2
    noisy = image + tf.random.stateless_normal(image.shape, (0, 0)) * 0.3
    near, far = (feature_distance(features(other), features(image)) for other in (image + 0.01, noisy))
    np.testing.assert_array_equal(feature_distance(features(image), features(image)), [0.0, 0.0])
    assert np.all(far > 20 * near) and np.all(far <= 8)


def test_feature_distance_of_worked_cases():
    """Unit vectors (1, 0) and (0, 1) are a squared distance of 2 apart; length does not matter; scales add."""
    a, b = tf.constant([[[[3.0, 0.0]]]]), tf.constant([[[[0.0, 5.0]]]])
    np.testing.assert_allclose(feature_distance([a], [b]), [2.0], rtol=1e-5)
    np.testing.assert_allclose(feature_distance([a, a], [b, 2 * a]), [2.0], rtol=1e-5)
    np.testing.assert_allclose(feature_distance([a, a], [b, -a]), [6.0], rtol=1e-5)
    both = tf.concat([a, b], axis=2)  # two positions, one of them equal
    np.testing.assert_allclose(feature_distance([both], [tf.concat([a, a], axis=2)]), [1.0], rtol=1e-5)


# What is minimised


@pytest.mark.parametrize("kind, nats", [("squared", 0.36 / 0.5), ("absolute", 0.6 * 2.0**0.5 / 0.5)])
def test_nats_of_a_constant_error(kind, nats):
    """An error of 0.6 everywhere: e^2 / (2 0.5^2), and |e| over the Laplace scale 0.5 / sqrt(2), a value."""
    model = small(reconstruction=kind)
    image = tf.fill((2, *SHAPE), 0.4)
    np.testing.assert_allclose(model.distance(image, image - 0.6), [nats * 12 * 9 * 3] * 2, rtol=1e-5)


def test_features_add_to_the_squared_error():
    model, plain = small(reconstruction="features", feature_weight=0.5), small()
    image, output = tf.zeros((2, *SHAPE)), tf.random.stateless_normal((2, *SHAPE), (0, 0))
    added = feature_distance(model.features(output), model.features(image))
    expected = plain.distance(image, output) + 0.5 * 12 * 9 * added
    assert np.all(added > 0.1)
    np.testing.assert_allclose(model.distance(image, output), expected, rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(output)
        loss = tf.reduce_sum(model.distance(image, output))
    assert np.all(np.isfinite(tape.gradient(loss, output)))


def test_a_model_of_features_may_be_given(tmp_path):
    inputs = keras.Input(SHAPE)
    first = keras.layers.Conv2D(4, 3, name="first")(inputs)
    extractor = keras.Model(inputs, [first, keras.layers.Conv2D(2, 3, strides=2)(keras.layers.ReLU()(first))])
    model = small(reconstruction="features", feature_model=extractor)
    frozen = [weight.numpy() for weight in extractor.weights]
    train(model, images_of(8), 10)
    for weight, before in zip(extractor.weights, frozen, strict=True):
        np.testing.assert_array_equal(weight, before)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    image, output = tf.zeros((2, *SHAPE)), tf.ones((2, *SHAPE)) * 0.3
    np.testing.assert_array_equal(loaded.distance(image, output), model.distance(image, output))
    np.testing.assert_array_equal(loaded.encode(images_of(3)), model.encode(images_of(3)))


def test_the_loss_is_the_sum_of_its_parts_and_falls(trained):
    model, logs = trained
    np.testing.assert_allclose(logs["loss"], logs["reconstruction"] + logs["commitment"], rtol=1e-5)
    assert logs["reconstruction"][-10:].mean() < 0.35 * logs["reconstruction"][:3].mean()
    error = np.square(model.reconstruct(images_of(16)) - (images_of(16) / 127.5 - 1.0)).mean()
    held = model.losses_on(model.prepare(images_of(16)), False)
    assert error < 0.1 and float(held["squared_error"]) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"quantizer": "residual", "stages": 2},
        {"quantizer": "fsq"},
        {"codebook": "gradient", "gradient_estimator": "rotation"},
    ],
    ids=str,
)
def test_every_kind_learns(options):
    model = small(**options)
    logs = train(model, images_of(8), 80)
    assert logs["loss"][-5:].mean() < 0.65 * logs["loss"][:2].mean()
    indices = model.encode(images_of(3))
    assert indices.shape == (3, *model.index_shape)
    np.testing.assert_array_equal(model.decode(indices), model.reconstruct(images_of(3)))


# Codes


def test_images_go_to_codes_and_back(trained):
    model, _ = trained
    images = images_of(20)
    indices = model.encode(images)
    assert indices.shape == (20, 3, 3) and indices.dtype == np.int32 and model.num_codes == 16
    np.testing.assert_array_equal(indices[5:8], model.encode(images[5:8]))  # in whatever company
    np.testing.assert_array_equal(indices, model.encode(images / np.float32(127.5) - np.float32(1.0)))
    np.testing.assert_array_equal(model.decode(indices), model.reconstruct(images))
    other = indices.copy()
    other[:, 0, 0] = (other[:, 0, 0] + 1) % 16
    assert np.any(model.decode(other) != model.decode(indices))


def test_usage_and_perplexity_are_of_the_whole_split(trained):
    """Those of all batches together, which no mean over batches is."""
    model, _ = trained
    images = images_of(16, seed=3)
    batches = [{"image": tf.constant(images[:12])}, {"image": tf.constant(images[12:])}]
    counts = np.bincount(model.encode(images).ravel(), minlength=16)
    share = counts[counts > 0] / counts.sum()
    found = model.summarize(batches)
    assert found["usage"] == pytest.approx((counts > 0).mean())
    assert found["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)


def test_each_stage_is_counted_by_itself():
    model = small(quantizer="residual", stages=2)
    images = images_of(8)
    indices = model.encode(images)
    used = [len(np.unique(indices[..., stage])) / 16 for stage in (0, 1)]
    assert model.summarize([{"image": tf.constant(images)}])["usage"] == pytest.approx(np.mean(used))


# Samples


def test_frequencies_are_those_of_training():
    """The table moves by each batch's shares: after steps on codes that stay, it is proportional to them."""
    model = small(quantizer="fsq")
    images = images_of(10)
    indices = model.encode(images)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    train(model, images, 10)
    table = model.frequencies.numpy().reshape(9, 20)
    wanted = np.stack([np.bincount(place, minlength=20) for place in indices.reshape(10, 9).T]) / 10
    np.testing.assert_allclose(table / table.sum(axis=1, keepdims=True), wanted, atol=1e-6)
    assert table.sum(axis=1) == pytest.approx(np.full(9, 1 - 0.999**10), rel=1e-4)


def test_samples_have_the_frequencies_of_their_places():
    model = small()
    table = np.zeros((9, 1, 16), np.float32)
    table[:, 0, :4] = np.random.default_rng(0).dirichlet(np.ones(4), 9)
    model.frequencies.assign(table)
    model._image = lambda indices: tf.cast(indices, tf.float32)  # what would be decoded
    seeds = tf.constant([[7, row] for row in range(400)])
    drawn = tf.function(lambda seeds: model.sample_rows(seeds, None))(seeds).numpy().astype(int).reshape(-1, 9)
    found = np.stack([np.bincount(place, minlength=16) for place in drawn.T]) / len(drawn)
    np.testing.assert_allclose(found, table[:, 0], atol=4 * 0.5 / len(drawn) ** 0.5)
    assert not found[:, 4:].any()


def test_samples_are_images_before_training_too():
    images = small().sample(5, seed=1)
    assert images.shape == (5, *SHAPE) and np.abs(images).max() <= 1 and len({image.tobytes() for image in images}) == 5


def test_signatures_answer_as_the_model_does(trained):
    model, _ = trained
    served = model.signatures().items()
    signatures = {name: tf.function(signature.function, autograph=False) for name, signature in served}
    image = model.prepare(images_of(5))["image"]
    indices = signatures["encode"](image=image)["indices"]
    np.testing.assert_array_equal(indices, model.encode(images_of(5)))
    np.testing.assert_array_equal(signatures["decode"](indices=indices)["image"], model.reconstruct(images_of(5)))
    np.testing.assert_array_equal(signatures["reconstruct"](image=image)["image"], model.reconstruct(images_of(5)))
    served = signatures["serving_default"](seed=tf.constant([[2, 0], [2, 1]]))
    np.testing.assert_array_equal(served["image"], model.sample(2, seed=2))
    assert tf.io.decode_png(served["image_bytes"][0]).shape == SHAPE


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 2}, "`num_classes` must be 0"),
        ({"quantizer": "x"}, "`quantizer` must be one of vq, residual, fsq. Received: quantizer='x'"),
        ({"reconstruction": "x"}, "`reconstruction` must be one of"),
        ({"quantizer": "fsq", "gradient_estimator": "rotation"}, "`gradient_estimator` must be straight_through"),
        ({"downsamples": 0}, "`downsamples` must be positive. Received: downsamples=0"),
        ({"residual_layers": -1}, "`residual_layers` must be at least 0"),
        ({"feature_weight": -1.0}, "`feature_weight` must be at least 0"),
        ({"feature_model": keras.Sequential()}, "`feature_model` must be None"),
        ({"quantizer": "fsq", "levels": (256, 256, 256)}, "`places x codes` must be at most"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_indices_are_checked(trained):
    model, _ = trained
    for indices, message in (
        (np.zeros((2, 3)), r"`indices` must be integers of shape \(n, 3, 3\). Received: float64 of shape \(2, 3\)"),
        (np.full((2, 3, 3), 16), "`indices` must be from 0 to 15. Received: 16 to 16"),
        (np.zeros((0, 3, 3), int), "must be at least one. Received: 0 rows"),
        (np.full((2, 3, 3), -1), "`indices` must be from 0 to 15. Received: -1 to -1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(indices)
