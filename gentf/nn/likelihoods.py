"""Likelihoods of an image's values, as functions of what a network puts out: probability, mean and draws.

A likelihood reads `outputs` numbers for each pixel, (..., P), and the pixel's channels, (..., C) in [-1, 1]. It has no
weights. Where it is discrete, level k of 256 stands at k / 127.5 - 1, and log-probabilities are those of levels; the
Gaussian's are densities over [-1, 1], which may be above 0 and are not to be compared with the others'.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import bernoulli, filters, mixture, random

LEVELS = 256
WHITE = 0.0  # what is above it is white to a Bernoulli pixel
MIN_SCALE = 1.0 / 255.0  # half a level of 8 bits: a narrower Gaussian would fit the rounding
MIN_LOG_SCALE = -7.0  # of a logistic; Salimans et al. (2017)


class Likelihood:
    """Base: of a pixel with `channels` channels.

    Attributes:
        outputs: P, numbers of the network's output for each pixel.
        levels: values that a channel may have, or None where it is continuous.
    """

    levels: int | None = LEVELS
    outputs: int

    def __init__(self, channels: int):
        self.channels = channels

    def log_prob(self, outputs: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Nats of each pixel: (..., P) and (..., C) in [-1, 1], which broadcast, -> (...) float32."""
        raise NotImplementedError

    def image_log_prob(self, outputs: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """Nats of each image: (B, k, H, W, P) and (B, H, W, C) -> (B, k) float32."""
        return tf.reduce_sum(self.log_prob(outputs, image[:, None]), axis=(2, 3))

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """(..., P) -> (..., C) float32 in [-1, 1]."""
        raise NotImplementedError

    def sample(
        self, outputs: tf.Tensor, seed: tf.Tensor, counter: int | tf.Tensor = 0, temperature: tf.Tensor | None = None
    ) -> tf.Tensor:
        """A draw: (B, ..., P), static but for B, and (B, 2) int32 row seeds -> (B, ..., C) float32 in [-1, 1].

        Args:
            counter: stream of the row seeds.
            temperature: (B,); below 1 narrower, 0 the likeliest of discrete values. None: 1.
        """
        raise NotImplementedError

    def problem(self, images: np.ndarray) -> str | None:
        """What is wrong with images, float in [-1, 1], as values of this likelihood; None where nothing is."""
        return None

    def get_config(self) -> dict[str, Any]:
        return {"channels": self.channels}

    @classmethod
    def from_config(cls, config: dict[str, Any]):
        return cls(**config)


@keras.saving.register_keras_serializable("gentf")
class Bernoulli(Likelihood):
    """Black or white, each channel by itself: P = C logits of white. What is above 0 counts as white."""

    levels = 2

    def __init__(self, channels: int):
        super().__init__(channels)
        self.outputs = channels

    def log_prob(self, outputs, x):
        logits = tf.cast(outputs, tf.float32)
        return _over_channels(tf.cast(x > WHITE, tf.float32) * logits - tf.nn.softplus(logits))

    def image_log_prob(self, outputs, image):
        size = math.prod(image.shape[1:])
        logits = tf.reshape(outputs, (-1, outputs.shape[1] or tf.shape(outputs)[1], size))
        return bernoulli.log_prob(logits, tf.reshape(tf.cast(image > WHITE, tf.float32), (-1, 1, size)))

    def mean(self, outputs):
        return 2.0 * tf.sigmoid(tf.cast(outputs, tf.float32)) - 1.0

    def sample(self, outputs, seed, counter=0, temperature=None):
        logits = tf.cast(outputs, tf.float32)
        logits = logits if temperature is None else logits / _temperature(temperature, logits)
        u = random.uniform(seed, logits.shape[1:], counter)
        return tf.where(u < tf.sigmoid(logits), 1.0, -1.0)

    def problem(self, images):
        grey = np.mean(np.abs(np.abs(images) - 1.0) > 1e-3)
        if grey > 0:
            return f"a Bernoulli likelihood is of black and white images, and {grey:.1%} of these values are between"
        return None


@keras.saving.register_keras_serializable("gentf")
class Categorical(Likelihood):
    """One of 256 levels, each channel by itself: P = 256 C logits, those of the first channel first."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.outputs = LEVELS * channels

    def _logits(self, outputs):
        outputs = tf.cast(outputs, tf.float32)
        lead = tf.shape(outputs)[:-1]
        shape = [size if size is not None else lead[axis] for axis, size in enumerate(outputs.shape[:-1])]
        return tf.reshape(outputs, (*shape, self.channels, LEVELS))

    def log_prob(self, outputs, x):
        logits = self._logits(outputs)
        chosen = tf.one_hot(to_levels(x), LEVELS, dtype=tf.float32)
        return _over_channels(tf.reduce_sum(chosen * logits, axis=-1) - tf.reduce_logsumexp(logits, axis=-1))

    def mean(self, outputs):
        values = tf.range(LEVELS, dtype=tf.float32) / 127.5 - 1.0
        return tf.linalg.matvec(tf.nn.softmax(self._logits(outputs)), values)

    def sample(self, outputs, seed, counter=0, temperature=None):
        logits = self._logits(outputs)
        if temperature is not None:
            logits = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / _temperature(temperature, logits)
        gumbel = random.to_gumbel(random.uniform(seed, logits.shape[1:], counter))
        return tf.cast(tf.argmax(logits + gumbel, axis=-1), tf.float32) / 127.5 - 1.0


@keras.saving.register_keras_serializable("gentf")
class Gaussian(Likelihood):
    """Independent normal values: P = C means, and with a learned scale C logarithms of it besides.

    Args:
        scale: standard deviation in units of [-1, 1]; None: learned for each value, at least `MIN_SCALE`. Below that
            the density of 8-bit values has no bound: Mattei & Frellsen (2018).
    """

    levels = None

    def __init__(self, channels: int, scale: float | None = None):
        super().__init__(channels)
        if scale is not None and not scale > 0:
            raise ValueError(f"`scale` must be positive, or None to learn it. Received: scale={scale}")
        self.scale = scale
        self.outputs = channels * (2 if scale is None else 1)

    def parameters(self, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log-scale, (..., C) float32 each."""
        outputs = tf.cast(outputs, tf.float32)
        if self.scale is not None:
            return outputs, tf.fill(tf.ones_like(outputs[..., :1]).shape[-1:], math.log(self.scale))
        mean, raw = tf.split(outputs, 2, axis=-1)
        return mean, math.log(MIN_SCALE) + tf.nn.softplus(raw - math.log(MIN_SCALE))

    def narrow(self, outputs: tf.Tensor) -> tf.Tensor:
        """Share of the learned scales that are within a tenth of the least, scalar float32."""
        return tf.reduce_mean(tf.cast(self.parameters(outputs)[1] < math.log(1.1 * MIN_SCALE), tf.float32))

    def log_prob(self, outputs, x):
        mean, log_scale = self.parameters(outputs)
        distance = (tf.cast(x, tf.float32) - mean) * tf.exp(-log_scale)
        return _over_channels(-0.5 * tf.square(distance) - log_scale - 0.5 * math.log(2.0 * math.pi))

    def mean(self, outputs):
        return tf.clip_by_value(self.parameters(outputs)[0], -1.0, 1.0)

    def sample(self, outputs, seed, counter=0, temperature=None):
        mean, log_scale = self.parameters(outputs)
        noise = random.normal(seed, mean.shape[1:], counter) * tf.exp(log_scale)
        if temperature is not None:
            noise *= _temperature(temperature, noise)
        return tf.clip_by_value(mean + noise, -1.0, 1.0)

    def problem(self, images):
        if not np.all(np.isfinite(images)):
            return "a Gaussian likelihood is of finite values"
        return None

    def get_config(self):
        return super().get_config() | {"scale": self.scale}


@keras.saving.register_keras_serializable("gentf")
class LogisticMixture(Likelihood):
    """256 levels as a discretized mixture of logistics; channels in their order.

    Args:
        components: M; P = M (1 + 2 C + C (C - 1) / 2).
    Reference: Salimans et al. (2017), "PixelCNN++", section 2.
    """

    def __init__(self, channels: int, components: int = 10):
        super().__init__(channels)
        if components < 1:
            raise ValueError(f"`components` must be at least 1. Received: components={components}")
        self.components = components
        self.outputs = components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def parameters(self, outputs: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor | None]:
        """Logits, means and log-scales, and the coefficients between channels or None."""
        m, c = self.components, self.channels
        pairs = c * (c - 1) // 2
        logits, means, scales, rest = tf.split(outputs, [m, m * c, m * c, m * pairs], axis=-1)
        lead = tf.shape(outputs)[:-1]
        static = [size if size is not None else lead[axis] for axis, size in enumerate(outputs.shape[:-1])]
        means, scales = (tf.reshape(part, (*static, m, c)) for part in (means, scales))
        coefficients = tf.tanh(tf.reshape(rest, (*static, m, pairs))) if pairs else None
        return (logits, means, tf.maximum(scales, MIN_LOG_SCALE)), coefficients

    def log_prob(self, outputs, x):
        parameters, coefficients = self.parameters(outputs)
        return mixture.log_prob(to_levels(x), *parameters, coefficients=coefficients)

    def mean(self, outputs):
        """That of the components' means, each channel after those before it."""
        (logits, means, _), coefficients = self.parameters(tf.cast(outputs, tf.float32))
        columns = [means[..., 0]]
        for channel in range(1, self.channels):
            shift = means[..., channel]
            for earlier in range(channel):
                pair = channel * (channel - 1) // 2 + earlier
                assert coefficients is not None
                shift += coefficients[..., pair] * columns[earlier]
            columns.append(shift)
        weight = tf.nn.softmax(logits)
        means = [tf.reduce_sum(weight * tf.clip_by_value(column, -1.0, 1.0), axis=-1) for column in columns]
        return tf.stack(means, axis=-1)

    def sample(self, outputs, seed, counter=0, temperature=None):
        parameters, coefficients = self.parameters(outputs)
        if temperature is not None:  # sharper components, and narrower ones
            logits, means, scales = parameters
            t = _temperature(temperature, logits)
            parameters = (logits / t, means, scales + tf.math.log(t)[..., None])
        levels = mixture.sample(seed, *parameters, coefficients=coefficients, counter=counter)
        return tf.cast(levels, tf.float32) / 127.5 - 1.0

    def get_config(self):
        return super().get_config() | {"components": self.components}


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
    "mixture": LogisticMixture,
}


def to_levels(x: tf.Tensor) -> tf.Tensor:
    """[-1, 1] -> 0..255 int32, rounded to the nearest."""
    return tf.cast(tf.round((x + 1.0) * 127.5), tf.int32)


def _over_channels(values: tf.Tensor) -> tf.Tensor:
    return values[..., 0] if values.shape[-1] == 1 else tf.reduce_sum(values, axis=-1)


def _temperature(temperature: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """(B,) -> (B, 1, ..., 1) float32 for `values`, with 0 as what is next to it."""
    t = tf.maximum(tf.cast(temperature, tf.float32), filters.GREEDY)
    return tf.reshape(t, (-1, *(1 for _ in values.shape[1:])))
