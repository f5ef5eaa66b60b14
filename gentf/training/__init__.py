"""Fit a Config: devices, loop, checkpoints, run folder."""

from gentf.training.loop import Interrupted, train
from gentf.training.run import Run

__all__ = ["Interrupted", "Run", "train"]
