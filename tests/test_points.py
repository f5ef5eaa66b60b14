"""Points of mixtures: the data, what is measured of them, packing, and the whole way on the command line."""

import json

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from gentf.cli.main import run
from gentf.data import load
from gentf.data.points import MIXTURES
from gentf.errors import UserError
from gentf.metrics import mixture
from gentf.models import GAN
from gentf.sampling.images import scatter


def command(capsys, *words):
    status = run([str(word) for word in words])
    return (status, *capsys.readouterr())


@pytest.mark.parametrize(("name", "modes", "scale"), [("ring-8", 8, 0.04), ("grid-25", 25, 0.05)])
def test_points_lie_where_the_mixture_says(name, modes, scale):
    source = load(name, modality="points")
    assert source.spec.num_classes == modes and source.spec.shape == (2,)
    content = source.train.contents()
    points, labels = content["point"], content["label"]
    assert points.shape == (100_000, 2) and points.dtype == np.float32
    centres = MIXTURES[name].centres
    away = (points - centres[labels]) / scale
    np.testing.assert_allclose(away.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(np.cov(away.T), np.eye(2), atol=0.02)
    assert stats.chisquare(np.bincount(labels)).pvalue > 1e-3
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)[~np.eye(modes, dtype=bool)]
    assert apart.min() > 30 * scale  # three deviations are far from a neighbour's
    again = load(name, modality="points")
    assert again.fingerprint == source.fingerprint
    assert not np.array_equal(points[:100], source.test.contents()["point"][:100])


def test_wrong_names_are_told():
    with pytest.raises(UserError, match="`name` must be one of ring-8, grid-25"):
        load("ring-9", modality="points")
    with pytest.raises(UserError, match="`size` is no option of modality points. It has: none"):
        load("ring-8", modality="points", size=(2, 2))


def test_the_mixture_itself_has_every_mode_and_no_mismatch():
    known = MIXTURES["grid-25"]
    points, _ = known.draw(2500, 3)
    found = mixture.coverage(points, known.centres, known.scale)
    assert found["modes"].value == 25
    inside = stats.chi2.cdf(9.0, 2)
    assert abs(found["high_quality"].value - inside) < 4 * found["high_quality"].stderr
    assert 0.5 * 24 / 5000 < found["reverse_kl"].value < 2 * 24 / 5000
    assert abs(found["spread"].value - 1.0) < 4 * found["spread"].stderr < 0.1


def test_losses_of_modes_are_seen():
    known = MIXTURES["grid-25"]
    points, labels = known.draw(5000, 4)
    half = mixture.coverage(points[labels < 5], known.centres, known.scale)
    assert half["modes"].value == 5
    assert half["reverse_kl"].value == pytest.approx(np.log(5), abs=0.02)
    single = mixture.coverage(known.centres[labels].astype(np.float32), known.centres, known.scale)
    assert single["modes"].value == 25 and single["high_quality"].value == 1.0 and single["spread"].value == 0.0
    between = mixture.coverage(points + np.float32(1.0), known.centres, known.scale)
    assert between["modes"].value == 0 and between["high_quality"].value == 0 and np.isnan(between["spread"].value)
    one_dimension = stats.truncnorm(-3, 3).std()
    assert mixture._root_mean_square(1) == pytest.approx(one_dimension, abs=1e-4)


def test_wrong_arguments_of_coverage():
    with pytest.raises(ValueError, match="`points` must be finite"):
        mixture.coverage(np.full((3, 2), np.nan), np.zeros((1, 2)), 0.1)
    with pytest.raises(ValueError, match=r"`centres` must be \(K, 2\)"):
        mixture.coverage(np.zeros((3, 2)), np.zeros((1, 3)), 0.1)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        mixture.coverage(np.zeros((3, 2)), np.zeros((1, 2)), 0.0)


