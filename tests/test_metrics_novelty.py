"""Copies, variety inside classes, and tests of two samples: held to plain definitions and to planted cases."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gentf.errors import UserError
from gentf.evaluation import copy_metrics
from gentf.evaluation_features import COPIES, Novelty, copying
from gentf.metrics.extractors import inception, random_weights
from gentf.metrics.nearest import nearest_distances
from gentf.metrics.novelty import authenticity, likelihood_gap
from gentf.metrics.similarity import pair_similarity
from gentf.metrics.two_sample import two_sample


def test_authenticity_is_what_the_definition_says():
    generator = np.random.default_rng(0)
    train, generated = generator.normal(size=(1300, 3)), generator.normal(0.2, 0.9, (1100, 3))
    between = np.linalg.norm(generated[:, None] - train, axis=2)
    own = np.linalg.norm(train[:, None] - train, axis=2)
    np.fill_diagonal(own, np.inf)
    nearest = between.argmin(axis=1)
    expected = (between.min(axis=1) > own.min(axis=1)[nearest]).mean()
    assert authenticity(train, generated).value == pytest.approx(expected)
    assert authenticity(train, train[:300]).value == 0.0


def test_the_likelihood_gap_is_that_of_the_fitted_density():
    train, held_out = np.array([[-1.0], [1.0]]), np.array([[-2.0], [0.0]])  # of mean 0 and variance 1 already
    found = likelihood_gap(train, held_out, np.array([[0.0], [0.0]]))
    # both normals are the same one, of variance 1, the mean square of the training points
    assert found.value == pytest.approx(-0.5 + 0.5 * (4.0 + 0.0) / 2)
    generator = np.random.default_rng(1)
    train, held_out, others = generator.normal(size=(3, 600, 5))
    learned, copied = likelihood_gap(train, held_out, others), likelihood_gap(train, held_out, train)
    assert abs(learned.value) < 5 * learned.stderr and copied.value > 20 * copied.stderr
    half = likelihood_gap(train, held_out, np.concatenate([train[:300], others[:300]]))
    assert learned.value < half.value < copied.value


def test_a_feature_that_is_always_off_changes_nothing():
    train, held_out, others = np.random.default_rng(2).normal(size=(3, 200, 4))
    wide = [np.pad(points, [(0, 0), (0, 1)]) for points in (train, held_out, others)]
    assert np.isfinite(likelihood_gap(*wide).value)
    with pytest.raises(ValueError, match="`held_out` must have 5 features, as `train` has. Received: 4"):
        likelihood_gap(wide[0], held_out, others)


def digits():
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(7).permutation(len(images))
    return images[order[:1000]], images[order[1000:]]


def verdict(samples, held_out, train, space):
    def blocks():
        yield train

    distances = nearest_distances(np.concatenate([samples, held_out]), blocks)
    metrics = copy_metrics(distances[: len(samples)], distances[len(samples) :])
    generated, real, fitted = (space.features(part).astype(np.float64) for part in (samples, held_out, train))
    metrics |= Novelty(real, fitted).metrics(generated)
    return copying(metrics)


def test_a_copycat_is_caught_and_held_out_data_pass():
    train, others = digits()
    space = random_weights((8, 8, 1), 0)
    generator = np.random.default_rng(3)
    alarms = 0
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(others))
        fresh, held_out = others[order[:398]], others[order[398:]]
        alarms += bool(verdict(fresh, held_out, train, space))
        copies = train[generator.permutation(len(train))[:398]]
        assert set(verdict(copies, held_out, train, space)) == set(COPIES)
        partly = np.concatenate([copies[:200], fresh[:198]])[generator.permutation(398)]
        assert verdict(partly, held_out, train, space)
        close = np.clip(copies.astype(int) + generator.integers(-8, 9, copies.shape), 0, 255).astype(np.uint8)
        assert set(verdict(close, held_out, train, space)) >= {"near_copies", "authenticity"}
    assert alarms == 0


def test_two_samples_are_told_apart_where_they_differ():
    generator = np.random.default_rng(4)
    one, same, moved, wider = generator.normal(size=(4, 1500, 6))
    found = two_sample(one, same)
    assert abs(found.value - 0.5) < 4 * found.stderr
    assert two_sample(one, moved + 1.0).value > 0.75
    assert two_sample(one, 2.0 * wider[:900]).value > 0.75
    with pytest.raises(ValueError, match="at least 4 points of one space"):
        two_sample(one[:3], same)


def test_pairs_are_of_one_class_and_never_of_one_image():
    from gentf.metrics.similarity import _pairs

    generator = np.random.default_rng(5)
    classes = np.array([2, 0, 0, 1, 2, 2, 0])  # class 1 has a single image
    first, second = _pairs(7, classes, 500, generator)
    assert np.all(first != second) and np.all(classes[first] == classes[second])
    assert set(zip(first, second)) == {
        (a, b) for a in range(7) for b in range(7) if a != b and classes[a] == classes[b]
    }
    first, second = _pairs(7, None, 2000, generator)
    assert np.all(first != second) and len(set(zip(first, second))) == 42
    with pytest.raises(ValueError, match="`classes` must hold a class of two"):
        _pairs(2, np.array([0, 1]), 5, generator)


@pytest.mark.parametrize("size", [8, 28, 48])
def test_similarity_is_1_for_one_image_and_falls_with_variety(size):
    generator = np.random.default_rng(6)
    image = generator.integers(0, 256, (1, size, size, 1), np.uint8)
    assert pair_similarity(np.repeat(image, 3, axis=0), pairs=10).value == pytest.approx(1.0)
    near = np.clip(image.astype(int) + generator.integers(-40, 41, (50, size, size, 1)), 0, 255).astype(np.uint8)
    far = generator.integers(0, 256, (50, size, size, 1), np.uint8)
    assert 0.97 > pair_similarity(near, pairs=100).value > pair_similarity(far, pairs=100).value + 0.2


def test_similarity_of_large_images_is_tensorflows():
    import tensorflow as tf

    images = np.random.default_rng(7).integers(0, 256, (2, 192, 192, 3), np.uint8)
    images[1] = images[0] // 2
    expected = tf.image.ssim_multiscale(images[:1], images[1:], 255).numpy()[0]
    assert pair_similarity(images, pairs=3).value == pytest.approx(expected, rel=1e-3)


def test_an_extractor_is_its_recipe():
    first, again, other = (random_weights((8, 8, 1), seed) for seed in (0, 0, 1))
    images = digits()[0][:5]
    assert first.name == again.name != other.name and first.name.startswith("random@")
    np.testing.assert_array_equal(first.features(images), again.features(images))
    assert first.features(images).shape == (5, 128) and not np.array_equal(
        first.features(images), other.features(images)
    )


def test_wrong_weights_of_inception_are_told(tmp_path):
    with pytest.raises(UserError, match="must be an .h5 file of Inception v3's weights. Received: .*nothing.h5"):
        inception(tmp_path / "nothing.h5")
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match="cannot read Inception v3's weights from .*bad.h5"):
        inception(tmp_path / "bad.h5")
