"""Residual generator with batch normalization, and residual discriminator, with spectral normalization as a rule.

Reference: Miyato et al. (2018), "Spectral normalization for generative adversarial networks", appendix B.4; for
classes, Miyato & Koyama (2018), "cGANs with projection discriminator", sections 3 and 4.
"""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from gentf.nn.dcgan import feature_sizes
from gentf.nn.network import Discriminator, Generator
from gentf.nn.normalization import BatchNormalization
from gentf.nn.weights import Weights

GAIN = math.sqrt(2.0)


class ClassNormalization(keras.layers.Layer):
    """Batch normalization whose gain and shift are those of a class.

    Args:
        channels: of the input; num_classes: 0 for one gain and shift for all.
    Reference: de Vries et al. (2017), "Modulating early visual processing by language", equation 5.
    """

    def __init__(self, channels: int, num_classes: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.num_classes = channels, num_classes
        self.plain = BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=self.dtype_policy)

    def build(self, input_shape=None) -> None:
        self.plain.build((None, None, None, self.channels))
        if self.num_classes:
            shape = (self.num_classes, self.channels)
            self.gain = self.add_weight(shape=shape, initializer="zeros", name="class_gain")
            self.shift = self.add_weight(shape=shape, initializer="zeros", name="class_shift")
        self.built = True

    def call(self, x: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = self.plain(x, training=training)
        if label is None:
            return x
        gain, shift = (  # a product with one-hot rows: its gradient is a product too, not a scatter
            tf.matmul(tf.one_hot(label, self.num_classes, dtype=x.dtype), tf.cast(table, x.dtype))[:, None, None]
            for table in (self.gain, self.shift)
        )
        return x * (1.0 + gain) + shift


class UpBlock(keras.layers.Layer):
    """(normalization, ReLU, upsampling, convolution, normalization, ReLU, convolution) + convolution of the upsampled.

    Args:
        inputs, outputs: channels; size: (height, width) of the result; num_classes: see `ClassNormalization`; seed: of
            the weights.
    """

    def __init__(self, inputs: int, outputs: int, size: Sequence[int], num_classes: int, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.size, options = tuple(size), {"dtype": self.dtype_policy}
        self.norms = [ClassNormalization(channels, num_classes, **options) for channels in (inputs, outputs)]
        self.first = Weights(inputs, outputs, 3, gain=GAIN, bias=True, seed=seed, **options)
        self.second = Weights(outputs, outputs, 3, gain=GAIN, bias=True, seed=seed + 1, **options)
        self.shortcut = Weights(inputs, outputs, bias=True, seed=seed + 2, **options)

    def build(self, input_shape=None) -> None:
        parts: list[keras.layers.Layer] = [*self.norms, self.first, self.second, self.shortcut]
        for layer in parts:
            layer.build()
        self.built = True

    def call(self, x: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        y = self.first(self._up(tf.nn.relu(self.norms[0](x, label, training=training))))
        y = self.second(tf.nn.relu(self.norms[1](y, label, training=training)))
        return y + self._up(self.shortcut(x))

    def _up(self, x: tf.Tensor) -> tf.Tensor:
        """Every pixel twice, both ways, cropped to the size."""
        height, width, channels = x.shape[1:]
        x = tf.broadcast_to(x[:, :, None, :, None], (tf.shape(x)[0], height, 2, width, 2, channels))
        return tf.reshape(x, (-1, 2 * height, 2 * width, channels))[:, : self.size[0], : self.size[1]]


class DownBlock(keras.layers.Layer):
    """(ReLU, convolution, ReLU, convolution, halving) + (convolution, halving).

    Args:
        inputs, outputs: channels; down: whether to halve; first: whether it is the first, which takes the image as it
            is; spectral: whether weights are normalized; seed: of the weights.
    """

    def __init__(self, inputs: int, outputs: int, down: bool, first: bool, spectral: bool, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.down, self.is_first = down, first
        options = {"bias": True, "spectral": spectral, "dtype": self.dtype_policy}
        self.first = Weights(inputs, outputs, 3, gain=GAIN, seed=seed, **options)
        self.second = Weights(outputs, outputs, 3, gain=GAIN, seed=seed + 2, **options)
        changes = down or inputs != outputs
        self.shortcut = Weights(inputs, outputs, seed=seed + 4, **options) if changes else None

    def build(self, input_shape=None) -> None:
        for layer in (self.first, self.second, self.shortcut):
            if layer is not None:
                layer.build()
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        y = self.first(x if self.is_first else tf.nn.relu(x), training=training)
        y = self.second(tf.nn.relu(y), training=training)
        if self.down:
            x, y = _halved(x), _halved(y)  # a mean of pixels and a convolution of each alone: either may come first
        return y + (x if self.shortcut is None else self.shortcut(x, training=training))


def _halved(x: tf.Tensor) -> tf.Tensor:
    """Means of 2 x 2 pixels; the last row and column count twice where their number is odd."""
    height, width, channels = x.shape[1:]
    if height % 2 or width % 2:
        x = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]], "SYMMETRIC")
    x = tf.reshape(x, (-1, -(-height // 2), 2, -(-width // 2), 2, channels))
    return tf.reduce_mean(x, axis=(2, 4))


@keras.saving.register_keras_serializable("gentf")
class ResNetGenerator(Generator):
    """noise -> dense -> up blocks to the image's size -> normalization, ReLU, convolution, tanh.

    A class enters through the normalizations alone.

    Args:
        width: channels of every block.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 128, **kwargs):
        super().__init__(image_shape, latent_dim, **kwargs)
        self.width = width
        self.sizes = feature_sizes(self.image_shape)[::-1]
        options = {"dtype": self.dtype_policy}
        height, wide = self.sizes[0]
        self.project = Weights(latent_dim, height * wide * width, bias=True, seed=self.next_seed(), **options)
        self.blocks = [
            UpBlock(width, width, size, self.num_classes, self.next_seed(3), **options) for size in self.sizes[1:]
        ]
        self.norm = ClassNormalization(width, **options)
        self.to_image = Weights(width, self.image_shape[2], 3, bias=True, seed=self.next_seed(), **options)

    def build(self, input_shape=None) -> None:
        parts: list[keras.layers.Layer] = [self.project, *self.blocks, self.norm, self.to_image]
        for layer in parts:
            layer.build()
        self.built = True

    def call(self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = self.project(tf.cast(z, self.compute_dtype))
        x = tf.reshape(x, (-1, *self.sizes[0], self.width))
        for block in self.blocks:
            x = block(x, label, training=training)
        x = self.to_image(tf.nn.relu(self.norm(x, training=training)))
        return tf.tanh(tf.cast(x, tf.float32))

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width}


@keras.saving.register_keras_serializable("gentf")
class ResNetDiscriminator(Discriminator):
    """image -> down blocks until the smaller side is at most 8 -> two more blocks, ReLU, sum over pixels -> logit.

    Args:
        width: channels of every block.
        normalization: "spectral" or "none".
    """

    def __init__(self, image_shape: Sequence[int], width: int = 128, normalization: str = "spectral", **kwargs):
        super().__init__(image_shape, **kwargs)
        self.width, self.normalization = width, normalization
        sizes = feature_sizes(self.image_shape)
        halvings = max(1, len(sizes) - 2)
        spectral = normalization == "spectral"
        inputs = [self.image_shape[2], *[width] * (halvings + 1)]
        self.blocks = [
            DownBlock(
                channels, width, number < halvings, not number, spectral, self.next_seed(6), dtype=self.dtype_policy
            )
            for number, channels in enumerate(inputs)
        ]

    def build(self, input_shape=None) -> None:
        for block in self.blocks:
            block.build()
        self.head(self.width, spectral=self.normalization == "spectral")
        self.built = True

    def call(self, image: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = tf.cast(image, self.compute_dtype)
        for block in self.blocks:
            x = block(x, training=training)
        return self.logit(tf.reduce_sum(tf.nn.relu(x), axis=(1, 2)), label, training)

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width, "normalization": self.normalization}
