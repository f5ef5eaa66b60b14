"""Augmentations: what they do to an image, that they are exact where they must be, and that both players see them."""

import numpy as np
import pytest
import tensorflow as tf

from gentf.kernels import random
from gentf.models import GAN
from gentf.nn import augmentation

SEEDS = random.spread(3, 200)


def images(shape=(200, 8, 12, 3)):
    return tf.constant(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))


@pytest.mark.parametrize("jit", [False, True])
def test_nothing_happens_at_a_share_of_0(jit):
    x = images()
    kept = tf.function(augmentation.adaptive, jit_compile=jit)(x, SEEDS, tf.constant(0.0))
    np.testing.assert_allclose(kept, x, atol=1e-6)


def test_the_share_is_that_of_images_changed():
    x = images()
    for share in (0.3, 1.0):
        for change in (augmentation.colour, augmentation.cutout):
            moved = np.any(np.abs(change(x, SEEDS, tf.constant(share)) - x) > 1e-6, axis=(1, 2, 3)).mean()
            assert abs(moved - share) < 0.12
    halves = [change(x, SEEDS, 0.5) for change in (augmentation.colour, augmentation.cutout)]
    one, two = (np.any(np.abs(half - x) > 1e-6, axis=(1, 2, 3)) for half in halves)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.25  # each by itself


def test_translation_moves_by_whole_pixels_and_leaves_zeros():
    x = images((200, 16, 24, 1))
    moved = augmentation.geometry(x, SEEDS, 1.0, ("shift",)).numpy()
    shifts = set()
    for before, after in zip(x.numpy()[..., 0], moved[..., 0]):
        padded = np.pad(before, 3)
        places = [(i, j) for i in range(7) for j in range(7)]
        found = [(i, j) for i, j in places if np.allclose(padded[i : i + 16, j : j + 24], after, atol=1e-5)]
        assert len(found) == 1
        shifts.add(found[0])
    assert {i for i, _ in shifts} == set(range(1, 6)) and {j for _, j in shifts} == set(range(7))


def test_a_flip_exchanges_left_and_right_half_of_the_time():
    x = images()
    moved = augmentation.geometry(x, SEEDS, 1.0, ("flip",)).numpy()
    flipped = np.array([np.allclose(after, before[:, ::-1], atol=1e-5) for before, after in zip(x.numpy(), moved)])
    kept = np.array([np.allclose(after, before, atol=1e-5) for before, after in zip(x.numpy(), moved)])
    assert np.all(flipped ^ kept) and 0.35 < flipped.mean() < 0.65


def test_scaling_keeps_the_middle_and_changes_the_size():
    x = tf.constant(np.pad(np.ones((200, 8, 8, 1), np.float32), [(0, 0), (8, 8), (8, 8), (0, 0)]))
    areas = tf.reduce_sum(augmentation.geometry(x, SEEDS, 1.0, ("scale",)), axis=(1, 2, 3)).numpy() / 64
    factors = np.exp2(augmentation.SCALE * random.normal(SEEDS, (1,), 1).numpy()[:, 0])
    np.testing.assert_allclose(areas, factors**2, rtol=0.1)


def test_colour_and_cutout_do_what_they_say():
    grey = tf.fill((200, 6, 6, 3), 0.25)
    brighter = augmentation.colour(grey, SEEDS, 1.0).numpy()
    assert np.ptp(brighter, axis=(1, 2, 3)).max() < 1e-6  # a grey image has no contrast or saturation
    assert -0.25 - 1e-6 <= brighter.min() < -0.2 and 0.7 < brighter.max() <= 0.75 + 1e-6
    kept = augmentation.cutout(tf.ones((200, 16, 16, 1)), SEEDS, 1.0).numpy()
    share = 1.0 - kept.mean(axis=(1, 2, 3))
    assert set(np.unique(kept)) == {0.0, 1.0} and share.max() <= 0.25 + 1e-6 and share.min() < 0.12


@pytest.mark.parametrize("kind", ["diffaug", "ada"])
def test_second_gradients_pass_the_augmentation(kind):
    """Of a quadratic function of the augmented image, whose second derivative the transformation's matrix decides."""
    x = images((3, 6, 6, 2))
    seeds = random.spread(5, 3)
    change = (
        (lambda x: augmentation.diffaug(x, seeds))
        if kind == "diffaug"
        else (lambda x: augmentation.adaptive(x, seeds, tf.constant(1.0)))
    )

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.square(change(x)))
        return tape.gradient(value, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        price = tf.reduce_sum(tf.square(slope(x)))
    found = tape.gradient(price, x)
    towards = images((3, 6, 6, 2)) * 0.5 + 0.1
    step = 1e-2
    ends = [float(tf.reduce_sum(tf.square(slope(x + sign * step * towards)))) for sign in (1, -1)]
    assert float(tf.reduce_sum(found * towards)) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


def test_the_share_follows_how_sure_the_discriminator_is():
    x = images((16, 8, 8, 1)) * 0.0 + 0.9
    model = GAN((8, 8, 1), augmentation="ada", hidden_units=(16,), latent_dim=4, ada_target=0.5)
    model.compile()
    for _ in range(40):
        logs = model.train_step(x)
    assert 0 < float(logs["augmented_share"]) <= 40 * 16 / 200_000 + 1e-6
    rising = float(model.augmented_share)
    model.ada_target = 2.0  # which no mean of signs is above
    model.train_step(x)
    assert float(model.augmented_share) == pytest.approx(rising - 16 / 200_000)


def test_augmentation_is_for_images_and_known_by_name():
    with pytest.raises(ValueError, match="`augmentation` must be none, diffaug or ada"):
        GAN((8, 8, 1), augmentation="mirror")
    with pytest.raises(ValueError, match="`augmentation` must be none for points"):
        GAN((2,), augmentation="ada")
