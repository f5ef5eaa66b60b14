"""Folders of images: layout, labels, splits, mixed and corrupt files, cached and streamed."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gentf.data import folder as folder_module
from gentf.data import load
from gentf.data.listing import list_images, printable
from gentf.errors import UserError


def image_of(number, shape=(6, 5, 3)):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def write(path, number=0, shape=(6, 5, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(number, shape).squeeze()).save(path)
    return path


def fill(folder, names, **arguments):
    for number, name in enumerate(names):
        write(folder / name, number, **arguments)
    return folder


@pytest.fixture
def flat(tmp_path):
    return fill(tmp_path / "flat", [f"{n:02d}.png" for n in range(40)])


@pytest.fixture
def classes(tmp_path):
    return fill(tmp_path / "classes", [f"{cls}/{n:02d}.png" for n in range(20) for cls in ("cat", "ant", "bee")])


def same_sources(one, two):
    assert one.fingerprint == two.fingerprint and one.corrupt == two.corrupt and one.spec == two.spec
    for a, b in zip(one.splits.values(), two.splits.values(), strict=True):
        for left, right in zip(a.arrays(), b.arrays(), strict=True):
            np.testing.assert_array_equal(left, right)
    batches = zip(one.train.stream(4, seed=3).take(30), two.train.stream(4, seed=3).take(30), strict=True)
    for left, right in batches:
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def message(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layout


def test_a_flat_folder_is_unlabelled(flat):
    source = load(flat)
    assert source.spec.shape == (6, 5, 3) and source.spec.class_names == () and not source.train.labelled
    assert [len(split) for split in source.splits.values()] == [32, 4, 4]
    images = np.concatenate([split.arrays()[0] for split in source.splits.values()])
    assert {image.tobytes() for image in images} == {image_of(n).tobytes() for n in range(40)}
    assert source.train.stream(8, seed=0).element_spec == {"image": tf.TensorSpec((8, 6, 5, 3), tf.uint8)}


def test_class_folders_become_sorted_labels(classes):
    source = load(str(classes))
    assert source.spec.class_names == ("ant", "bee", "cat")
    truth = {image_of(n).tobytes(): ("cat", "ant", "bee")[n % 3] for n in range(60)}
    for split in source.splits.values():
        images, labels = split.arrays()
        assert [source.spec.class_names[label] for label in labels] == [truth[image.tobytes()] for image in images]
        assert np.bincount(labels, minlength=3).min() >= 2


def test_images_are_found_at_any_depth_whatever_their_case(tmp_path):
    fill(tmp_path, ["a/x/y/1.PNG", "a/2.jpg", "b/3.JPEG", "b/z/4.bmp", "b/5.gif"])
    for name in ("a/notes.txt", "a/.6.png", ".hidden/7.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    listing = list_images(tmp_path)
    assert listing.names == ["a/2.jpg", "a/x/y/1.PNG", "b/3.JPEG", "b/5.gif", "b/z/4.bmp"]
    assert listing.class_names == ("a", "b") and listing.labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("validation", ["validation", "valid", "val"])
def test_split_folders(tmp_path, validation):
    sizes = {"train": 12, validation: 5, "test": 3}
    fill(tmp_path, [f"{split}/{n % 2}/{n}.png" for split, size in sizes.items() for n in range(size)])
    source = load(tmp_path)
    assert [len(split) for split in source.splits.values()] == [12, 5, 3]
    assert source.spec.class_names == ("0", "1")
    assert sorted(source.test.arrays()[1].tolist()) == [0, 0, 1]


def test_a_missing_split_folder_is_cut_from_train(tmp_path):
    fill(tmp_path, [f"train/{n}.png" for n in range(20)] + ["test/a.png"])
    source = load(tmp_path)
    assert [len(split) for split in source.splits.values()] == [18, 2, 1]
    assert [len(split) for split in load(tmp_path, validation_share=0).splits.values()] == [20, 0, 1]


def test_classes_may_be_called_like_splits(tmp_path):
    fill(tmp_path, [f"{cls}/{n}.png" for cls in ("train", "truck", "test") for n in range(8)])
    assert load(tmp_path).spec.class_names == ("test", "train", "truck")


def test_links_are_followed_once(tmp_path, flat):
    top = tmp_path / "top"
    top.mkdir()
    (top / "linked").symlink_to(flat, target_is_directory=True)
    (flat / "loop").symlink_to(top, target_is_directory=True)
    assert len(list_images(top).names) == 40
    link = tmp_path / "single"
    link.mkdir()
    for number in range(5):
        (link / f"{number}.png").symlink_to(flat / f"{number:02d}.png")
    assert len(load(link).train) == 3


def test_odd_names_work(tmp_path):
    names = ["a b.png", "ü€.png", "[x]*?.png", "new\nline.png", "%s{}.png", "-.png", "'\".png", "back\\slash.png"]
    root = fill(tmp_path / "gs:__ ä" / "x", names)
    raw = os.path.join(os.fsencode(root), b"\xff\xfe.png")
    with open(raw, "wb") as file:
        file.write((root / names[0]).read_bytes())
    source = load(root)
    assert sum(map(len, source.splits.values())) == 9
    same_sources(source, load(root, cache_mb=0))
    with open(raw, "wb") as file:
        file.write(b"no image")
    assert load(root, max_corrupt_share=0.5).corrupt == ("\\udcff\\udcfe.png",)
    assert printable("new\nline") == "new\\nline" and printable("ü€") == "ü€"


# Formats and channels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_kept(tmp_path, channels):
    fill(tmp_path, [f"{n}.png" for n in range(4)], shape=(7, 4, channels))
    assert load(tmp_path).spec.shape == (7, 4, channels)


def test_mixed_channels(tmp_path):
    write(tmp_path / "a.png", shape=(6, 5, 3))
    write(tmp_path / "b.png", shape=(6, 5, 3))
    write(tmp_path / "c.png", shape=(6, 5, 1))
    for bound in (0, 100):
        told = message(tmp_path, cache_mb=bound)
        assert "a.png has 3" in told and "c.png has 1" in told and "image.channels" in told
    source = load(tmp_path, channels=1)
    assert source.spec.shape == (6, 5, 1)


def test_mixed_sizes(tmp_path):
    fill(tmp_path, [f"{n}.png" for n in range(6)], shape=(6, 5, 3))
    write(tmp_path / "big.png", shape=(12, 5, 3))
    for bound in (0, 100):
        told = message(tmp_path, cache_mb=bound)
        assert "0.png has 6x5" in told and "big.png has 12x5" in told and "image.size=[H,W]" in told
    cached = load(tmp_path, size=(4, 4))
    assert cached.spec.shape == (4, 4, 3)
    same_sources(cached, load(tmp_path, size=(4, 4), cache_mb=0))


def test_resizing_and_converting_agree_cached_and_streamed(classes):
    for options in ({"size": (8, 8)}, {"size": (3, 9), "channels": 1}, {"size": (6, 3), "fit": "stretch"}):
        cached, streamed = load(classes, **options), load(classes, **options, cache_mb=0)
        assert cached.cached and not streamed.cached
        same_sources(cached, streamed)


# Corrupt files


def test_corrupt_files_are_named_and_left_out(classes):
    (classes / "ant/00.png").write_bytes(b"")
    (classes / "bee/01.png").write_bytes(b"no image")
    cut = classes / "cat/02.png"
    cut.write_bytes(cut.read_bytes()[:60])
    source = load(classes, max_corrupt_share=0.05)
    assert source.corrupt == ("ant/00.png", "bee/01.png", "cat/02.png")
    assert sum(map(len, source.splits.values())) == 57
    images = np.concatenate([split.arrays()[0] for split in source.splits.values()])
    left_out = {image_of(n).tobytes() for n in (1, 5, 6)}
    assert {image.tobytes() for image in images} == {image_of(n).tobytes() for n in range(60)} - left_out
    same_sources(source, load(classes, max_corrupt_share=0.05, cache_mb=0))
    for bound in (0, 100):
        told = message(classes, max_corrupt_share=0.04, cache_mb=bound)
        assert told.startswith("3 of the 60 image files in ") and "data.max_corrupt_share=0.04" in told
        assert told.endswith("ant/00.png, bee/01.png, cat/02.png")


def test_many_corrupt_files_are_counted(flat):
    for number in range(10):
        (flat / f"{number:02d}.png").write_bytes(b"x")
    told = message(flat)
    assert told.startswith("10 of the 40 image files") and told.endswith(": 00.png, 01.png, 02.png, ...")


def test_all_corrupt(flat):
    for path in flat.iterdir():
        path.write_bytes(b"x")
    assert message(flat, max_corrupt_share=1.0) == (f"none of the 40 image files in {flat} can be read, first: 00.png")


def test_a_split_with_only_corrupt_files(tmp_path):
    fill(tmp_path, [f"train/{n}.png" for n in range(10)])
    (tmp_path / "test").mkdir()
    (tmp_path / "test/0.png").write_bytes(b"x")
    assert "has no readable image in its split test" in message(tmp_path, max_corrupt_share=0.5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_corrupt(flat):
    (flat / "00.png").chmod(0)
    assert load(flat, max_corrupt_share=0.1).corrupt == ("00.png",)


def test_a_broken_link_is_corrupt(flat):
    (flat / "00.png").unlink()
    (flat / "00.png").symlink_to(flat / "nowhere.png")
    for bound in (100, 0):
        assert load(flat, max_corrupt_share=0.1, cache_mb=bound).corrupt == ("00.png",)


# Bad folders


def test_missing_empty_and_other_paths(tmp_path):
    assert message(tmp_path / "nowhere") == f"no such folder or file: {tmp_path / 'nowhere'}"
    assert message(str(tmp_path / "nowhere")) == f"no such folder or file: {tmp_path / 'nowhere'}"
    assert message(tmp_path) == f"{tmp_path} holds no images: no file in it ends in .png, .jpg, .jpeg, .bmp, .gif"
    for name, wanted in [("a.zip", "is an archive: unpack it"), ("a.tar.gz", "is an archive"), ("a.txt", "neither")]:
        (tmp_path / name).write_bytes(b"x")
        assert wanted in message(tmp_path / name)


def test_images_beside_class_folders(classes):
    write(classes / "loose.png")
    assert "images both in class folders and outside of them: ant/00.png and loose.png" in message(classes)


def test_a_class_that_train_does_not_have(tmp_path):
    fill(tmp_path, [f"train/a/{n}.png" for n in range(5)] + ["test/b/0.png"])
    assert f"test/b/0.png is of a class that {tmp_path}/train has no folder for" in message(tmp_path)


def test_too_few_images(tmp_path):
    fill(tmp_path, ["a.png", "b.png"])
    assert "too few images to cut" in message(tmp_path)
    assert len(load(tmp_path, test_share=0).train) == 1


# What is remembered of an inspection


def inspections(tmp_path, monkeypatch):
    """Count the inspections from here on, with the cache in a folder of the test's own."""
    monkeypatch.setenv("GENTF_CACHE", str(tmp_path / "cache"))
    calls = []
    inspect = folder_module._inspect
    monkeypatch.setattr(folder_module, "_inspect", lambda *a, **k: calls.append(1) or inspect(*a, **k))
    return calls


