"""Data sets that come with the package's dependencies and need no network."""

import numpy as np
from sklearn.datasets import load_digits

from gentf.data import sprites
from gentf.data.arrays import from_arrays
from gentf.data.source import DataSource, Settings

EMBEDDED = {
    "digits": "1,797 handwritten digits, 8x8 grey, 10 classes (scikit-learn)",
    "sprites": "24,576 black and white shapes, 32x32, from known factors, 3 classes (drawn)",
}


def load_embedded(name: str, settings: Settings) -> DataSource:
    """Load an embedded set.

    `digits`: the 8x8 digits of scikit-learn, their grey levels 0..16 scaled to 0..255 and rounded.
    `sprites`: see `gentf.data.sprites`.
    Reference: Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
    """
    if name not in EMBEDDED:
        raise ValueError(f"`name` must be one of {sorted(EMBEDDED)}. Received: name={name!r}")
    if name == "sprites":
        factors = sprites.factors_of(np.arange(sprites.NUMBER))
        return from_arrays(
            sprites.render(factors), factors[:, 0], class_names=sprites.SHAPES, name="sprites", licence="none needed",
            settings=settings,
        )  # fmt: skip
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    return from_arrays(
        images,
        bunch.target,
        class_names=[str(n) for n in range(10)],
        name="digits",
        licence="CC BY 4.0 (UCI)",
        settings=settings,
    )
