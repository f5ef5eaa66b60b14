"""`evaluate` on models whose faults are known, and `gentf evaluate`."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from gentf import evaluation
from gentf.cli.main import run as gentf
from gentf.config import resolve
from gentf.data import from_arrays, load
from gentf.errors import UserError
from gentf.evaluation import METRICS, evaluate
from gentf.metrics.classifier import Classifier, Recipe, stream_of_arrays
from gentf.metrics.estimate import to_signed
from gentf.models import build
from gentf.training.run import Run

BY_CLASS = ("classes_covered", "reverse_kl", "confidence")
IN_FEATURES = tuple(evaluation.in_features.METRICS)
BY_PIXELS = ("nearest_train_distance", "near_copies", "sliced_wasserstein")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


class FakeModel:
    """`images(num, labels, random)` -> (num, H, W, C) uint8, or float in [-1, 1]."""

    def __init__(self, images, num_classes=0):
        self.images, self.num_classes = images, num_classes

    def sample(self, num, *, condition=None, seed=None):
        assert (condition is None) == (self.num_classes == 0)
        return to_float(self.images(num, condition, np.random.default_rng(seed)))


def to_float(images):
    return to_signed(images) if images.dtype == np.uint8 else images.astype(np.float32)


@pytest.fixture
def measure(tmp_path, digits):
    """evaluate() of a model given as a function."""

    def call(images, num_classes=0, source=digits, extractors=0, **options):
        run = SimpleNamespace(
            path=tmp_path,
            name="fake",
            spec=source.spec,
            load_data=lambda progress=None: source,
            load_model=lambda which="last", warn=None: FakeModel(images, num_classes),
        )
        return evaluate(run, extractors=extractors, **options)

    return call


def drawn_from(images):
    return lambda num, condition, random: images[random.integers(0, len(images), num)]


def noise(num, condition, random):
    return random.integers(0, 256, (num, 8, 8, 1)).astype(np.uint8)


def near(entry, end, tolerances=4.0, slack=0.0):
    return abs(entry["value"] - entry[end]) <= tolerances * entry["stderr"] + slack


def test_unseen_real_images_score_what_real_images_score(measure, digits):
    result = measure(drawn_from(digits.validation.arrays()[0]))
    metrics = result["metrics"]
    assert set(metrics) == {*BY_CLASS, *BY_PIXELS}
    for name, entry in metrics.items():
        # the two held-out splits are 180 images each: their own means differ by some per cent
        room = 0.05 * (entry["ceiling"] - entry["floor"])
        assert near(entry, METRICS[name].real, slack=room), (name, entry)
    assert result["classifier"]["test_accuracy"] > 0.95
    assert result["samples"] == len(digits.train)


def test_features_put_real_images_at_the_real_end(measure, digits):
    images = digits.validation.arrays()[0]
    result = measure(lambda num, condition, random: images[:num], samples=180, extractors=2)
    assert set(result["metrics"]) == {*BY_CLASS, *BY_PIXELS, *IN_FEATURES}
    assert [about["name"].split("@")[0] for about in result["extractors"]] == ["cnn-digits", "cnn-digits", "random"]
    assert len({about["name"] for about in result["extractors"]}) == 3 and result["copying"] == []
    for about in result["extractors"]:
        assert 0 < about["ratio"] < 3 and about["metrics"]["fcd"]["ceiling"] > 5 * about["metrics"]["fcd"]["value"]
    for name in IN_FEATURES:
        entry = result["metrics"][name]
        room = 0.15 * abs(entry["ceiling"] - entry["floor"])
        assert near(entry, METRICS[name].real, slack=room), (name, entry)


def test_features_tell_copies_collapse_and_noise(measure, digits):
    images = digits.train.arrays()[0]
    copied = measure(drawn_from(images), extractors=1)
    assert copied["copying"][:2] == ["near_copies", "authenticity"]
    assert copied["metrics"]["authenticity"]["value"] == 0
    single = measure(lambda num, condition, random: np.repeat(images[:1], num, axis=0), extractors=1)["metrics"]
    assert single["vendi"]["value"] == pytest.approx(1.0) and single["pair_similarity"]["value"] == pytest.approx(1.0)
    assert single["recall"]["value"] == 0 and single["coverage"]["value"] < 0.1
    random = measure(noise, extractors=1)["metrics"]
    assert random["two_sample"]["value"] > 0.9 and random["coverage"]["value"] < 0.5
    assert random["fcd"]["value"] == pytest.approx(random["fcd"]["ceiling"], rel=0.2)


def test_collapse_to_one_image_is_seen(measure, digits):
    image = digits.train.arrays(1)[0]
    metrics = measure(lambda num, condition, random: np.repeat(image, num, axis=0))["metrics"]
    assert metrics["classes_covered"]["value"] == 1
    assert metrics["reverse_kl"]["value"] == pytest.approx(np.log(10), rel=0.03)
    assert metrics["reverse_kl"]["value"] <= metrics["reverse_kl"]["ceiling"]
    assert metrics["sliced_wasserstein"]["value"] > 5 * metrics["sliced_wasserstein"]["floor"]


def test_copies_of_the_training_images_are_seen(measure, digits):
    metrics = measure(drawn_from(digits.train.arrays()[0]))["metrics"]
    assert metrics["near_copies"]["value"] == metrics["near_copies"]["ceiling"] == 1
    assert metrics["nearest_train_distance"]["value"] == metrics["nearest_train_distance"]["floor"] == 0
    # all else is as it should be
    assert metrics["classes_covered"]["value"] == 10
    assert near(metrics["reverse_kl"], "floor", slack=0.01)
    assert near(metrics["sliced_wasserstein"], "floor", slack=0.02)


def test_noise_is_seen(measure):
    metrics = measure(noise)["metrics"]
    assert metrics["nearest_train_distance"]["value"] > metrics["nearest_train_distance"]["ceiling"]
    assert metrics["sliced_wasserstein"]["value"] > 3 * metrics["sliced_wasserstein"]["floor"]
    assert metrics["near_copies"]["value"] == 0


def test_classes_that_are_asked_for(measure, digits):
    images, labels = digits.validation.arrays()

    def obedient(num, condition, random):
        return np.stack([images[random.choice(np.flatnonzero(labels == k))] for k in condition])

    result = measure(obedient, num_classes=10, extractors=1)
    agreement = result["metrics"]["class_agreement"]
    assert set(result["metrics"]) == {*BY_CLASS, *BY_PIXELS, *IN_FEATURES, "class_agreement", "train_on_samples"}
    used = result["metrics"]["train_on_samples"]
    assert 0.85 < used["value"] <= 1 and used["floor"] == 0.1 and used["ceiling"] > 0.95
    assert near(agreement, "ceiling", slack=0.04)
    assert agreement["floor"] == pytest.approx(0.1, abs=0.001)
    assert [entry["name"] for entry in result["classes"]] == list(digits.spec.class_names)
    assert min(entry["agreement"] for entry in result["classes"]) > 0.8
    for entry in result["classes"]:
        assert entry["generated"] == pytest.approx(entry["train"], abs=0.03)


def test_classes_that_are_ignored(measure, digits):
    result = measure(lambda *args: drawn_from(digits.validation.arrays()[0])(*args), num_classes=10)
    assert near(result["metrics"]["class_agreement"], "floor", slack=0.01)


def test_one_class_that_fails_shows_in_that_class(measure, digits):
    images, labels = digits.validation.arrays()
    four = images[labels == 4][:1]

    def confused(num, condition, random):
        return np.concatenate([four if k in (3, 4) else images[labels == k][:1] for k in condition])

    classes = measure(confused, num_classes=10)["classes"]
    assert classes[3]["agreement"] == 0
    assert classes[4]["agreement"] == 1
    assert classes[3]["generated"] == 0


def test_data_without_labels(measure, digits):
    source = from_arrays(digits.train.arrays(600)[0])
    result = measure(noise, source=source, samples=100, extractors=2)
    assert set(result["metrics"]) == {*BY_PIXELS, *IN_FEATURES}
    assert [about["name"].split("@")[0] for about in result["extractors"]] == ["random", "random"]
    assert "classifier" not in result
    assert result["samples"] == 100


def test_float_data(measure, digits):
    images, _ = digits.train.arrays(400)
    source = from_arrays(to_float(images))
    metrics = measure(drawn_from(source.train.arrays()[0]), source=source)["metrics"]
    assert metrics["near_copies"]["value"] == 1
    assert metrics["nearest_train_distance"]["value"] == 0


def test_the_result_is_the_file_and_the_same_each_time(measure, digits, tmp_path):
    model = drawn_from(digits.validation.arrays()[0])
    result = measure(model, samples=200, seed=3, split="validation")
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(result, allow_nan=False))
    assert measure(model, samples=200, seed=3, split="validation") == result
    assert list(result)[:6] == ["run", "model", "data", "split", "samples", "seed"]
    assert (result["run"], result["split"], result["seed"]) == ("fake", "validation", 3)
    for entry in result["metrics"].values():
        assert list(entry) == ["value", "stderr", "floor", "ceiling"]
    assert measure(model, samples=200, seed=4)["metrics"] != result["metrics"]


def test_a_single_sample_has_no_standard_error(measure):
    entry = measure(noise, samples=1, extractors=1)["metrics"]["nearest_train_distance"]
    assert entry["stderr"] is None
    assert entry["value"] > 0


def test_samples_are_bounded_by_memory(measure, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_NUMBERS", 64 * 50)
    assert measure(noise)["samples"] == 50


def test_nearest_images_are_looked_for_from_first_to_last_sample(measure, digits, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_NEAREST", 50)
    train = digits.train.arrays()[0]

    def half_copies(num, condition, random):
        return np.concatenate([train[: num // 2], noise(num - num // 2, condition, random)])

    result = measure(half_copies, samples=230)
    assert result["samples"] == 230 and result["metrics"]["near_copies"]["value"] == 0.5
    assert np.isclose(result["metrics"]["near_copies"]["stderr"], 0.5 / np.sqrt(50), rtol=0.05)
    assert evaluation.evenly(3, 50).tolist() == [0, 1, 2]


def test_progress_names_its_parts(measure):
    told = []
    measure(noise, samples=50, progress=lambda *args: told.append(args))
    assert {"counting classes", "sampling", "nearest images"} <= {label for label, _, _ in told}
    assert all(0 <= done <= total for _, done, total in told)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "train"}, "`split` must be one of validation, test"),
        ({"samples": 0}, "`samples` must be positive"),
        ({"seed": -1}, "`seed` must be from 0"),
        ({"extractors": -1}, "`extractors` must not be negative"),
        ({"inception": "none.h5"}, "must be an .h5 file of Inception v3's weights. Received: none.h5"),
    ],
)
def test_bad_arguments(measure, options, message):
    with pytest.raises(UserError, match=message):
        measure(noise, **options)


def test_samples_that_are_not_finite(measure):
    with pytest.raises(ValueError, match="`samples` must be finite. Received: 20 of 20"):
        measure(lambda num, condition, random: np.full((num, 8, 8, 1), np.nan, np.float32), samples=20)


def test_other_data_than_the_run_s(measure, digits, monkeypatch):
    other = from_arrays(digits.train.arrays(100)[0][:, :6])
    run = SimpleNamespace(
        spec=digits.spec,
        load_data=lambda progress=None: other,
        load_model=lambda which="last", warn=None: FakeModel(noise),
    )
    with pytest.raises(UserError, match="with shape"):
        evaluate(run)


# The command


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run folder with a conditional model that has learnt nothing."""
    config = resolve("gan-digits", ["model.conditional=true"])
    source = load("digits")
    model = build(config, source.spec)
    run = Run.create(tmp_path_factory.mktemp("runs") / "untrained", config, source.spec)
    run.checkpoints.save(model, {"step": 7}, best=True)
    return run.path


