"""Class histograms, nearest training images, sliced Wasserstein: cases by hand, laws, standard errors."""

import math

import numpy as np
import pytest

from gentf.metrics import modes
from gentf.metrics.distance import sliced_wasserstein, sliced_wasserstein_estimate
from gentf.metrics.estimate import mean_of, share_of, to_signed, to_unit
from gentf.metrics.nearest import copy_threshold, near_copies, nearest_distances

RANDOM = np.random.default_rng(0)


def images(num, shape=(4, 5, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape)).astype(np.uint8)


def assert_spread(estimate, draw, repeats=150, tolerance=0.25):
    """The stderr of `estimate` agrees with the spread of `draw(seed)` over fresh samples."""
    spread = np.std([draw(seed) for seed in range(repeats)], ddof=1)
    assert estimate.stderr == pytest.approx(spread, rel=tolerance)


# Estimates


def test_mean_and_its_standard_error():
    estimate = mean_of(np.array([1.0, 2.0, 3.0, 6.0]))
    assert estimate.value == 3.0
    assert estimate.stderr == pytest.approx(math.sqrt(14 / 3 / 4))
    assert math.isnan(mean_of(np.array([1.0])).stderr)


def test_share_is_never_without_error():
    assert share_of(np.array([True, False, False, False])).value == 0.25
    all_hit = share_of(np.ones(100, bool))
    assert all_hit.value == 1.0
    assert 0 < all_hit.stderr < 0.01

    def draw(seed):
        return (np.random.default_rng(seed).random(400) < 0.3).mean()

    assert_spread(share_of(np.arange(400) < 120), draw)


def test_pixel_scales_agree():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 256)
    np.testing.assert_allclose(to_unit(pixels), np.arange(256)[None] / 255, atol=1e-7)
    np.testing.assert_allclose(to_signed(pixels), np.arange(256)[None] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(to_unit(to_signed(pixels)), to_unit(pixels), atol=1e-6)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.full((2, 3), np.nan, np.float32), "2 of 2 images with NaN"),
        (np.zeros((2, 3), np.int64), "int64"),
        (np.zeros((0, 3), np.uint8), "at least one image"),
    ],
)
def test_images_that_cannot_be_measured(bad, message):
    with pytest.raises(ValueError, match=message):
        to_signed(bad)


# Classes


def test_reverse_kl_by_hand():
    # (3, 1) against shares (1/2, 1/2), which the smoothing leaves as they are
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert modes.reverse_kl([3, 1], [500, 500]).value == pytest.approx(expected)


def test_reverse_kl_is_zero_for_equal_shares_and_finite_for_a_class_without_real_images():
    assert modes.reverse_kl([20, 30, 50], [2000, 3000, 5000]).value == pytest.approx(0, abs=1e-6)
    # the class without real images has (0 + 1/2) / (9 + 3/2) of them
    assert modes.reverse_kl([0, 0, 7], [5, 4, 0]).value == pytest.approx(math.log(21))


def test_reverse_kl_goes_from_the_generated_to_the_real_classes():
    missing = modes.reverse_kl([100, 0], [900, 100]).value  # a rare class is dropped: cheap
    invented = modes.reverse_kl([50, 50], [1000, 0]).value  # half of the images are of a class that is not there
    assert missing == pytest.approx(-math.log(900.5 / 1001))
    assert invented > 2


def test_collapse_to_one_class_is_the_worst_reverse_kl():
    assert modes.reverse_kl([0, 1000] + [0] * 8, [600] * 10).value == pytest.approx(math.log(10))
    assert modes.worst_reverse_kl([600] * 10) == pytest.approx(math.log(10))
    assert modes.reverse_kl([0, 0, 9], [50, 30, 20]).value == pytest.approx(modes.worst_reverse_kl([50, 30, 20]))


def test_reverse_kl_does_not_know_the_order_of_classes():
    counts, real = RANDOM.integers(1, 50, 6), RANDOM.integers(100, 900, 6)
    order = RANDOM.permutation(6)
    there, back = modes.reverse_kl(counts, real).value, modes.reverse_kl(counts[order], real[order]).value
    assert there == pytest.approx(back)


def test_bootstrap_of_reverse_kl_agrees_with_repeated_draws():
    shares, real = np.array([0.5, 0.3, 0.15, 0.05]), [250] * 4

    def draw(seed):
        return modes.reverse_kl(np.random.default_rng(seed).multinomial(1000, shares), real, draws=2).value

    assert_spread(modes.reverse_kl([500, 300, 150, 50], real), draw)
    assert modes.reverse_kl([5, 3], [1, 1], seed=3) == modes.reverse_kl([5, 3], [1, 1], seed=3)


def test_expected_reverse_kl_is_that_of_as_many_draws():
    # of a perfect generator: (K - 1) / (2 n)
    assert modes.expected_reverse_kl([100] * 10, [6000] * 10, 500) == pytest.approx(9 / 1000, rel=0.1)


