"""Likelihoods of held-out images under a model, exact or importance-sampled, beside that of pixels by themselves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gentf.data import DataSource
from gentf.metrics.estimate import Estimate, mean_of, to_signed
from gentf.metrics.table import Meaning, Metrics, entry

Progress = Callable[[str, int, int], None]

SCORED = 500  # images between two tellings of progress
BATCH = 1000
PIXELS = "pixels by themselves"
METRICS = {
    "nats_per_image": Meaning("minus log-likelihood of a held-out image", "certainty", PIXELS, ""),
    "bits_per_dimension": Meaning("the same for each number of an image", "certainty", PIXELS, ""),
    "nats_per_image_elbo": Meaning("minus its evidence lower bound", "certainty", PIXELS, ""),
    "distortion": Meaning("nats of an image given its code", "certainty", PIXELS, ""),
    "rate": Meaning("nats of a code, from the prior", "codes say nothing", "", ""),
    "active_units": Meaning("latents that vary with the image", "collapse", "every latent", ""),
}


def has_likelihood(model: Any) -> bool:
    """Whether `measure` can score images with the model."""
    return getattr(model, "exact_likelihood", False) or hasattr(model, "bound")


def measure(
    model: Any,
    source: DataSource,
    images: np.ndarray,
    labels: np.ndarray | None,
    samples: int,
    seed: int,
    tell: Progress,
) -> tuple[Metrics, dict[str, Any]]:
    """Scores of held-out images.

    Args:
        model: with `log_prob(images, labels)` in nats, exact; or with `bound(images, samples, condition, seed)`. Its
            `levels` are the values of a pixel, None where they are continuous: then nats are those of a density, and
            neither bits nor a baseline is given.
        source: the data, whose train split the baseline is fitted on.
        images, labels: held out, (n, H, W, C) and (n,).
        samples: latents an image, of a bound.
        seed: of the latents; each block of `SCORED` images has the next one.
    Returns:
        the metrics; and {"baselines": {"unigram": nats}} and, of a bound, {"importance": {"samples", "of", "stderr"}}:
        latents, of what, and the Monte Carlo part of the standard error of nats_per_image.
    """
    dimensions = math.prod(source.spec.shape)
    unigram = math.nan if model.levels is None else pixels_apart(source, images, model.levels)
    about: dict[str, Any] = {} if math.isnan(unigram) else {"baselines": {"unigram": unigram}}
    metrics: Metrics = {}
    if getattr(model, "exact_likelihood", False):
        scores = [-model.log_prob(images[part], known) for part, known in _parts(model, images, labels, tell)]
        nats = mean_of(np.concatenate(scores))
    else:
        bounds = [
            model.bound(images[part], samples, condition=known, seed=(seed + number) % 2**31)
            for number, (part, known) in enumerate(_parts(model, images, labels, tell))
        ]
        log_prob, stderr, elbo, distortion = (np.concatenate(field) for field in zip(*bounds))
        noise = float(np.sqrt(np.sum(np.square(stderr, dtype=np.float64))) / len(stderr))
        nats = mean_of(-log_prob)  # the spread of the estimates has their noise in it
        about["importance"] = {"samples": samples, "of": "an image", "stderr": noise}
        metrics["nats_per_image_elbo"] = entry(mean_of(-elbo), 0.0, unigram)
        metrics["distortion"] = entry(mean_of(distortion), 0.0, unigram)
        metrics["rate"] = entry(mean_of(-elbo - distortion), 0.0, math.nan)
        active = model.summarize([images[part] if k is None else (images[part], k)
                                  for part, k in _parts(model, images, labels, lambda *_: None)])  # fmt: skip
        metrics["active_units"] = entry(Estimate(active["active_units"], math.nan), 0.0, model.latent_width)
    first = {"nats_per_image": entry(nats, 0.0, unigram)}
    if model.levels is not None:
        bits = 1 / (dimensions * math.log(2))
        first["bits_per_dimension"] = entry(Estimate(nats.value * bits, nats.stderr * bits), 0.0, unigram * bits)
    return first | metrics, about


def pixels_apart(source: DataSource, images: np.ndarray, levels: int) -> float:
    """Nats an image, where each number is drawn by itself, from the levels that its place has in the train split.

    Of k of n training pixels at a level, it gives the level (k + 1/2) / (n + levels / 2): Krichevsky & Trofimov (1981).
    """
    dimensions = math.prod(source.spec.shape)
    counts = np.zeros((dimensions, levels), np.int64)
    places = np.arange(dimensions)
    for batch in source.train.batches(BATCH):
        for image in _levels(batch["image"].numpy(), levels):
            counts[places, image] += 1
    share = (counts + 0.5) / (len(source.train) + levels / 2)
    return -float(np.mean([np.log(share[places, image]).sum() for image in _levels(images, levels)]))


def _parts(model: Any, images: np.ndarray, labels: np.ndarray | None, tell: Progress):
    """(slice, labels of it where the model takes them), and progress told."""
    for start in range(0, len(images), SCORED):
        tell("likelihood", start, len(images))
        part = slice(start, start + SCORED)
        yield part, labels[part] if labels is not None and model.num_classes else None
    tell("likelihood", len(images), len(images))


def _levels(images: np.ndarray, levels: int) -> np.ndarray:
    """(n, ...) -> (n, numbers of an image) int64 in 0..levels-1."""
    signed = to_signed(images).reshape(len(images), -1)
    return (signed > 0).astype(np.int64) if levels == 2 else np.rint((signed + 1) * 127.5).astype(np.int64)
