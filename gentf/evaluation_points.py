"""What is measured of points from a mixture that is known: modes, their shares, and how they are filled."""

import math
from typing import Any

import numpy as np

from gentf.data import DataSource, Split
from gentf.data.points import MIXTURES
from gentf.metrics import mixture
from gentf.metrics.distance import sliced_wasserstein, sliced_wasserstein_estimate
from gentf.metrics.table import Meaning, entry
from gentf.models.gan import GAN

MAX_SAMPLES = 2500  # the published protocol's number; the divergence falls with it

REAL = "held-out points"
METRICS = {
    "modes": Meaning("modes with a sample of high quality", "one mode", "every mode", "ceiling"),
    "high_quality": Meaning("share within 3 deviations of a mode", "none", REAL, "ceiling"),
    "mode_reverse_kl": Meaning("mismatch of modes' shares, nats", REAL, "all in one mode", "floor"),
    "mode_spread": Meaning("how far a mode is filled, 1 is as it should be", "single points", REAL, "ceiling"),
    "point_distance": Meaning("sliced Wasserstein to held-out points", "train points", "their mean", "floor"),
}
_NAMES = {"modes": "modes", "high_quality": "high_quality", "reverse_kl": "mode_reverse_kl", "spread": "mode_spread"}


def measure(source: DataSource, held_out: Split, model: GAN, samples: int, seed: int, tell: Any) -> dict[str, Any]:
    """The part of an evaluation that points have; see `gentf.evaluation.evaluate`."""
    known = MIXTURES[source.spec.name]
    num = min(samples, MAX_SAMPLES)
    tell("sampling", 0, num)
    points = model.sample(num, seed=seed)
    tell("sampling", num, num)
    real, train = (split.contents()["point"][:num] for split in (held_out, source.train))
    found, reference = (mixture.coverage(part, known.centres, known.scale, seed=seed) for part in (points, real))
    count = len(known.centres)
    ends = {
        "modes": (1.0, reference["modes"].value),
        "high_quality": (0.0, reference["high_quality"].value),
        "reverse_kl": (reference["reverse_kl"].value, math.log(count)),
        "spread": (0.0, reference["spread"].value),
    }
    metrics = {_NAMES[name]: entry(value, *ends[name]) for name, value in found.items()}
    mean = np.repeat(train.mean(axis=0, keepdims=True), 2, axis=0)
    metrics["point_distance"] = entry(
        sliced_wasserstein_estimate(points, real, seed=seed),
        sliced_wasserstein(train, real, seed=seed),
        sliced_wasserstein(mean, real, seed=seed),
    )
    return {
        "samples": num,
        "metrics": metrics,
        "references": {"train_points": len(source.train), "held_out_points": len(real)},
    }