def test_classes_covered():
    real = [100, 100, 100, 100]
    assert modes.classes_covered([10, 10, 0, 0], real).value == 2
    # one image in 10,000 is below a hundredth of a quarter: a mistake of the classifier, not a class
    assert modes.classes_covered([5000, 4999, 1, 0], real).value == 2
    assert modes.classes_covered([5000, 4999, 1, 0], real, minimum=0).value == 3
    assert modes.classes_covered([1000, 0, 0, 0], real).stderr == 0
    assert modes.classes_covered([1000, 1, 0, 0], real, minimum=0).stderr > 0.3  # gone in a third of the draws


def test_confidence_and_agreement_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.5, 0.5]])
    assert modes.confidence(probabilities).value == pytest.approx(0.7)
    assert modes.class_agreement(probabilities, [0, 0, 1, 0]).value == 0.75
    zero, one = modes.agreement_by_class(probabilities, [0, 0, 1, 0])
    assert (zero.value, one.value) == (pytest.approx(2 / 3), 1.0)
    assert modes.agreement_by_class(probabilities, [0, 0, 0, 0])[1] is None


@pytest.mark.parametrize("num", [1, 7, 100, 1437])
def test_labels_in_proportion(num):
    real = np.array([50, 0, 30, 20])
    labels = modes.labels_in_proportion(real, num)
    assert labels.dtype == np.int32
    assert len(labels) == num
    counts = np.bincount(labels, minlength=4)
    assert np.abs(counts - real / 100 * num).max() < 1
    assert counts[1] == 0
    half = np.bincount(labels[: num // 2], minlength=4)
    assert np.abs(half - real / 100 * (num // 2)).max() <= 1.5  # not sorted by class
    np.testing.assert_array_equal(labels, modes.labels_in_proportion(real, num))


@pytest.mark.parametrize(
    "call",
    [
        lambda: modes.reverse_kl([0, 0], [1, 1]),
        lambda: modes.reverse_kl([1, 1], [0, 0]),
        lambda: modes.reverse_kl([1, 1], [1, 1, 1]),
        lambda: modes.class_counts([0, 2], 2),
        lambda: modes.labels_in_proportion([0, 0], 3),
        lambda: modes.confidence(np.zeros((0, 3))),
        lambda: modes.class_agreement(np.ones((2, 3)), [1]),
    ],
)
def test_bad_counts(call):
    with pytest.raises(ValueError, match=r"`\w+` .*must"):
        call()


# Nearest training images


def brute_force(queries, train):
    difference = to_unit(queries).reshape(len(queries), 1, -1).astype(np.float64) - to_unit(train).reshape(
        1, len(train), -1
    )
    return np.sqrt((difference**2).mean(axis=2).min(axis=1))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 1), (7, 3, 3)])
@pytest.mark.parametrize("train_block", [3, 64])
def test_nearest_agrees_with_brute_force(shape, train_block):
    queries, train = images(20, shape, 1), images(50, shape, 2)
    distances = nearest_distances(queries, train, query_block=7, train_block=train_block)
    np.testing.assert_allclose(distances, brute_force(queries, train), rtol=1e-5)
    floats = nearest_distances(to_signed(queries), to_signed(train), query_block=7, train_block=train_block)
    np.testing.assert_allclose(floats, distances, rtol=1e-4, atol=1e-6)


def test_nearest_by_hand():
    train = np.array([[[0, 0]], [[255, 255]]], np.uint8)
    queries = np.array([[[255, 0]], [[51, 0]]], np.uint8)
    np.testing.assert_allclose(nearest_distances(queries, train), [math.sqrt(0.5), 0.2 / math.sqrt(2)], rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_copies_are_at_distance_zero_exactly(kind):
    train = images(300, (28, 28, 1))
    train[:200, 1:] = 255  # large norms and small differences: the worst case of the expanded square
    train = train if kind == np.uint8 else to_signed(train)
    order = RANDOM.permutation(300)
    assert (nearest_distances(train[order], train, query_block=64, train_block=128) == 0).all()


def test_small_differences_are_not_lost_in_rounding():
    train = np.full((2, 64, 64, 3), 255, np.uint8)
    train[1, 0, 0] = 250
    query = train[:1].copy()
    query[0, 0, 0, 0] = 254
    expected = 1 / 255 / math.sqrt(64 * 64 * 3)
    assert nearest_distances(query, train)[0] == pytest.approx(expected, rel=1e-4)
    assert nearest_distances(query, train[::-1], train_block=1)[0] == pytest.approx(expected, rel=1e-4)


def test_training_images_may_come_in_blocks_and_in_any_order():
    queries, train = images(9, seed=1), images(40, seed=2)
    whole = nearest_distances(queries, train)
    seen = []

    def blocks():
        return (train[i : i + 7] for i in range(0, 40, 7))

    np.testing.assert_array_equal(nearest_distances(queries, blocks, progress=seen.append), whole)
    assert seen[-1] == 40
    np.testing.assert_allclose(nearest_distances(queries, train[::-1]), whole, rtol=1e-6)


def test_a_training_set_of_equal_images_costs_no_more():
    train = np.zeros((20_000, 28, 28, 1), np.uint8)
    assert (nearest_distances(np.zeros((2000, 28, 28, 1), np.uint8), train) == 0).all()


def test_near_copies():
    train, real = images(200, seed=1), images(1000, seed=2)
    of_real = nearest_distances(real, train)
    assert near_copies(nearest_distances(train, train), of_real).value == 1
    assert near_copies(of_real, of_real).value == pytest.approx(0.01, abs=0.001)
    others = nearest_distances(images(1000, seed=3), train)
    assert near_copies(others, of_real).value == pytest.approx(0.01, abs=0.015)
    # duplicates across the splits: the quantile is 0, and a copy is still seen
    assert copy_threshold(np.zeros(10)) > 0
    assert near_copies([0.0, 0.1], np.zeros(10)).value == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: nearest_distances(images(2), images(2, (3, 3, 1))),
        lambda: nearest_distances(images(2), lambda: []),
        lambda: copy_threshold([]),
        lambda: copy_threshold([1.0], quantile=0),
    ],
)
def test_bad_nearest(call):
    with pytest.raises(ValueError, match=r"`\w+` must"):
        call()


