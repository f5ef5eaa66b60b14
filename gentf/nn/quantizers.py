"""Quantizers as layers: vectors in, the nearest of a finite set of codes out, with the gradient carried past them.

Every quantizer maps z (B, ..., D) to `(quantized, indices, losses)`: quantized is (B, ..., D) float32, indices are
int32, losses are scalars in nats an example that are to be added to what is minimised. `codes_to_vectors(indices)` is
the same as quantized, bit for bit. Everything computes in float32, whatever the dtype policy.

References: van den Oord, Vinyals & Kavukcuoglu (2017), "Neural discrete representation learning"; Razavi, van den Oord
& Vinyals (2019), "Generating diverse high-fidelity images with VQ-VAE-2"; Lee et al. (2022), "Autoregressive image
generation using residual quantization"; Mentzer et al. (2023), "Finite scalar quantization".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from gentf.kernels import quantize, random

Quantized = tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]

ESTIMATORS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "straight_through": quantize.straight_through,
    "rotation": quantize.rotation_trick,
}
START, REVIVE = range(2)  # streams of a step's seed


class Quantizer(keras.layers.Layer):
    """Base of quantizers of vectors of `dim` numbers.

    Attributes:
        num_codes: K, values that an index may have.
        stages: indices that a vector has.
    """

    num_codes: int
    stages = 1

    def __init__(self, dim: int, **kwargs):
        super().__init__(**kwargs)
        if dim < 1:
            raise ValueError(f"`dim` must be positive. Received: dim={dim}")
        self.dim = int(dim)

    def index_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the indices of vectors that lie in `shape`: (..., D) without D."""
        return tuple(shape)

    def call(self, z: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> Quantized:
        """Quantize, and in training learn from z.

        Args:
            z: (B, ..., D) float.
            training: update what is learned without gradients. Over several replicas z is this replica's part.
            seed: (2,) int32 of the step, the same on every replica; what is random in training needs it.
        """
        raise NotImplementedError

    def codes_to_vectors(self, indices: tf.Tensor) -> tf.Tensor:
        """Indices as of `call`, each in [0, K) -> (B, ..., D) float32."""
        raise NotImplementedError

    def _check(self, z: tf.Tensor) -> tf.Tensor:
        if z.shape.rank is None or z.shape.rank < 2 or z.shape[-1] != self.dim:
            raise ValueError(f"`z` must be of shape (B, ..., {self.dim}). Received: z of shape {z.shape}")
        return tf.cast(z, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dim": self.dim}


@keras.saving.register_keras_serializable("gentf")
class VectorQuantizer(Quantizer):
    """The nearest vector of a learned codebook (van den Oord et al. 2017, equations 1 to 3).

    The codebook follows the encoder's vectors either by moving averages ("ema", their appendix A.1 and Razavi et al.
    2019, section 2) or by the gradient of its squared distance to them ("gradient"). Counts are in units of uniform
    usage, N / K vectors a batch, so that their averages start at 1 and do not depend on the batch's size; sums are in
    the same units. Over several replicas statistics are those of the global batch.

    A code whose averaged count falls below `revive` is moved to a vector of the batch, and its averages start anew, as
    in Dhariwal et al. (2020), "Jukebox", section 3.1, and Lancucki et al. (2020), "Robust training of vector quantized
    bottleneck models".

    Losses: "commitment", beta / 2 times the squared distance of z from its codes, summed over an example; with a
    "gradient" codebook also "codebook", half that distance, which moves the codes alone.

    Args:
        size: K, number of codes.
        dim: D.
        codebook: "ema" or "gradient".
        beta: weight of the commitment.
        decay: of the moving averages, a step.
        revive: in units of uniform usage; 0: never.
        kmeans: start at the first training step from the codes that k-means finds in its batch, which needs as many
            vectors as codes; else from normal numbers of variance 1 / D.
        gradient_estimator: "straight_through", or "rotation" (Fifty et al. 2024).
        seed: of the initial codebook.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        codebook: str = "ema",
        beta: float = 0.25,
        decay: float = 0.99,
        revive: float = 0.05,
        kmeans: bool = True,
        gradient_estimator: str = "straight_through",
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(dim, **kwargs)
        if size < 1:
            raise ValueError(f"`size` must be positive. Received: size={size}")
        if codebook not in ("ema", "gradient"):
            raise ValueError(f"`codebook` must be 'ema' or 'gradient'. Received: codebook={codebook!r}")
        if beta < 0:
            raise ValueError(f"`beta` must be at least 0. Received: beta={beta}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must be in [0, 1). Received: decay={decay}")
        if not 0.0 <= revive < 1.0:
            raise ValueError(f"`revive` must be in [0, 1). Received: revive={revive}")
        self.estimator = _estimator(gradient_estimator)
        self.num_codes, self.codebook_kind, self.beta, self.decay = int(size), codebook, beta, decay
        self.revive, self.kmeans, self.gradient_estimator, self.seed = revive, kmeans, gradient_estimator, seed

    def build(self, input_shape=None) -> None:
        initializer = keras.initializers.RandomNormal(stddev=self.dim**-0.5, seed=self.seed)
        shape, learned = (self.num_codes, self.dim), self.codebook_kind == "gradient"
        self.codebook = self._variable("codebook", shape, initializer, trainable=learned)
        self.counts = self._variable("counts", (self.num_codes,), "ones")
        self.sums = None if learned else self._variable("sums", shape, "zeros")
        if self.sums is not None:
            self.sums.assign(self.codebook)
        self.started = self.add_weight(
            name="started", shape=(), dtype="bool", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self.built = True

    def _variable(self, name: str, shape: Sequence[int], initializer: Any, trainable: bool = False) -> keras.Variable:
        # each replica computes the same new value, from statistics of all
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, dtype="float32", trainable=trainable, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip

    def call(self, z: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> Quantized:
        z = self._check(z)
        codes, indices, losses = self.codes_of(z, training, seed)
        return self.estimator(z, codes), indices, losses

    def codes_of(self, z: tf.Tensor, training: bool, seed: tf.Tensor | None) -> Quantized:
        """As `call` of float32 vectors, but the codes themselves, which pass no gradient on to z."""
        rows = tf.reshape(tf.stop_gradient(z), (-1, self.dim))
        if training and (self.kmeans or self.revive):
            if seed is None:
                raise ValueError("`seed` must be given to train with `kmeans` or `revive`. Received: seed=None")
            batch, seeds = _of_all_replicas(rows), tf.reshape(seed, (1, 2))
        if training and self.kmeans:
            self._start(batch, random.fold_in(seeds, START)[0])
        codebook = self.codebook.value
        indices = quantize.nearest(z, codebook)
        codes = quantize.lookup(codebook, indices)
        losses = {"commitment": self.beta * _half_distance(z, tf.stop_gradient(codes))}
        if self.codebook_kind == "gradient":
            losses["codebook"] = _half_distance(tf.stop_gradient(z), codes)
        if training:
            self._learn(rows, indices)
            if self.revive:
                self._revive(batch, random.fold_in(seeds, REVIVE))
        return tf.stop_gradient(codes), indices, losses

    def codes_to_vectors(self, indices: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.codebook.value, indices)

    def _start(self, batch: tf.Tensor, seed: tf.Tensor) -> None:
        """Once: the codebook that k-means finds in the batch (N, D)."""
        size = self.num_codes
        if tf.executing_eagerly() and bool(self.started.value):
            return
        if batch.shape[0] is not None and batch.shape[0] < size:
            raise ValueError(
                f"`size` must be at most the number of vectors in the first batch, {batch.shape[0]}, where codes start "
                f"by k-means: take a larger batch, fewer codes or kmeans=False. Received: size={size}"
            )
        number = tf.shape(batch)[0]
        # at least K rows, for programs of later and smaller batches, in which this branch is compiled but never taken
        rows = tf.gather(batch, tf.range(tf.maximum(number, size)) % tf.maximum(number, 1))

        def found():
            enough = tf.debugging.assert_greater_equal(
                number, size, "`size` must be at most the number of vectors of the first batch, to start by k-means"
            )
            with tf.control_dependencies([enough] if enough is not None else []):
                return quantize.kmeans(tf.identity(rows), size, seed)

        # only the values are chosen inside the branch: a replica cannot assign there
        started, codebook = self.started.value, self.codebook.value
        fresh = tf.cond(started, lambda: tf.identity(codebook), found)
        self.codebook.assign(fresh)
        if self.sums is not None:
            self.sums.assign(tf.where(started, self.sums.value, fresh))
        with tf.control_dependencies([fresh]):  # not if there were too few
            self.started.assign(True)

    def _learn(self, rows: tf.Tensor, indices: tf.Tensor) -> None:
        """Move the averages of counts and sums by this batch's, and with "ema" the codebook."""
        counts, sums = quantize.code_statistics(rows, indices, self.num_codes)
        counts, sums = _sum_over_replicas(counts), _sum_over_replicas(sums) if self.sums is not None else sums
        unit = self.num_codes / tf.maximum(tf.reduce_sum(counts), 1.0)
        if self.sums is None:
            self.counts.assign(self.decay * self.counts.value + (1.0 - self.decay) * unit * counts)
            return
        counts, sums, codebook = quantize.ema_update(
            self.counts.value, self.sums.value, unit * counts, unit * sums, self.decay
        )
        self.counts.assign(counts)
        self.sums.assign(sums)
        self.codebook.assign(codebook)

    def _revive(self, batch: tf.Tensor, seed: tf.Tensor) -> None:
        """Move each code that is hardly used to a vector of the batch (N, D), a different one for each if N >= K."""
        number = tf.shape(batch)[0]
        first = tf.cast(random.uniform(seed, ())[0] * tf.cast(number, tf.float32), tf.int32)
        stride = tf.maximum(number // self.num_codes, 1)
        places = tf.gather(batch, (first + stride * tf.range(self.num_codes)) % number)
        counts = self.counts.value
        dead = counts < self.revive
        for variable, fresh in ((self.codebook, places), (self.sums, places), (self.counts, tf.ones_like(counts))):
            if variable is not None:
                chosen = dead if variable is self.counts else dead[:, None]
                variable.assign(tf.where(chosen, fresh, variable.value))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "size": self.num_codes, "codebook": self.codebook_kind, "beta": self.beta, "decay": self.decay,
            "revive": self.revive, "kmeans": self.kmeans, "gradient_estimator": self.gradient_estimator,
            "seed": self.seed,
        }  # fmt: skip


@keras.saving.register_keras_serializable("gentf")
class ResidualQuantizer(Quantizer):
    """Several codebooks, each of what those before it left over (Lee et al. 2022, section 3.1).

    A vector is the sum of one code of each stage. Indices are (B, ..., stages).

    Losses: those of the stages, added; each stage's distance is that of z from the sum up to it.

    Args:
        size: K, number of codes of each stage.
        dim: D.
        stages: number of codebooks.
        codebook, beta, decay, revive, kmeans, gradient_estimator: as of `VectorQuantizer`.
        seed: of the initial codebooks.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        stages: int = 2,
        codebook: str = "ema",
        beta: float = 0.25,
        decay: float = 0.99,
        revive: float = 0.05,
        kmeans: bool = True,
        gradient_estimator: str = "straight_through",
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(dim, **kwargs)
        if stages < 1:
            raise ValueError(f"`stages` must be positive. Received: stages={stages}")
        self.options: dict[str, Any] = {
            "codebook": codebook, "beta": beta, "decay": decay, "revive": revive, "kmeans": kmeans,
            "gradient_estimator": gradient_estimator,
        }  # fmt: skip
        self.estimator = _estimator(gradient_estimator)
        self.num_codes, self.stages, self.seed = int(size), int(stages), seed
        self.quantizers = [
            VectorQuantizer(size, dim, seed=seed + stage, dtype="float32", name=f"stage_{stage}", **self.options)
            for stage in range(stages)
        ]

    def build(self, input_shape=None) -> None:
        for quantizer in self.quantizers:
            quantizer.build()
        self.built = True

    def index_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape, self.stages)

    def call(self, z: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> Quantized:
        z = self._check(z)
        total, indices = tf.zeros_like(z), []
        losses: dict[str, tf.Tensor] = {}
        for stage, quantizer in enumerate(self.quantizers):
            own = None if seed is None else random.fold_in(seed[None], stage)[0]
            # a "gradient" codebook learns of its own stage's distance alone: `codes_of` cuts the codes off
            codes, index, found = quantizer.codes_of(z - total, training, own)
            total += codes
            indices.append(index)
            losses = {name: losses.get(name, 0.0) + value for name, value in found.items()}
        return self.estimator(z, total), tf.stack(indices, axis=-1), losses

    def codes_to_vectors(self, indices: tf.Tensor) -> tf.Tensor:
        parts = [quantizer.codes_to_vectors(indices[..., stage]) for stage, quantizer in enumerate(self.quantizers)]
        total = tf.zeros_like(parts[0])
        for part in parts:  # in the order of `call`, so that the sums are the same to the bit
            total += part
        return total

    def get_config(self) -> dict[str, Any]:
        own = {"size": self.num_codes, "stages": self.stages, "seed": self.seed}
        return super().get_config() | own | self.options


@keras.saving.register_keras_serializable("gentf")
class FiniteScalarQuantizer(Quantizer):
    """Each of a few numbers is rounded to one of its own few levels: no codebook, no losses (Mentzer et al. 2023).

    The gradient passes the rounding straight through.

    Args:
        levels: L levels of each number, at least 2; K is their product. The authors advise at least 5 of each.
        dim: D; where it is not the number of levels, dense layers project to them and back. None: that number.
        seed: of these layers.
    """

    def __init__(self, levels: Sequence[int], dim: int | None = None, seed: int = 0, **kwargs):
        levels = tuple(int(level) for level in levels)
        if not levels or min(levels) < 2 or math.prod(levels) >= 2**31:
            raise ValueError(f"`levels` must be numbers >= 2 with a product below 2**31. Received: levels={levels}")
        super().__init__(len(levels) if dim is None else dim, **kwargs)
        self.levels, self.seed, self.num_codes = levels, seed, math.prod(levels)
        self.project_in = self.project_out = None
        if self.dim != len(levels):
            self.project_in = self._dense(len(levels), "project_in", seed)
            self.project_out = self._dense(self.dim, "project_out", seed + 1)

    def _dense(self, units: int, name: str, seed: int) -> keras.layers.Dense:
        initializer = keras.initializers.GlorotUniform(seed=seed)
        return keras.layers.Dense(units, kernel_initializer=initializer, dtype="float32", name=name)

    def build(self, input_shape=None) -> None:
        if self.project_in is not None and self.project_out is not None:
            self.project_in.build((None, self.dim))
            self.project_out.build((None, len(self.levels)))
        self.built = True

    def call(self, z: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> Quantized:
        z = self._check(z)
        narrow = z if self.project_in is None else self.project_in(z)
        quantized, indices = quantize.fsq(narrow, self.levels)
        # the value from the indices, as they are read again: dividing by 3 and by 3 after a shift may differ by a bit
        codes = quantize.straight_through(quantized, quantize.fsq_codes(indices, self.levels))
        return codes if self.project_out is None else self.project_out(codes), indices, {}

    def codes_to_vectors(self, indices: tf.Tensor) -> tf.Tensor:
        codes = quantize.fsq_codes(indices, self.levels)
        return codes if self.project_out is None else self.project_out(codes)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"levels": self.levels, "seed": self.seed}


def _estimator(name: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    if name not in ESTIMATORS:
        known = " or ".join(map(repr, ESTIMATORS))
        raise ValueError(f"`gradient_estimator` must be {known}. Received: gradient_estimator={name!r}")
    return ESTIMATORS[name]


def _half_distance(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Half the squared distance, summed over an example, mean over the batch: scalar."""
    squares = tf.math.squared_difference(a, b)
    return 0.5 * tf.reduce_mean(tf.reduce_sum(squares, axis=tuple(range(1, squares.shape.rank))))


def _replicas() -> tf.distribute.ReplicaContext | None:
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def _sum_over_replicas(x: tf.Tensor) -> tf.Tensor:
    context = _replicas()
    return x if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def _of_all_replicas(rows: tf.Tensor) -> tf.Tensor:
    """(n, D) of each replica -> (N, D) of all, in the replicas' order."""
    context = _replicas()
    return rows if context is None else tf.ensure_shape(context.all_gather(rows, axis=0), (None, rows.shape[1]))
