"""Priors p(z): layers that draw latents and tell their log-density.

A prior makes its parameters once a step (`density`), since one of them, VAMP, has to run the encoder for it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.kernels.optimizer import Adam
from gentf.nn.flows import CouplingFlow
from gentf.nn.posteriors import Parameters, log_normal

COMPONENT = 1  # stream of a row's seed, beside that of the noise

Encode = Callable[[tf.Tensor], Parameters]


class Prior(keras.layers.Layer):
    """Base of priors over D numbers.

    Args:
        dim: D.
        seed: of the initial weights.
    """

    #: Whether it is N(0, I), from which posteriors know their KL in closed form.
    standard = False

    def __init__(self, dim: int, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.seed = dim, seed

    def build(self, input_shape=None) -> None:
        self.built = True

    def density(self, encode: Encode | None = None) -> Parameters:
        """What `log_prob` and `draw` take. `encode` gives the mean and log-variance of images."""
        return ()

    def log_prob(self, parameters: Parameters, z: tf.Tensor) -> tf.Tensor:
        """(B, k, D) -> (B, k) float32, nats."""
        raise NotImplementedError

    def draw(self, parameters: Parameters, seed: tf.Tensor) -> tf.Tensor:
        """(B, 2) int32 row seeds -> (B, D) float32."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dim": self.dim, "seed": self.seed}


@keras.saving.register_keras_serializable("gentf")
class StandardNormal(Prior):
    """N(0, I)."""

    standard = True

    def log_prob(self, parameters, z):
        return -0.5 * tf.reduce_sum(tf.square(z) + math.log(2.0 * math.pi), axis=-1)

    def draw(self, parameters, seed):
        return random.normal(seed, (self.dim,))


class _Mixture(Prior):
    """A mixture of normals with diagonal covariance: logits (K,), means and log-variances (K, D), float32."""

    def log_prob(self, parameters, z):
        """By two matrix products, |z|^2 / v and z m / v, instead of K distances a latent: in float32 an error of about
        1e-7 of |z|^2 / v, which is under 1e-2 nats where posteriors are a hundredth as wide as the prior."""
        logits, means, log_vars = parameters
        rows = tf.reshape(z, (-1, self.dim))
        precision = tf.exp(-log_vars)
        constant = tf.reduce_sum(tf.square(means) * precision + log_vars, axis=-1) + self.dim * math.log(2.0 * math.pi)
        cross = tf.matmul(rows, means * precision, transpose_b=True)
        squares = tf.matmul(tf.square(rows), precision, transpose_b=True) - 2.0 * cross + constant
        nats = tf.reduce_logsumexp(tf.nn.log_softmax(logits) - 0.5 * squares, axis=-1)
        return tf.reshape(nats, tf.shape(z)[:-1])

    def draw(self, parameters, seed):
        logits, means, log_vars = parameters
        number = random.categorical(seed, tf.tile(logits[None], (tf.shape(seed)[0], 1)), COMPONENT)
        mean, log_var = tf.gather(means, number), tf.gather(log_vars, number)
        return mean + tf.exp(0.5 * log_var) * random.normal(seed, (self.dim,))


@keras.saving.register_keras_serializable("gentf")
class MixturePrior(_Mixture):
    """A mixture of normals whose weights, means and variances are learned.

    Args:
        components: K.
        spread: standard deviation of the initial means; the initial variances are 1.
    """

    def __init__(self, dim: int, components: int = 100, spread: float = 1.0, seed: int = 0, **kwargs):
        super().__init__(dim, seed, **kwargs)
        if components < 1:
            raise ValueError(f"`components` must be at least 1. Received: components={components}")
        self.components, self.spread = components, spread
        draws = keras.initializers.RandomNormal(stddev=spread, seed=seed)
        self.logits = self.add_weight(shape=(components,), initializer="zeros", name="logits", dtype="float32")
        self.means = self.add_weight(shape=(components, dim), initializer=draws, name="means", dtype="float32")
        self.log_vars = self.add_weight(shape=(components, dim), initializer="zeros", name="log_vars", dtype="float32")

    def density(self, encode=None):
        return self.logits.value, self.means.value, self.log_vars.value

    def get_config(self):
        return super().get_config() | {"components": self.components, "spread": self.spread}


