"""Generator whose layers are styled by a mapped code, and residual discriminator that sees the spread of its batch.

Without noise inputs, which give the layers randomness of their own (Karras et al. 2021 leave them out too), so that an
image is a function of its code.

Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN", sections 2 to 4.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gentf.kernels.bias_act import bias_act
from gentf.kernels.convolution import modulated_conv2d
from gentf.kernels.upfirdn import upsample2d
from gentf.nn.dcgan import feature_sizes, feature_widths
from gentf.nn.network import Discriminator, Generator
from gentf.nn.r3gan import downsampled
from gentf.nn.weights import Weights

MAPPING_LAYERS = 4
MAPPING_RATE = 0.01  # of the step size, in the mapping
MEAN_DECAY = 0.995  # of the mean style, a call in training
GROUP = 4  # images whose spread is told to the discriminator


class Styled(keras.layers.Layer):
    """A convolution whose inputs are scaled by an affine function of the style: w (B, D) -> style (B, inputs).

    Args:
        inputs, outputs: channels; size: of the kernel; up: 1 or 2; style_dim: D; last: whether it makes an image,
            without demodulation and activation; seed: of the weights.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, style_dim: int, seed: int, up: int = 1, last: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.kernel_shape, self.up, self.last, self.seed = (size, size, inputs, outputs), up, last, seed
        self.scale = 1.0 / math.sqrt(inputs * size * size)
        self.affine = Weights(style_dim, inputs, bias=True, scaled=True, seed=seed + 1, dtype=self.dtype_policy)

    def build(self, input_shape=None) -> None:
        self.affine.build()
        initial = keras.initializers.RandomNormal(stddev=1.0, seed=self.seed)
        self.kernel = self.add_weight(shape=self.kernel_shape, initializer=initial, name="kernel")
        self.bias = self.add_weight(shape=self.kernel_shape[-1:], initializer="zeros", name="bias")
        self.built = True

    def call(self, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        style = self.affine(w) + 1.0
        kernel = tf.cast(self.kernel, x.dtype)
        bias = tf.cast(self.bias, x.dtype)
        if self.last:
            return modulated_conv2d(x, kernel, style * self.scale, demodulate=False) + bias
        y = modulated_conv2d(x, kernel, style, up=self.up)
        return bias_act(y, bias, activation="lrelu")


@keras.saving.register_keras_serializable("gentf")
class StyleGAN2Generator(Generator):
    """noise -> style, by a mapping network; a learned constant -> styled convolutions, upsampling ... -> sum of images.

    Args:
        width: channels next to the image; deeper ones double, up to 512.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 32, **kwargs):
        super().__init__(image_shape, latent_dim, **kwargs)
        self.width = width
        self.sizes = feature_sizes(self.image_shape)[::-1]
        self.widths = [*feature_widths(width, len(self.sizes) - 1)[::-1], width]
        options = {"dtype": self.dtype_policy}
        dense: dict[str, Any] = {"bias": True, "scaled": True, "rate": MAPPING_RATE} | options
        self.mapping = [
            Weights(self.input_dim() if not number else latent_dim, latent_dim, seed=self.next_seed(), **dense)
            for number in range(MAPPING_LAYERS)
        ]
        self.convolutions, self.to_images = [], []
        for stage, width in enumerate(self.widths):
            before = self.widths[max(stage - 1, 0)]
            pair = [Styled(width, width, 3, latent_dim, self.next_seed(2), **options)]
            if stage:
                pair.insert(0, Styled(before, width, 3, latent_dim, self.next_seed(2), up=2, **options))
            self.convolutions.append(pair)
            self.to_images.append(
                Styled(width, self.image_shape[2], 1, latent_dim, self.next_seed(2), last=True, **options)
            )
        self.style_layers = sum(map(len, self.convolutions))

    def build(self, input_shape=None) -> None:
        parts: list[keras.layers.Layer] = [*self.mapping, *self.to_images]
        parts += [layer for pair in self.convolutions for layer in pair]
        for layer in parts:
            layer.build()
        initial = keras.initializers.RandomNormal(stddev=1.0, seed=self.next_seed())
        self.constant = self.add_weight(shape=(*self.sizes[0], self.widths[0]), initializer=initial, name="constant")
        self.mean_style = self.add_weight(
            shape=(self.latent_dim,), initializer="zeros", trainable=False, name="mean_style", dtype="float32",
            aggregation="mean",
        )  # fmt: skip
        self.built = True

    def styles(self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        """(B, latent_dim) noise -> (B, latent_dim) styles."""
        z = tf.cast(z, self.compute_dtype)
        z *= tf.math.rsqrt(tf.reduce_mean(tf.square(z), axis=1, keepdims=True) + 1e-8)
        w = self.conditioned(z, label, math.sqrt(self.latent_dim))  # as long as the noise: its layers learn slowly
        w = w if label is None else w * math.sqrt(0.5)
        for layer in self.mapping:
            w = bias_act(layer(w), activation="lrelu")
        if training:
            mean = tf.reduce_mean(tf.cast(tf.stop_gradient(w), tf.float32), axis=0)
            self.mean_style.assign(self.mean_style.value * MEAN_DECAY + (1.0 - MEAN_DECAY) * mean)
        return w

    def synthesize(self, w: tf.Tensor, other: tf.Tensor | None = None, cut: tf.Tensor | None = None) -> tf.Tensor:
        """Images of styles (B, D); from the layer `cut` (B,) on, of the `other` ones."""
        batch = tf.shape(w)[0]
        x = tf.tile(tf.cast(self.constant, self.compute_dtype)[None], (batch, 1, 1, 1))
        image: tf.Tensor | None = None
        number = 0
        for stage, pair in enumerate(self.convolutions):
            for layer in pair:
                style = w if cut is None or other is None else tf.where((number < cut)[:, None], w, other)
                x = layer(x, style)[:, : self.sizes[stage][0], : self.sizes[stage][1]]
                number += 1
            part = self.to_images[stage](x, style)
            if image is not None:
                part += upsample2d(image)[:, : self.sizes[stage][0], : self.sizes[stage][1]]
            image = part
        return tf.cast(image, tf.float32)

    def call(
        self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False, truncation: float = 1.0
    ) -> tf.Tensor:
        """Args: truncation: share of a style's way from the mean style that is gone."""
        w = self.styles(z, label, training)
        if truncation != 1.0:
            mean = tf.cast(self.mean_style.value, w.dtype)
            w = mean + truncation * (w - mean)
        return self.synthesize(w)

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width}