def test_command_prints_a_table(untrained, capsys):
    assert gentf(["evaluate", str(untrained), "-n", "300", "--extractors", "1"]) == 0
    out, err = capsys.readouterr()
    for name in (*BY_CLASS, *BY_PIXELS, "class_agreement"):
        assert f"\n{name} " in out
    assert "±" in out
    assert "accuracy of the classifier itself" in out
    assert "untrained: 300 images of GAN" in out
    assert "FCD[cnn-digits@" in out and "FCD ratio" in out and "distances in features, n=300" in out
    assert "copies of the training set: no sign of them" in out
    assert max(map(len, out.splitlines())) <= 120
    assert err == ""


def test_command_prints_json_alone(untrained, capsys):
    options = ["-n", "300", "--json", "--checkpoint", "7", "--extractors", "0"]
    assert gentf(["evaluate", str(untrained), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((untrained / "evaluation.json").read_text())
    assert result["checkpoint"] == 7
    assert result["metrics"]["class_agreement"]["value"] < 0.3


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["missing"], 1, "must be a folder that `gentf train` made"),
        (["export"], 1, "not a SavedModel"),
        (["{run}", "--checkpoint", "newest"], 2, "last, best or a step"),
        (["{run}", "--checkpoint", "8"], 1, "8"),
        (["{run}", "--split", "train"], 2, "train"),
        (["{run}", "-n", "0"], 2, "0"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(untrained, tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export" / "1").mkdir(parents=True)
    (tmp_path / "export" / "1" / "saved_model.pb").write_bytes(b"")
    assert gentf(["evaluate", *(part.format(run=untrained) for part in arguments)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs MNIST prepared in TFDS_DATA_DIR")
def test_one_epoch_of_the_classifier_on_mnist():
    source = load("mnist")
    classifier = Classifier((28, 28, 1), 10, Recipe(epochs=1, min_steps=400))
    images, labels = source.train.arrays(50_000)
    classifier.fit(stream_of_arrays(images, labels), len(images))
    assert classifier.measure(source.test.batches(1000)).value > 0.97
