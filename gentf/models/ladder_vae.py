"""Variational autoencoders with several layers of latents, each posterior merged with the prior from above."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gentf.kernels import random
from gentf.models.base import Batch
from gentf.models.objectives import Gate, Terms
from gentf.models.vae import VAE
from gentf.nn.posteriors import MIN_LOG_VAR, log_normal
from gentf.nn.priors import StandardNormal
from gentf.nn.vae import DenseDecoder, DenseEncoder, DenseStack

Normal = tuple[tf.Tensor, tf.Tensor]  # mean and log-variance


@keras.saving.register_keras_serializable("gentf")
class LadderVAE(VAE):
    """p(x, z) = p(x | z_1) p(z_1 | z_2) ... p(z_L), with z_L standard normal and the others normal given those above.

    The posterior goes up by deterministic layers, of which each gives a normal distribution; on the way down it is
    multiplied with the prior's, given the latents drawn above.

    Args:
        image_shape, num_classes, seed, and the options of likelihood and objective: as of `VAE`.
        latent_dims: numbers of z_1, z_2, ...: from the image up.
        hidden_units: of the two dense layers below each of them.
        activation: of the hidden layers.

    A code is [z_1, z_2, ...] side by side; an image is made of its z_1. The rate of each latent is that of its layer
    given the one above. The gradients of importance-weighted bounds are plain ones (`doubly` is off).
    Reference: Sønderby et al. (2016), "Ladder variational autoencoders", equations 9 to 11 and 15 to 18.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 0,
        latent_dims: Sequence[int] = (64, 32),
        hidden_units: Sequence[int] = (512, 256),
        activation: str = "relu",
        **kwargs,
    ):
        if not latent_dims or min(latent_dims) < 1 or len(latent_dims) != len(hidden_units):
            raise ValueError(
                "`latent_dims` must be positive, and as many as `hidden_units`. "
                f"Received: latent_dims={tuple(latent_dims)}, hidden_units={tuple(hidden_units)}"
            )
        self._layer_dims = tuple(int(size) for size in latent_dims)
        options = {"hidden_units": hidden_units, "activation": activation, "doubly": False}
        super().__init__(image_shape, num_classes, latent_dim=self._layer_dims[0], **(kwargs | options))

    @property
    def latent_width(self) -> int:
        return sum(self._layer_dims)

    def _make_parts(self, encoder, decoder) -> None:
        units, dims = self._options["hidden_units"], self._layer_dims
        common: dict[str, Any] = {"activation": self._options["activation"], "dtype": self.dtype_policy}
        condition, seed = self._condition_size, self.seed
        self.encoder_network = DenseEncoder(
            self.image_shape, (units[0],) * 2, condition=condition, seed=seed + 1000, name="encoder", **common
        )
        self.up = [
            DenseStack(below, (size,) * 2, seed=seed + 1100 + 10 * layer, name=f"up_{layer}", **common)
            for layer, (below, size) in enumerate(zip(units, units[1:]))
        ]
        self.to_latents = [self._normal(dim, seed + 3000 + layer, f"up_{layer}") for layer, dim in enumerate(dims)]
        self.down = [
            DenseStack(above, (size,) * 2, seed=seed + 4000 + 10 * layer, name=f"down_{layer}", **common)
            for layer, (above, size) in enumerate(zip(dims[1:], units))
        ]
        self.from_above = [
            self._normal(dim, seed + 5000 + layer, f"down_{layer}") for layer, dim in enumerate(dims[:-1])
        ]
        outputs = (*self.image_shape[:2], self.likelihood.outputs)
        self.decoder_network = DenseDecoder(
            dims[0], outputs, (units[0],) * 2, condition=condition, seed=seed + 2000, name="decoder", **common
        )
        self.prior = StandardNormal(dims[-1], name="prior")

    def _normal(self, dim: int, seed: int, name: str) -> keras.layers.Dense:
        initializer = keras.initializers.GlorotUniform(seed=seed)
        return keras.layers.Dense(
            2 * dim, kernel_initializer=initializer, dtype=self.dtype_policy, name=f"normal_{name}"
        )

    def build(self, input_shape=None) -> None:
        condition = tf.zeros((1, self._condition_size)) if self._condition_size else None
        posteriors = self._posteriors(self.encoder_network(tf.zeros((1, *self.image_shape)), condition))
        self._descend(random.spread(0, 1), 1, posteriors)
        self.decode_outputs(tf.zeros((1, self._layer_dims[0])), condition)
        self.built = True

    # The model

    def infer(self, batch: Batch, training: bool = False, density: tuple | None = None) -> tuple:
        """What the image says of each layer, (mean, log-variance) from the image up; (); and the condition."""
        condition = self._condition(batch.get("label"), batch.get("condition"))
        image = self.hide(batch["image"]) if training else batch["image"]
        return self._posteriors(self.encoder_network(image, condition)), (), condition

    def density(self) -> tuple:
        return ()

    def _posteriors(self, features: tf.Tensor) -> tuple[Normal, ...]:
        found = [_split(self.to_latents[0](features))]
        for stack, layer in zip(self.up, self.to_latents[1:]):
            features = stack(features)
            found.append(_split(layer(features)))
        return tuple(found)

    def _descend(self, seed: tf.Tensor, samples: int, posteriors: tuple[Normal, ...] | None, mean: bool = False):
        """Latents of each layer from the image up, (B, k, D_i), with the posterior and the prior that each was drawn
        from; of the prior alone where there are no `posteriors`; means in place of draws where `mean`."""
        zeros = tf.zeros((1, 1, self._layer_dims[-1]))
        z, found = None, []
        for layer in reversed(range(len(self._layer_dims))):
            dim = self._layer_dims[layer]
            prior = (zeros, zeros)
            if z is not None:
                rows = tf.reshape(z, (-1, z.shape[-1]))
                mean_above, log_var = _split(self.from_above[layer](self.down[layer](rows)))
                prior = tf.reshape(mean_above, (-1, samples, dim)), tf.reshape(log_var, (-1, samples, dim))
            posterior = prior
            if posteriors is not None:
                said = tuple(part[:, None] for part in posteriors[layer])
                posterior = said if z is None else _merge(said, prior)
            noise = random.normal(seed, (samples, dim), layer)
            z = posterior[0] + (tf.zeros_like(noise) if mean else tf.exp(0.5 * posterior[1]) * noise)
            found.append((z, posterior, prior))
        return found[::-1]

    def draw(
        self,
        inferred: Any,
        batch: Batch,
        samples: int,
        seed: tf.Tensor,
        gate: Gate | None = None,
        training: bool = False,
    ) -> Terms:
        posteriors, _, condition = inferred
        layers = self._descend(seed, samples, posteriors)
        log_posterior = tf.add_n([log_normal(z, *posterior) for z, posterior, _ in layers])
        log_prior = tf.add_n([log_normal(z, *prior) for z, _, prior in layers])
        kl = tf.concat([tf.reduce_mean(_kl(posterior, prior), axis=1) for _, posterior, prior in layers], axis=-1)
        z = tf.concat([z for z, _, _ in layers], axis=-1)
        repeated = None if condition is None else tf.repeat(condition, samples, axis=0)
        outputs = self.decode_outputs(tf.reshape(layers[0][0], (-1, self._layer_dims[0])), repeated)
        outputs = tf.reshape(outputs, (-1, samples, *outputs.shape[1:]))
        nats = self.likelihood.image_log_prob(outputs, batch["image"])
        return Terms(nats, log_prior, log_posterior, z, kl)

    def decode_outputs(self, z: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
        return super().decode_outputs(z[:, : self._layer_dims[0]], condition)

    def codes(self, inferred: Any) -> tf.Tensor:
        seed = tf.zeros((tf.shape(inferred[0][0][0])[0], 2), tf.int32)
        return tf.concat([z[:, 0] for z, _, _ in self._descend(seed, 1, inferred[0], mean=True)], axis=-1)

    def sample_latents(self, density: tuple, seed: tf.Tensor) -> tf.Tensor:
        return tf.concat([z[:, 0] for z, _, _ in self._descend(seed, 1, None)], axis=-1)

    def prior_draws(self, inferred: Any, seed: tf.Tensor) -> tf.Tensor:
        return self.sample_latents((), seed)

    def log_pairs(self, inferred: Any, z: tf.Tensor) -> tf.Tensor:
        raise ValueError("`objective` must be another than beta_tc for a ladder: its posteriors hang together")

    def with_fitted_prior(self, images, kind="mixture", components=10, steps=2000, seed=0):
        raise ValueError("`with_fitted_prior` needs a model with one layer of latents")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config() | {"latent_dims": self._layer_dims}
        for name in ("latent_dim", "network", "posterior", "prior", "prior_components", "flow_steps", "flow_hidden",
                     "width", "units", "doubly"):  # fmt: skip
            config.pop(name, None)
        return config


def _split(outputs: tf.Tensor) -> Normal:
    mean, log_var = tf.split(tf.cast(outputs, tf.float32), 2, axis=-1)
    return mean, tf.maximum(log_var, MIN_LOG_VAR)


def _merge(a: tuple, b: Normal) -> Normal:
    """The product of two normal densities, as a normal one."""
    precision_a, precision_b = tf.exp(-a[1]), tf.exp(-b[1])
    total = precision_a + precision_b
    return (a[0] * precision_a + b[0] * precision_b) / total, -tf.math.log(total)


def _kl(q: Normal, p: Normal) -> tf.Tensor:
    """KL of normal from normal distributions, elementwise."""
    ratio = tf.exp(q[1] - p[1])
    return 0.5 * (ratio + tf.square(q[0] - p[0]) * tf.exp(-p[1]) - 1.0 + p[1] - q[1])