# Sliced Wasserstein


def test_sliced_wasserstein_of_single_pixels_is_w1():
    # the only directions are +1 and -1
    x = np.array([[-1.0], [0.0], [1.0]], np.float32)
    y = np.array([[0.5], [-1.0], [0.5]], np.float32)
    assert sliced_wasserstein(x, y) == pytest.approx((0 + 0.5 + 0.5) / 3)
    # unequal counts: the half at 0.5 is met by 1/6 at 0 and 1/3 at 1, that at -1 by 1/3 at -1 and 1/6 at 0
    assert sliced_wasserstein(x, np.array([[0.5], [-1.0]], np.float32)) == pytest.approx(0.5 / 6 + 0.5 / 3 + 1 / 6)


@pytest.mark.parametrize("counts", [(30, 30), (30, 20), (7, 31), (1, 5)])
def test_sliced_wasserstein_agrees_with_the_estimate_and_is_symmetric(counts):
    x, y = images(counts[0], seed=1), to_signed(images(counts[1], seed=2)) * 0.5
    value = sliced_wasserstein(x, y)
    assert value == pytest.approx(sliced_wasserstein(y, x), rel=1e-5)
    assert value == pytest.approx(sliced_wasserstein_estimate(x, y).value, rel=1e-5)
    assert value == sliced_wasserstein(x, y)
    assert value != sliced_wasserstein(x, y, seed=1)


def test_sliced_wasserstein_laws():
    x, y = to_signed(images(40, seed=1)) * 0.3, to_signed(images(60, seed=2)) * 0.3
    assert sliced_wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(np.repeat(x, 3, axis=0), y) == pytest.approx(sliced_wasserstein(x, y), rel=1e-5)
    assert sliced_wasserstein(2 * x, 2 * y) == pytest.approx(2 * sliced_wasserstein(x, y), rel=1e-5)
    assert sliced_wasserstein(x + 0.1, y + 0.1) == pytest.approx(sliced_wasserstein(x, y), rel=1e-4)
    assert sliced_wasserstein(x, y + 0.4) > 2 * sliced_wasserstein(x, y)


def test_sliced_wasserstein_of_an_offset():
    x = to_signed(images(50, (28, 28, 1))) * 0.5
    offset = RANDOM.uniform(-0.5, 0.5, (28, 28, 1)).astype(np.float32)
    expected = math.sqrt(2 / math.pi) * math.sqrt((offset**2).mean())
    value = sliced_wasserstein(x, x + offset, projections=4000)
    assert value == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("counts", [(200, 200), (300, 150)])
def test_standard_error_of_sliced_wasserstein_agrees_with_repeated_draws(counts):
    def sets(seed):
        random = np.random.default_rng(seed)
        bright = random.uniform(-0.5, 0.3, (counts[0], 1)).astype(np.float32)  # pixels that move together
        x = bright + random.normal(0, 0.1, (counts[0], 30)).astype(np.float32)
        return x, random.normal(0.2, 0.2, (counts[1], 30)).astype(np.float32)

    def draw(seed):
        return sliced_wasserstein(*sets(seed), projections=64, seed=seed)

    assert_spread(sliced_wasserstein_estimate(*sets(1000), projections=64), draw)


def test_bad_sliced_wasserstein():
    with pytest.raises(ValueError, match="one size"):
        sliced_wasserstein(images(2), images(2, (3, 3, 1)))
    with pytest.raises(ValueError, match="`projections`"):
        sliced_wasserstein(images(2), images(2), projections=0)
    with pytest.raises(ValueError, match="`y` must be finite"):
        sliced_wasserstein(images(2), np.full((2, 4, 5, 1), np.inf, np.float32))
