"""A linear layer or convolution whose initial variance is stated, with spectral normalization where it is asked for."""

import math

import keras
import tensorflow as tf

from gentf.kernels.convolution import conv2d
from gentf.kernels.tracing import widened


class Weights(keras.layers.Layer):
    """A K x K convolution of (B, H, W, inputs), or with K = 1 a linear layer of (B, inputs).

    With spectral normalization the weights are divided by an estimate of their largest singular value, as a matrix of
    outputs by all else: one step of power iteration in each call in training.

    Args:
        inputs, outputs: channels.
        size: K; strides: 1 or 2.
        gain: the initial weights' variance is gain^2 / (inputs * K * K).
        bias: whether to add one, 0 at first.
        spectral: whether to normalize.
        scaled: whether weights are kept at variance 1 and scaled when used, so that every layer learns at one pace
            (Karras et al. 2018, "Progressive growing of GANs", section 4.1).
        rate: share of the step size, of scaled weights and biases.
        seed: of the initial weights.
    Reference: Miyato et al. (2018), "Spectral normalization for generative adversarial networks", algorithm 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 1,
        *,
        seed: int,
        gain: float = 1.0,
        strides: int = 1,
        bias: bool = False,
        spectral: bool = False,
        scaled: bool = False,
        rate: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.inputs, self.outputs, self.size, self.strides = inputs, outputs, size, strides
        self.gain, self.seed, self.use_bias, self.spectral = gain, seed, bias, spectral
        self.scaled, self.rate = scaled, rate
        self.spread = gain / math.sqrt(inputs * size**2)

    def build(self, input_shape=None) -> None:
        initial = keras.initializers.RandomNormal(
            stddev=1.0 / self.rate if self.scaled else self.spread, seed=self.seed
        )
        self.kernel = self.add_weight(
            shape=(self.size, self.size, self.inputs, self.outputs), initializer=initial, name="kernel"
        )
        self.bias = self.add_weight(shape=(self.outputs,), initializer="zeros", name="bias") if self.use_bias else None
        if self.spectral:
            self.direction = self.add_weight(
                shape=(self.outputs, 1),
                initializer=keras.initializers.RandomNormal(seed=self.seed + 1),
                name="direction",
                trainable=False,
                dtype="float32",
                aggregation="only_first_replica",
            )
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        kernel = tf.cast(self._normalized(training) if self.spectral else self.kernel, x.dtype)
        kernel = kernel * (self.spread * self.rate) if self.scaled else kernel
        y = tf.matmul(x, kernel[0, 0]) if x.shape.rank == 2 else conv2d(x, kernel, strides=self.strides)
        return y if self.bias is None else y + tf.cast(self.bias, y.dtype) * self.rate

    def _normalized(self, training: bool) -> tf.Tensor:
        kernel = widened(tf.convert_to_tensor(self.kernel.value))
        matrix = tf.reshape(kernel, (-1, self.outputs))
        fixed = tf.stop_gradient(matrix)
        left = tf.math.l2_normalize(tf.matmul(fixed, tf.cast(self.direction.value, kernel.dtype)), axis=0)
        right = tf.math.l2_normalize(tf.matmul(fixed, left, transpose_a=True), axis=0)
        if training:
            self.direction.assign(tf.cast(right, tf.float32))
        return kernel / tf.reduce_sum(left * tf.matmul(matrix, right))
