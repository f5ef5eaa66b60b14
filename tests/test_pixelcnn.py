"""PixelCNN: what a pixel sees, pixel by pixel as all at once, likelihoods that sum to one; black and white images."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from gentf.data import load
from gentf.errors import UserError
from gentf.evaluation import evaluate
from gentf.kernels import random
from gentf.models import PixelCNN
from gentf.sampling import decode
from gentf.sampling.decode import Controls


def model_of(shape, likelihood="bernoulli", **options):
    options = {"layers": 2, "width": 6, "first_kernel_size": 5, "components": 3, **options}
    model = PixelCNN(shape, likelihood=likelihood, **options)
    for number, weight in enumerate(model.average.weights):  # biases too, so that nothing is zero by chance
        values = tf.random.stateless_normal(weight.shape, (number, 1)) * 0.4
        weight.assign(values)
    return model


def images_of(shape, num, seed=0, levels=256):
    drawn = np.random.default_rng(seed).integers(0, levels, (num, *shape))
    return (drawn * (255 // (levels - 1))).astype(np.uint8)


MODELS = [
    ((5, 4, 1), "bernoulli", {}),
    ((4, 5, 1), "categorical", {"kernel_size": 5}),
    ((4, 3, 3), "mixture", {"num_classes": 3}),
]


@pytest.mark.parametrize("shape, likelihood, options", MODELS)
def test_a_pixel_sees_those_before_it_and_all_of_them(shape, likelihood, options):
    """The Jacobian of every output: zero from its own pixel on, not zero for those in reach before it."""
    model = model_of((7, 6, shape[2]), likelihood, **{**options, "num_classes": 0})
    x = tf.random.stateless_uniform((1, 7, 6, shape[2]), (0, 0), -1.0, 1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.sin(model.average(x) * tf.range(1.0, model.average.outputs + 1)), axis=3)
    slopes = tape.jacobian(total, x)[0, :, :, 0].numpy()  # (row, column, row, column, channel)
    seen = np.abs(slopes).sum(axis=-1).reshape(42, 42) > 0
    assert not seen[np.triu_indices(42)].any()  # neither itself nor what follows
    # no blind spot: above to the right, above to the left, and to the left
    middle = 3 * 6 + 2
    for row, column in ((3, 1), (3, 0), (2, 1), (2, 2), (2, 3), (2, 4), (1, 4), (1, 0), (0, 2)):
        assert seen[middle, row * 6 + column], (row, column)


@pytest.mark.parametrize("shape, likelihood, options", MODELS)
def test_pixel_by_pixel_is_all_at_once(shape, likelihood, options):
    model = model_of(shape, likelihood, **options)
    label = tf.constant([0, 2, 1]) if model.num_classes else None
    image = model.prepare((images_of(shape, 3), label))["image"]
    whole = tf.reshape(model.average(image, label), (3, shape[0] * shape[1], -1))
    pixels = tf.reshape(image, (3, -1, shape[2]))
    decoder = model.decoder()
    outputs, state = decoder.prefill(pixels[:, :0], tf.zeros(3, tf.int32), decoder.init_state(3, 99, label))
    for place in range(shape[0] * shape[1]):
        np.testing.assert_allclose(outputs, whole[:, place], atol=2e-5)
        outputs, state = decoder.step(pixels[:, place], tf.fill((3,), place), state)


def test_probabilities_of_all_images_sum_to_one():
    model = model_of((2, 3, 1), num_classes=2)
    every = np.array(list(itertools.product((0, 255), repeat=6)), np.uint8).reshape(-1, 2, 3, 1)
    for label in range(2):
        total = np.exp(model.log_prob(every, np.full(64, label)).astype(np.float64)).sum()
        assert total == pytest.approx(1.0, abs=1e-5)


def test_the_likelihood_is_that_of_what_is_drawn():
    """Each drawn image's nats, told while it is drawn, are those of `log_prob`; images come as often as they say."""
    model = model_of((2, 2, 1))
    decoder = model.decoder()
    begun = decode.begin(decoder, tf.zeros((4000, 0, 1)), tf.zeros(4000, tf.int32), 4)
    pixels, end = decode.advance(decoder, begun, random.spread(3, 4000), tf.fill((4000,), 4), 4)
    images = tf.reshape(pixels, (-1, 2, 2, 1)).numpy()
    np.testing.assert_allclose(-end.nats.numpy()[:100], model.log_prob(images[:100]), atol=1e-4)
    every = np.array(list(itertools.product((-1.0, 1.0), repeat=4)), np.float32).reshape(-1, 2, 2, 1)
    expected = 4000 * np.exp(model.log_prob(every))
    codes = ((images.reshape(-1, 4) > 0) * [8, 4, 2, 1]).sum(axis=1)
    found = np.bincount(codes, minlength=16)
    assert ((found - expected) ** 2 / expected).sum() < 45  # chi-square, 15 degrees of freedom: one in 12,000


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical", "mixture"])
def test_temperature_zero_is_the_likeliest_pixel(likelihood):
    model = model_of((3, 3, 1), likelihood)
    seeds = random.spread(0, 2)
    images = model.sample_rows(seeds, None, tf.zeros(2))
    again = model.sample_rows(random.spread(9, 2), None, tf.zeros(2))
    if likelihood == "mixture":  # the component is the likeliest, the level its mean
        assert np.abs(images - again).max() <= 2 / 255 + 1e-6
        return
    np.testing.assert_array_equal(images, again)
    decoder = model.decoder()
    begun = decode.begin(decoder, tf.zeros((1, 0, 1)), tf.zeros(1, tf.int32), 9)
    controls = Controls(temperature=tf.zeros(1))
    cold = decode.advance(decoder, begun, seeds[:1], tf.constant([9]), 9, controls)[1].nats.numpy()[0]
    assert cold < -model.log_prob(model.sample(20, seed=1)).mean()


