"""Fully connected generator and discriminator, of images and of points."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from gentf.nn.network import Discriminator, Generator
from gentf.nn.normalization import BatchNormalization
from gentf.nn.weights import Weights

SLOPE = 0.2


@keras.saving.register_keras_serializable("gentf")
class MLPGenerator(Generator):
    """noise -> hidden units, normalization, leaky ReLU -> image, tanh; points come without the tanh.

    Args:
        hidden_units: units of each hidden layer, from the noise on.
        normalization: "batch" or "none", of the hidden layers.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        hidden_units: Sequence[int] = (128, 256),
        normalization: str = "batch",
        **kwargs,
    ):
        super().__init__(image_shape, latent_dim, **kwargs)
        self.hidden_units = tuple(hidden_units)
        self.normalization = normalization
        plain = normalization == "none"
        self.hidden = [self.dense(units, use_bias=plain) for units in self.hidden_units]  # the norm has a bias
        options = {"epsilon": 1e-5, "momentum": 0.9, "dtype": self.dtype_policy}
        self.norms = [None if plain else BatchNormalization(**options) for _ in self.hidden]
        self.to_image = self.dense(math.prod(self.image_shape), name="to_image")

    def build(self, input_shape=None) -> None:
        size = self.input_dim()
        for layer, norm in zip([*self.hidden, self.to_image], [*self.norms, None]):
            layer.build((None, size))
            size = layer.units
            if norm is not None:
                norm.build((None, size))
        self.built = True

    def call(self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = self.conditioned(z, label)
        for layer, norm in zip(self.hidden, self.norms):
            x = layer(x)  # (B, units)
            x = tf.nn.leaky_relu(x if norm is None else norm(x, training=training), SLOPE)
        x = tf.cast(self.to_image(x), tf.float32)
        return x if len(self.image_shape) == 1 else tf.reshape(tf.tanh(x), (-1, *self.image_shape))

    def get_config(self) -> dict:
        return super().get_config() | {"hidden_units": self.hidden_units, "normalization": self.normalization}


@keras.saving.register_keras_serializable("gentf")
class MLPDiscriminator(Discriminator):
    """image -> hidden units, leaky ReLU -> logit.

    Args:
        hidden_units: units of each hidden layer, from the image on.
        normalization: "none" or "spectral".
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_units: Sequence[int] = (256, 128),
        normalization: str = "none",
        **kwargs,
    ):
        super().__init__(image_shape, **kwargs)
        self.hidden_units = tuple(hidden_units)
        self.normalization = normalization
        self.spectral = normalization == "spectral"
        inputs = [math.prod(self.image_shape), *self.hidden_units]
        self.hidden = [
            Weights(size, units, bias=True, spectral=True, seed=self.next_seed(2), dtype=self.dtype_policy)
            if self.spectral
            else self.dense(units)
            for size, units in zip(inputs, self.hidden_units)
        ]

    def build(self, input_shape=None) -> None:
        size = math.prod(self.image_shape)
        for layer in self.hidden:
            layer.build((None, size))
            size = layer.outputs if self.spectral else layer.units
        self.head(size, self.spectral)
        self.built = True

    def call(self, image: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = tf.cast(tf.reshape(image, (-1, math.prod(self.image_shape))), self.compute_dtype)
        for layer in self.hidden:
            x = tf.nn.leaky_relu(layer(x, training=training) if self.spectral else layer(x), SLOPE)
        return self.logit(x, label, training)

    def get_config(self) -> dict:
        return super().get_config() | {"hidden_units": self.hidden_units, "normalization": self.normalization}
