"""Masked convolutional models of images, pixel by pixel in raster order.

References: van den Oord, Kalchbrenner & Kavukcuoglu (2016); van den Oord et al. (2016), "Conditional image generation
with PixelCNN decoders"; Salimans et al. (2017), "PixelCNN++".
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.models.base import Batch, Losses, Signature, by_rows
from gentf.models.images import ImageModel, as_answer
from gentf.nn.likelihoods import LIKELIHOODS, Likelihood
from gentf.nn.pixelcnn import PixelCNNNetwork
from gentf.sampling import decode
from gentf.sampling.decode import Controls, Decoder, Rules

DROPOUT = 0  # stream of randomness inside a step
LABEL = 2**31 - 1  # stream of a sample's row seed: beyond those of its pixels


@keras.saving.register_keras_serializable("gentf")
class PixelCNN(ImageModel):
    """p(image) as a product over pixels, each given those above and to its left.

    What samples and scores is an exponential moving average of the weights.

    Args:
        image_shape, num_classes, seed: as of `ImageModel`.
        layers, width, kernel_size, first_kernel_size, dropout: of the network; see `PixelCNNNetwork`.
        likelihood: of a pixel: "bernoulli" (black or white: what is not black is white), "categorical" (256 levels,
            one channel), or "mixture" (256 levels as a discretized mixture of logistics; channels in their order).
        components: of "mixture".
        ema_decay: decay a step of the averaged weights.
    """

    exact_likelihood = True

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 0,
        layers: int = 7,
        width: int = 32,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        likelihood: str = "bernoulli",
        components: int = 10,
        dropout: float = 0.0,
        ema_decay: float = 0.999,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(image_shape, num_classes, seed, **kwargs)
        channels = self.image_shape[2]
        for name, value in (("kernel_size", kernel_size), ("first_kernel_size", first_kernel_size)):
            if value < 3 or value % 2 == 0:
                raise ValueError(f"`{name}` must be odd and at least 3. Received: {name}={value}")
        if likelihood not in ("bernoulli", "categorical", "mixture"):
            raise ValueError(
                f"`likelihood` must be 'bernoulli', 'categorical' or 'mixture'. Received: likelihood={likelihood!r}"
            )
        if likelihood != "mixture" and channels != 1:
            raise ValueError(
                f"`likelihood` must be 'mixture' for {channels} channels. Received: likelihood={likelihood!r}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout}")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"`ema_decay` must be in [0, 1). Received: ema_decay={ema_decay}")
        self.num_layers, self.width, self.kernel_size = layers, width, kernel_size
        self.likelihood, self.components, self.dropout_rate = likelihood, components, dropout
        self.first_kernel_size, self.ema_decay = first_kernel_size, ema_decay
        options = {"components": components} if likelihood == "mixture" else {}
        self.pixel: Likelihood = LIKELIHOODS[likelihood](channels, **options)
        outputs = self.pixel.outputs
        common = {
            "layers": layers, "width": width, "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size, "num_classes": self.num_classes,
            "dropout": dropout, "seed": self.seed, "dtype": self.dtype_policy,
        }  # fmt: skip
        self.network = PixelCNNNetwork(self.image_shape, outputs, name="network", **common)
        self.average = PixelCNNNetwork(self.image_shape, outputs, name="average", **common)
        self.average.trainable = False
        self.build()

    def build(self, input_shape=None) -> None:
        for average, weight in self._averaged():
            average.assign(weight)
        self.built = True

    # The likelihood

    def losses_on(self, batch: Batch, training: bool) -> Losses:
        """Nats an image; beside them, on held-out images, bits a dimension."""
        image = batch["image"]
        seed = self.row_seeds(tf.shape(image)[0], DROPOUT) if training and self.dropout_rate else None
        network = self.network if training else self.average
        loss = tf.reduce_mean(self._nats(network(image, batch.get("label"), seed), image))
        bits = loss / (math.log(2.0) * math.prod(self.image_shape))
        return {"loss": loss} if training else {"loss": loss, "bits": bits}

    def log_prob(self, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The log-likelihood of images, exact: (n,) float32, in nats an image.

        Args:
            images: (n, H, W, C) uint8, or float in [-1, 1].
            labels: (n,) classes, for a conditional model.
        """
        found = []
        for start in range(0, len(images), 100):
            part = slice(start, start + 100)
            batch = self.prepare((images[part], None if labels is None else labels[part]))
            found.append(-self._nats(self.average(batch["image"], batch.get("label")), batch["image"]).numpy())
        return np.concatenate(found)

    def _nats(self, outputs: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """(B,) float32, minus the log-likelihood of each image."""
        return -tf.reduce_sum(self.pixel.log_prob(outputs, image), axis=(1, 2))

    @property
    def levels(self) -> int | None:
        """Values that a number of an image may have."""
        return self.pixel.levels

    def _averaged(self) -> list[tuple[keras.Variable, keras.Variable]]:
        return list(zip(self.average.weights, self.network.weights, strict=True))

    # Sampling

    def decoder(self) -> Decoder:
        """The model as `gentf.sampling.decode` takes it; symbols are pixels, (B, C) float32 in [-1, 1]."""
        network = self.average
        values = network.values()

        def init_state(rows, capacity, label=None):
            return (rows if isinstance(rows, int) else tf.identity(rows), label)

        def prefill(symbols, lengths, state):
            outputs, canvas = network.start(values, state[0], state[1])
            return outputs, (canvas,) + ((state[1],) if state[1] is not None else ())

        def step(symbol, position, state):
            outputs, canvas = network.step(values, symbol, position[0], state[0], state[1] if len(state) > 1 else None)
            return outputs, (canvas, *state[1:])

        return Decoder(init_state, prefill, step, width=self.image_shape[2], draw=self._draw)

    def _draw(self, outputs, seed, count, controls: Controls, rules: Rules):
        """A pixel: (B, C) float32 in [-1, 1], its nats, and no cost."""
        pixel = self.pixel.sample(outputs, seed, count, controls.temperature)
        nats = -self.pixel.log_prob(outputs, pixel)
        return pixel, nats, tf.zeros_like(nats)

    def sample_rows(self, seed: tf.Tensor, label: tf.Tensor | None, temperature: tf.Tensor | None = None) -> tf.Tensor:
        def rows(seed, label, temperature=None):
            number = seed.shape[0]
            if label is not None:
                drawn = random.categorical(seed, tf.zeros((number, self.num_classes)), LABEL)
                label = tf.where(label < 0, drawn, label)
            height, width, channels = self.image_shape
            decoder, lengths = self.decoder(), tf.zeros((number,), tf.int32)
            begun = decode.begin(decoder, tf.zeros((number, 0, channels)), lengths, height * width, label=label)
            limit = tf.fill((number,), height * width)
            controls = Controls(temperature=temperature)
            pixels, _ = decode.advance(decoder, begun, seed, limit, height * width, controls)
            return tf.reshape(pixels, (number, height, width, channels))

        return by_rows(rows, seed, label, temperature)

    def signatures(self) -> dict[str, Signature]:
        def serving_default(seed, label=None):
            return as_answer(self.sample_rows(seed, label))

        def log_prob(image, label=None):
            def nats(image, label):
                return -self._nats(self.average(image, label), image)

            return {"log_prob": by_rows(nats, image, label)}

        labels = {"label": tf.TensorSpec((None,), tf.int32)} if self.num_classes else {}
        images = {"image": tf.TensorSpec((None, *self.image_shape), tf.float32)}
        return {
            "serving_default": Signature(serving_default, {"seed": tf.TensorSpec((None, 2), tf.int32)} | labels),
            "log_prob": Signature(log_prob, images | labels),
        }

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "layers": self.num_layers,
            "width": self.width,
            "kernel_size": self.kernel_size,
            "first_kernel_size": self.first_kernel_size,
            "likelihood": self.likelihood,
            "components": self.components,
            "dropout": self.dropout_rate,
            "ema_decay": self.ema_decay,
            "seed": self.seed,
        }
