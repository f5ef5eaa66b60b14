"""Approximate posteriors q(z | x): layers from an encoder's features to latents and their log-density.

A posterior makes its parameters once, from features (B, F), and then any number of latents from noise (B, k, D). The
parameters are a tuple of tensors with the batch first.

References: Kingma & Welling (2014), appendix B; Kingma et al. (2016), "Improved variational inference with inverse
autoregressive flow".
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.nn.flows import InverseAutoregressiveFlow

Parameters = tuple[tf.Tensor, ...]

MIN_LOG_VAR = (
    -16.0
)  # a standard deviation of 3e-4: narrower ones are not held apart from 0 by float32 sums over latents


class Posterior(keras.layers.Layer):
    """Base of posteriors over D numbers.

    Args:
        dim: D.
        seed: of the initial weights.
    """

    #: Whether `log_prob` at given latents costs no more than a draw does.
    has_density = True

    def __init__(self, dim: int, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.seed = dim, seed
        self.project = keras.layers.Dense(
            self.width(),
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            dtype=self.dtype_policy,
            name="project",
        )

    def width(self) -> int:
        """Numbers that stand for one posterior."""
        raise NotImplementedError

    def build(self, input_shape) -> None:
        self.project.build(input_shape)
        self.built = True

    def call(self, features: tf.Tensor) -> Parameters:
        """(B, F) -> what the methods below take."""
        raise NotImplementedError

    def draw(self, parameters: Parameters, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Latents from standard normal noise (B, k, D): (B, k, D) and their log-density, (B, k) float32."""
        raise NotImplementedError

    def log_prob(self, parameters: Parameters, z: tf.Tensor) -> tf.Tensor:
        """(B, k, D) -> (B, k) float32, nats."""
        raise NotImplementedError

    def mean(self, parameters: Parameters) -> tf.Tensor:
        """(B, D) float32: the code of an image (of a flow, where noise of zero goes)."""
        return parameters[0]

    def kl(self, parameters: Parameters) -> tf.Tensor | None:
        """KL from N(0, I) in closed form, (B, D) float32 parts that sum to it; None where there is none."""
        return None

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dim": self.dim, "seed": self.seed}


@keras.saving.register_keras_serializable("gentf")
class DiagonalGaussian(Posterior):
    """Independent normal latents. Parameters: mean and log-variance, (B, D) float32."""

    def width(self):
        return 2 * self.dim

    def call(self, features):
        mean, log_var = tf.split(tf.cast(self.project(features), tf.float32), 2, axis=-1)
        return mean, tf.maximum(log_var, MIN_LOG_VAR)

    def draw(self, parameters, noise):
        mean, log_var = (part[:, None] for part in parameters)
        log_prob = -0.5 * tf.reduce_sum(tf.square(noise) + log_var + math.log(2.0 * math.pi), axis=-1)
        return mean + tf.exp(0.5 * log_var) * noise, log_prob

    def log_prob(self, parameters, z):
        mean, log_var = (part[:, None] for part in parameters)
        return log_normal(z, mean, log_var)

    def log_parts(self, parameters: Parameters, z: tf.Tensor) -> tf.Tensor:
        """(B, D) latents -> (B, B, D), the log-density of each number of each under each posterior of the batch."""
        mean, log_var = (part[None] for part in parameters)
        squares = tf.square(z[:, None] - mean) * tf.exp(-log_var)
        return -0.5 * (squares + log_var + math.log(2.0 * math.pi))

    def kl(self, parameters):
        mean, log_var = parameters
        return 0.5 * (tf.exp(log_var) + tf.square(mean) - 1.0 - log_var)


