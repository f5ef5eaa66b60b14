"""What the two sides of an adversarial model share: arguments, conditioning on a class, initial weights."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from gentf.nn.weights import Weights


class Network(keras.layers.Layer):
    """A generator or discriminator over images of one shape, or points.

    Args:
        image_shape: (height, width, channels), or (D,) of points.
        num_classes: classes it is conditioned on; 0 for none.
        seed: decides the initial weights but for biases, which are 0. For images they are N(0, 0.02). Points are few
            numbers, from which those would make next to nothing: there a weight's variance is 2 / inputs.
    References for the initial weights: Radford, Metz & Chintala (2016), section 4; He et al. (2015), equation 10.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int = 0, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.seed = seed
        self._layers_made = 0

    def dense(self, units: int, **kwargs) -> keras.layers.Dense:
        return keras.layers.Dense(units, kernel_initializer=self.initializer(), dtype=self.dtype_policy, **kwargs)

    def next_seed(self, count: int = 1) -> int:
        """A seed for each layer, or the first of `count`: a repeated one would repeat the values."""
        self._layers_made += count
        return self.seed + self._layers_made - count + 1

    def initializer(self) -> keras.initializers.Initializer:
        seed = self.next_seed()
        if len(self.image_shape) == 1:
            return keras.initializers.HeNormal(seed)
        return keras.initializers.RandomNormal(stddev=0.02, seed=seed)

    def one_hot(self, label: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(label, self.num_classes, dtype=self.compute_dtype)

    def get_config(self) -> dict:
        own = {"image_shape": self.image_shape, "num_classes": self.num_classes, "seed": self.seed}
        return super().get_config() | own


class Generator(Network):
    """(B, latent_dim) noise -> (B, H, W, C) float32 image in [-1, 1], or (B, D) float32 points."""

    def __init__(self, image_shape: Sequence[int], latent_dim: int, **kwargs):
        super().__init__(image_shape, **kwargs)
        self.latent_dim = latent_dim

    def conditioned(self, z: tf.Tensor, label: tf.Tensor | None, length: float = 1.0) -> tf.Tensor:
        """The class joins the noise, as a vector of one number that is `length` and zeros.

        Reference: Mirza & Osindero (2014), figure 1.
        """
        z = tf.cast(z, self.compute_dtype)
        return z if label is None else tf.concat([z, length * self.one_hot(label)], axis=1)

    def input_dim(self) -> int:
        return self.latent_dim + self.num_classes

    def get_config(self) -> dict:
        return super().get_config() | {"latent_dim": self.latent_dim}


class Discriminator(Network):
    """(B, H, W, C) image, or (B, D) point -> (B,) float32 logit.

    Args:
        output_bias: whether the logit has a bias. A critic has none: the Wasserstein loss does not see it.

    A class enters by projection: the inner product of its embedding and the features is added to the logit.
    Reference: Miyato & Koyama (2018), equation 3.
    """

    #: Whether each logit depends on its own image alone.
    rowwise = True

    def __init__(self, image_shape: Sequence[int], output_bias: bool = True, **kwargs):
        super().__init__(image_shape, **kwargs)
        self.output_bias = output_bias

    def head(self, features: int, spectral: bool = False) -> None:
        """Make the last layers, on (B, features), with spectral normalization where it is asked for."""
        if spectral:
            options = {"spectral": True, "dtype": self.dtype_policy}
            self.output_layer = Weights(
                features, 1, bias=self.output_bias, seed=self.next_seed(2), name="output", **options
            )
        else:
            self.output_layer = self.dense(1, use_bias=self.output_bias, name="output")
        self.output_layer.build((None, features))
        if self.num_classes:
            if spectral:
                self.embedding = Weights(
                    self.num_classes, features, seed=self.next_seed(2), name="embedding", **options
                )
            else:
                self.embedding = self.dense(features, use_bias=False, name="embedding")
            self.embedding.build((None, self.num_classes))

    def logit(self, features: tf.Tensor, label: tf.Tensor | None, training: bool = False) -> tf.Tensor:
        given = {"training": training} if isinstance(self.output_layer, Weights) else {}
        logit = self.output_layer(features, **given)[:, 0]
        if label is not None:
            logit += tf.reduce_sum(self.embedding(self.one_hot(label), **given) * features, axis=1)
        return tf.cast(logit, tf.float32)

    def get_config(self) -> dict:
        return super().get_config() | {"output_bias": self.output_bias}