def test_an_inspection_is_remembered_until_a_file_changes(tmp_path, flat, monkeypatch):
    calls = inspections(tmp_path, monkeypatch)
    (flat / "03.png").write_bytes(b"x")
    first = load(flat, cache_mb=0, max_corrupt_share=0.1)
    again = load(flat, cache_mb=0, max_corrupt_share=0.1)
    assert calls == [1]
    same_sources(first, again)
    assert "data.max_corrupt_share=0 " in message(flat, cache_mb=0, max_corrupt_share=0)
    write(flat / "03.png", 77)
    changed = load(flat, cache_mb=0)
    assert calls == [1, 1] and changed.corrupt == () and changed.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "key": "other"}),
        lambda text: json.dumps({**json.loads(text), "shapes": [[6, 5, 3, 39]]}),
        lambda text: json.dumps({**json.loads(text), "shapes": [[6, 5, 3, -1], [6, 5, 3, 41]]}),
        lambda text: json.dumps({**json.loads(text), "shapes": [[6, 5, 3, 10**30]]}),
        lambda text: json.dumps({**json.loads(text), "shapes": [["a", 5, 3, 40]]}),
        lambda text: json.dumps({**json.loads(text), "shapes": [[6, 0, 3, 40]]}),
        lambda text: json.dumps({**json.loads(text), "content": 5}),
    ],
)
def test_a_malformed_memory_is_not_trusted(tmp_path, flat, monkeypatch, change):
    calls = inspections(tmp_path, monkeypatch)
    first = load(flat, cache_mb=0)
    (stored,) = (tmp_path / "cache/inspections").iterdir()
    stored.write_text(change(stored.read_text()))
    again = load(flat, cache_mb=0)
    assert calls == [1, 1] and again.fingerprint == first.fingerprint


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, flat, monkeypatch):
    calls = inspections(tmp_path, monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder should be")
    load(flat, cache_mb=0)
    load(flat, cache_mb=0)
    assert calls == [1, 1]


def test_fingerprints_follow_content_and_names_not_times(flat):
    first = load(flat).fingerprint
    os.utime(flat / "05.png", (1, 1))
    assert load(flat).fingerprint == first
    write(flat / "05.png", 99)
    second = load(flat).fingerprint
    (flat / "05.png").rename(flat / "99.png")
    assert len({first, second, load(flat).fingerprint}) == 3


def test_progress_is_told(flat):
    told = []
    load(flat, progress=lambda *what: told.append(what))
    assert told[-1] == ("reading images", 40, 40)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


ARCHIVE = Path(os.environ.get("GENTF_TEST_DATA", "nowhere")) / "cifar10-jpeg/cifar10_jpeg.zip"


@pytest.mark.data
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs cifar10-jpeg in GENTF_TEST_DATA")
def test_real_jpegs(tmp_path):
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = [name for name in archive.namelist() if name[-8:-4].isdigit() and int(name[-8:-4]) < 60]
        archive.extractall(tmp_path, names)
    source = load(tmp_path)
    assert source.spec.shape == (32, 32, 3) and source.spec.num_classes == 10 and source.corrupt == ()
    assert [len(split) for split in source.splits.values()] == [540, 60, 600]
    same_sources(source, load(tmp_path, cache_mb=1))
    images, labels = source.test.arrays()
    for cls, name in enumerate(source.spec.class_names):
        with Image.open(tmp_path / "test" / name / "0007.jpg") as file:
            wanted = np.asarray(file, np.int16)
        difference = np.abs(images[labels == cls] - wanted).mean((1, 2, 3))
        assert np.sort(difference)[0] < 2 and np.sort(difference)[1] > 4  # two JPEG decoders, one picture


# The command


def test_describing_a_folder(classes, capsys):
    from gentf.cli.main import run

    (classes / "ant/00.png").write_bytes(b"")
    assert run(["data", str(classes), "data.max_corrupt_share=0.1", "image.size=[8,4]"]) == 0
    shown = capsys.readouterr().out
    for part in ("8 x 4 x 3", "3: ant, bee, cat", "left out: 1: ant/00.png", "held in memory", "not stated"):
        assert part in shown
    assert run(["data", str(classes), "data.max_corrupt_share=0.1", "data.cache_mb=0"]) == 0
    assert "streamed" in capsys.readouterr().out
    for arguments, wanted in [
        ([str(classes), "data.max_corrupt_share=0"], "1 of the 60 image files"),
        ([str(classes), "image.siez=[8,8]"], "image.size"),
        ([str(classes), "train.epochs=3"], "Received: train.epochs=3"),
        ([str(classes), "--all"], "--all"),
        (["digitss"], "did you mean digits"),
    ]:
        assert run(["data", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and error.count("\n") == 1 and wanted in error
