"""What is measured of images in spaces of features: distance, fidelity, variety, novelty, and use for training.

The numbers of the table are of one extractor. The others (two more seeds of the same recipe, one without training, and
one that the user brings) are told beside it: what holds for one alone says more about the extractor than the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gentf.metrics import features, manifold, novelty
from gentf.metrics.estimate import Estimate
from gentf.metrics.extractors import Extractor
from gentf.metrics.similarity import pair_similarity
from gentf.metrics.table import Meaning, Metrics, entry
from gentf.metrics.two_sample import two_sample

NEIGHBOURS = 5
MAX_GAP = 5000  # points of each set in the likelihood gap, whose memory is their square

REAL, TRAIN, NOISE = "held-out real images", "training images", "noise"
METRICS = {
    "fcd": Meaning("Fréchet distance in features", TRAIN, NOISE, "floor"),
    "kid": Meaning("kernel distance in features, unbiased", TRAIN, NOISE, "floor"),
    "precision": Meaning("share of samples among real images", NOISE, TRAIN, "ceiling"),
    "recall": Meaning("share of real images among samples", NOISE, TRAIN, "ceiling"),
    "density": Meaning("real neighbourhoods a sample is in", NOISE, TRAIN, "ceiling"),
    "coverage": Meaning("real neighbourhoods with a sample", NOISE, TRAIN, "ceiling"),
    "vendi": Meaning("how many different images", "one image", REAL, "ceiling"),
    "pair_similarity": Meaning("MS-SSIM of pairs, of one class if there are", REAL, "one image", "floor"),
    "two_sample": Meaning("how often a classifier tells them apart", TRAIN, NOISE, "floor"),
    "authenticity": Meaning("share that are no neighbour's double", "copies", REAL, "ceiling"),
    "likelihood_gap": Meaning("how much likelier train is than held-out, nats", REAL, "copies", "floor"),
}
COPIES = ("near_copies", "authenticity", "likelihood_gap")  # what moves where samples repeat the training set


def measure(
    extractors: Sequence[Extractor],
    images: np.ndarray,
    real_images: np.ndarray,
    train_images: np.ndarray,
    classes: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
    tell: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Every metric here in the space of the first extractor, and the distances in the others'.

    Args:
        extractors: at least one.
        images: (n, H, W, C) samples; real_images: (m, H, W, C) held out; train_images: (n, H, W, C) of the train split.
        classes: (n,) of the samples and (m,) of the real images, for pairs of one class; None where there are none.
        seed: of noise, subsets and pairs.
        tell: called with (label, done, total).
    Returns:
        {"metrics": ..., "extractors": one {"name", "seed", "metrics", "ratio"} each}; "ratio" is the Fréchet distance
        over its floor.
    """
    noise = np.random.default_rng(seed).integers(0, 256, images.shape, np.uint8)
    metrics: Metrics = {}
    told = []
    for number, extractor in enumerate(extractors):
        tell("features", number, len(extractors))
        generated, real, train, degenerate = (
            extractor.features(part).astype(np.float64) for part in (images, real_images, train_images, noise)
        )
        distances = _distances(generated, real, train, degenerate, seed)
        floor = distances["fcd"]["floor"] or 0.0
        value = distances["fcd"]["value"] or 0.0
        ratio = value / floor if floor > 0.0 else None
        told.append({"name": extractor.name, "seed": extractor.seed, "ratio": ratio, "metrics": distances})
        if not number:
            metrics |= distances | in_features(generated, real, train, degenerate, seed)
    metrics["pair_similarity"] = _similarity(images, real_images, classes, seed)
    tell("features", len(extractors), len(extractors))
    return {"metrics": metrics, "extractors": told}


