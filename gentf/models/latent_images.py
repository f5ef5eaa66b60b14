"""What latent variable models of images share: bounds, codes and images, samples, and what an export answers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.models.base import Batch, Signature, by_rows
from gentf.models.images import ImageModel, as_answer
from gentf.models.variational import Bound, Variational
from gentf.nn.likelihoods import Gaussian, Likelihood

LABEL, PIXELS = 2**31 - 1, 2**31 - 2  # streams of a sample's row seed: beyond those of its latents
ROWS_AT_ONCE = 1000  # decoded together where likelihoods are estimated
COLLAPSED = 0.5  # share of learned scales at their least, from which it is said


class LatentImageModel(Variational, ImageModel):
    """Base of latent variable models of images.

    A subclass sets `likelihood` and gives `decode_outputs`, `density` and `sample_latents` beside what a `Variational`
    model needs; its `infer` takes the prior's `density` where that is known.
    """

    likelihood: Likelihood
    shown = "mean"

    def infer(self, batch: Batch, training: bool = False, density: tuple | None = None) -> Any:
        raise NotImplementedError

    def density(self) -> tuple:
        """Parameters of the prior."""
        raise NotImplementedError

    def decode_outputs(self, z: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
        """(B, D) -> (B, H, W, P), parameters of the likelihood."""
        raise NotImplementedError

    def sample_latents(self, density: tuple, seed: tf.Tensor) -> tf.Tensor:
        """(B, 2) row seeds -> (B, D), what the decoder takes."""
        raise NotImplementedError

    @property
    def levels(self) -> int | None:
        """Values that a number of an image may have; None where it is continuous."""
        return self.likelihood.levels

    @property
    def _condition_size(self) -> int:
        return self.num_classes + self.condition_dim

    def prepare(self, data: Any) -> Batch:
        """As of `ImageModel`; with `condition_dim` a batch also has "condition", (B, V) float32, in the label's
        place."""
        if not self.condition_dim:
            return super().prepare(data)
        if isinstance(data, Mapping):
            condition = data.get("condition")
        else:
            condition = data[1] if isinstance(data, (tuple, list)) and len(data) > 1 else None
        if condition is None:
            raise ValueError("`condition` must be given to a conditional model. Received: condition=None")
        return super().prepare(data) | {"condition": tf.cast(condition, tf.float32)}

    def _condition(self, label: tf.Tensor | None, vector: tf.Tensor | None = None) -> tf.Tensor | None:
        return tf.one_hot(label, self.num_classes) if label is not None else vector

    def problem(self, data: Mapping[str, Any]) -> str | None:
        return self.likelihood.problem(self.prepare_images(data["image"]))

    def prepare_images(self, images: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8, or float in [-1, 1] -> float32."""
        images = np.asarray(images)
        return images.astype(np.float32) / 127.5 - 1.0 if images.dtype == np.uint8 else images.astype(np.float32)

    # Likelihoods

    def bound(
        self,
        images: np.ndarray,
        samples: int = 100,
        *,
        condition: np.ndarray | None = None,
        seed: int = 0,
        jit: bool = True,
    ) -> Bound:
        """Importance-sampled log p(x) of images, a lower bound in expectation: all of it in one compiled pass.

        Args:
            images: (n, H, W, C) uint8, or float in [-1, 1].
            samples: k, latents an image. The bound rises to log p(x) with k.
            condition: (n,) classes or (n, V) vectors, for a conditional model.
            seed: of the latents; image i has the row seed [seed, i].
            jit: compile with XLA.
        Errors: ValueError for images outside the likelihood's support.
        """
        if samples < 1:
            raise ValueError(f"`samples` must be at least 1. Received: samples={samples}")
        signed = self.prepare_images(images)
        wrong = self.likelihood.problem(signed)
        if wrong:
            raise ValueError(f"`images` must be values of the likelihood: {wrong}")
        batch = {name: part.numpy() for name, part in self.prepare((signed, condition)).items()}
        key = (samples, jit)
        if key not in self._estimators:
            self._estimators[key] = tf.function(
                lambda batch, seed: self._estimate_all(batch, seed, samples), jit_compile=jit, autograph=False
            )
        rows = _rows(samples)
        count = len(signed)
        filled = -(-count // rows) * rows
        spread = random.spread(seed, filled)
        padded = {name: np.resize(part, (filled, *part.shape[1:])) for name, part in batch.items()}
        fields = self._estimators[key](padded, spread).numpy()[:count]
        return Bound(*fields.T)

    def _estimate_all(self, batch: Batch, seed: tf.Tensor, samples: int) -> tf.Tensor:
        """`estimate` of a multiple of `_rows(samples)` examples, in blocks of them: (n, 4)."""
        rows = _rows(samples)
        density = self.density()
        count = seed.shape[0] // rows

        def step(number, fields):
            part = {
                name: tf.slice(values, [number * rows] + [0] * (len(values.shape) - 1), [rows, *values.shape[1:]])
                for name, values in (batch | {"seed": seed}).items()
            }
            own = part.pop("seed")
            inferred = self.infer(part, density=density)
            found = self.estimate(part, own, samples, ROWS_AT_ONCE // rows, inferred)
            return number + 1, fields.write(number, found)

        fields = tf.TensorArray(tf.float32, count, element_shape=(rows, 4))
        fields = tf.while_loop(lambda number, _: number < count, step, (0, fields), parallel_iterations=1)[1]
        return tf.reshape(fields.stack(), (-1, 4))

    def log_prob(self, images: np.ndarray, condition: np.ndarray | None = None, samples: int = 100) -> np.ndarray:
        """`bound(images, samples).log_prob`: (n,) float32 nats, a lower bound in expectation."""
        return self.bound(images, samples, condition=condition).log_prob

    def summarize(self, batches: Iterable[Any]) -> dict[str, float]:
        """Beside "active_units", of a learned scale: "narrow_scales", the share that is next to the least there may
        be, over the first batch."""
        batches = list(batches)
        found = super().summarize(batches)
        if batches and isinstance(self.likelihood, Gaussian) and self.likelihood.scale is None:
            inferred = self.infer(self.prepare(batches[0]))
            outputs = self.decode_outputs(self.codes(inferred), inferred[2])
            found["narrow_scales"] = float(self.likelihood.narrow(outputs))
        return found

    def remark(self, values: Mapping[str, float]) -> str | None:
        if values.get("val_narrow_scales", 0.0) > COLLAPSED:
            return (
                f"{values['val_narrow_scales']:.0%} of the learned scales are at their least (val_narrow_scales): "
                "densities say little there. Try model.scale, or the likelihood mixture"
            )
        return super().remark(values)

    # Codes and images

    def encode(self, images: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Means of the posterior: (n, D) float32. Arguments as of `bound`."""
        return self._by_batch(lambda batch: self.codes(self.infer(batch)), images, condition)

    def decode(self, z: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Means of p(x | z): (n, D) -> (n, H, W, C) float32 in [-1, 1]."""
        z = np.asarray(z, np.float32)
        if z.ndim != 2 or z.shape[1] != self.latent_width:
            raise ValueError(f"`z` must be (n, {self.latent_width}). Received: z.shape={z.shape}")
        label, vector = (condition, None) if self.num_classes else (None, condition)
        label = None if label is None else tf.constant(np.broadcast_to(label, len(z)), tf.int32)
        if self._condition_size and condition is None:
            raise ValueError("`condition` must be given to a conditional model. Received: condition=None")
        parts = []
        for start in range(0, len(z), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            own = self._condition(None if label is None else label[part], None if vector is None else vector[part])
            parts.append(self._mean(tf.constant(z[part]), own).numpy())
        return np.concatenate(parts)

    def reconstruct(self, images: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """`decode` of `encode`: (n, H, W, C) float32 in [-1, 1]."""
        return self.decode(self.encode(images, condition), condition)

    def _by_batch(self, function, images, condition) -> np.ndarray:
        parts = []
        for start in range(0, len(images), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            batch = self.prepare((images[part], None if condition is None else condition[part]))
            parts.append(function(batch).numpy())
        return np.concatenate(parts)

    def _mean(self, z: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
        return self.likelihood.mean(self.decode_outputs(z, condition))

    # Sampling and serving

    def sample_rows(self, seed: tf.Tensor, label: tf.Tensor | None) -> tf.Tensor:
        density = self.density()

        def rows(seed, label):
            condition = label
            if self.num_classes:
                drawn = random.categorical(seed, tf.zeros((tf.shape(seed)[0], self.num_classes)), LABEL)
                condition = self._condition(tf.where(label < 0, drawn, label))
            z = self.sample_latents(density, seed)
            return self.show(self.decode_outputs(z, condition), seed)

        return by_rows(rows, seed, label)

    def show(self, outputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Images (B, H, W, C) float32 of the likelihood's parameters: its mean or a draw."""
        return self.likelihood.mean(outputs) if self.shown == "mean" else self.likelihood.sample(outputs, seed, PIXELS)

    def signatures(self) -> dict[str, Signature]:
        named = "label" if self.num_classes else "condition"

        def batch_of(image, condition):
            return {"image": image} | ({} if condition is None else {named: condition})

        def encoded(image, condition):
            return self.codes(self.infer(batch_of(image, condition)))

        def one_hot(condition):
            return self._condition(condition) if self.num_classes else condition

        def sample(seed, label=None, condition=None):
            return as_answer(self.sample_rows(seed, condition if label is None else label))

        def encode(image, label=None, condition=None):
            return {"z": by_rows(encoded, image, condition if label is None else label)}

        def decode(z, label=None, condition=None):
            given = condition if label is None else label
            return {"image": by_rows(lambda z, c: self._mean(z, one_hot(c)), z, given)}

        def reconstruct(image, label=None, condition=None):
            given = condition if label is None else label
            return {"image": by_rows(lambda x, c: self._mean(encoded(x, c), one_hot(c)), image, given)}

        def log_prob(image, seed, label=None, condition=None):
            def fields(image, seed, condition):
                return self.estimate(batch_of(image, condition), seed, self.served_samples, self.served_samples)

            found = by_rows(fields, image, seed, condition if label is None else label)
            return {"log_prob": found[:, 0], "stderr": found[:, 1], "elbo": found[:, 2]}

        given: dict[str, tf.TensorSpec] = {}
        if self.num_classes:
            given = {"label": tf.TensorSpec((None,), tf.int32)}
        elif self.condition_dim:
            given = {"condition": tf.TensorSpec((None, self.condition_dim), tf.float32)}
        seed = {"seed": tf.TensorSpec((None, 2), tf.int32)}
        image = {"image": tf.TensorSpec((None, *self.image_shape), tf.float32)}
        z = {"z": tf.TensorSpec((None, self.latent_width), tf.float32)}
        return {
            "serving_default": Signature(sample, seed | given),
            "sample": Signature(sample, seed | given),
            "encode": Signature(encode, image | given),
            "decode": Signature(decode, z | given),
            "reconstruct": Signature(reconstruct, image | given),
            "log_prob": Signature(log_prob, image | seed | given),
        }


def _rows(samples: int) -> int:
    """Images whose likelihoods are estimated together."""
    return max(1, min(100, ROWS_AT_ONCE // min(samples, 50)))