@keras.saving.register_keras_serializable("gentf")
class VampPrior(_Mixture):
    """The mixture of the posteriors of learned pseudo-inputs. Reference: Tomczak & Welling (2018), equation 10.

    Args:
        components: K, pseudo-inputs.
        data_shape: shape of one input; pseudo-inputs lie in [-1, 1] by a hard tanh.
        centre: where they start, with a standard deviation of `spread` around it. The numbers of training images' mean
            are a good place; -0.9 is nearly black.
    """

    def __init__(
        self,
        dim: int,
        data_shape: Sequence[int],
        components: int = 500,
        centre: float = -0.9,
        spread: float = 0.05,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(dim, seed, **kwargs)
        if components < 1:
            raise ValueError(f"`components` must be at least 1. Received: components={components}")
        self.components, self.data_shape = components, tuple(data_shape)
        self.centre, self.spread = centre, spread
        draws = keras.initializers.RandomNormal(mean=centre, stddev=spread, seed=seed)
        self.inputs = self.add_weight(
            shape=(components, *self.data_shape), initializer=draws, name="pseudo_inputs", dtype="float32"
        )
        self.logits = self.add_weight(shape=(components,), initializer="zeros", name="logits", dtype="float32")

    def density(self, encode=None):
        assert encode is not None
        mean, log_var = encode(tf.clip_by_value(self.inputs.value, -1.0, 1.0))
        return self.logits.value, mean, log_var

    def get_config(self):
        own = {"data_shape": self.data_shape, "components": self.components}
        return super().get_config() | own | {"centre": self.centre, "spread": self.spread}


@keras.saving.register_keras_serializable("gentf")
class FlowPrior(Prior):
    """N(0, I) sent through affine couplings. Reference: Dinh, Sohl-Dickstein & Bengio (2017).

    Args:
        steps: couplings.
        hidden: units of each one's network.
    """

    def __init__(self, dim: int, steps: int = 6, hidden: int = 128, seed: int = 0, **kwargs):
        super().__init__(dim, seed, **kwargs)
        self.steps, self.hidden = steps, hidden
        self.flow = CouplingFlow(dim, steps=steps, hidden=(hidden,), seed=seed, name="flow")

    def log_prob(self, parameters, z):
        noise, log_det = self.flow.inverse(z)
        return log_normal(tf.cast(noise, tf.float32), 0.0, 0.0) + tf.cast(log_det, tf.float32)

    def draw(self, parameters, seed):
        return tf.cast(self.flow(random.normal(seed, (self.dim,)))[0], tf.float32)

    def fit(self, latents: np.ndarray, steps: int, seed: int, batch_size: int = 256) -> None:
        """Maximum likelihood of (n, D) latents: `steps` of Adam at a rate that falls from 1e-3 to 0."""
        values = tf.constant(latents, tf.float32)
        rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
        optimizer = Adam(rate, global_clipnorm=10.0)
        optimizer.build(self.trainable_variables)

        @tf.function(autograph=False)
        def step(number: tf.Tensor) -> None:
            u = random.uniform(tf.stack([[seed, number]]), (batch_size,))[0]
            rows = tf.gather(values, tf.cast(u * tf.cast(tf.shape(values)[0], tf.float32), tf.int32))
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(self.log_prob((), rows))
            weights = [weight.value for weight in self.trainable_variables]
            optimizer.apply(tape.gradient(loss, weights), self.trainable_variables)

        for number in range(steps):
            step(tf.constant(number))

    def get_config(self):
        return super().get_config() | {"steps": self.steps, "hidden": self.hidden}


def fit_mixture(latents: np.ndarray, components: int, seed: int) -> dict[str, np.ndarray]:
    """Weights of a `MixturePrior` by expectation maximization: {"logits", "means", "log_vars"} from (n, D) latents."""
    from sklearn.mixture import GaussianMixture

    if len(latents) < components:
        raise ValueError(f"`components` must be at most the {len(latents)} latents. Received: components={components}")
    found = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4, random_state=seed).fit(latents)
    values = {"logits": np.log(found.weights_), "means": found.means_, "log_vars": np.log(found.covariances_)}
    return {name: value.astype(np.float32) for name, value in values.items()}


PRIORS: dict[str, type[Prior]] = {
    "normal": StandardNormal,
    "mixture": MixturePrior,
    "vamp": VampPrior,
    "flow": FlowPrior,
}