def test_packing_lays_samples_side_by_side():
    model = GAN((2, 3, 2), packing=2, hidden_units=(8,), latent_dim=3)
    images = tf.random.stateless_normal((4, 2, 3, 2), [1, 2])
    packed = model._packed(images).numpy()
    np.testing.assert_array_equal(packed, np.concatenate([images[::2], images[1::2]], axis=-1))
    odd = model._packed(images[:3]).numpy()
    np.testing.assert_array_equal(odd[1], np.concatenate([images[2], images[0]], axis=-1))
    points = GAN((2,), packing=3, hidden_units=(8,), latent_dim=3)
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(points._packed(tf.constant(values)), values.reshape(2, 6))
    assert points.discriminator.image_shape == (6,)
    with pytest.raises(ValueError, match="`packing` must be 1 for a model of classes"):
        GAN((8, 8, 1), num_classes=3, packing=2)
    with pytest.raises(ValueError, match="`packing` must be positive"):
        GAN((8, 8, 1), packing=0)


def test_only_fully_connected_networks_are_for_points(capsys):
    with pytest.raises(ValueError, match="`network` must be 'mlp' for points"):
        GAN((2,), network="dcgan")
    status, _, said = command(capsys, "train", "vae-digits", "data.modality=points", "data.name=ring-8", "--dry-run")
    assert status and "for data of modality points" in said
    status, _, said = command(capsys, "train", "rpgan-ring-8", "model.network=dcgan", "--dry-run")
    assert status and "`model.network` must be mlp for points" in said


def test_a_scatter_has_a_dot_where_a_point_is():
    picture = scatter(np.array([[0.0, 1.0], [9.0, 0.0]]), size=130, reach=1.3)[..., 0]
    rows, columns = np.nonzero(picture == 0)
    dots = [(15, 64), (64, 128)]  # of 130 pixels, -1.3 to 1.3
    assert set(zip(rows, columns)) == {(row + i, column + j) for row, column in dots for i in (0, 1) for j in (0, 1)}


def test_the_whole_way_on_the_command_line(tmp_path, capsys):
    def done(*words):
        status, out, said = command(capsys, *words)
        assert status == 0, said
        return out

    path = tmp_path / "ring"
    done("train", "rpgan-ring-8", "--run", path, "train.steps=200", "optimizer.decay_steps=200", "model.packing=2")
    assert list((path / "samples").glob("*.png")) and "val_sliced_wasserstein" in (path / "metrics.jsonl").read_text()
    report = json.loads(done("evaluate", path, "--json"))
    assert report["samples"] == 2500 and set(report["metrics"]) >= {"modes", "high_quality", "mode_reverse_kl"}
    assert report["metrics"]["modes"]["ceiling"] == 8.0
    assert "modes with a sample of high quality" in done("evaluate", path)
    done("sample", path, "--out", tmp_path / "points.csv", "-n", 50, "--seed", 3)
    drawn = np.loadtxt(tmp_path / "points.csv", delimiter=",").astype(np.float32)
    done("export", path, "--to", tmp_path / "served")
    done("sample", tmp_path / "served", "--out", tmp_path / "points.npz", "-n", 50, "--seed", 3)
    np.testing.assert_array_equal(np.load(tmp_path / "points.npz")["point"], drawn)
    done("sample", path, "--out", tmp_path / "points.png")
    assert (tmp_path / "points.png").read_bytes()[:4] == b"\x89PNG"
    assert "8 normal modes" in done("data", "ring-8")
    done("sample", path, "--out", tmp_path / "near.npz", "-n", 50, "--seed", 3, "--truncation", 0.1)
    near = np.load(tmp_path / "near.npz")["point"]
    assert np.std(near) < np.std(drawn)
    status, _, said = command(capsys, "sample", tmp_path / "served", "--truncation", 0.5, "--out", tmp_path / "x.csv")
    assert status and "`--truncation` must be left out for an export" in said
    status, _, said = command(capsys, "sample", path, "--out", tmp_path / "points")
    assert status and "`--out` must end in .csv, .npz or .png. Received" in said
