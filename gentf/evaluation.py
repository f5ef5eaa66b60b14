"""A run folder in, a table of metrics out: how good, how varied and how much its own the images of a model
are.

Every metric stands between two references measured under the same protocol: real images that the model has
not seen, and a degenerate generator. Which of them is the floor and which the ceiling is said in `METRICS`
and, at more length, in docs/evaluation.md.
"""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gentf.data import DataSource, Split
from gentf.errors import UserError
from gentf.files import atomic_write
from gentf.metrics import modes
from gentf.metrics.classifier import Classifier, cached_classifier
from gentf.metrics.distance import sliced_wasserstein, sliced_wasserstein_estimate
from gentf.metrics.estimate import Estimate, mean_of, to_signed
from gentf.metrics.nearest import copy_threshold, near_copies, nearest_distances
from gentf.models.base import GenerativeModel
from gentf.sampling.images import to_uint8
from gentf.training.run import Run

Progress = Callable[[str, int, int], None]
Metrics = dict[str, dict[str, float | None]]

SPLITS = ("validation", "test")
MAX_NUMBERS = 2**27  # pixels times channels of all samples: 512 MiB as float32
MAX_REAL = 10_000  # held-out images measured
BATCH = 1000


@dataclass(frozen=True)
class Meaning:
    """One metric in plain words, and which of its references real images are: "floor" or "ceiling"."""

    text: str
    floor: str
    ceiling: str
    real: str


REAL = "held-out real images"
METRICS = {
    "classes_covered": Meaning("classes that the model makes", "one class", "every class", "ceiling"),
    "reverse_kl": Meaning("mismatch of class shares, nats", REAL, "all in the rarest class", "floor"),
    "confidence": Meaning("mean confidence of the classifier", "undecided", REAL, "ceiling"),
    "class_agreement": Meaning("share in the class asked for", "labels ignored", REAL, "ceiling"),
    "nearest_train_distance": Meaning("RMS pixel distance to training set", "copies", REAL, "ceiling"),
    "near_copies": Meaning("share of near copies of training set", REAL, "copies", "floor"),
    "sliced_wasserstein": Meaning(
        "distance from held-out images, as sets", "training images", "the mean training image", "floor"
    ),
}


