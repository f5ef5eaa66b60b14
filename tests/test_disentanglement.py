"""Scores of disentanglement on codes that are known to be perfect, worthless or mixed; and sprites from factors."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

import gentf
from gentf.data import sprites
from gentf.metrics import disentanglement as scores

NUM = 3000
FACTORS = 5


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    return sprites.sample(NUM, 0)[1]


def perfect(factors: np.ndarray) -> np.ndarray:
    """Each factor in one number: in another order, scaled, two turned round, and noise beside them."""
    scaled = factors[:, [2, 0, 4, 1, 3]] * np.array([3.0, -1.0, 0.2, 9.0, -2.0])
    return np.concatenate([scaled, np.random.default_rng(1).normal(size=(len(factors), 1))], axis=1)


def worthless(factors: np.ndarray) -> np.ndarray:
    return np.random.default_rng(len(factors)).normal(size=(len(factors), 6))


def mixed(factors: np.ndarray) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(FACTORS, FACTORS)))[0]
    return (factors - factors.mean(axis=0)) / factors.std(axis=0) @ turn


def all_scores(code, num=NUM) -> dict[str, float]:
    """A world in which an image is its factors."""

    def sample(count, seed):
        drawn = sprites.sample(count, seed)[1]
        return drawn, drawn

    def draw(factor, groups, size, seed):
        generator = np.random.default_rng([seed, factor])
        drawn = generator.integers(0, sprites.COUNTS, (groups, size, FACTORS))
        drawn[:, :, factor] = generator.integers(0, sprites.COUNTS[factor], (groups, 1))
        return drawn

    found = scores.scores(code, sample, draw, sprites.CATEGORICAL, num)
    return {name: estimate.value for name, estimate in found.items()}


def test_a_perfect_code_scores_one():
    found = all_scores(perfect)
    assert all(value >= 0.95 for value in found.values()), found


def test_a_worthless_code_scores_nothing():
    found = all_scores(worthless)
    assert found.pop("factor_vae") == pytest.approx(1 / FACTORS, abs=0.08)
    assert found.pop("dci_informativeness") < 0.05
    assert found.pop("dci_disentanglement") < 0.1 and found.pop("dci_completeness") < 0.1
    assert all(value < 0.02 for value in found.values()), found


def test_a_mixed_code_is_between():
    between, best, least = (all_scores(code) for code in (mixed, perfect, worthless))
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness"):
        assert best[name] - 0.3 > between[name], name
    assert between["dci_informativeness"] > least["dci_informativeness"] + 0.3
    assert least["factor_vae"] < between["factor_vae"] < best["factor_vae"]


def test_order_sign_and_scale_do_not_count(factors):
    codes = mixed(factors)
    other = codes[:, ::-1] * np.array([-1.0, 2.0, 0.5, -3.0, 1.0])
    assert scores.sap(codes, factors, (0,)).value == pytest.approx(scores.sap(other, factors, (0,)).value, abs=1e-9)
    assert scores.mig(codes, factors).value == pytest.approx(scores.mig(other, factors).value, abs=0.01)


def test_information_is_that_of_scikit_learn(factors):
    codes = mixed(factors)[:, :2]
    binned = [scores._binned(column, 20) for column in codes.T]
    gaps = []
    for factor in factors.T:
        information = sorted(mutual_info_score(column, factor) for column in binned)
        gaps.append((information[1] - information[0]) / mutual_info_score(factor, factor))
    assert scores.mig(codes, factors).value == pytest.approx(np.mean(gaps), abs=1e-9)


def test_standard_errors_are_what_other_draws_vary_by():
    values, told = [], []
    for seed in range(12):
        factors = sprites.sample(1000, seed)[1]
        found = scores.mig(perfect(factors)[:, :5] + np.random.default_rng(seed).normal(0, 1.0, (1000, 5)), factors)
        values.append(found.value)
        told.append(found.stderr)
    assert 0.4 < np.mean(told) / np.std(values, ddof=1) < 2.5


def test_one_number_can_not_hold_all(factors):
    found = scores.dci(np.repeat(factors[:, :1].astype(float), 2, axis=1), factors)
    assert found["completeness"].value < 0.9
    assert scores.mig(factors[:, :1].astype(float), factors).value == pytest.approx(1 / FACTORS, abs=0.02)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.zeros((50,)), np.zeros((50, 2), int), "`codes` must be"),
        (np.zeros((50, 2), int), np.zeros((50, 2), int), "`codes` must be"),
        (np.full((50, 2), np.nan), np.arange(100).reshape(50, 2), "`codes` must be finite"),
        (np.zeros((50, 2)), np.zeros((49, 2), int), r"`factors` must be \(50, F\)"),
        (np.zeros((50, 2)), np.zeros((50, 2)), "`factors` must be"),
        (np.zeros((50, 2)), np.zeros((50, 2), int), "must each have several values"),
        (np.zeros((5, 2)), np.arange(10).reshape(5, 2), "`codes` must be at least"),
    ],
)
def test_what_cannot_be_scored_is_refused(codes, factors, message):
    for score in (scores.mig, scores.sap, scores.dci):
        with pytest.raises(ValueError, match=message):
            score(codes, factors)


def test_sprites_are_every_combination_once():
    everything = sprites.render(sprites.factors_of(np.arange(sprites.NUMBER)))
    assert everything.shape == (sprites.NUMBER, 32, 32, 1) and set(np.unique(everything)) == {0, 255}
    assert len(np.unique(everything.reshape(len(everything), -1), axis=0)) == sprites.NUMBER
    assert not everything[:, 31].any() and not everything[:, :, 31].any()  # nothing is cut off at an edge


def test_sprites_move_turn_and_grow_with_their_factors():
    image = sprites.render([[2, 2, 3, 4, 9]])[0]
    np.testing.assert_array_equal(sprites.render([[2, 2, 3, 5, 9]])[0], np.roll(image, 1, axis=1))
    np.testing.assert_array_equal(sprites.render([[2, 2, 3, 4, 11]])[0], np.roll(image, 2, axis=0))
    for shape in range(3):
        areas = [(sprites.render([[shape, scale, 2, 5, 5]]) > 0).sum() for scale in range(4)]
        assert areas == sorted(areas) and len(set(areas)) == 4
        turned = [(sprites.render([[shape, 3, turn, 5, 5]]) > 0).sum() for turn in range(8)]
        assert max(turned) < 1.15 * min(turned)


@pytest.mark.parametrize("factors", [[[0, 0, 0, 0]], [[3, 0, 0, 0, 0]], [[0, 0, 0, 0, -1]], [[0.0] * 5]])
def test_factors_outside_are_refused(factors):
    with pytest.raises(ValueError, match="`factors` must be"):
        sprites.render(factors)


def test_groups_share_their_factor():
    images = sprites.sample_fixed(1, 6, 9, seed=4)
    assert images.shape == (6, 9, 32, 32, 1)
    np.testing.assert_array_equal(images, sprites.sample_fixed(1, 6, 9, seed=4))
    columns = sprites.sample_fixed(3, 6, 9, seed=4)[..., 0].any(axis=2)  # (6, 9, 32): which columns hold something
    first, last = columns.argmax(axis=2), 31 - columns[:, :, ::-1].argmax(axis=2)
    middles = (first + last) / 2  # a heart that is turned reaches further to one side
    assert np.all(np.ptp(middles, axis=1) <= 3.5) and np.ptp(middles) > 6


def test_sprites_are_a_data_set():
    source = gentf.load("sprites")
    assert source.spec.shape == (32, 32, 1) and source.spec.class_names == sprites.SHAPES
    images, labels = source.test.arrays(60)
    known = {image.tobytes(): number for number, image in enumerate(sprites.render(sprites.factors_of(range(24576))))}
    found = sprites.factors_of([known[image.tobytes()] for image in images])
    np.testing.assert_array_equal(found[:, 0], labels)
    assert sum(map(len, source.splits.values())) == sprites.NUMBER
