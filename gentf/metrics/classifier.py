"""A small convolutional classifier of real images, by which generated ones are judged; cached on disk.

It is trained once for a data set and a recipe: the key of the cache is a hash of both. Its probabilities are
not calibrated (nothing beyond the training loss is done for it), so a mean confidence means something only
beside the same number for held-out real images.
"""

import dataclasses
import functools
import hashlib
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from gentf.files import atomic_save, user_cache
from gentf.metrics.estimate import Estimate, share_of, to_signed

Batch = Mapping[str, np.ndarray | tf.Tensor]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How the classifier is built and trained. Changing anything here trains a new one.

    Blocks of a 3x3 convolution, ReLU and 2x2 max pooling (two of them up to 32 pixels, one more for each
    doubling beyond; images of more than 64 pixels are first averaged down), a dense layer, dropout, logits.
    Cross-entropy, Adam with warm-up and cosine decay, random shifts with repeated edge pixels.
    """

    version: int = 1  # raised when the code below changes what the same numbers train
    filters: int = 32  # of the first block; each further block has twice as many, up to 128
    dense: int = 128
    dropout: float = 0.4
    epochs: int = 6
    min_steps: int = 1000  # small sets get more epochs
    batch_size: int = 128
    learning_rate: float = 2e-3
    shift: float = 0.08  # largest shift, as a share of height and width, in whole pixels rounded down
    seed: int = 0

    def key(self, fingerprint: str, image_shape: Sequence[int], num_classes: int) -> str:
        """Hash of this recipe, the data and their shape: 32 hexadecimal digits."""
        what = [fingerprint, list(image_shape), num_classes, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


class Classifier:
    """The network of a Recipe with random initial weights.

    Args:
        image_shape: (H, W, C).
        num_classes: at least 2.
    Attributes:
        accuracy: on held-out real images, an Estimate; NaN until it is measured.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, recipe: Recipe | None = None):
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2. Received: num_classes={num_classes}")
        recipe = recipe or Recipe()
        self.image_shape, self.num_classes, self.recipe = tuple(image_shape), num_classes, recipe
        self.accuracy = Estimate(np.nan, np.nan)
        # float32 whatever the process' policy is: the cache does not know of policies.
        body, layers = keras.layers, []
        height, width = self.image_shape[:2]
        factor = -(-max(height, width) // 64)
        if factor > 1:
            layers.append(body.AveragePooling2D(factor, padding="same", dtype="float32"))
        side = -(-max(height, width) // factor)
        blocks = 2 if side <= 32 else 3
        for index in range(blocks):
            filters = min(recipe.filters * 2**index, 128)
            layers.append(
                body.Conv2D(
                    filters,
                    3,
                    padding="same",
                    activation="relu",
                    dtype="float32",
                    kernel_initializer=self._initial(index),
                )
            )
            layers.append(body.MaxPooling2D(2, padding="same", dtype="float32"))
        layers.append(body.Flatten(dtype="float32"))
        layers.append(
            body.Dense(recipe.dense, activation="relu", dtype="float32", kernel_initializer=self._initial(blocks))
        )
        self._features = keras.Sequential([keras.Input(self.image_shape, dtype="float32"), *layers])
        self._head = body.Dense(num_classes, dtype="float32", kernel_initializer=self._initial(blocks + 1))
        self._head.build((None, recipe.dense))
        spec = tf.TensorSpec([None, *self.image_shape], tf.float32)
        self._probabilities = tf.function(
            lambda images: tf.nn.softmax(self._head(self._features(images, training=False))),
            input_signature=[spec],
            autograph=False,
        )
        self._activations = tf.function(
            lambda images: self._features(images, training=False), input_signature=[spec], autograph=False
        )

    @property
    def variables(self) -> list:
        return self._features.trainable_variables + self._head.trainable_variables

    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Class probabilities: (n, H, W, C) uint8 or float in [-1, 1] -> (n, K) float32."""
        return self._batched(self._probabilities, images, batch_size, self.num_classes)

    def features(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """What the last layer sees: (n, H, W, C) uint8 or float in [-1, 1] -> (n, `Recipe.dense`) float32, >= 0."""
        return self._batched(self._activations, images, batch_size, self.recipe.dense)

    def _batched(self, function: Callable, images: np.ndarray, batch_size: int, width: int) -> np.ndarray:
        if np.shape(images)[1:] != self.image_shape:
            raise ValueError(f"`images` must be (n, {self.image_shape}). Received: shape={np.shape(images)}")
        starts = range(0, len(images), batch_size)
        parts = [function(to_signed(images[i : i + batch_size])).numpy() for i in starts]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)

    def measure(self, batches: Iterable[Batch]) -> Estimate:
        """Share of labelled images put in their class; kept as `accuracy`."""
        hits = [self.predict(np.asarray(b["image"])).argmax(1) == np.asarray(b["label"]) for b in batches]
        self.accuracy = share_of(np.concatenate(hits) if hits else np.zeros(0, bool))
        return self.accuracy

    def fit(self, stream: Callable[[int, int], Iterable[Batch]], count: int, progress: Progress | None = None) -> None:
        """Train as the recipe says. The weights depend on the seed, the data and the machine alone.

        Args:
            stream: (batch_size, seed) -> endless batches {"image", "label"}, each of `batch_size`; see
                `stream_of_arrays`.
            count: images of the train split, of which an epoch is made.
            progress: called with ("classifier", step, steps).
        """
        recipe = self.recipe
        batch_size = min(recipe.batch_size, count)
        steps = max(recipe.epochs * count // batch_size, recipe.min_steps)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=recipe.learning_rate, warmup_steps=max(1, steps // 20)
        )
        optimizer = keras.optimizers.Adam(schedule)
        optimizer.build(self.variables)
        step_function = tf.function(self._step, autograph=False)
        batches = iter(stream(batch_size, recipe.seed))
        for step in range(steps):
            batch = next(batches)
            step_function(optimizer, batch["image"], batch["label"], tf.constant([recipe.seed, step], tf.int32))
            if progress is not None and (step + 1 == steps or step % 50 == 49):
                progress("classifier", step + 1, steps)

    def _step(self, optimizer, images, labels, seed):
        """One update. seed: int32[2], of the shifts and the dropout of this step."""
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        if images.dtype == tf.uint8:
            images = tf.cast(images, tf.float32) / 127.5 - 1.0
        images = self._shifted(images, seed)
        with tf.GradientTape() as tape:
            features = self._features(images, training=True)
            if self.recipe.dropout:
                features = tf.nn.experimental.stateless_dropout(
                    features, self.recipe.dropout, seed=seed + [1, 0], rng_alg="philox"
                )
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), self._head(features))
            loss = tf.reduce_mean(loss)
        optimizer.apply(tape.gradient(loss, self.variables), self.variables)

    def _shifted(self, images, seed):
        """Each image moved by its own whole number of pixels; the edge is repeated."""
        for axis in (1, 2):
            size = self.image_shape[axis - 1]
            limit = int(self.recipe.shift * size)
            if limit:
                moves = tf.random.stateless_uniform(
                    [tf.shape(images)[0], 1], seed + [1 + axis, 0], -limit, limit + 1, tf.int32
                )
                images = tf.gather(
                    images, tf.clip_by_value(tf.range(size) + moves, 0, size - 1), axis=axis, batch_dims=1
                )
        return images

    def _initial(self, index):
        """He et al. (2015), for ReLU; every layer has its own seed."""
        return keras.initializers.HeNormal(seed=1000 * self.recipe.seed + index)


class ByChannel:
    """A classifier of images of one channel, as one of images of several whose class is told by their channels' classes
    as digits: of three channels and ten classes, 100 a + 10 b + c.

    Args:
        classifier: of one channel.
        test: batches of held-out images {"image", "label"}, on which `accuracy` is measured when it is asked for.
    """

    def __init__(self, classifier: Classifier, test: Iterable[Batch]):
        self._classifier, self.recipe = classifier, classifier.recipe
        self._test = list(test)
        channels = int(self._test[0]["image"].shape[3])
        self.image_shape = (*classifier.image_shape[:2], channels)
        self.num_classes = classifier.num_classes**channels

    @functools.cached_property
    def accuracy(self) -> Estimate:
        hits = [self.predict(np.asarray(b["image"])).argmax(1) == np.asarray(b["label"]) for b in self._test]
        return share_of(np.concatenate(hits))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities: (n, H, W, C) -> (n, K^C) float32, products of the channels'."""
        found = np.ones((len(images), 1), np.float32)
        for channel in self._split(images):
            told = self._classifier.predict(channel)
            found = (found[:, :, None] * told[:, None, :]).reshape(len(images), -1)
        return found

    def features(self, images: np.ndarray) -> np.ndarray:
        """The channels' features, one after another."""
        return np.concatenate([self._classifier.features(channel) for channel in self._split(images)], axis=1)

    def _split(self, images: np.ndarray) -> list[np.ndarray]:
        return [np.ascontiguousarray(images[..., c : c + 1]) for c in range(self.image_shape[2])]


def stream_of_arrays(images: np.ndarray, labels: np.ndarray) -> Callable[[int, int], Iterator[Batch]]:
    """Endless batches of arrays in memory, reshuffled every epoch by the seed, for `Classifier.fit`."""
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"`labels` must be one an image. Received: {len(labels)} labels, {len(images)} images")

    def stream(batch_size, seed):
        random = np.random.default_rng(seed)
        while True:
            order = random.permutation(len(images))
            for start in range(0, len(images) - batch_size + 1, batch_size):
                rows = order[start : start + batch_size]
                yield {"image": images[rows], "label": labels[rows]}

    return stream


def cached_classifier(
    fingerprint: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    stream: Callable[[int, int], Iterable[Batch]],
    count: int,
    test: Callable[[], Iterable[Batch]],
    *,
    recipe: Recipe | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Classifier:
    """The classifier of a data set: from the cache, or else trained, measured and put there.

    A cache file that cannot be read is replaced, and one that cannot be written is done without; both with a
    warning.

    Args:
        fingerprint: of the data, splits included: other data must have another one.
        image_shape, num_classes, stream, count: see Classifier and Classifier.fit.
        test: returns the finite batches of held-out images on which `accuracy` is measured.
        folder: of the cache; "classifiers" in the user's (`gentf.files.user_cache`) by default.
        warn: called with the text of a warning.
    """
    classifier = Classifier(image_shape, num_classes, recipe)
    key = classifier.recipe.key(fingerprint, classifier.image_shape, num_classes)
    path = (folder or user_cache("classifiers")) / f"{key}.npz"
    if path.exists():
        try:
            _read(path, classifier)
            return classifier
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warn(f"classifier trained again: {path} cannot be read ({error})")
    classifier.fit(stream, count, progress)
    classifier.measure(test())
    try:
        _write(path, classifier)
    except OSError as error:
        warn(f"classifier not cached: {path} cannot be written ({error})")
    return classifier


def _write(path, classifier):
    weights = [np.asarray(variable) for variable in classifier.variables]
    accuracy = np.asarray(classifier.accuracy, np.float64)
    atomic_save(path, lambda file: np.savez(file, *weights, accuracy=accuracy))


def _read(path, classifier):
    """Set the weights and the accuracy from a file; nothing is set if anything is wrong with it."""
    with np.load(path, allow_pickle=False) as file:
        weights = [file[f"arr_{index}"] for index in range(len(classifier.variables))]
        value, stderr = file["accuracy"]
    for weight, variable in zip(weights, classifier.variables, strict=True):
        if weight.shape != tuple(variable.shape) or not np.isfinite(weight).all():
            raise ValueError(f"weights of shape {weight.shape} do not fit {tuple(variable.shape)}, or are not finite")
    for weight, variable in zip(weights, classifier.variables, strict=True):
        variable.assign(weight)
    classifier.accuracy = Estimate(float(value), float(stderr))
