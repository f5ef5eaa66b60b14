"""The classifier that judges generated images: how good it is, and its cache."""

import dataclasses

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from gentf.files import user_cache
from gentf.metrics.classifier import Classifier, Recipe, cached_classifier, stream_of_arrays

FAST = Recipe(filters=8, dense=16, dropout=0.2, epochs=1, min_steps=150, batch_size=32, shift=0.2)


def bars(num, shape=(9, 6, 3), seed=0):
    """Images with a bright bar: class 0 upright, class 1 level, class 2 none."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, num).astype(np.int32)
    images = random.integers(0, 80, (num, *shape)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        if label == 0:
            image[:, random.integers(shape[1])] = 250
        elif label == 1:
            image[random.integers(shape[0])] = 250
    return images, labels


@pytest.fixture(scope="module")
def trained():
    images, labels = bars(400)
    classifier = Classifier(images.shape[1:], 3, FAST)
    classifier.fit(stream_of_arrays(images, labels), len(images))
    return classifier


def cached(folder, recipe=FAST, fingerprint="bars", **options):
    images, labels = bars(400)
    return cached_classifier(
        fingerprint,
        images.shape[1:],
        3,
        stream_of_arrays(images, labels),
        len(images),
        lambda: [dict(zip(("image", "label"), bars(300, seed=1), strict=True))],
        recipe=recipe,
        folder=folder,
        **options,
    )


def test_digits_are_told_apart():
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    classifier = Classifier((8, 8, 1), 10)
    classifier.fit(stream_of_arrays(images[train], digits.target[train]), len(train))
    accuracy = classifier.measure([{"image": images[test], "label": digits.target[test]}])
    assert accuracy.value >= 0.97
    assert classifier.accuracy == accuracy


def test_oblong_colour_images(trained):
    images, labels = bars(300, seed=1)
    probabilities = trained.predict(images)
    assert probabilities.shape == (300, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.9


def test_uint8_and_float_images_are_the_same(trained):
    images, _ = bars(20, seed=1)
    floats = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(trained.predict(images), trained.predict(floats), atol=1e-5)
    np.testing.assert_allclose(trained.predict(images, batch_size=7), trained.predict(images), atol=1e-5)


def test_the_seed_decides_the_weights(trained):
    images, labels = bars(400)

    def train(seed):
        again = Classifier(images.shape[1:], 3, dataclasses.replace(FAST, seed=seed))
        again.fit(stream_of_arrays(images, labels), len(images))
        return [np.asarray(variable) for variable in again.variables]

    for first, second in zip(trained.variables, train(seed=0), strict=True):
        np.testing.assert_array_equal(np.asarray(first), second)
    assert not np.array_equal(np.asarray(trained.variables[0]), train(seed=1)[0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 1), (28, 20, 1), (65, 130, 4)])
def test_any_size(shape):
    images = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(np.uint8)
    classifier = Classifier(shape, 2, dataclasses.replace(FAST, min_steps=2))
    classifier.fit(stream_of_arrays(images, np.arange(6) % 2), 6)  # fewer than a batch
    assert np.isfinite(classifier.predict(images)).all()


def test_the_policy_of_the_process_is_not_the_classifier_s():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        probabilities = Classifier((9, 6, 3), 3, FAST).predict(bars(5)[0])
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(probabilities, Classifier((9, 6, 3), 3, FAST).predict(bars(5)[0]))


def test_shifts_repeat_the_edge():
    classifier = Classifier((4, 4, 1), 2, Recipe(shift=0.25))
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    moved = {classifier._shifted(image, np.array([0, step], np.int32)).numpy().tobytes() for step in range(200)}
    rows = [np.clip(np.arange(4) + move, 0, 3) for move in (-1, 0, 1)]
    expected = {image[:, row][:, :, column].tobytes() for row in rows for column in rows}
    assert moved == expected


@pytest.fixture
def fits(monkeypatch):
    """Training is left out (the initial weights depend on the seed alone) and counted."""
    calls = []
    monkeypatch.setattr(Classifier, "fit", lambda *args: calls.append(args))
    return calls


def test_a_cached_classifier_is_the_trained_one(tmp_path, trained, monkeypatch):
    def fit(self, *args):
        for new, old in zip(self.variables, trained.variables, strict=True):
            new.assign(old)

    monkeypatch.setattr(Classifier, "fit", fit)
    first = cached(tmp_path)
    assert first.accuracy.value > 0.9
    monkeypatch.setattr(Classifier, "fit", lambda *args: pytest.fail("trained again"))
    second = cached(tmp_path)
    assert second.accuracy == first.accuracy
    np.testing.assert_array_equal(second.predict(bars(9)[0]), trained.predict(bars(9)[0]))


def test_other_data_or_another_recipe_is_another_classifier(tmp_path, fits):
    cached(tmp_path)
    cached(tmp_path, fingerprint="others")
    cached(tmp_path, dataclasses.replace(FAST, seed=1))
    assert len(fits) == len(list(tmp_path.iterdir())) == 3
    cached(tmp_path)
    assert len(fits) == 3


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip, lambda content: b"", lambda content: b"not a zip"])
def test_damaged_cache_is_trained_again_with_a_warning(tmp_path, fits, damage):
    first = cached(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="trained again"):
        second = cached(tmp_path)
    assert len(fits) == 2
    np.testing.assert_array_equal(second.predict(bars(9)[0]), first.predict(bars(9)[0]))
    cached(tmp_path)
    assert len(fits) == 2  # it was written again


@pytest.mark.parametrize("wrong", ["shape", "nan", "pickle", "missing"])
def test_cache_of_wrong_content_is_trained_again(tmp_path, fits, wrong):
    cached(tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        arrays = dict(file)
    weight = arrays.pop("arr_2")
    if wrong != "missing":
        others = {"shape": weight[..., :1], "nan": weight * np.nan, "pickle": np.array([{}], object)}
        arrays["arr_2"] = others[wrong]
    np.savez(path, **arrays)
    texts = []
    cached(tmp_path, warn=texts.append)
    assert len(fits) == 2
    assert len(texts) == 1
    assert "trained again" in texts[0]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, fits):
    (tmp_path / "file").write_text("")
    texts = []
    assert cached(tmp_path / "file" / "cache", warn=texts.append).accuracy.value > 0
    assert len(texts) == 1
    assert "not cached" in texts[0]


def test_user_cache(monkeypatch, tmp_path):
    for name in ("GENTF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache("classifiers") == tmp_path / ".cache" / "gentf" / "classifiers"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache("classifiers") == tmp_path / "xdg" / "gentf" / "classifiers"
    monkeypatch.setenv("GENTF_CACHE", str(tmp_path / "own"))
    assert user_cache("classifiers") == tmp_path / "own" / "classifiers"


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_classes`"):
        Classifier((8, 8, 1), 1)
    with pytest.raises(ValueError, match="`images`"):
        Classifier((8, 8, 1), 2).predict(np.zeros((3, 8, 7, 1), np.uint8))
    with pytest.raises(ValueError, match="`labels`"):
        stream_of_arrays(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(2))


def test_progress_ends_at_the_last_step():
    images, labels = bars(64)
    told = []
    Classifier((9, 6, 3), 3, FAST).fit(stream_of_arrays(images, labels), 64, lambda *args: told.append(args))
    assert told[-1] == ("classifier", 150, 150)
