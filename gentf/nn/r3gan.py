"""Residual generator and discriminator without normalization: a relativistic loss with R1 and R2 needs none.

Each is the mirror of the other: blocks of 1x1, 3x3 and 1x1 convolutions around which the image goes on unchanged,
resampled between sizes with a low-pass filter. Weights start so that each block adds nothing (Zhang, Dauphin & Ma,
2019, "Fixup initialization").

Reference: Huang et al. (2024), "The GAN is dead; long live the GAN! A modern GAN baseline", section 3 and appendix; the
3x3 convolutions here have no groups, which are slow where no special kernel runs them.
"""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from gentf.kernels.bias_act import bias_act
from gentf.kernels.upfirdn import downsample2d, upsample2d
from gentf.nn.dcgan import feature_sizes, feature_widths
from gentf.nn.network import Discriminator, Generator
from gentf.nn.weights import Weights

GAIN = math.sqrt(2.0)  # of a leaky ReLU with the variance of its input


class ResidualBlock(keras.layers.Layer):
    """x + conv1x1(act(conv3x3(act(conv1x1(x))))), the last convolution 0 at first.

    Args:
        width: channels; blocks: how many residual blocks the network has; seed: of the weights.
    """

    def __init__(self, width: int, blocks: int, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        gain = GAIN * blocks ** (-1.0 / 4.0)  # Fixup: L^(-1 / (2 m - 2)) with m = 3 layers in a branch
        options = {"dtype": self.dtype_policy}
        self.convolutions = [
            Weights(width, width, 1, gain=gain, seed=seed, **options),
            Weights(width, width, 3, gain=gain, seed=seed + 1, **options),
            Weights(width, width, 1, gain=0.0, seed=seed + 2, **options),
        ]

    def build(self, input_shape=None) -> None:
        for convolution in self.convolutions:
            convolution.build()
        self.biases = [
            self.add_weight(shape=(self.width,), initializer="zeros", name=f"bias_{number}") for number in range(2)
        ]
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = x
        for number, convolution in enumerate(self.convolutions):
            if number:  # the gain is in the weights
                y = bias_act(y, tf.cast(self.biases[number - 1], y.dtype), activation="lrelu", gain=1.0)
            y = convolution(y)
        return x + y


def _up(x: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """To at most twice the height and width: (B, h, w, C) -> (B, *size, C)."""
    return upsample2d(x)[:, : size[0], : size[1]]


def downsampled(x: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """To half the height and width, rounded up: (B, h, w, C) -> (B, *size, C)."""
    missing = [2 * size[axis] - x.shape[1 + axis] for axis in (0, 1)]
    if any(missing):
        x = tf.pad(x, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]], "SYMMETRIC")
    return downsample2d(x)


@keras.saving.register_keras_serializable("gentf")
class R3GANGenerator(Generator):
    """noise -> learned features of the smallest size, scaled by it -> (blocks, upsampling) ... -> image.

    The image has no tanh: it is brought into [-1, 1] where it is sampled.

    Args:
        width: channels of the feature map next to the image; deeper ones double, up to 512.
        blocks: residual blocks at each size.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 64, blocks: int = 2, **kwargs):
        super().__init__(image_shape, latent_dim, **kwargs)
        self.width, self.blocks = width, blocks
        self.sizes = feature_sizes(self.image_shape)[::-1]  # smallest first
        self.widths = [*feature_widths(width, len(self.sizes) - 1)[::-1], width]
        count, options = blocks * len(self.sizes), {"dtype": self.dtype_policy}
        self.scales = Weights(self.input_dim(), self.widths[0], seed=self.next_seed(), name="scales", **options)
        self.body = [
            [ResidualBlock(width, count, self.next_seed(3), **options) for _ in range(blocks)] for width in self.widths
        ]
        self.to_width = [
            None if a == b else Weights(a, b, seed=self.next_seed(), **options)
            for a, b in zip(self.widths, self.widths[1:])
        ]
        self.to_image = Weights(self.widths[-1], self.image_shape[2], seed=self.next_seed(), name="to_image", **options)

    def build(self, input_shape=None) -> None:
        initial = keras.initializers.RandomNormal(stddev=1.0, seed=self.next_seed())
        self.basis = self.add_weight(shape=(*self.sizes[0], self.widths[0]), initializer=initial, name="basis")
        for layer in (self.scales, *(block for stage in self.body for block in stage), *self.to_width, self.to_image):
            if layer is not None:
                layer.build()
        self.built = True

    def call(self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        code = self.conditioned(z, label, math.sqrt(self.latent_dim))  # the class is as long as the noise
        x = self.scales(code[:, None, None]) * tf.cast(self.basis, self.compute_dtype)
        for stage, blocks in enumerate(self.body):
            if stage:
                narrower = self.to_width[stage - 1]
                x = _up(x if narrower is None else narrower(x), self.sizes[stage])
            for block in blocks:
                x = block(x)
        return tf.cast(self.to_image(x), tf.float32)

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width, "blocks": self.blocks}


@keras.saving.register_keras_serializable("gentf")
class R3GANDiscriminator(Discriminator):
    """image -> (blocks, downsampling) ... -> one number a channel, from all of the smallest feature map -> logit.

    Args:
        width, blocks: as of the generator.
    """

    def __init__(self, image_shape: Sequence[int], width: int = 64, blocks: int = 2, **kwargs):
        super().__init__(image_shape, **kwargs)
        self.width, self.blocks = width, blocks
        self.sizes = feature_sizes(self.image_shape)
        self.widths = [width, *feature_widths(width, len(self.sizes) - 1)]
        count, options = blocks * len(self.sizes), {"dtype": self.dtype_policy}
        self.from_image = Weights(self.image_shape[2], width, seed=self.next_seed(), name="from_image", **options)
        self.body = [
            [ResidualBlock(width, count, self.next_seed(3), **options) for _ in range(blocks)] for width in self.widths
        ]
        self.to_width = [
            None if a == b else Weights(a, b, seed=self.next_seed(), **options)
            for a, b in zip(self.widths, self.widths[1:])
        ]

    def build(self, input_shape=None) -> None:
        for layer in (self.from_image, *(block for stage in self.body for block in stage), *self.to_width):
            if layer is not None:
                layer.build()
        height, width = self.sizes[-1]
        initial = keras.initializers.RandomNormal(stddev=(height * width) ** -0.5, seed=self.next_seed())
        self.pool = self.add_weight(shape=(height, width, self.widths[-1]), initializer=initial, name="pool")
        self.head(self.widths[-1])
        self.built = True

    def call(self, image: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = self.from_image(tf.cast(image, self.compute_dtype))
        for stage, blocks in enumerate(self.body):
            if stage:
                wider = self.to_width[stage - 1]
                x = downsampled(x, self.sizes[stage])
                x = x if wider is None else wider(x)
            for block in blocks:
                x = block(x)
        return self.logit(tf.reduce_sum(x * tf.cast(self.pool, x.dtype), axis=(1, 2)), label)

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width, "blocks": self.blocks}
