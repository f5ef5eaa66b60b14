"""A run folder in, a table of metrics out: how good, how varied and how much its own the samples of a model are.

Every metric stands between two references measured under the same protocol: as a rule real data that the model has
not seen, and a degenerate generator. Which of them is the floor and which the ceiling is said in `METRICS` and, at
more length, in docs/evaluation.md. What is here is for images; for sequences and points see
`gentf.evaluation_sequences` and `gentf.evaluation_points`.
"""

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gentf import evaluation_features as in_features
from gentf import evaluation_likelihood as likelihood
from gentf import evaluation_points as points
from gentf import evaluation_sequences as sequences
from gentf.data import DataSource, Split, load, sprites, stacked
from gentf.errors import UserError
from gentf.files import atomic_write
from gentf.metrics import modes
from gentf.metrics.classifier import ByChannel, Classifier, Recipe, cached_classifier, stream_of_arrays
from gentf.metrics.distance import sliced_wasserstein, sliced_wasserstein_estimate
from gentf.metrics.estimate import Estimate, mean_of, to_signed
from gentf.metrics.extractors import Extractor, of_classifier, random_weights
from gentf.metrics.extractors import inception as bring
from gentf.metrics.nearest import copy_threshold, near_copies, nearest_distances
from gentf.metrics.table import Meaning, Metrics, entry, number
from gentf.models.base import GenerativeModel
from gentf.models.gan import GAN
from gentf.sampling.images import to_uint8
from gentf.training.run import Run

Progress = Callable[[str, int, int], None]

SPLITS = ("validation", "test")
MAX_NUMBERS = 2**27  # pixels times channels of all samples: 512 MiB as float32
MAX_REAL = 10_000  # held-out images measured
MAX_NEAREST = 10_000  # samples whose nearest training image is looked for, which costs the most of all
BATCH = 1000
SPRITE = (sprites.SIZE, sprites.SIZE, 1)

REAL = "held-out real images"
METRICS = (
    sequences.METRICS
    | likelihood.METRICS
    | points.METRICS
    | in_features.METRICS
    | {
        "classes_covered": Meaning("classes that the model makes", "one class", "every class", "ceiling"),
        "reverse_kl": Meaning("mismatch of class shares, nats", REAL, "all in the rarest class", "floor"),
        "confidence": Meaning("mean confidence of the classifier", "undecided", REAL, "ceiling"),
        "class_agreement": Meaning("share in the class asked for", "labels ignored", REAL, "ceiling"),
        "train_on_samples": Meaning("accuracy of a classifier trained on samples", "chance", REAL, "ceiling"),
        "nearest_train_distance": Meaning("RMS pixel distance to training set", "copies", REAL, "ceiling"),
        "near_copies": Meaning("share of near copies of training set", REAL, "copies", "floor"),
        "sliced_wasserstein": Meaning(
            "distance from held-out images, as sets", "training images", "the mean training image", "floor"
        ),
        **{
            name: Meaning(text, "a code that knows nothing", "one number a factor", "")
            for name, text in {
                "mig": "gap between a factor's two best latents, in information",
                "sap": "the same, in how well they tell it",
                "dci_disentanglement": "how few factors a latent is for",
                "dci_completeness": "how few latents a factor is in",
                "dci_informativeness": "share of factors that codes tell",
                "factor_vae": "share of groups whose common factor codes tell",
            }.items()
        },
    }
)


