"""Digits stacked as colours: what an image holds, what its class is, and who judges it."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gentf.data import load
from gentf.data.source import DataSpec, of_stores
from gentf.data.stacked import SIZES, Stacked
from gentf.errors import UserError
from gentf.metrics.classifier import ByChannel, Classifier, Recipe, stream_of_arrays

PREPARED = Path(os.environ.get("TFDS_DATA_DIR", "nowhere"))


@pytest.fixture(scope="module")
def digits():
    images, labels = load("digits").train.arrays()
    return images, labels


def test_channels_are_the_digits_and_the_class_spells_them(digits):
    images, labels = digits
    parts = np.array([[0, 5, 9], [7, 7, 1]])
    store = Stacked(images, labels, parts)
    found = store.select(store.resident, tf.constant([1, 0]))
    for row, part in zip(range(2), parts[::-1]):
        for channel in range(3):
            np.testing.assert_array_equal(found["image"][row, ..., channel], images[part[channel], ..., 0])
        assert int(found["label"][row]) == int("".join(str(labels[p]) for p in part))
    source = of_stores(DataSpec("x", store.shape, class_names=("a",)), {"train": store}, store)
    batch = next(iter(source.train.stream(2, seed=3)))
    assert batch["image"].shape == (2, 8, 8, 3) and batch["image"].dtype == tf.uint8
    taken, told = source.train.arrays()
    np.testing.assert_array_equal(taken[0], found["image"][1])
    assert told.dtype == np.int32 and len(source.test) == 0


def test_each_channel_is_judged_by_itself(digits):
    images, labels = digits
    classifier = Classifier((8, 8, 1), 10, Recipe(min_steps=300, epochs=1))
    classifier.fit(stream_of_arrays(images, labels), len(images))
    store = Stacked(images, labels, np.random.default_rng(0).integers(0, len(images), (300, 3)))
    batch = store.gather(tf.range(300))
    judge = ByChannel(classifier, [batch])
    assert judge.num_classes == 1000 and judge.image_shape == (8, 8, 3)
    assert judge.accuracy.value > 0.9
    found = judge.predict(batch["image"].numpy())
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    first = classifier.predict(batch["image"].numpy()[..., :1])
    np.testing.assert_allclose(found.reshape(300, 10, 100).sum(axis=2), first, rtol=1e-4, atol=1e-7)
    assert judge.features(batch["image"].numpy()).shape == (300, 3 * 128)


@pytest.mark.data
@pytest.mark.skipif(not (PREPARED / "mnist").is_dir(), reason="needs mnist prepared in TFDS_DATA_DIR")
def test_stacked_mnist_is_made_of_mnist():
    source = load("stacked-mnist")
    assert {name: len(split) for name, split in source.splits.items()} == SIZES
    assert source.spec.shape == (28, 28, 3) and source.spec.num_classes == 1000
    labels = next(iter(source.test.batches(26_000)))["label"].numpy()
    assert len(np.unique(labels)) == 1000
    with pytest.raises(UserError, match="`channels` must be null for stacked-mnist"):
        load("stacked-mnist", channels=1)