def test_bad_arguments():
    for options, message in (
        ({"likelihood": "poisson"}, "`likelihood` must be 'bernoulli', 'categorical' or 'mixture'"),
        ({"likelihood": "categorical", "image_shape": (4, 4, 3)}, "`likelihood` must be 'mixture' for 3 channels"),
        ({"kernel_size": 4}, "`kernel_size` must be odd and at least 3"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"ema_decay": 1.0}, "`ema_decay` must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            PixelCNN(**{"image_shape": (4, 4, 1), **options})


def test_black_and_white_images():
    grey = load("digits").train.arrays()[0]
    threshold, fixed, again = (
        load("digits", binarize=how).train.arrays()[0] for how in ("threshold", "fixed", "fixed")
    )
    np.testing.assert_array_equal(threshold, np.where(grey >= 128, 255, 0))
    np.testing.assert_array_equal(fixed, again)
    assert set(np.unique(fixed)) == {0, 255} and abs(fixed.mean() - grey.mean()) < 1.0
    assert np.all(fixed[grey == 0] == 0) and np.all(fixed[grey == 255] == 255)
    with pytest.raises(UserError, match="`binarize` must be none, threshold or fixed"):
        load("digits", binarize="maybe")
    with pytest.raises(UserError, match="`binarize` must be none for images that are not uint8 in memory"):
        load("digits", binarize="fixed", cache_mb=0)


def test_an_npz_file_with_splits_of_its_own(tmp_path):
    random_ = np.random.default_rng(0)
    parts = {name: random_.integers(0, 2, (n, 16), np.uint8) for name, n in (("train", 9), ("valid", 4), ("test", 3))}
    np.savez(tmp_path / "bw.npz", **parts)
    source = load(tmp_path / "bw.npz")
    for split, images in zip(source.splits.values(), parts.values()):
        np.testing.assert_array_equal(split.arrays()[0], 255 * images.reshape(-1, 4, 4, 1))
    np.savez(tmp_path / "odd.npz", train=parts["train"], test=parts["test"][:, :9])
    with pytest.raises(UserError, match="must have images of one shape"):
        load(tmp_path / "odd.npz")
    np.savez(tmp_path / "flat.npz", train=parts["train"][:, :15])
    with pytest.raises(UserError):
        load(tmp_path / "flat.npz")


def test_evaluation_tells_nats_and_bits(tmp_path, monkeypatch):
    from gentf import config as configs
    from gentf.training import train, validation

    overrides = ["data.name=digits", "model.layers=1", "model.width=4", "train.steps=3", "train.batch_size=16",
                 "model.ema_decay=0.0", "train.steps_per_call=1"]  # fmt: skip
    monkeypatch.setattr(validation, "GRID", 4)
    run = train(configs.resolve("pixelcnn-mnist", overrides), tmp_path / "run")
    found = evaluate(run, samples=20, extractors=0)["metrics"]
    images = run.load_data().test.arrays()[0]
    nats = -run.load_model().log_prob(images).mean()
    assert found["nats_per_image"]["value"] == pytest.approx(nats, rel=1e-5)
    assert found["bits_per_dimension"]["value"] == pytest.approx(nats / np.log(2) / 64, rel=1e-5)