def in_features(
    generated: np.ndarray, real: np.ndarray, train: np.ndarray, noise: np.ndarray, seed: int = 0
) -> Metrics:
    """Fidelity, variety and novelty of (n, D) features, beside those of real images, and of noise or copies."""
    metrics: Metrics = {}
    if min(len(real), len(generated)) > NEIGHBOURS:
        scored, best, worst = (manifold.prdc(real, part, NEIGHBOURS) for part in (generated, train, noise))
        metrics |= {name: entry(scored[name], worst[name].value, best[name].value) for name in scored}
    metrics["vendi"] = entry(features.vendi(generated), 1.0, features.vendi(real).value)
    if min(len(real), len(generated)) >= 4:
        told = [two_sample(real, part, seed) for part in (generated, train, noise)]
        metrics["two_sample"] = entry(told[0], told[1].value, told[2].value)
    return metrics | Novelty(real, train).metrics(generated)


class Novelty:
    """Whether samples repeat the train split, beside what held-out images and copies score.

    Half of the held-out images stand for samples of a model that learned, the other half is held out; as many samples
    and copies are taken, for both numbers fall or rise with how many there are.

    Args:
        real: (m, D) features of held-out images; train: (n, D) of the train split.
    """

    def __init__(self, real: np.ndarray, train: np.ndarray):
        stand_in, self._held_out = real[::2][:MAX_GAP], real[1::2][:MAX_GAP]
        self._number, self._train, self._fitted = len(stand_in), train, train[:MAX_GAP]
        self._references = self._scores(stand_in), self._scores(self._fitted)

    def metrics(self, generated: np.ndarray) -> Metrics:
        """Those of (k, D) features of samples; none where any set has fewer than two points."""
        own, (stand_in, copies) = self._scores(generated), self._references
        if not (own and stand_in and copies):
            return {}
        name, gap = "authenticity", "likelihood_gap"
        return {
            name: entry(own[name], copies[name].value, stand_in[name].value),
            gap: entry(own[gap], stand_in[gap].value, copies[gap].value),
        }

    def _scores(self, points: np.ndarray) -> dict[str, Estimate]:
        points = points[: self._number]
        if min(len(points), len(self._held_out), len(self._fitted)) < 2:
            return {}
        return {
            "authenticity": novelty.authenticity(self._train, points),
            "likelihood_gap": novelty.likelihood_gap(self._fitted, self._held_out, points),
        }


def copying(metrics: Metrics) -> list[str]:
    """Which of `COPIES` say that samples repeat the training set.

    One says so where it has gone a tenth of the way from what held-out images score to what copies do, and by more than
    three standard errors of the difference; those of the reference are taken to be as large as the value's own.
    """
    found = []
    for name in COPIES:
        row = metrics.get(name)
        if row is None or any(number is None for number in row.values()):
            continue
        value, error, floor, ceiling = (float(row[key] or 0.0) for key in ("value", "stderr", "floor", "ceiling"))
        real, copies = (ceiling, floor) if name == "authenticity" else (floor, ceiling)
        moved, way = (value - real, copies - real) if copies > real else (real - value, real - copies)
        if moved > 0.1 * way and moved > 3.0 * np.sqrt(2.0) * error:
            found.append(name)
    return found


def _distances(generated: np.ndarray, real: np.ndarray, train: np.ndarray, noise: np.ndarray, seed: int) -> Metrics:
    found = {}
    for name, distance in (("fcd", lambda points: features.frechet(points, real)),
                           ("kid", lambda points: features.kid(points, real, seed))):  # fmt: skip
        value, floor, ceiling = (distance(points) for points in (generated, train, noise))
        found[name] = entry(value, floor.value, ceiling.value)
    return found


def _similarity(
    images: np.ndarray, real_images: np.ndarray, classes: tuple[np.ndarray, np.ndarray] | None, seed: int
) -> dict[str, float | None]:
    found: list[Estimate] = []
    for part, named in zip((images, real_images), classes or (None, None)):
        if named is not None and np.bincount(named).max() < 2:
            named = None
        found.append(pair_similarity(part, named, seed=seed))
    return entry(found[0], found[1].value, 1.0)