def evaluate(
    run: Run,
    *,
    split: str = "test",
    samples: int = 10_000,
    seed: int = 0,
    checkpoint: str | int = "last",
    progress: Progress | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Measure the images of a run's model, and write the result to `evaluation.json` in its folder.

    Args:
        run: an existing run folder.
        split: the held-out real images to compare with, "test" or "validation".
        samples: images to draw; lowered to the size of the train split, and to what fits in memory
            (`MAX_NUMBERS`).
        seed: of the samples (those of `model.sample(num, seed=seed)`), projections and bootstrap.
        checkpoint: "last", "best" or a step.
        progress: called with (label, done, total) now and then.
        warn: called with the text of a warning.
    Returns:
        {"run", "model", "data", "split", "samples", "seed", "metrics": {name: {"value", "stderr", "floor",
        "ceiling"}}}, "checkpoint", "references", and, where the data have labels, "classifier" and "classes".
        A stderr is None where it cannot be known (from a single image). Without labels only the metrics that
        need none are there.
    Raises:
        UserError: a wrong split, count or seed, or data that are not those of the run.
    """
    tell = progress or (lambda label, done, total: None)
    if split not in SPLITS:
        raise UserError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={split!r}")
    if samples < 1:
        raise UserError(f"`samples` must be positive. Received: samples={samples}")
    if not 0 <= seed < 2**31:
        raise UserError(f"`seed` must be from 0 to 2**31 - 1. Received: seed={seed}")
    source = run.load_data(progress)
    held_out: Split = source.splits[split]
    if len(held_out) < 2:
        raise UserError(f"the {split} split must hold at least two images. Received: {len(held_out)} images")
    model = run.load_model(checkpoint, warn)
    _check_same_data(run, source)
    most = max(2, MAX_NUMBERS // math.prod(source.spec.shape))
    num = min(samples, len(source.train), most)
    train_images, _ = source.train.arrays(num)
    real_images, real_labels = held_out.arrays(min(MAX_REAL, most))
    labelled = source.train.labelled and source.spec.num_classes > 1
    train_counts = _class_counts(source, tell) if labelled else None
    asked = None
    if train_counts is not None and model.num_classes:
        asked = modes.labels_in_proportion(train_counts, num)
    tell("sampling", 0, num)
    images = _samples(model, num, asked, seed, source.spec.dtype)
    tell("sampling", num, num)

    result: dict[str, Any] = {
        "run": run.name,
        "model": type(model).__name__,
        "data": source.spec.name,
        "split": split,
        "samples": num,
        "seed": seed,
        "checkpoint": checkpoint,
        "metrics": {},
    }
    if train_counts is not None and real_labels is not None:
        classifier = _classifier(source, held_out, progress, warn)
        value, stderr = classifier.accuracy
        result["classifier"] = {"test_accuracy": _number(value), "stderr": _number(stderr)}
        generated, real = classifier.predict(images), classifier.predict(real_images)
        metrics, result["classes"] = class_metrics(
            generated, real, real_labels, asked, train_counts, source.spec.class_names, seed
        )
        result["metrics"] |= metrics
    of_samples, of_real = _nearest(source, images, real_images, tell)
    result["metrics"] |= copy_metrics(of_samples, of_real)
    result["metrics"] |= distance_metrics(images, real_images, train_images, seed)
    result["references"] = {
        "train_images": len(source.train),
        "held_out_images": len(real_images),
        "near_copy_distance": copy_threshold(of_real),
    }
    atomic_write(run.path / "evaluation.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def class_metrics(
    generated: np.ndarray,
    real: np.ndarray,
    real_labels: np.ndarray,
    asked: np.ndarray | None,
    train_counts: np.ndarray,
    class_names: tuple[str, ...],
    seed: int,
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics from a classifier's probabilities.

    Args:
        generated: (n, K) of the samples.
        real: (m, K) of held-out real images; real_labels: (m,) their classes.
        asked: (n,) classes the samples were asked for, or None.
        train_counts: (K,) images of each class in the train split.
    Returns:
        the metrics, and one dict a class: {"name", "train", "generated"} with shares, and, where classes were
        asked for, "agreement" and "agreement_stderr".
    """
    num_classes = generated.shape[1]
    counts = modes.class_counts(generated.argmax(axis=1), num_classes)
    real_counts = modes.class_counts(real.argmax(axis=1), num_classes)
    shares = modes.real_shares(train_counts)
    metrics = {
        "classes_covered": _entry(modes.classes_covered(counts, train_counts, seed=seed), 1.0, num_classes),
        "reverse_kl": _entry(
            modes.reverse_kl(counts, train_counts, seed=seed),
            modes.expected_reverse_kl(real_counts, train_counts, len(generated), seed=seed),
            modes.worst_reverse_kl(train_counts),
        ),
        "confidence": _entry(modes.confidence(generated), 1 / num_classes, modes.confidence(real).value),
    }
    classes: list[dict[str, Any]] = [
        {
            "name": name,
            "train": float(train_counts[k] / train_counts.sum()),
            "generated": float(counts[k] / counts.sum()),
        }
        for k, name in enumerate(class_names)
    ]
    if asked is not None:
        # Labels that are ignored are met by chance: as often as two images drawn apart are of one class.
        chance = float((shares**2).sum())
        metrics["class_agreement"] = _entry(
            modes.class_agreement(generated, asked), chance, modes.class_agreement(real, real_labels).value
        )
        for entry, agreement in zip(classes, modes.agreement_by_class(generated, asked), strict=True):
            entry["agreement"] = None if agreement is None else agreement.value
            entry["agreement_stderr"] = None if agreement is None else _number(agreement.stderr)
    return metrics, classes


def distance_metrics(images: np.ndarray, real_images: np.ndarray, train_images: np.ndarray, seed: int) -> Metrics:
    """Sliced Wasserstein distance to held-out images: of samples, of training images, of their mean.

    Training images should be as many as the samples, for the distance falls with the count.
    """
    mean_image = to_signed(train_images).mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    return {
        "sliced_wasserstein": _entry(
            sliced_wasserstein_estimate(images, real_images, seed=seed),
            sliced_wasserstein(train_images, real_images, seed=seed),
            sliced_wasserstein(np.repeat(mean_image, 2, axis=0), real_images, seed=seed),
        )
    }


def copy_metrics(of_samples: np.ndarray, of_real: np.ndarray) -> Metrics:
    """Metrics from distances to the nearest training image.

    Args:
        of_samples: (n,), n >= 1.
        of_real: (m,) of held-out real images, m >= 2.
    """
    # Half of the real images sets the bound, the other is held to it, and the other way round.
    halves = of_real[::2], of_real[1::2]
    real_share = (near_copies(halves[0], halves[1]).value + near_copies(halves[1], halves[0]).value) / 2
    return {
        "nearest_train_distance": _entry(mean_of(of_samples), 0.0, float(of_real.mean())),
        "near_copies": _entry(near_copies(of_samples, of_real), real_share, 1.0),
    }


def _nearest(source: DataSource, images, real_images, tell) -> list[np.ndarray]:
    """Distances of both sets to the train split, which is read once."""

    def blocks():
        for batch in source.train.batches(BATCH):
            yield batch["image"].numpy()

    both, total = np.concatenate([images, real_images]), len(source.train)
    distances = nearest_distances(both, blocks, progress=lambda done: tell("nearest images", done, total))
    return np.split(distances, [len(images)])


def _samples(model: GenerativeModel, num: int, asked, seed: int, dtype: str) -> np.ndarray:
    """The model's images as they would be stored: rounded to 8 bits where the data are."""
    images = to_signed(model.sample(num, condition=asked, seed=seed), "samples")
    return to_uint8(images) if dtype == "uint8" else np.clip(images, -1, 1)


def _class_counts(source: DataSource, tell) -> np.ndarray:
    counts, done = np.zeros(source.spec.num_classes, np.int64), 0
    for batch in source.train.batches(BATCH):
        labels = batch["label"].numpy()
        counts += modes.class_counts(labels, len(counts))
        done += len(labels)
        tell("counting classes", done, len(source.train))
    return counts


def _classifier(source: DataSource, held_out: Split, progress, warn) -> Classifier:
    measured_on = source.test if len(source.test) else held_out
    return cached_classifier(
        source.fingerprint,
        source.spec.shape,
        source.spec.num_classes,
        lambda batch_size, seed: source.train.stream(batch_size, seed=seed),
        len(source.train),
        lambda: measured_on.batches(BATCH),
        progress=progress,
        warn=warn,
    )


def _check_same_data(run: Run, source: DataSource) -> None:
    for name in ("shape", "dtype", "class_names"):
        then, now = getattr(run.spec, name), getattr(source.spec, name)
        if then != now:
            raise UserError(
                f"the data must be those the run was trained on, with {name} {then}. "
                f"Received: {source.spec.name} with {name} {now}"
            )


def _entry(estimate: Estimate, floor: float, ceiling: float) -> dict[str, float | None]:
    return {
        "value": _number(estimate.value),
        "stderr": _number(estimate.stderr),
        "floor": _number(floor),
        "ceiling": _number(ceiling),
    }


def _number(value: float) -> float | None:
    """A number as JSON knows it: None where it is undefined."""
    return float(value) if math.isfinite(value) else None
