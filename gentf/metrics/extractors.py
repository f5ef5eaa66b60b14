"""Extractors of features: fixed recipes that are told by name and hash beside every number measured in their space.

"cnn" is the classifier of the data (`gentf.metrics.classifier`), trained in place on the train split; "random" the same
network as it is before training, which knows nothing and prefers nothing; "inception" is the network of the Fréchet
inception distance, whose weights a user has to bring.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from gentf.errors import UserError
from gentf.metrics.classifier import ByChannel, Classifier, Recipe
from gentf.metrics.estimate import to_signed

INCEPTION_SIZE = 299  # pixels
INCEPTION_FEATURES = 2048


@dataclass(frozen=True)
class Extractor:
    """A space of features.

    Attributes:
        name: "cnn-mnist@1a2b3c4d": the kind, the data it was trained on, and the hash of all that made it.
        features: (n, H, W, C) images, uint8 or float in [-1, 1] -> (n, D) float32.
        seed: of its weights; None where they were brought.
    """

    name: str
    features: Callable[[np.ndarray], np.ndarray]
    seed: int | None


def of_classifier(classifier: Classifier | ByChannel, data: str, fingerprint: str) -> Extractor:
    """The space of a trained classifier's last layer.

    Args:
        data: name of what it was trained on; fingerprint: of the data.
    """
    key = classifier.recipe.key(fingerprint, classifier.image_shape, classifier.num_classes)
    return Extractor(f"cnn-{Path(data).stem}@{key[:8]}", classifier.features, classifier.recipe.seed)


def random_weights(image_shape: tuple[int, int, int], seed: int) -> Extractor:
    """The space of the classifier's network before any training."""
    recipe = Recipe(seed=seed)
    network = Classifier(image_shape, 2, recipe)
    return Extractor(f"random@{recipe.key('', image_shape, 2)[:8]}", network.features, seed)


def inception(path: str | Path) -> Extractor:
    """The space of Inception v3's last pooling layer, with Keras' own form of the network and weights from a file.

    Images are resized to 299 x 299 pixels, bilinearly, grey ones repeated over three channels. The number is comparable
    with published ones only if the weights are those that they were made with.

    Args:
        path: of an .h5 file of weights without the top, as Keras distributes them.
    Raises:
        UserError: no such file, or not these weights.
    """
    import keras

    path = Path(path).expanduser()
    if not path.is_file() or path.suffix not in (".h5", ".hdf5"):
        raise UserError(f"`--extractor inception` must be an .h5 file of Inception v3's weights. Received: {path}")
    try:
        network = keras.applications.InceptionV3(include_top=False, weights=None, pooling="avg")
        network.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read Inception v3's weights from {path}: {reason}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    @tf.function(reduce_retracing=True, autograph=False)
    def activations(images: tf.Tensor) -> tf.Tensor:
        images = tf.image.resize(images, (INCEPTION_SIZE, INCEPTION_SIZE))
        images = images[..., :3] if images.shape[3] != 1 else tf.repeat(images, 3, axis=3)
        return network(images, training=False)

    def features(images: np.ndarray) -> np.ndarray:
        parts = [activations(to_signed(images[i : i + 50])).numpy() for i in range(0, len(images), 50)]
        return np.concatenate(parts)

    return Extractor(f"inception@{digest[:8]}", features, None)
