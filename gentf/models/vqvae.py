"""Autoencoders of images whose codes are a grid of integers.

References: van den Oord, Vinyals & Kavukcuoglu (2017), "Neural discrete representation learning"; for each quantizer
see `gentf.nn.quantizers`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import quantize, random
from gentf.models.base import Batch, Losses, Signature, by_rows
from gentf.models.images import ImageModel, as_answer
from gentf.nn.autoencoder import RandomFeatures, ResidualDecoder, ResidualEncoder, feature_distance
from gentf.nn.quantizers import ESTIMATORS, FiniteScalarQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer

QUANTIZER = 0  # stream of randomness inside a step
SCALE = 0.5  # standard deviation of the values of photographs in [-1, 1] (CIFAR-10: 0.50)
PRIOR_DECAY = 0.999  # of the codes' frequencies, a step: what the encoder said when it was another is forgotten
RARE = 1e-9  # added to each frequency: before training every code is as likely
FEATURE_SEED = 0  # the same features for every model, whatever its seed: losses can be compared
TABLE = 2**27  # numbers in the table of frequencies: 512 MB
AT_ONCE = 1024  # images that are encoded or decoded in one call


@keras.saving.register_keras_serializable("gentf")
class VQVAE(ImageModel):
    """image -> (h, w) grid of integers -> image.

    What is minimised is, in nats an image, the reconstruction and what the quantizer adds. The reconstruction is minus
    the log-density of the image under independent values around the output, up to a constant: normal ones of standard
    deviation 0.5 in units of [-1, 1] (the squared distance over 2 x 0.5^2), or Laplace ones of the same deviation.

    `sample` draws the code of each place by itself, with the frequencies that it had there in training: a baseline, in
    which neighbours do not fit together. A model of the grid makes better ones: `decode` draws its samples.

    Args:
        image_shape, seed: as of `ImageModel`.
        num_classes: 0; the codes are not conditioned on classes.
        width, residual_width, residual_layers, downsamples: of encoder and decoder, see `ResidualEncoder`.
        code_dim: D, numbers of the vector that a code stands for.
        quantizer: "vq", "residual" or "fsq".
        codes: K of "vq" and of each stage of "residual".
        levels: of "fsq".
        stages: of "residual".
        codebook, kmeans, decay, revive, beta, gradient_estimator: of "vq" and "residual", see `VectorQuantizer`.
        reconstruction: "squared", "absolute", or "features": squared, and the distance in features besides.
        feature_weight: nats a pixel of the image for each unit of `feature_distance`.
        feature_model: a Keras model (B, H, W, C) in [-1, 1] -> features, or a list of them at several scales, which is
            never trained (`trainable` is set to False); None: `RandomFeatures`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 128,
        residual_width: int = 32,
        residual_layers: int = 2,
        downsamples: int = 2,
        code_dim: int = 64,
        quantizer: str = "vq",
        codes: int = 512,
        levels: Sequence[int] = (8, 5, 5, 5),
        stages: int = 2,
        codebook: str = "ema",
        kmeans: bool = True,
        decay: float = 0.99,
        revive: float = 0.05,
        beta: float = 0.25,
        gradient_estimator: str = "straight_through",
        reconstruction: str = "squared",
        feature_weight: float = 0.2,
        feature_model: keras.Model | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(image_shape, num_classes, seed, **kwargs)
        if num_classes:
            raise ValueError(f"`num_classes` must be 0: codes have no classes. Received: num_classes={num_classes}")
        sizes = {"width": width, "residual_width": residual_width, "downsamples": downsamples, "code_dim": code_dim}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if residual_layers < 0:
            raise ValueError(f"`residual_layers` must be at least 0. Received: residual_layers={residual_layers}")
        for name, choice, known in (
            ("quantizer", quantizer, ("vq", "residual", "fsq")),
            ("gradient_estimator", gradient_estimator, tuple(ESTIMATORS)),
            ("reconstruction", reconstruction, ("squared", "absolute", "features")),
        ):
            if choice not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={choice!r}")
        if quantizer == "fsq" and gradient_estimator != "straight_through":
            raise ValueError(
                "`gradient_estimator` must be straight_through with fsq, which rounds number by number. "
                f"Received: gradient_estimator={gradient_estimator!r}"
            )
        if feature_weight < 0:
            raise ValueError(f"`feature_weight` must be at least 0. Received: feature_weight={feature_weight}")
        if feature_model is not None and reconstruction != "features":
            raise ValueError(
                "`feature_model` must be None unless reconstruction is features. "
                f"Received: reconstruction={reconstruction!r}"
            )
        network = sizes | {"residual_layers": residual_layers}
        learned: dict[str, Any] = {
            "codebook": codebook, "kmeans": kmeans, "decay": decay, "revive": revive, "beta": beta,
            "gradient_estimator": gradient_estimator,
        }  # fmt: skip
        self._options = network | learned | {
            "quantizer": quantizer, "codes": codes, "levels": tuple(levels), "stages": stages,
            "reconstruction": reconstruction, "feature_weight": feature_weight,
        }  # fmt: skip
        self._given_features = feature_model is not None
        shape, policy = self.image_shape, self.dtype_policy
        self.encoder = ResidualEncoder(shape, seed=self.seed + 1000, dtype=policy, name="encoder", **network)
        self.decoder = ResidualDecoder(shape, seed=self.seed + 2000, dtype=policy, name="decoder", **network)
        self.grid = self.encoder.sizes[-1]
        common: dict[str, Any] = {"dim": code_dim, "seed": self.seed + 3000, "dtype": "float32", "name": "quantizer"}
        self.quantizer: Quantizer
        if quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(levels, **common)
        elif quantizer == "residual":
            self.quantizer = ResidualQuantizer(codes, stages=stages, **learned, **common)
        else:
            self.quantizer = VectorQuantizer(codes, **learned, **common)
        self.features: keras.layers.Layer | None = None
        if reconstruction == "features":
            features = RandomFeatures(shape[2], seed=FEATURE_SEED, name="features")
            self.features = features if feature_model is None else feature_model
            self.features.trainable = False
        table = (math.prod(self.grid), self.quantizer.stages, self.quantizer.num_codes)
        if math.prod(table) > TABLE:
            raise ValueError(f"`places x codes` must be at most 2**27. Received: {table[0]} places, {table[1:]} codes")
        self.frequencies = self.add_weight(
            name="frequencies", shape=table, initializer="zeros", dtype="float32", trainable=False, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self._compiled_functions: dict[str, Callable] = {}
        self.build()

    def build(self, input_shape=None) -> None:
        for part in (self.encoder, self.decoder, self.quantizer):
            if not part.built:
                part.build()
        if isinstance(self.features, RandomFeatures) and not self.features.built:
            self.features.build()
        self.built = True

    @property
    def index_shape(self) -> tuple[int, ...]:
        """(h, w) of an image's indices; (h, w, stages) of a residual quantizer's."""
        return self.quantizer.index_shape(self.grid)

    @property
    def num_codes(self) -> int:
        """K: an index is from 0 to K - 1."""
        return self.quantizer.num_codes

    def call(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        """(B, H, W, C) in [-1, 1] -> its reconstruction, (B, H, W, C) float32 in [-1, 1]."""
        return self._shown(self.quantizer(self.encoder(image), training=False)[0])

    # Training

    def losses_on(self, batch: Batch, training: bool) -> Losses:
        """Nats an image; on held-out images also the squared error of a value in [-1, 1], mean over all."""
        image = batch["image"]
        seed = random.fold_in(tf.constant([[self.seed, QUANTIZER]]), self.step.value)[0] if training else None
        quantized, indices, losses = self.quantizer(self.encoder(image), training=training, seed=seed)
        output = self.decoder(quantized)
        reconstruction = tf.reduce_mean(self.distance(image, output))
        if training:
            self._count_places(indices)
        values = {"loss": reconstruction + sum(losses.values()), "reconstruction": reconstruction} | losses
        if not training:
            values["squared_error"] = tf.reduce_mean(tf.square(image - tf.clip_by_value(output, -1.0, 1.0)))
        return values

    def distance(self, image: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        """Nats of each image (B,) given the decoder's output, up to a constant."""
        kind = self._options["reconstruction"]
        error = tf.cast(image, tf.float32) - output
        if kind == "absolute":
            return tf.reduce_sum(tf.abs(error), axis=(1, 2, 3)) * (math.sqrt(2.0) / SCALE)
        nats = tf.reduce_sum(tf.square(error), axis=(1, 2, 3)) / (2.0 * SCALE**2)
        if kind == "features":
            pixels = self.image_shape[0] * self.image_shape[1]
            wanted, found = self._features_of(tf.cast(image, tf.float32)), self._features_of(output)
            nats += self._options["feature_weight"] * pixels * feature_distance(found, wanted)
        return nats

    def _features_of(self, image: tf.Tensor) -> list[tf.Tensor]:
        assert self.features is not None
        return tf.nest.flatten(self.features(image, training=False) if self._given_features else self.features(image))

    def _count_places(self, indices: tf.Tensor) -> None:
        """Move the frequency of each code at each place by this batch's, that of all replicas."""
        context = tf.distribute.get_replica_context()
        share = self._place_counts(indices) / tf.cast(tf.shape(indices)[0], tf.float32)
        if context is not None and context.num_replicas_in_sync > 1:
            share = context.all_reduce(tf.distribute.ReduceOp.MEAN, share)
        self.frequencies.assign(PRIOR_DECAY * self.frequencies.value + (1.0 - PRIOR_DECAY) * share)

    def _place_counts(self, indices: tf.Tensor) -> tf.Tensor:
        """(B, h, w) or (B, h, w, S) -> (places, S, K) float32: how many images have each code there."""
        places, stages, codes = self.frequencies.shape
        flat = tf.reshape(indices, (-1, places * stages)) + codes * tf.range(places * stages)
        ones = tf.ones_like(flat, tf.float32)
        counts = tf.math.unsorted_segment_sum(ones, flat, places * stages * codes)
        return tf.reshape(counts, (places, stages, codes))

    def summarize(self, batches: Iterable[Any]) -> dict[str, float]:
        """Of the codes of a whole split: "usage", the share of the codebook that occurs, in [0, 1], and "perplexity",
        between 1 and K. With several stages, the means over them."""

        def count(batch):
            indices = self._indices(self.prepare(batch)["image"])
            return tf.reduce_sum(self._place_counts(indices), axis=0)

        function = self._function("count", lambda: tf.function(count, reduce_retracing=True, autograph=False))
        counts = np.zeros((self.quantizer.stages, self.num_codes))
        for batch in batches:
            counts += function(batch).numpy()
        measured = {"usage": quantize.usage(counts), "perplexity": quantize.perplexity(counts)}
        return {name: float(np.mean(value)) for name, value in measured.items()}

    # Codes

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images (n, H, W, C), uint8 or float in [-1, 1] -> (n, *index_shape) int32 in [0, K)."""
        return self._in_blocks("encode", self._indices, self.prepare(images)["image"])

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """(n, *index_shape) integers in [0, K) -> images (n, H, W, C) float32 in [-1, 1]."""
        indices = np.asarray(indices)
        if indices.shape[1:] != self.index_shape or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                f"`indices` must be integers of shape (n, {', '.join(map(str, self.index_shape))}). "
                f"Received: {indices.dtype} of shape {indices.shape}"
            )
        if indices.size and not (indices.min() >= 0 and indices.max() < self.num_codes):
            found = f"{indices.min()} to {indices.max()}"
            raise ValueError(f"`indices` must be from 0 to {self.num_codes - 1}. Received: {found}")
        return self._in_blocks("decode", self._image, tf.constant(indices, tf.int32))

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Images, as of `encode` -> what is left of them in their codes, (n, H, W, C) float32 in [-1, 1]."""
        return self._in_blocks("reconstruct", self, self.prepare(images)["image"])

    def _indices(self, image: tf.Tensor) -> tf.Tensor:
        return self.quantizer(self.encoder(image), training=False)[1]

    def _image(self, indices: tf.Tensor) -> tf.Tensor:
        return self._shown(self.quantizer.codes_to_vectors(indices))

    def _shown(self, quantized: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(self.decoder(quantized), -1.0, 1.0)

    def _function(self, name: str, make: Callable[[], Callable]) -> Callable:
        if name not in self._compiled_functions:
            self._compiled_functions[name] = make()
        return self._compiled_functions[name]

    def _in_blocks(self, name: str, rows: Callable[[tf.Tensor], tf.Tensor], given: tf.Tensor) -> np.ndarray:
        """`rows` of `given`, each row the same in whatever company."""
        if not len(given):
            raise ValueError("`images` (or `indices`) must be at least one. Received: 0 rows")
        spec = tf.TensorSpec((None, *given.shape[1:]), given.dtype)
        function = self._function(
            name, lambda: tf.function(lambda x: by_rows(rows, x), input_signature=[spec], autograph=False)
        )
        parts = [function(given[start : start + AT_ONCE]).numpy() for start in range(0, len(given), AT_ONCE)]
        return np.concatenate(parts)

    # Sampling

    def sample_rows(self, seed: tf.Tensor, label: tf.Tensor | None) -> tf.Tensor:
        below = tf.cumsum(self.frequencies.value + RARE, axis=-1)
        total = below[..., -1:]

        def rows(seed):
            u = random.uniform(seed, (*self.frequencies.shape[:2], 1))
            indices = tf.reduce_sum(tf.cast(below <= u * total, tf.int32), axis=-1)
            indices = tf.minimum(indices, self.num_codes - 1)  # u * total may be rounded up to the total
            return self._image(tf.reshape(indices, (-1, *self.index_shape)))

        return by_rows(rows, seed)

    def signatures(self) -> dict[str, Signature]:
        def serving_default(seed):
            return as_answer(self.sample_rows(seed, None))

        def encode(image):
            return {"indices": by_rows(self._indices, image)}

        def decode(indices):
            return {"image": by_rows(self._image, indices)}

        def reconstruct(image):
            return {"image": by_rows(self, image)}

        images = {"image": tf.TensorSpec((None, *self.image_shape), tf.float32)}
        indices = {"indices": tf.TensorSpec((None, *self.index_shape), tf.int32)}
        return {
            "serving_default": Signature(serving_default, {"seed": tf.TensorSpec((None, 2), tf.int32)}),
            "encode": Signature(encode, images),
            "decode": Signature(decode, indices),
            "reconstruct": Signature(reconstruct, images),
        }

    def get_config(self) -> dict[str, Any]:
        own = {"image_shape": self.image_shape, "num_classes": self.num_classes, "seed": self.seed}
        if self._given_features:
            own["feature_model"] = keras.saving.serialize_keras_object(self.features)
        return super().get_config() | self._options | own

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None):
        model = config.get("feature_model")
        if isinstance(model, Mapping):
            config = config | {"feature_model": keras.saving.deserialize_keras_object(model, custom_objects)}
        return cls(**config)
