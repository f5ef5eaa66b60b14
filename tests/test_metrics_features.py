"""Distances, fidelity and variety of sets in a feature space, held to closed forms and to slow, plain definitions."""

import numpy as np
import pytest
import scipy.linalg

from gentf.metrics.features import frechet, kid, vendi
from gentf.metrics.manifold import prdc


def plain_prdc(real, generated, k):
    """By the definitions, one distance at a time."""
    distance = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)  # noqa: E731
    real_balls = np.sort(distance(real, real), axis=1)[:, k]
    generated_balls = np.sort(distance(generated, generated), axis=1)[:, k]
    between = distance(real, generated)
    return {
        "precision": (between < real_balls[:, None]).any(axis=0).mean(),
        "recall": (between < generated_balls[None]).any(axis=1).mean(),
        "density": (between < real_balls[:, None]).sum(axis=0).mean() / k,
        "coverage": (between.min(axis=1) < real_balls).mean(),
    }


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(300, 220, 5, 5), (1203, 1010, 3, 3), (50, 60, 200, 1)])
def test_prdc_is_what_the_definitions_say(n, m, dim, k):
    generator = np.random.default_rng(n)
    real = generator.normal(size=(n, dim)).astype(np.float32)
    generated = generator.normal(0.3, 1.1, (m, dim)) + 1e3 * (n == 300)
    real = real + 1e3 * (n == 300)  # far from the origin: digits are lost there
    found, expected = prdc(real, generated, k), plain_prdc(real.astype(float), generated, k)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-5), name


def test_the_metrics_are_those_of_their_authors():
    import prdc as oracle
    from vendi_score import vendi as vendi_oracle

    generator = np.random.default_rng(8)
    real, generated = generator.normal(size=(700, 20)), generator.normal(0.2, 1.3, (640, 20))
    found, expected = prdc(real, generated), oracle.compute_prdc(real, generated, 5)
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(expected, abs=1e-5)
    points = np.abs(generated)
    assert vendi(points).value == pytest.approx(vendi_oracle.score_X(points, normalize=True), rel=1e-5)
    assert vendi(points[:15]).value == pytest.approx(vendi_oracle.score_X(points[:15], normalize=True), rel=1e-5)


def test_prdc_tells_collapse_from_noise():
    generator = np.random.default_rng(0)
    real = generator.normal(size=(800, 4))
    collapsed, wide = real[:1] + generator.normal(0, 0.01, (800, 4)), generator.normal(0, 6.0, (800, 4))
    one, other, same = (prdc(real, points) for points in (collapsed, wide, generator.normal(size=(800, 4))))
    assert one["precision"].value > 0.95 and one["recall"].value < 0.05 and one["coverage"].value < 0.05
    assert other["precision"].value < 0.2 and other["density"].value < 0.1
    assert min(estimate.value for estimate in same.values()) > 0.8


def test_two_normal_sets_in_many_dimensions_score_what_they_should():
    generator = np.random.default_rng(1)
    found = prdc(*(generator.normal(size=(2000, 400)) for _ in range(2)))
    assert found["density"].value == pytest.approx(1.0, abs=0.15) and found["coverage"].value == pytest.approx(
        0.97, abs=0.02
    )


def test_frechet_of_normal_sets_is_the_closed_form():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(6, 6)), generator.normal(size=(6, 6))
    one, other = generator.normal(size=(40_000, 6)) @ a.T + 1.0, generator.normal(size=(40_000, 6)) @ b.T
    expected = 6.0 + np.trace(a @ a.T + b @ b.T - 2 * scipy.linalg.sqrtm(a @ a.T @ b @ b.T).real)
    found = frechet(one, other)
    assert abs(found.value - expected) < 4 * found.stderr < 0.05 * expected
    assert frechet(one, one).value == pytest.approx(0.0, abs=1e-8)
    assert frechet(one, other).value == pytest.approx(frechet(other, one).value, rel=1e-9)


def test_kid_is_without_bias():
    generator = np.random.default_rng(3)
    values = [kid(*generator.normal(size=(2, 60, 5)), seed=seed).value for seed in range(40)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
    far = kid(generator.normal(size=(500, 5)), generator.normal(1.0, 1.0, (500, 5)))
    assert far.value > 10 * far.stderr
    x, y = np.array([[1.0], [2.0]]), np.array([[3.0], [0.0]])  # kernel (xy + 1)^3, by hand
    assert kid(x, y).value == pytest.approx(27.0 + 1.0 - 2 * (64 + 343 + 1 + 1) / 4)


def test_vendi_counts_what_is_different():
    assert vendi(np.eye(7)).value == pytest.approx(7.0)
    assert vendi(np.ones((30, 4))).value == pytest.approx(1.0)
    assert vendi(np.repeat(np.eye(5), 40, axis=0)).value == pytest.approx(5.0)
    generator = np.random.default_rng(4)
    points = generator.normal(size=(60, 9))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 60)
    values = values[values > 1e-10]
    assert vendi(points).value == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-9)
    assert vendi(points[:5]).value <= 5.0  # fewer points than dimensions


@pytest.mark.parametrize("metric", [prdc, frechet, kid])
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "must have 2 features"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), "must be finite"),
        (np.zeros((9, 2), int), np.zeros((9, 2)), "float"),
        (np.zeros(9), np.zeros((9, 2)), r"\(n, D\) float"),
    ],
)
def test_what_is_no_set_of_features_is_refused(metric, one, other, message):
    with pytest.raises(ValueError, match=message):
        metric(one, other)


def test_a_neighbour_must_be_there():
    with pytest.raises(ValueError, match="`k` must be from 1"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)), k=5)
