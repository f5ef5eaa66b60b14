"""TFDS builders: prepared folders, splits, damaged and missing ones, and no network."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from gentf.data import builders as builders_module
from gentf.data import load
from gentf.data.builders import prepared_builders, prepared_folder
from gentf.data.examples import scan_records
from gentf.errors import UserError

tfds.disable_progress_bar()
PREPARED = Path(os.environ.get("TFDS_DATA_DIR", "nowhere"))


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Small pictures in the splits train, val and extra."""

    VERSION = tfds.core.Version("1.2.0")
    SPLITS = {"train": range(40), "val": range(40, 52), "extra": range(52, 55)}
    LABELLED = True
    SHAPE: tuple = (5, 7, 3)

    def _info(self):
        features = {"image": tfds.features.Image(shape=self.SHAPE), "number": np.int64}
        if self.LABELLED:
            features["label"] = tfds.features.ClassLabel(names=["ant", "bee", "cat"])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), license="CC0")

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(numbers) for name, numbers in self.SPLITS.items()}

    def _generate_examples(self, numbers):
        for number in numbers:
            example = {"image": picture(number), "number": number}
            yield number, {**example, "label": number % 3} if self.LABELLED else example


class TinyPlain(Tiny):
    """Unlabelled, one split, no fixed size."""

    SPLITS = {"everything": range(30)}
    LABELLED = False
    SHAPE = (None, None, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Tiny, TinyPlain):
        builder(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of the prepared builders, as TFDS_DATA_DIR, in a process that cannot reach a network."""
    copy = tmp_path / "tfds"
    shutil.copytree(made, copy)
    monkeypatch.setenv("TFDS_DATA_DIR", str(copy))

    def refuse(*_arguments, **_options):
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return copy


def message(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_splits_labels_and_pixels(folder):
    source = load("tiny")
    assert [len(split) for split in source.splits.values()] == [36, 12, 4]  # its own val; test cut from train
    assert source.spec.class_names == ("ant", "bee", "cat") and source.spec.shape == (5, 7, 3)
    assert source.spec.licence == "CC0"
    numbers = {picture(n).tobytes(): n for n in range(52)}
    found = []
    for split in source.splits.values():
        images, labels = split.arrays()
        found.append([numbers[image.tobytes()] for image in images])
        assert labels.tolist() == [n % 3 for n in found[-1]]
    assert sorted(found[0] + found[2]) == list(range(40)) and sorted(found[1]) == list(range(40, 52))


@pytest.mark.parametrize("options", [{}, {"size": (4, 4), "channels": 1}])
def test_cached_and_streamed_agree(folder, options):
    cached, streamed = load("tiny", **options), load("tiny", **options, cache_mb=0)
    assert cached.cached and not streamed.cached and cached.fingerprint == streamed.fingerprint
    for one, two in zip(cached.splits.values(), streamed.splits.values(), strict=True):
        for left, right in zip(one.arrays(), two.arrays(), strict=True):
            np.testing.assert_array_equal(left, right)
    streams = [source.train.stream(8, seed=2) for source in (cached, streamed)]
    assert streams[0].element_spec == streams[1].element_spec
    for left, right in zip(*(stream.take(12) for stream in streams), strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left["label"], right["label"])


def test_unlabelled_single_split_without_a_size(folder):
    assert message("tiny_plain") == "the images of `tiny_plain` have no fixed size: set image.size=[H,W]"
    source = load("tiny_plain", size=(5, 7))
    assert source.spec.class_names == () and not source.train.labelled
    assert [len(split) for split in source.splits.values()] == [24, 3, 3]
    assert list(source.train.stream(4, seed=0).element_spec) == ["image"]


def test_versions(folder):
    shutil.copytree(folder / "tiny/1.2.0", folder / "tiny/1.10.0")
    (folder / "tiny/2.0.0").mkdir()  # incomplete
    assert prepared_folder("tiny").name == "1.10.0" and prepared_folder("tiny:1.2.0").name == "1.2.0"
    assert prepared_folder("tiny:3.0.0") is None
    assert len(load("tiny:1.2.0").validation) == 12


def test_prepared_builders_are_listed(folder, capsys):
    from gentf.cli.main import run

    (folder / "broken/1.0.0").mkdir(parents=True)
    (folder / "broken/1.0.0/dataset_info.json").write_text("{")
    assert prepared_builders() == ["tiny", "tiny_plain"]
    assert run(["data"]) == 0
    shown = capsys.readouterr().out
    assert "digits" in shown and "  tiny\n" in shown and str(folder) in shown
    assert run(["data", "--all"]) == 0
    assert "\n  fashion_mnist\n" in capsys.readouterr().out


def test_damaged_records(folder):
    shard = next((folder / "tiny/1.2.0").glob("*train*"))
    whole = shard.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        assert str(shard) in message("tiny")
    shard.unlink()
    assert message("tiny") == f"cannot read {shard}: No such file or directory"
    garbled = bytearray(whole)
    garbled[len(whole) // 2 : len(whole) // 2 + 20] = bytes(20)
    shard.write_bytes(garbled)
    assert "damaged" in message("tiny")


def test_a_shard_that_shrinks_while_it_is_streamed_is_an_error(folder):
    source = load("tiny", cache_mb=0)
    shard = next((folder / "tiny/1.2.0").glob("*train*"))
    with open(shard, "r+b") as file:
        file.truncate(200)
    with pytest.raises(tf.errors.OpError, match="ends early"):
        source.train.arrays()


def test_scan_finds_what_was_written(tmp_path):
    rows = [os.urandom(n) for n in (0, 1, 300, 7)]
    paths = [str(tmp_path / f"{n}.tfrecord") for n in range(2)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for row in rows:
                writer.write(row)
    records = scan_records(paths, [4, 4])
    assert records.shard.tolist() == [0] * 4 + [1] * 4
    for number in range(8):
        data = Path(paths[number // 4]).read_bytes()
        start = records.offset[number]
        assert data[start : start + records.length[number]] == rows[number % 4]
    with pytest.raises(UserError, match="must have 5 records, it has 4"):
        scan_records(paths[:1], [5])


def test_no_network_is_told_at_once(folder, capfd):
    start = time.monotonic()
    assert message("mnist") == (
        f"`mnist` is not prepared in {folder}, and the network cannot be reached. "
        "Prepare it once with a network, or set TFDS_DATA_DIR to a folder that holds it"
    )
    assert time.monotonic() - start < 20  # TFDS by itself gives up after minutes
    assert capfd.readouterr().out == ""


def test_what_is_downloaded_already_needs_no_network(folder):
    urls = list(tfds.builder("cifar10", data_dir=folder, try_gcs=False).url_infos)
    (folder / "downloads").mkdir(exist_ok=True)
    (folder / "downloads/broken.INFO").write_text("{")
    (folder / "downloads/a.INFO").write_text(json.dumps({"urls": urls}))
    assert builders_module._downloaded() == set(urls)


def test_names_that_lead_nowhere(folder):
    assert "did you mean fashion_mnist" in message("fashion_mnst")
    assert "did you mean digits" in message("digit")
    assert "no data set, folder or file is called ''" in message("")
    assert "qqqqqqqq" in message("qqqqqqqq")
    assert "nope" in message("cifar10_corrupted/nope")


def test_a_builder_without_images(folder):
    source = folder / "tiny/1.2.0/features.json"
    inner = ' {\n                "image"'
    source.write_text(source.read_text().replace(f'"image":{inner}', f'"other":{inner}'))
    assert message("tiny") == "`tiny` has no feature `image` that is an image. It has: label, number, other"


def test_a_name_is_a_name_before_it_is_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load("digits").spec.shape == (8, 8, 1)
    (tmp_path / "tiny").mkdir()
    assert load("tiny").spec.shape == (5, 7, 3)
    (tmp_path / "photos").mkdir()
    assert "photos holds no images" in message("photos")
    assert "digits holds no images" in message("./digits")


@pytest.mark.data
@pytest.mark.skipif(not (PREPARED / "mnist").is_dir(), reason="needs mnist prepared in TFDS_DATA_DIR")
def test_mnist():
    cached, streamed = load("mnist"), load("mnist", cache_mb=1)
    assert [len(split) for split in cached.splits.values()] == [54000, 6000, 10000]
    images, labels = cached.test.arrays()
    assert images.shape == (10000, 28, 28, 1) and cached.spec.class_names == tuple("0123456789")
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert images.mean() == pytest.approx(33.791, abs=0.001)
    assert cached.cached and not streamed.cached and cached.fingerprint == streamed.fingerprint
    for left, right in zip(
        cached.train.stream(128, seed=0, start_step=420).take(4),
        streamed.train.stream(128, seed=0, start_step=420).take(4),
        strict=True,
    ):
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left["label"], right["label"])
