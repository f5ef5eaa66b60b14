"""Residual convolutional encoder and decoder between images and grids of vectors, and fixed features to compare by.

Reference: van den Oord, Vinyals & Kavukcuoglu (2017), "Neural discrete representation learning", section 4.1.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gentf.nn.convolution import Conv2D, Conv2DTranspose, normal_initializer

KERNEL = 4  # twice the stride
STEM = 2  # the convolution next to the image has 1 / STEM of the channels: it is at the largest size
FIRST_OUTPUT = 0.02  # variance of the last layer before training, of its inputs': the first image is nearly grey


def grid_sizes(image_shape: Sequence[int], downsamples: int) -> list[tuple[int, int]]:
    """[(height, width)] from the image's down to the grid's, each half of the one before, rounded up."""
    sizes = [(int(image_shape[0]), int(image_shape[1]))]
    for _ in range(downsamples):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


@keras.saving.register_keras_serializable("gentf")
class ResidualStack(keras.layers.Layer):
    """x + convolutions of x, several times, and a rectifier at the end: each (ReLU, 3x3, ReLU, 1x1).

    Args:
        width: channels.
        hidden: channels between the two convolutions.
        layers: residual blocks.
        seed: of the initial weights.
    """

    def __init__(self, width: int, hidden: int, layers: int, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.hidden, self.num_layers, self.seed = width, hidden, layers, seed
        # the blocks together add about as much variance as comes in, however many they are
        self.wide = [self._conv(hidden, 3, 9 * width, 2.0, seed + 2 * block) for block in range(layers)]
        self.narrow = [self._conv(width, 1, hidden, 2.0 / layers, seed + 2 * block + 1) for block in range(layers)]

    def _conv(self, channels: int, kernel: int, inputs: int, gain: float, seed: int) -> Conv2D:
        initializer = normal_initializer(inputs, gain, seed)
        return Conv2D(channels, kernel, padding="same", kernel_initializer=initializer, dtype=self.dtype_policy)

    def build(self, input_shape=None) -> None:
        for wide, narrow in zip(self.wide, self.narrow):
            wide.build((None, None, None, self.width))
            narrow.build((None, None, None, self.hidden))
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for wide, narrow in zip(self.wide, self.narrow):
            x += narrow(tf.nn.relu(wide(tf.nn.relu(x))))
        return tf.nn.relu(x)

    def get_config(self) -> dict[str, Any]:
        own = {"width": self.width, "hidden": self.hidden, "layers": self.num_layers, "seed": self.seed}
        return super().get_config() | own


class _Half(keras.layers.Layer):
    """What encoder and decoder share."""

    def __init__(
        self,
        image_shape: Sequence[int],
        code_dim: int,
        width: int = 128,
        residual_width: int = 32,
        residual_layers: int = 2,
        downsamples: int = 2,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_shape, self.code_dim = tuple(int(size) for size in image_shape), code_dim
        self.width, self.residual_width, self.residual_layers = width, residual_width, residual_layers
        self.downsamples, self.seed = downsamples, seed
        self.sizes = grid_sizes(self.image_shape, downsamples)
        stem = max(1, width // STEM)
        self.widths = [stem if stage == 0 and downsamples > 1 else width for stage in range(downsamples)]
        self.residual = ResidualStack(
            width, residual_width, residual_layers, seed + 100, dtype=self.dtype_policy, name="residual"
        )

    def _options(self, number: int, inputs: int, gain: float = 2.0) -> dict[str, Any]:
        initializer = normal_initializer(inputs, gain, self.seed + number)
        return {"padding": "same", "kernel_initializer": initializer, "dtype": self.dtype_policy}

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "image_shape": self.image_shape, "code_dim": self.code_dim, "width": self.width,
            "residual_width": self.residual_width, "residual_layers": self.residual_layers,
            "downsamples": self.downsamples, "seed": self.seed,
        }  # fmt: skip


@keras.saving.register_keras_serializable("gentf")
class ResidualEncoder(_Half):
    """(B, H, W, C) in [-1, 1] -> (B, h, w, D): strided 4x4 convolutions, a 3x3 one, residual blocks, a 1x1 one.

    Args:
        image_shape: (H, W, C). h and w are H and W halved `downsamples` times, rounded up.
        code_dim: D.
        width: channels; the convolution next to the image has half of them.
        residual_width: channels inside residual blocks.
        residual_layers: residual blocks.
        downsamples: strided convolutions, at least 1.
        seed: of the initial weights.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        before = [self.image_shape[2], *self.widths]
        self.down = [
            Conv2D(channels, KERNEL, strides=2, **self._options(stage, KERNEL**2 * before[stage]))
            for stage, channels in enumerate(self.widths)
        ]
        self.middle = Conv2D(self.width, 3, **self._options(self.downsamples, 9 * self.width))
        self.to_code = Conv2D(self.code_dim, 1, **self._options(self.downsamples + 1, self.width, 1.0))

    def build(self, input_shape=None) -> None:
        channels = self.image_shape[2]
        for size, down, width in zip(self.sizes, self.down, self.widths):
            down.build((None, *size, channels))
            channels = width
        self.middle.build((None, *self.sizes[-1], self.width))
        self.residual.build()
        self.to_code.build((None, *self.sizes[-1], self.width))
        self.built = True

    def call(self, image: tf.Tensor) -> tf.Tensor:
        x = tf.cast(image, self.compute_dtype)
        for down in self.down:
            x = tf.nn.relu(down(x))
        return self.to_code(self.residual(self.middle(x)))


