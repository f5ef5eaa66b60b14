"""Image builders of TensorFlow Datasets, prepared or to be prepared."""

import contextlib
import functools
import json
import logging
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gentf.data.examples import RecordExamples, scan_records
from gentf.data.order import complete, fixed_order
from gentf.data.source import DataSource, DataSpec, Settings, build
from gentf.errors import UserError

_OWN_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def data_dir() -> Path:
    """Where builders are prepared: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


@functools.cache
def builder_names() -> list[str]:
    """All builders that TFDS knows by name; no network is used."""
    return tfds.list_builders(with_community_datasets=False)


def prepared_folder(name: str) -> Path | None:
    """The folder of a prepared builder ("name", "name/config", each with ":version"), its newest version by
    default; None where there is none."""
    path, _, version = name.partition(":")
    folder = data_dir() / path
    found = []
    with contextlib.suppress(OSError):
        for child in folder.iterdir():
            numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", child.name)
            complete = (child / "dataset_info.json").is_file() and (child / "features.json").is_file()
            if numbers and complete and version in ("", child.name):
                found.append((tuple(map(int, numbers.groups())), child))
    return max(found)[1] if found else None


def prepared_builders() -> list[str]:
    """Names ("name" or "name/config") of the builders with images that are prepared in `data_dir()`."""
    names = []
    for info in data_dir().glob("*/**/dataset_info.json"):
        name = info.parent.parent.relative_to(data_dir()).as_posix()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            features = json.loads((info.parent / "features.json").read_text())["featuresDict"]["features"]
            if features["image"]["pythonClassName"].endswith("image_feature.Image") and prepared_folder(name):
                names.append(name)
    return sorted(set(names))


def load_builder(name: str, settings: Settings) -> DataSource:
    """Load a TFDS builder with a feature "image", and "label" where it is a ClassLabel.

    A prepared folder is read without any network; otherwise the builder downloads and prepares its data.

    Raises:
        UserError: no images in it, no network, a damaged folder.
    """
    builder = open_builder(name)
    info = builder.info
    image, class_names = _features(name, info.features)
    stored = image.shape
    if None in stored and settings.prepare.size is None:
        raise UserError(f"the images of `{name}` have no fixed size: set image.size=[H,W]")
    shape = settings.prepare.shape(stored)
    wanted = ("image", "label") if class_names else ("image",)
    features = tfds.features.FeaturesDict({key: info.features[key] for key in wanted})  # the rest is not parsed

    def deserialize(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = features.deserialize_example(record)
        if image.np_dtype == np.uint16:
            example["image"] = tf.cast(example["image"] // 256, tf.uint8)
        return example

    orders, stores = {}, {}
    for split, own in own_splits(name, info.splits).items():
        files = [os.fspath(path) for path in own.filepaths]
        records = scan_records(files, own.shard_lengths)
        stores[split] = RecordExamples(records, deserialize, settings.prepare, shape, bool(class_names))
        orders[split] = fixed_order(stores[split].size)
    orders = complete(orders, settings.validation_share, settings.test_share, name)
    spec = DataSpec(name, shape, class_names=class_names, licence=licence_of(builder))
    sizes = {split.name: [split.num_examples, split.num_bytes] for split in info.splits.values()}
    parts = {split: (stores.get(split, stores["train"]), order) for split, order in orders.items()}
    identity = [info.full_name, sizes]
    try:
        return build(spec, parts, settings, identity)
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # the second: TF quotes damaged bytes in its message
        raise damaged(name, builder) from error


def open_builder(name: str) -> tfds.core.DatasetBuilder:
    """A builder whose data are prepared; they are downloaded and prepared where they are not.

    Raises:
        UserError: no network, a damaged folder, another format than TFRecord.
    """
    folder = prepared_folder(name)
    try:
        with _quiet():
            if folder is not None:
                builder = tfds.builder_from_directory(folder)
            else:
                builder = tfds.builder(name, data_dir=data_dir(), try_gcs=False)
                if not builder.is_prepared():
                    _prepare(builder, name)
    except UserError:
        raise
    except Exception as error:  # TFDS raises all kinds; whatever it is, the set cannot be opened
        raise UserError(f"cannot open `{name}`{f' in {folder}' if folder else ''}: {_first_line(error)}") from error
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise UserError(f"`{name}` is prepared as {builder.info.file_format.value}: prepare it as tfrecord")
    return builder


def _prepare(builder: tfds.core.DatasetBuilder, name: str) -> None:
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    advice = "Prepare it once with a network, or set TFDS_DATA_DIR to a folder that holds it"
    kept = _downloaded()
    url = next((url for url in builder.url_infos or () if url.startswith("http") and url not in kept), None)
    if url is not None and not _reachable(url):
        raise UserError(f"`{name}` is not prepared in {data_dir()}, and the network cannot be reached. {advice}")
    try:
        builder.download_and_prepare()
    except Exception as error:  # requests, urllib, TFDS's own, a missing package of the builder, a full disk
        raise UserError(
            f"`{name}` is not prepared in {data_dir()}, and to do so failed: {_first_line(error)}. {advice}"
        ) from error


def _downloaded() -> set[str]:
    """Addresses of the files that an earlier, unfinished preparation left."""
    urls: set[str] = set()
    for info in (data_dir() / "downloads").glob("*.INFO"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            urls.update(json.loads(info.read_text())["urls"])
    return urls


def _reachable(url: str) -> bool:
    """Whether the server answers, whatever it says. TFDS itself asks ten times, which takes minutes."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS and urllib3 warn at length of what the one error says; TFDS prints to stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _features(name: str, features) -> tuple[tfds.features.Image, tuple[str, ...]]:
    named = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image = named.get("image")
    if not isinstance(image, tfds.features.Image):
        listed = ", ".join(sorted(named)) or type(features).__name__
        raise UserError(f"`{name}` has no feature `image` that is an image. It has: {listed}")
    if image.np_dtype not in (np.uint8, np.uint16) or image.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"the images of `{name}` must be integers with 1, 3 or 4 channels. "
            f"Received: shape={image.shape}, dtype={np.dtype(image.np_dtype).name}"
        )
    label = named.get("label")
    return image, tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()


def licence_of(builder: tfds.core.DatasetBuilder) -> str:
    """The licence of a builder's data, as far as TFDS knows it."""
    return getattr(builder.info.redistribution_info, "license", "") or "not stated"


def damaged(name: str, builder: tfds.core.DatasetBuilder) -> UserError:
    """The error for prepared data that cannot be read."""
    return UserError(f"the prepared data of `{name}` are damaged: remove {builder.data_path} and prepare them again")


def own_splits(name: str, splits) -> dict:
    """Those of "train", "validation" and "test" that a builder has, under whatever name; its only split is train."""
    own = {}
    for split, names in _OWN_NAMES.items():
        found = next((n for n in names if n in splits), None)
        if found is not None:
            own[split] = splits[found]
    if "train" not in own:
        if len(splits) != 1:
            raise UserError(f"`{name}` has no split `train`. It has: {', '.join(splits)}")
        own = {"train": next(iter(splits.values()))}
    return own
