"""Rows of an evaluation: a measured value, its standard error, and two references around it."""

import math
from dataclasses import dataclass

from gentf.metrics.estimate import Estimate

#: Name of a metric -> {"value", "stderr", "floor", "ceiling"}; None where a number is not defined.
Metrics = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Meaning:
    """One metric in plain words.

    Attributes:
        text: what it is.
        floor, ceiling: what the lower and the higher reference are.
        real: the reference that real data are, "floor" or "ceiling"; "" where neither is.
    """

    text: str
    floor: str
    ceiling: str
    real: str


def entry(estimate: Estimate, floor: float, ceiling: float) -> dict[str, float | None]:
    """A row, as JSON knows it."""
    return {
        "value": number(estimate.value),
        "stderr": number(estimate.stderr),
        "floor": number(floor),
        "ceiling": number(ceiling),
    }


def number(value: float) -> float | None:
    """A number as JSON knows it: None where it is undefined."""
    return float(value) if math.isfinite(value) else None