@keras.saving.register_keras_serializable("gentf")
class ResidualDecoder(_Half):
    """(B, h, w, D) -> (B, H, W, C) float32, not bounded: the mirror of `ResidualEncoder`, with its arguments."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.from_code = Conv2D(self.width, 3, **self._options(0, 9 * self.code_dim, 1.0))
        before, outputs = self.widths[::-1], [*self.widths[-2::-1], self.image_shape[2]]
        last = len(outputs) - 1
        self.up = [
            Conv2DTranspose(
                channels,
                KERNEL,
                strides=2,
                output_size=self.sizes[-2 - stage],
                **self._options(stage + 1, KERNEL**2 // 4 * before[stage], FIRST_OUTPUT if stage == last else 2.0),
            )
            for stage, channels in enumerate(outputs)
        ]

    def build(self, input_shape=None) -> None:
        self.from_code.build((None, *self.sizes[-1], self.code_dim))
        self.residual.build()
        for size, width, up in zip(self.sizes[:0:-1], self.widths[::-1], self.up):
            up.build((None, *size, width))
        self.built = True

    def call(self, code: tf.Tensor) -> tf.Tensor:
        x = self.residual(self.from_code(tf.cast(code, self.compute_dtype)))
        for stage, up in enumerate(self.up):
            x = up(x if stage == 0 else tf.nn.relu(x))
        return tf.cast(x, tf.float32)


@keras.saving.register_keras_serializable("gentf")
class RandomFeatures(keras.layers.Layer):
    """Features of an image at several scales by convolutions with random weights, which are never trained.

    Random filters see edges and textures that a distance of pixels does not: He, Wang & Hopcroft (2016), "A powerful
    generative model using random weights for the deep image representation". The weights are drawn once, from `seed`,
    and saved with the model. float32 inside.

    Args:
        channels: C of the image.
        width: channels at the image's own scale; twice as many at each further one, of half its height and width.
        scales: how many.
        seed: of the weights.
    """

    def __init__(self, channels: int, width: int = 16, scales: int = 3, seed: int = 0, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        if min(channels, width, scales) < 1:
            raise ValueError(
                "`channels`, `width` and `scales` must be positive. "
                f"Received: channels={channels}, width={width}, scales={scales}"
            )
        self.channels, self.width, self.scales, self.seed = channels, width, scales, seed
        self.convolutions = [
            Conv2D(
                width * 2**scale, 3, padding="same", activation="relu", use_bias=False, dtype="float32",
                kernel_initializer=keras.initializers.HeNormal(seed=seed + scale),
            )
            for scale in range(scales)
        ]  # fmt: skip

    def build(self, input_shape=None) -> None:
        channels = self.channels
        for scale, layer in enumerate(self.convolutions):
            layer.build((None, None, None, channels))
            layer.trainable = False
            channels = self.width * 2**scale
        self.built = True

    def call(self, image: tf.Tensor) -> list[tf.Tensor]:
        """(B, H, W, C) -> [(B, H / 2^s, W / 2^s, width 2^s)] for each scale s, sizes rounded up."""
        x, found = tf.cast(image, tf.float32), []
        for scale, layer in enumerate(self.convolutions):
            x = layer(x if scale == 0 else tf.nn.avg_pool2d(x, 2, 2, "SAME"))
            found.append(x)
        return found

    def get_config(self) -> dict[str, Any]:
        own = {"channels": self.channels, "width": self.width, "scales": self.scales, "seed": self.seed}
        return super().get_config() | own


def feature_distance(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
    """Squared distance of normalized activations: mean over positions, sum over scales.

    Each position's vector is brought to length 1 (Zhang et al. 2018, "The unreasonable effectiveness of deep features
    as a perceptual metric", equation 1, with weights of 1); one of length 0 stays.

    Args:
        a, b: (B, ..., C) float of each scale.
    Returns:
        (B,) float32 in [0, 4 * scales].
    """
    total: Any = 0.0
    for one, other in zip(a, b, strict=True):
        squares = tf.reduce_sum(tf.math.squared_difference(_unit(one), _unit(other)), axis=-1)
        total += tf.reduce_mean(tf.reshape(squares, (tf.shape(squares)[0], -1)), axis=1)
    return total


def _unit(x: tf.Tensor) -> tf.Tensor:
    x = tf.cast(x, tf.float32)
    return x * tf.math.rsqrt(tf.reduce_sum(tf.square(x), axis=-1, keepdims=True) + 1e-10)
