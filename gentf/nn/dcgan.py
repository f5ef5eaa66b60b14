"""Convolutional generator and discriminator for any height, width and number of channels.

Both halve (or double) the image until its smaller side is at most 4, so that the discriminator's last features see
most of the image. Sizes that are not divisible are rounded up on the way down, as a strided convolution does, and
rounded down to the size wanted on the way up, so that 28 x 20 works as 32 x 32 does.

Reference: Radford, Metz & Chintala (2016), section 3.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from gentf.nn.convolution import Conv2D, Conv2DTranspose
from gentf.nn.network import Discriminator, Generator
from gentf.nn.normalization import BatchNormalization
from gentf.nn.weights import Weights

KERNEL = 4  # twice the stride: each output of a transposed convolution has as many inputs, hence no checkerboard
SLOPE = 0.2
MAX_WIDTH = 512


def feature_sizes(image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """[(height, width)] of the feature maps, from the image's own down to the smallest."""
    sizes = [(image_shape[0], image_shape[1])]
    while len(sizes) == 1 or min(sizes[-1]) > 4:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def feature_widths(width: int, stages: int) -> list[int]:
    """Channels of the feature maps next to the image, then deeper: doubling up to 512."""
    return [min(width * 2**stage, max(width, MAX_WIDTH)) for stage in range(stages)]


@keras.saving.register_keras_serializable("gentf")
class DCGANGenerator(Generator):
    """noise -> dense -> (transposed convolution, batch normalization, ReLU) ... -> image, tanh.

    Args:
        width: channels of the feature map next to the image.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 64, **kwargs):
        super().__init__(image_shape, latent_dim, **kwargs)
        self.width = width
        self.sizes = feature_sizes(self.image_shape)[::-1]  # smallest first
        self.widths = feature_widths(width, len(self.sizes) - 1)[::-1]
        height, wide = self.sizes[0]
        self.project = self.dense(height * wide * self.widths[0], use_bias=False, name="project")
        self.norms = [BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=self.dtype_policy) for _ in self.widths]
        outputs = [*self.widths[1:], self.image_shape[2]]
        self.up = [
            Conv2DTranspose(
                channels,
                KERNEL,
                strides=2,
                padding="same",
                output_size=self.sizes[stage + 1],
                use_bias=stage == len(outputs) - 1,  # elsewhere the norm that follows has one
                kernel_initializer=self.initializer(),
                dtype=self.dtype_policy,
            )
            for stage, channels in enumerate(outputs)
        ]

    def build(self, input_shape=None) -> None:
        self.project.build((None, self.input_dim()))
        for size, width, norm, up in zip(self.sizes, self.widths, self.norms, self.up):
            norm.build((None, *size, width))
            up.build((None, *size, width))
        self.built = True

    def call(self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = self.project(self.conditioned(z, label))
        x = tf.reshape(x, (-1, *self.sizes[0], self.widths[0]))
        for norm, up in zip(self.norms, self.up):
            x = up(tf.nn.relu(norm(x, training=training)))
        return tf.tanh(tf.cast(x, tf.float32))

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width}


@keras.saving.register_keras_serializable("gentf")
class DCGANDiscriminator(Discriminator):
    """image -> (strided convolution, normalization but for the first, leaky ReLU) ... -> logit.

    Args:
        width: channels of the feature map next to the image.
        normalization: "batch"; "layer", over each image alone, as a gradient penalty needs it; "spectral", of weights,
            which does too; or "none".
    """

    def __init__(self, image_shape: Sequence[int], width: int = 64, normalization: str = "batch", **kwargs):
        super().__init__(image_shape, **kwargs)
        self.width = width
        self.normalization = normalization
        self.rowwise = normalization != "batch"
        self.sizes = feature_sizes(self.image_shape)
        self.widths = feature_widths(width, len(self.sizes) - 1)
        self.norms = [None, *(self._norm() for _ in self.widths[1:])]
        self.spectral = normalization == "spectral"
        inputs = [self.image_shape[2], *self.widths]
        self.down = [
            Weights(
                inputs[stage], channels, KERNEL, strides=2, bias=True, spectral=True, seed=self.next_seed(2),
                dtype=self.dtype_policy,
            )
            if self.spectral
            else Conv2D(
                channels,
                KERNEL,
                strides=2,
                padding="same",
                use_bias=stage == 0 or normalization == "none",
                kernel_initializer=self.initializer(),
                dtype=self.dtype_policy,
            )
            for stage, channels in enumerate(self.widths)
        ]  # fmt: skip

    def build(self, input_shape=None) -> None:
        channels = self.image_shape[2]
        for stage, (size, width, down) in enumerate(zip(self.sizes, self.widths, self.down)):
            down.build((None, *size, channels))
            if (norm := self.norms[stage]) is not None:
                norm.build((None, *self.sizes[stage + 1], width))
            channels = width
        self.features = self.sizes[-1][0] * self.sizes[-1][1] * channels
        self.head(self.features, self.spectral)
        self.built = True

    def call(self, image: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = tf.cast(image, self.compute_dtype)
        for stage, down in enumerate(self.down):
            x = down(x, training=training) if self.spectral else down(x)
            if (norm := self.norms[stage]) is not None:
                x = norm(x, training=training)
            x = tf.nn.leaky_relu(x, SLOPE)
        return self.logit(tf.reshape(x, (-1, self.features)), label, training)

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width, "normalization": self.normalization}

    def _norm(self) -> keras.layers.Layer | None:
        if self.normalization == "batch":
            return BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=self.dtype_policy)
        if self.normalization == "layer":  # one group: over height, width and channels, a scale for each channel
            return keras.layers.GroupNormalization(groups=1, epsilon=1e-5, dtype=self.dtype_policy)
        return None
