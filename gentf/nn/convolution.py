"""Keras' convolutions on `gentf.kernels.convolution`: same arguments, weights and results, faster next to images."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from gentf.kernels import convolution


def normal_initializer(inputs: int, gain: float, seed: int) -> keras.initializers.Initializer:
    """Normal weights of variance gain / inputs, the number of products that an output adds: 2 keeps the variance from
    one rectified layer to the next (He et al. 2015, equation 10), 1 from one linear layer to the next.

    Keras counts the inputs of a transposed convolution from its outputs, and not less the stride.
    """
    return keras.initializers.RandomNormal(stddev=(gain / inputs) ** 0.5, seed=seed)


@keras.saving.register_keras_serializable("gentf")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`: see `gentf.kernels.convolution.conv2d`. Grouped convolutions run as Keras runs them."""

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if self.groups > 1 or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        kernel = tf.cast(kernel, inputs.dtype)
        padding = self.padding.upper()
        return convolution.conv2d(inputs, kernel, strides=self.strides, padding=padding, dilation=self.dilation_rate)


@keras.saving.register_keras_serializable("gentf")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`: see `gentf.kernels.convolution.conv2d_transpose`.

    Args:
        output_size: (height, width) of the result, for what Keras would have cropped; None: Keras' own.
    """

    def __init__(self, *args, output_size: Sequence[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.output_size = None if output_size is None else tuple(int(size) for size in output_size)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        y = convolution.conv2d_transpose(
            inputs,
            tf.cast(self.kernel, inputs.dtype),
            strides=self.strides,
            padding=self.padding.upper(),
            output_size=self.output_size,
        )
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.cast(self.bias, y.dtype))
        return y if self.activation is None else self.activation(y)

    def compute_output_shape(self, input_shape) -> tuple:
        shape = super().compute_output_shape(input_shape)
        return shape if self.output_size is None else (shape[0], *self.output_size, shape[3])

    def get_config(self) -> dict:
        return super().get_config() | {"output_size": self.output_size}
