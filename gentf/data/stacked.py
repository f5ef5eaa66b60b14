"""Three digits as the channels of one colour image: 1,000 classes of which every one can be counted.

Reference: Metz et al. (2017), "Unrolled generative adversarial networks", section 3.3.1; Lin et al. (2018), "PacGAN",
section 4.2, for how many there are.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from gentf.data.builders import load_builder
from gentf.data.examples import Element, Examples, on_host
from gentf.data.source import DataSource, DataSpec, Settings, of_stores
from gentf.errors import UserError

NAME, DIGITS = "stacked-mnist", "mnist"
ABOUT = "three digits of MNIST as one colour image, 28x28x3, 1,000 classes (of mnist)"
SIZES = {"train": 128_000, "validation": 10_000, "test": 26_000}
_SEED = 20161108


class Stacked(Examples):
    """Triples of images of one channel, put together when they are asked for.

    Args:
        images: (n, H, W, 1) uint8; labels: (n,) int32 in 0..9.
        parts: (m, 3) int64, the images of each triple.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, parts: np.ndarray):
        super().__init__(len(parts), (*images.shape[1:3], 3), "uint8", True, None)
        self._tensors = {"digits": on_host(images[..., 0]), "digit": on_host(labels), "parts": on_host(parts)}

    @property
    def resident(self) -> Element:
        return self._tensors

    def select(self, tensors: Element, rows: tf.Tensor) -> Element:
        parts = tf.gather(tensors["parts"], rows)  # (B, 3)
        digits = tf.gather(tensors["digit"], parts)
        label = tf.reduce_sum(digits * tf.constant([100, 10, 1], digits.dtype), axis=1)
        return {"image": tf.transpose(tf.gather(tensors["digits"], parts), (0, 2, 3, 1)), "label": label}

    def gather(self, indices: tf.Tensor) -> Element:
        return self.select(self._tensors, indices)


def load_stacked(settings: Settings) -> DataSource:
    """`SIZES` triples of the images of each split of MNIST, drawn once for all.

    Args:
        settings: as of `load`; the size is that of the digits before they are stacked.
    Raises:
        UserError: a number of channels, or what `load` says of "mnist".
    """
    if settings.prepare.channels is not None:
        raise UserError(f"`channels` must be null for {NAME}. Received: channels={settings.prepare.channels}")
    digits = load_builder(DIGITS, dataclasses.replace(settings, join_validation=False))
    stores: dict[str, Examples] = {}
    for number, (name, split) in enumerate(digits.splits.items()):
        images, labels = split.arrays()
        assert labels is not None  # MNIST has them
        parts = np.random.default_rng([_SEED, number]).integers(0, len(images), (SIZES[name], 3))
        stores[name] = Stacked(images, labels, parts)
    names = tuple(f"{number:03d}" for number in range(1000))
    spec = DataSpec(NAME, stores["train"].shape, class_names=names, licence=digits.spec.licence)
    return of_stores(spec, stores, stores["train"])