class DownBlock(keras.layers.Layer):
    """(convolution, activation, convolution, activation, halving) + halved convolution, over the root of 2."""

    def __init__(self, inputs: int, outputs: int, size: Sequence[int], seed: int, **kwargs):
        super().__init__(**kwargs)
        self.size, options = tuple(size), {"scaled": True, "dtype": self.dtype_policy}
        self.first = Weights(inputs, inputs, 3, bias=True, seed=seed, **options)
        self.second = Weights(inputs, outputs, 3, bias=True, seed=seed + 1, **options)
        self.shortcut = Weights(inputs, outputs, seed=seed + 2, **options)

    def build(self, input_shape=None) -> None:
        for layer in (self.first, self.second, self.shortcut):
            layer.build()
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = bias_act(self.first(x), activation="lrelu")
        y = bias_act(self.second(downsampled(y, self.size)), activation="lrelu")
        return (y + self.shortcut(downsampled(x, self.size))) * math.sqrt(0.5)


@keras.saving.register_keras_serializable("gentf")
class StyleGAN2Discriminator(Discriminator):
    """image -> down blocks -> spread of the batch as one more channel -> convolution, dense layer -> logit.

    Args:
        width: as of the generator.
    """

    rowwise = False

    def __init__(self, image_shape: Sequence[int], width: int = 32, **kwargs):
        super().__init__(image_shape, **kwargs)
        self.width = width
        self.sizes = feature_sizes(self.image_shape)
        widths = [width, *feature_widths(width, len(self.sizes) - 1)]
        options = {"scaled": True, "bias": True, "dtype": self.dtype_policy}
        self.from_image = Weights(self.image_shape[2], width, seed=self.next_seed(), **options)
        self.blocks = [
            DownBlock(a, b, size, self.next_seed(3), dtype=self.dtype_policy)
            for a, b, size in zip(widths, widths[1:], self.sizes[1:])
        ]
        self.last = Weights(widths[-1] + 1, widths[-1], 3, seed=self.next_seed(), **options)
        self.pixels = math.prod(self.sizes[-1])
        self.features = widths[-1]
        self.dense_layer = Weights(self.pixels * widths[-1], self.features, seed=self.next_seed(), **options)

    def build(self, input_shape=None) -> None:
        parts: list[keras.layers.Layer] = [self.from_image, *self.blocks, self.last, self.dense_layer]
        for layer in parts:
            layer.build()
        self.head(self.features)
        self.built = True

    def call(self, image: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        x = bias_act(self.from_image(tf.cast(image, self.compute_dtype)), activation="lrelu")
        for block in self.blocks:
            x = block(x)
        x = bias_act(self.last(with_spread(x)), activation="lrelu")
        x = bias_act(self.dense_layer(tf.reshape(x, (-1, self.pixels * self.features))), activation="lrelu")
        return self.logit(x, label)

    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width}


def with_spread(x: tf.Tensor) -> tf.Tensor:
    """One more channel: the mean, over features and places, of the standard deviation over groups of `GROUP` images.

    An image's group is every (B / GROUP)-th of the batch; a batch that is no multiple is one group.

    Args:
        x: (B, H, W, C).
    Returns:
        (B, H, W, C + 1).
    Reference: Karras et al. (2018), "Progressive growing of GANs", section 3.
    """
    rows = tf.shape(x)[0]
    group = tf.where(rows % GROUP == 0, GROUP, rows)
    height, width, channels = x.shape[1:]
    y = tf.reshape(tf.cast(x, tf.float32), tf.stack([group, rows // group, height, width, channels]))
    spread = tf.sqrt(tf.math.reduce_variance(y, axis=0) + 1e-8)
    told = tf.tile(tf.reduce_mean(spread, axis=(1, 2, 3)), [group])[:, None, None, None]
    return tf.concat([x, tf.cast(tf.tile(told, (1, height, width, 1)), x.dtype)], axis=3)