@keras.saving.register_keras_serializable("gentf")
class FullGaussian(Posterior):
    """Normal latents with every covariance. Parameters: mean (B, D) and the Cholesky factor (B, D, D), float32.

    The factor's diagonal is exp of what the network puts out, so that it starts near the identity.
    """

    def __init__(self, dim: int, seed: int = 0, **kwargs):
        super().__init__(dim, seed, **kwargs)
        size = dim * (dim - 1) // 2
        place = np.full((dim, dim), size, np.int32)  # above the diagonal: a zero behind the factor's numbers
        place[np.tril_indices(dim, -1)] = np.arange(size)
        self._place = place

    def width(self):
        return 2 * self.dim + self.dim * (self.dim - 1) // 2

    def call(self, features):
        outputs = tf.cast(self.project(features), tf.float32)
        mean, log_diagonal, rest = tf.split(outputs, [self.dim, self.dim, self.width() - 2 * self.dim], axis=-1)
        lower = tf.gather(tf.pad(rest, [[0, 0], [0, 1]]), self._place, axis=1)
        return mean, lower + tf.linalg.diag(tf.exp(tf.maximum(log_diagonal, 0.5 * MIN_LOG_VAR)))

    def draw(self, parameters, noise):
        mean, factor = parameters
        z = mean[:, None] + tf.matmul(noise, factor, transpose_b=True)
        return z, log_normal(noise, 0.0, 0.0) - _log_diagonal(factor)[:, None]

    def log_prob(self, parameters, z):
        mean, factor = parameters
        centred = tf.transpose(z - mean[:, None], (0, 2, 1))
        noise = tf.linalg.triangular_solve(factor, centred)
        return log_normal(tf.transpose(noise, (0, 2, 1)), 0.0, 0.0) - _log_diagonal(factor)[:, None]

    def kl(self, parameters):
        """The part of a latent is that of the trace, the mean and the factor's diagonal that belong to it."""
        mean, factor = parameters
        trace = tf.reduce_sum(tf.square(factor), axis=-1)
        return 0.5 * (trace + tf.square(mean) - 1.0) - tf.math.log(tf.linalg.diag_part(factor))


@keras.saving.register_keras_serializable("gentf")
class FlowPosterior(Posterior):
    """Normal latents sent through an inverse autoregressive flow. Parameters: mean, log-variance (B, D), context.

    Args:
        steps: of the flow.
        hidden: units of each step's network.
        context: numbers that the encoder gives to the flow beside mean and variance.
    """

    has_density = False  # D steps, one after the other

    def __init__(self, dim: int, steps: int = 2, hidden: int = 320, context: int = 32, seed: int = 0, **kwargs):
        self.steps, self.hidden, self.context = steps, hidden, context
        super().__init__(dim, seed, **kwargs)
        self.flow = InverseAutoregressiveFlow(
            dim, steps=steps, hidden=(hidden,), context=context, seed=seed + 1, name="flow"
        )

    def width(self):
        return 2 * self.dim + self.context

    def call(self, features):
        outputs = tf.cast(self.project(features), tf.float32)
        mean, log_var, context = tf.split(outputs, [self.dim, self.dim, self.context], axis=-1)
        return mean, tf.maximum(log_var, MIN_LOG_VAR), context

    def draw(self, parameters, noise):
        mean, log_var, context = parameters
        first = mean[:, None] + tf.exp(0.5 * log_var[:, None]) * noise
        log_prob = -0.5 * tf.reduce_sum(tf.square(noise) + log_var[:, None] + math.log(2.0 * math.pi), axis=-1)
        z, log_det = self.flow(first, context)
        return tf.cast(z, tf.float32), log_prob - tf.cast(log_det, tf.float32)

    def log_prob(self, parameters, z):
        mean, log_var, context = parameters
        first, log_det = self.flow.inverse(z, context)
        return log_normal(tf.cast(first, tf.float32), mean[:, None], log_var[:, None]) - tf.cast(log_det, tf.float32)

    def mean(self, parameters):
        mean, _, context = parameters
        return tf.cast(self.flow(mean[:, None], context)[0][:, 0], tf.float32)

    def get_config(self):
        return super().get_config() | {"steps": self.steps, "hidden": self.hidden, "context": self.context}


POSTERIORS: dict[str, type[Posterior]] = {"diagonal": DiagonalGaussian, "full": FullGaussian, "iaf": FlowPosterior}


def log_normal(z: tf.Tensor, mean: tf.Tensor | float, log_var: tf.Tensor | float) -> tf.Tensor:
    """log N(z; mean, exp(log_var)) in nats, summed over the last axis."""
    squares = tf.square(z - mean) * tf.exp(-tf.convert_to_tensor(log_var))
    return -0.5 * tf.reduce_sum(squares + log_var + math.log(2.0 * math.pi), axis=-1)


def _log_diagonal(factor: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)), axis=-1)
