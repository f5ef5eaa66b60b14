"""Data sets: loaded, split, prepared and delivered in batches."""

from gentf.data.arrays import from_arrays
from gentf.data.image import Preparation
from gentf.data.loading import load
from gentf.data.source import DataSource, DataSpec, Settings, Split

__all__ = ["DataSource", "DataSpec", "Preparation", "Settings", "Split", "from_arrays", "load"]