def evaluate(
    run: Run,
    *,
    split: str = "test",
    samples: int = 10_000,
    seed: int = 0,
    checkpoint: str | int = "last",
    importance_samples: int = 100,
    extractors: int = 3,
    inception: str | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = warnings.warn,
    done: Callable[[GenerativeModel, DataSource, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure a run's model, and write the result to `evaluation.json` in its folder.

    Args:
        run: an existing run folder.
        split: the held-out real data to compare with, "test" or "validation".
        samples: to draw. Of images lowered to the size of the train split, and to what fits in memory
            (`MAX_NUMBERS`); of points to `points.MAX_SAMPLES`; of sequences to `sequences.MAX_SAMPLES`; of pairs those
            that are answered, at most `sequences.MAX_PAIRS`.
        seed: of the samples (those of `model.sample(num, seed=seed)`), projections and bootstrap.
        checkpoint: "last", "best" or a step.
        importance_samples: latents an image, or a window of a sequence, of a model whose likelihood is a bound.
        extractors: seeds of the extractor of features, of labelled images each a classifier to be trained once; 0
            leaves out all that is measured in features, and the training on samples.
        inception: path of Inception v3's weights, for a Fréchet inception distance.
        progress: called with (label, done, total) now and then.
        warn: called with the text of a warning.
        done: called with the model, its data and the result, once that is written.
    Returns:
        {"run", "model", "data", "split", "samples", "seed", "checkpoint", "modality", "metrics": {name: {"value",
        "stderr", "floor", "ceiling"}}}, "references"; with a likelihood "baselines", see `sequences.measure`; and,
        where images have labels, "classifier" and "classes". A stderr is None where it cannot be known (from a single
        image). Without labels only the metrics that need none are there.
    Raises:
        UserError: a wrong split, count or seed, or data that are not those of the run.
    """
    tell = progress or (lambda label, done, total: None)
    if split not in SPLITS:
        raise UserError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={split!r}")
    if samples < 1:
        raise UserError(f"`samples` must be positive. Received: samples={samples}")
    if importance_samples < 1:
        raise UserError(f"`importance_samples` must be positive. Received: importance_samples={importance_samples}")
    if extractors < 0:
        raise UserError(f"`extractors` must not be negative. Received: extractors={extractors}")
    if not 0 <= seed < 2**31:
        raise UserError(f"`seed` must be from 0 to 2**31 - 1. Received: seed={seed}")
    source = run.load_data(progress)
    held_out: Split = source.splits[split]
    images, pointwise = (source.spec.modality == name for name in ("image", "points"))
    if len(held_out) < (2 if images else 1):
        least = "two images" if images else "one example; a share of 0 leaves it empty, and text shorter than a block"
        raise UserError(f"the {split} split must hold at least {least}. Received: {len(held_out)}")
    model = run.load_model(checkpoint, warn)
    _check_same_data(run, source)
    result: dict[str, Any] = {
        "run": run.name,
        "model": type(model).__name__,
        "data": source.spec.name,
        "split": split,
        "samples": samples,
        "seed": seed,
        "checkpoint": checkpoint,
        "modality": source.spec.modality,
        "metrics": {},
    }
    if images:
        brought = [bring(inception)] if inception else []
        result |= _measure(
            source, held_out, model, samples, importance_samples, extractors, brought, seed, progress, warn
        )
    elif pointwise:
        assert isinstance(model, GAN)  # no other family is for points
        result |= points.measure(source, held_out, model, samples, seed, tell)
    else:
        result |= sequences.measure(run.config, source, held_out, model, samples, importance_samples, seed, tell)
    atomic_write(run.path / "evaluation.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    if done is not None:
        done(model, source, result)
    return result


def _measure(
    source: DataSource,
    held_out: Split,
    model: GenerativeModel,
    samples: int,
    importance_samples: int,
    extractors: int,
    brought: list[Extractor],
    seed: int,
    progress: Progress | None,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """What is measured of a model of images."""
    tell = progress or (lambda label, done, total: None)
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

    result: dict[str, Any] = {"samples": num, "metrics": {}}
    judge: Classifier | ByChannel | None = None
    classes = None
    if train_counts is not None and real_labels is not None:
        judge = classifier = _judge(source, held_out, progress, warn)
        value, stderr = classifier.accuracy
        result["classifier"] = {"test_accuracy": number(value), "stderr": number(stderr)}
        generated, real = classifier.predict(images), classifier.predict(real_images)
        classes = generated.argmax(axis=1), real.argmax(axis=1)
        metrics, result["classes"] = class_metrics(
            generated, real, real_labels, asked, train_counts, source.spec.class_names, seed
        )
        result["metrics"] |= metrics
        if asked is not None and extractors:
            used = _train_on_samples(model, source, classifier, held_out, train_counts, most, seed, progress)
            result["metrics"]["train_on_samples"] = entry(used, 1 / source.spec.num_classes, value)
    of_samples, of_real = _nearest(source, images[evenly(num, MAX_NEAREST)], real_images, tell)
    result["metrics"] |= copy_metrics(of_samples, of_real)
    result["metrics"] |= distance_metrics(images, real_images, train_images, seed)
    spaces = [*_extractors(source, held_out, judge, extractors, progress, warn), *brought]
    if spaces and num > 1:
        found = in_features.measure(spaces, images, real_images, train_images, classes, seed, tell)
        result["metrics"] |= found["metrics"]
        result["extractors"] = found["extractors"]
        result["copying"] = in_features.copying(result["metrics"])
    if likelihood.has_likelihood(model):
        metrics, about = likelihood.measure(model, source, real_images, real_labels, importance_samples, seed, tell)
        result["metrics"] |= metrics
        result |= about
    if source.spec.name == "sprites" and source.spec.shape == SPRITE and hasattr(model, "latent_width"):
        from gentf.metrics import disentanglement  # a third of a second of scikit-learn, for these data alone

        tell("disentanglement", 0, 1)
        found = disentanglement.scores(
            model.encode, sprites.sample, sprites.sample_fixed, sprites.CATEGORICAL, seed=seed
        )
        least = {"factor_vae": 1 / len(sprites.FACTORS)}
        result["metrics"] |= {name: entry(value, least.get(name, 0.0), 1.0) for name, value in found.items()}
        tell("disentanglement", 1, 1)
    result["references"] = {
        "train_images": len(source.train),
        "held_out_images": len(real_images),
        "near_copy_distance": copy_threshold(of_real),
    }
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
        "classes_covered": entry(modes.classes_covered(counts, train_counts, seed=seed), 1.0, num_classes),
        "reverse_kl": entry(
            modes.reverse_kl(counts, train_counts, seed=seed),
            modes.expected_reverse_kl(real_counts, train_counts, len(generated), seed=seed),
            modes.worst_reverse_kl(train_counts),
        ),
        "confidence": entry(modes.confidence(generated), 1 / num_classes, modes.confidence(real).value),
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
        metrics["class_agreement"] = entry(
            modes.class_agreement(generated, asked), chance, modes.class_agreement(real, real_labels).value
        )
        for row, agreement in zip(classes, modes.agreement_by_class(generated, asked), strict=True):
            row["agreement"] = None if agreement is None else agreement.value
            row["agreement_stderr"] = None if agreement is None else number(agreement.stderr)
    return metrics, classes


def distance_metrics(images: np.ndarray, real_images: np.ndarray, train_images: np.ndarray, seed: int) -> Metrics:
    """Sliced Wasserstein distance to held-out images: of samples, of training images, of their mean.

    Training images should be as many as the samples, for the distance falls with the count.
    """
    mean_image = to_signed(train_images).mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    return {
        "sliced_wasserstein": entry(
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
        "nearest_train_distance": entry(mean_of(of_samples), 0.0, float(of_real.mean())),
        "near_copies": entry(near_copies(of_samples, of_real), real_share, 1.0),
    }


def evenly(total: int, most: int) -> np.ndarray:
    """Up to `most` different rows of `total`, spread over all, in whatever order those are."""
    taken = min(total, most)
    return np.arange(taken) * total // taken


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


def _train_on_samples(
    model: GenerativeModel,
    source: DataSource,
    judge: Classifier | ByChannel,
    held_out: Split,
    train_counts: np.ndarray,
    most: int,
    seed: int,
    progress: Progress | None,
) -> Estimate:
    """Accuracy, on held-out real images, of the judge's twin, trained on as many samples as there are real images.

    Reference: Ravuri & Vinyals (2019), "Classification accuracy score for conditional generative models", section 3.
    """
    number = min(len(source.train), most)
    labels = modes.labels_in_proportion(train_counts, number)
    images = _samples(model, number, labels, seed, source.spec.dtype)
    height, width, channels = source.spec.shape
    twin = Classifier((height, width, channels), judge.num_classes, judge.recipe)
    tell = progress or (lambda label, done, total: None)
    twin.fit(
        stream_of_arrays(images, labels), number, lambda label, done, total: tell("training on samples", done, total)
    )
    return twin.measure(held_out.batches(BATCH))


def _extractors(
    source: DataSource, held_out: Split, judge: Classifier | ByChannel | None, seeds: int, progress, warn
) -> list[Extractor]:
    """Classifiers of several seeds, and the same network untrained; without labels, the latter with several seeds."""
    height, width, channels = source.spec.shape
    shape = (height, width, channels)
    if not seeds:
        return []
    if judge is None:
        return [random_weights(shape, seed) for seed in range(seeds)]
    trained = [judge, *(_judge(source, held_out, progress, warn, seed) for seed in range(1, seeds))]
    found = [of_classifier(one, source.spec.name, source.fingerprint) for one in trained]
    return [*found, random_weights(shape, 0)]


def _judge(source: DataSource, held_out: Split, progress, warn, seed: int = 0) -> Classifier | ByChannel:
    """The classifier of the data; of stacked digits, that of their channels."""
    if source.spec.name != stacked.NAME:
        return _classifier(source, held_out, progress, warn, seed)
    height, width, _ = source.spec.shape
    digits = load(stacked.DIGITS, size=(height, width))
    return ByChannel(_classifier(digits, digits.test, progress, warn, seed), held_out.batches(BATCH))


def _classifier(source: DataSource, held_out: Split, progress, warn, seed: int) -> Classifier:
    measured_on = source.test if len(source.test) else held_out
    height, width, channels = source.spec.shape
    return cached_classifier(
        source.fingerprint,
        (height, width, channels),
        source.spec.num_classes,
        lambda batch_size, seed: source.train.stream(batch_size, seed=seed),
        len(source.train),
        lambda: measured_on.batches(BATCH),
        recipe=Recipe(seed=seed),
        progress=progress,
        warn=warn,
    )


def _check_same_data(run: Run, source: DataSource) -> None:
    for name in ("modality", "shape", "dtype", "class_names", "vocabulary", "start", "boundary"):
        then, now = getattr(run.spec, name), getattr(source.spec, name)
        if then != now:
            raise UserError(
                f"the data must be those the run was trained on, with {name} {then}. "
                f"Received: {source.spec.name} with {name} {now}"
            )
    then, now = (json.dumps(spec.tokenizer, sort_keys=True) for spec in (run.spec, source.spec))
    if then != now:
        raise UserError(
            "the data must be those the run was trained on, with the same tokenizer. "
            f"Received: {source.spec.name} with another one"
        )
