"""Encoders and decoders of latent variable models of images, dense and convolutional.

An encoder takes images (B, H, W, C) in [-1, 1] and a condition (B, V) or None to features (B, F); a decoder takes
latents (B, D) and a condition to (B, H, W, P), the parameters of a likelihood.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gentf.nn.convolution import Conv2D, Conv2DTranspose, normal_initializer
from gentf.nn.dcgan import feature_sizes, feature_widths

KERNEL = 4  # twice the stride


@keras.saving.register_keras_serializable("gentf")
class DenseStack(keras.layers.Layer):
    """Dense layers on top of one another. (B, size) -> (B, units of the last).

    Args:
        size: numbers that come in.
        units: of each layer.
        activation: "relu", "tanh", or "gated": a linear layer times the sigmoid of another, as in Tomczak & Welling
            (2018), section 4.
        seed: of the initial weights, Glorot's.
    """

    def __init__(self, size: int, units: Sequence[int], activation: str = "relu", seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        if activation not in ("relu", "tanh", "gated"):
            raise ValueError(f"`activation` must be relu, tanh or gated. Received: activation={activation!r}")
        self.size, self.units, self.activation, self.seed = size, tuple(units), activation, seed
        self.size_out = self.units[-1] if self.units else size
        double = 2 if activation == "gated" else 1
        self.hidden = [
            keras.layers.Dense(
                width * double,
                kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1 + number),
                dtype=self.dtype_policy,
            )
            for number, width in enumerate(self.units)
        ]

    def build(self, input_shape=None) -> None:
        size = self.size
        for layer, width in zip(self.hidden, self.units):
            layer.build((None, size))
            size = width
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.compute_dtype)
        for layer in self.hidden:
            x = layer(x)
            if self.activation == "gated":
                x, gate = tf.split(x, 2, axis=-1)
                x *= tf.sigmoid(gate)
            else:
                x = tf.nn.relu(x) if self.activation == "relu" else tf.tanh(x)
        return x

    def get_config(self) -> dict[str, Any]:
        own = {"size": self.size, "units": self.units, "activation": self.activation, "seed": self.seed}
        return super().get_config() | own


@keras.saving.register_keras_serializable("gentf")
class DenseEncoder(keras.layers.Layer):
    """Image and condition, side by side, through dense layers.

    Args:
        image_shape: (height, width, channels).
        units, activation, seed: of `DenseStack`.
        condition: numbers of the condition, 0 for none.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        units: Sequence[int] = (200, 200),
        activation: str = "relu",
        condition: int = 0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_shape, self.units, self.activation = tuple(image_shape), tuple(units), activation
        self.condition, self.seed = condition, seed
        size = math.prod(self.image_shape) + condition
        self.stack = DenseStack(size, units, activation, seed, dtype=self.dtype_policy, name="stack")
        self.features = self.stack.size_out

    def build(self, input_shape=None) -> None:
        self.stack.build()
        self.built = True

    def call(self, image: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        # black as 0: else each of the many pixels that are black in every image would move the units as a bias does
        x = 0.5 + 0.5 * tf.cast(tf.reshape(image, (-1, math.prod(self.image_shape))), self.compute_dtype)
        return self.stack(x if condition is None else tf.concat([x, tf.cast(condition, x.dtype)], axis=1))

    def get_config(self) -> dict[str, Any]:
        own = {"image_shape": self.image_shape, "units": self.units, "activation": self.activation}
        return super().get_config() | own | {"condition": self.condition, "seed": self.seed}


@keras.saving.register_keras_serializable("gentf")
class DenseDecoder(keras.layers.Layer):
    """Latents and condition through dense layers, the last of them linear.

    Args:
        latent_dim: D.
        outputs: (height, width, P).
        units, activation, seed: of the hidden layers, see `DenseStack`.
        condition: numbers of the condition, 0 for none.
    """

    def __init__(
        self,
        latent_dim: int,
        outputs: Sequence[int],
        units: Sequence[int] = (200, 200),
        activation: str = "relu",
        condition: int = 0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.latent_dim, self.outputs, self.units = latent_dim, tuple(outputs), tuple(units)
        self.activation, self.condition, self.seed = activation, condition, seed
        policy = self.dtype_policy
        self.stack = DenseStack(latent_dim + condition, units, activation, seed, dtype=policy, name="stack")
        self.to_image = keras.layers.Dense(
            math.prod(self.outputs),
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1 + len(self.units)),
            dtype=policy,
            name="to_image",
        )

    def build(self, input_shape=None) -> None:
        self.stack.build()
        self.to_image.build((None, self.stack.size_out))
        self.built = True

    def call(self, z: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        z = tf.cast(z, self.compute_dtype)
        x = self.stack(z if condition is None else tf.concat([z, tf.cast(condition, z.dtype)], axis=1))
        return tf.reshape(self.to_image(x), (-1, *self.outputs))

    def get_config(self) -> dict[str, Any]:
        own = {"latent_dim": self.latent_dim, "outputs": self.outputs, "units": self.units}
        return super().get_config() | own | {
            "activation": self.activation, "condition": self.condition, "seed": self.seed,
        }  # fmt: skip


@keras.saving.register_keras_serializable("gentf")
class ConvEncoder(keras.layers.Layer):
    """Strided convolutions until the smaller side is at most 4, then a dense layer beside the condition.

    Args:
        image_shape, condition, seed: as of `DenseEncoder`.
        width: channels of the first feature map; each further one has twice as many.
        units: of the dense layer.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        width: int = 32,
        units: int = 256,
        condition: int = 0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_shape, self.width, self.features = tuple(image_shape), width, units
        self.condition, self.seed = condition, seed
        self.sizes = feature_sizes(self.image_shape)
        self.widths = feature_widths(width, len(self.sizes) - 1)
        self.down = [
            Conv2D(
                channels, KERNEL, strides=2, padding="same", dtype=self.dtype_policy,
                kernel_initializer=keras.initializers.HeNormal(seed=seed + 1 + stage),
            )
            for stage, channels in enumerate(self.widths)
        ]  # fmt: skip
        self.flat = self.sizes[-1][0] * self.sizes[-1][1] * self.widths[-1]
        self.stack = DenseStack(
            self.flat + condition, (units,), "relu", seed + 100, dtype=self.dtype_policy, name="stack"
        )

    def build(self, input_shape=None) -> None:
        channels = self.image_shape[2]
        for size, down, width in zip(self.sizes, self.down, self.widths):
            down.build((None, *size, channels))
            channels = width
        self.stack.build()
        self.built = True

    def call(self, image: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        x = tf.cast(image, self.compute_dtype)
        for down in self.down:
            x = tf.nn.relu(down(x))
        x = tf.reshape(x, (-1, self.flat))
        return self.stack(x if condition is None else tf.concat([x, tf.cast(condition, x.dtype)], axis=1))

    def get_config(self) -> dict[str, Any]:
        own = {"image_shape": self.image_shape, "width": self.width, "units": self.features}
        return super().get_config() | own | {"condition": self.condition, "seed": self.seed}


@keras.saving.register_keras_serializable("gentf")
class ConvDecoder(keras.layers.Layer):
    """The mirror of `ConvEncoder`: dense layers, then transposed convolutions up to the image's size.

    Args:
        latent_dim, outputs, condition, seed: as of `DenseDecoder`.
        width, units: as of `ConvEncoder`.
    """

    def __init__(
        self,
        latent_dim: int,
        outputs: Sequence[int],
        width: int = 32,
        units: int = 256,
        condition: int = 0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.latent_dim, self.outputs, self.width, self.units = latent_dim, tuple(outputs), width, units
        self.condition, self.seed = condition, seed
        self.sizes = feature_sizes(self.outputs)[::-1]  # smallest first
        self.widths = feature_widths(width, len(self.sizes) - 1)[::-1]
        height, wide = self.sizes[0]
        hidden = (units, height * wide * self.widths[0])
        self.stack = DenseStack(
            latent_dim + condition, hidden, "relu", seed + 100, dtype=self.dtype_policy, name="stack"
        )
        self.up = [
            Conv2DTranspose(
                channels, KERNEL, strides=2, padding="same", output_size=self.sizes[stage + 1], dtype=self.dtype_policy,
                # an output adds the products of a quarter of the kernel
                kernel_initializer=normal_initializer(self.widths[stage] * KERNEL**2 // 4, 2.0, seed + 1 + stage),
            )
            for stage, channels in enumerate([*self.widths[1:], self.outputs[2]])
        ]  # fmt: skip

    def build(self, input_shape=None) -> None:
        self.stack.build()
        for size, width, up in zip(self.sizes, self.widths, self.up):
            up.build((None, *size, width))
        self.built = True

    def call(self, z: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        z = tf.cast(z, self.compute_dtype)
        x = self.stack(z if condition is None else tf.concat([z, tf.cast(condition, z.dtype)], axis=1))
        x = tf.reshape(x, (-1, *self.sizes[0], self.widths[0]))
        for stage, up in enumerate(self.up):
            x = up(x if stage == 0 else tf.nn.relu(x))
        return x

    def get_config(self) -> dict[str, Any]:
        own = {"latent_dim": self.latent_dim, "outputs": self.outputs, "width": self.width, "units": self.units}
        return super().get_config() | own | {"condition": self.condition, "seed": self.seed}
