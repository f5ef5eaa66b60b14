"""What every generative model is: a Keras model trained in phases that samples row by row from seeds.

A *phase* is one update of some variables by one optimizer. A likelihood model has one, an adversarial model has one for
each player; the training step below knows phases and nothing else about the model. It is written for `tf.distribute`:
gradients are computed on each replica, the schedule and the step counter live outside of the replicas.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.kernels.tracing import size

Batch = dict[str, tf.Tensor]
Losses = dict[str, tf.Tensor]

#: Rows that are sampled together. Sums inside a matrix product may be ordered by the size of the batch; computing in
#: blocks of one size makes a row's result the same, bit for bit, in whatever batch it is asked for. Nor must its place
#: in the block matter: matrix products take 6 rows at a time with AVX2 and 8 with AVX-512, and add up the few that are
#: left in another order, so the size is a multiple of both.
ROWS = 24


@dataclass(frozen=True)
class Phase:
    """One update of some variables.

    Attributes:
        name: prefix of its loss in the logs.
        losses: batch -> {"loss": scalar to be minimised, and any scalars to be logged}.
        variables: what is updated.
        optimizer: by what.
        interval: it takes part in every `interval`-th step, the first time at the end of the first interval.
        partial: its loss may not depend on some of the variables, which are then left alone.
    """

    name: str
    losses: Callable[[Batch], Losses]
    variables: Sequence[keras.Variable]
    optimizer: keras.optimizers.Optimizer
    interval: int = 1
    partial: bool = False


class Signature(NamedTuple):
    """A function that a served model answers: plain TensorFlow operations, batch first in every tensor."""

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: dict[str, tf.TensorSpec]


class GenerativeModel(keras.Model):
    """Base of all models.

    A subclass gives `losses_on` (or `phases`, if it has several), `prepare`, `sample` and `signatures`. Everything
    random in training comes from `row_seeds`: it depends on the model's seed, the step and the row in the global batch.

    Args:
        num_classes: classes the model is conditioned on; 0 for none.
        seed: initial weights and training noise, 0 <= seed < 2**31.
    """

    #: What "best" means in a run: the lowest of this, of what is measured on validation data.
    monitor = "val_loss"
    ema_decay = 0.0
    #: Numbers of a vector that the model is conditioned on instead of a class.
    condition_dim = 0
    #: Whether the loss of a batch is the mean of those of its parts, each counted as `weigh` says: nothing in it is of
    #: several rows, and it changes no variable.
    separable = False

    def __init__(self, num_classes: int = 0, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        if num_classes < 0:
            raise ValueError(f"`num_classes` must be at least 0. Received: num_classes={num_classes}")
        if not 0 <= seed < 2**31:
            raise ValueError(f"`seed` must be from 0 to 2**31 - 1. Received: seed={seed}")
        self.num_classes = int(num_classes)
        self.seed = int(seed)
        self.step = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="step", aggregation="only_first_replica"
        )
        self.train_function: Callable | None = None
        self.test_function: Callable | None = None
        self._totals = tf.zeros((2, 1))
        self._logged: list[str] = []
        self._shards = 1
        self._first_row: int | tf.Tensor = 0

    # What a family gives

    def losses_on(self, batch: Batch, training: bool) -> Losses:
        """Scalars for a batch, with "loss" what is minimised; likelihoods in nats an example."""
        raise NotImplementedError

    def phases(self) -> list[Phase]:
        """The updates of one step, in order."""
        return [Phase("", lambda batch: self.losses_on(batch, True), self.trainable_variables, self.optimizer)]

    def after_step(self, strategy: tf.distribute.Strategy) -> None:
        """Called at the end of each step, outside of the replicas: moves the averages of weights."""
        step = tf.cast(self.step.value, tf.float32)
        # the first steps' weights are forgotten quickly: the average starts to be one when training does
        rate = 1.0 - tf.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
        for average, weight in self._averaged():
            strategy.extended.update(
                average.value, lambda a, w: a.assign_sub(rate * (a - w)), args=(weight.value,), group=False
            )

    def _averaged(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """Variables that are exponential moving averages, with decay `ema_decay`, and the weights that they follow."""
        return []

    def prepare(self, data: Any) -> Batch:
        """A batch as the losses take it, from what `fit` accepts."""
        raise NotImplementedError

    def sample(self, num: int, *, condition: Any = None, seed: int | None = None) -> Any:
        """Draw `num` samples; the same seed gives the same ones."""
        raise NotImplementedError

    def weigh(self, batch: Batch) -> tf.Tensor:
        """How much a batch counts in a mean of `losses_on` over batches: scalar float32."""
        return tf.cast(tf.shape(next(iter(batch.values())))[0], tf.float32)

    def problem(self, data: Mapping[str, Any]) -> str | None:
        """What is wrong with a batch of data, as arrays, for this model; None where nothing is."""
        return None

    def summarize(self, batches: Iterable[Any]) -> dict[str, float]:
        """What is measured over a whole split, beside the means of `losses_on`: name -> value."""
        return {}

    def remark(self, values: Mapping[str, float]) -> str | None:
        """What a user should know of the validation's values, "val_NAME" -> value; None where all is well."""
        return None

    def signatures(self) -> dict[str, Signature]:
        """What an exported model answers: name -> function and input specs."""
        raise NotImplementedError

    # Keras

    def compile(self, optimizer: Any = "adam", **kwargs) -> None:
        """Choose the optimizer; `kwargs` are those of `keras.Model.compile`."""
        super().compile(optimizer=optimizer, **kwargs)
        for phase in self.phases():
            phase.optimizer.build(phase.variables)

    def get_compile_config(self) -> dict | None:
        if not self.compiled:
            return None
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution,
        }

    def compile_from_config(self, config: dict) -> None:
        self.compile(**{**config, "optimizer": keras.saving.deserialize_keras_object(config["optimizer"])})

    # Training

    @property
    def shards(self) -> int:
        """Parts of a batch whose gradients are computed side by side, each on a core of its own; 1 at first.

        To be set before the first step. The update is that of the whole batch but for rounding. On a CPU that is faster
        where operations are so small that cores wait for one another in each of them; the parts must have equal numbers
        of rows, and the model be `separable`.
        """
        return self._shards

    @shards.setter
    def shards(self, number: int) -> None:
        if number < 1 or (number > 1 and not self.separable):
            most = "at least 1" if self.separable else f"1 for {type(self).__name__}, whose loss is of the whole batch"
            raise ValueError(f"`shards` must be {most}. Received: shards={number}")
        self._shards = number

    def row_seeds(self, rows: int | tf.Tensor, stream: int) -> tf.Tensor:
        """Seeds of the rows of this replica's part of the batch at this step.

        They are numbered over the global batch: n replicas with B rows each draw what one with n * B rows would.

        Args:
            rows: B, rows on this replica.
            stream: a number for each use of randomness inside a step.
        Returns:
            (B, 2) int32.
        """
        replica = tf.distribute.get_replica_context()
        first = self._first_row
        if replica is not None:
            first += tf.cast(replica.replica_id_in_sync_group, tf.int32) * rows
        step_seed = random.fold_in(tf.constant([[self.seed, stream]]), self.step.value)
        return random.fold_in(tf.tile(step_seed, (rows, 1)), first + tf.range(rows))

    def train_step(self, data: Any) -> Losses:
        """One step on a batch of this process, as `fit` does it. Returns the step's losses."""
        return {name: pair[0] for name, pair in self.update(data).items()}

    def update(self, data: Any, jit: bool = False) -> dict[str, tf.Tensor]:
        """One step of all phases, to be called outside of the replicas (by `fit` and by the training loop).

        Args:
            data: a batch, or one a replica.
            jit: compile the gradients of each replica and shard. (Where there is one, compile the caller instead.)
        Returns:
            name -> (2,) float32: a value and its weight, which is 0 where the phase took no part in this step.
        """
        strategy = tf.distribute.get_strategy()
        logs: dict[str, tf.Tensor] = {}
        for phase in self.phases():
            prefix = f"{phase.name}_" if phase.name else ""

            def run(phase=phase, prefix=prefix):
                losses = strategy.run(self._apply_phase, args=(phase, data, jit))
                return {
                    prefix + name if name == "loss" else name: tf.stack(
                        [strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None), 1.0]
                    )
                    for name, value in losses.items()
                }

            if phase.interval == 1:
                logs |= run()
            else:
                due = tf.equal((self.step.value + 1) % phase.interval, 0)
                logs |= _when(due, run)
        self.after_step(strategy)
        self.step.assign_add(1)
        return logs

    def _apply_phase(self, phase: Phase, data: Any, jit: bool) -> Losses:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1 and self.shards > 1:
            raise ValueError(f"`shards` must be 1 on several devices. Received: shards={self.shards}")
        losses, gradients = self._gradients(phase, data, jit)
        if replicas > 1:  # the optimizer sums over replicas, and the loss is a mean over the global batch
            gradients = [None if gradient is None else gradient / replicas for gradient in gradients]
        pairs = [(gradient, variable) for gradient, variable in zip(gradients, phase.variables)
                 if gradient is not None or not phase.partial]  # fmt: skip
        phase.optimizer.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        return losses

    def _gradients(self, phase: Phase, data: Any, jit: bool) -> tuple[Losses, list]:
        """The losses of a phase on a batch, and the gradients of what is minimised."""

        def gradients_of(data, first=0, share=None):
            self._first_row = first
            try:
                with tf.GradientTape() as tape:
                    losses = phase.losses(self.prepare(data))
                    if share is not None:
                        losses = {name: share * value for name, value in losses.items()}
            finally:
                self._first_row = 0
            return losses, tape.gradient(losses["loss"], [variable.value for variable in phase.variables])

        compiled = tf.function(gradients_of, jit_compile=True, autograph=False) if jit else gradients_of
        if self.shards == 1:
            return compiled(data)
        rows = size(tf.nest.flatten(data)[0], 0)
        if isinstance(rows, int) and rows % self.shards:
            raise ValueError(f"a batch must be a multiple of {self.shards} shards. Received: {rows} rows")
        # the number of the first row is a tensor, so that one program serves all parts
        each = [compiled(part, tf.convert_to_tensor(first), share) for first, share, part in self.parts(data)]
        losses, gradients = zip(*each)
        return added(losses), [None if some[0] is None else tf.add_n(some) for some in zip(*gradients)]

    def parts(self, data: Any) -> list[tuple[int | tf.Tensor, tf.Tensor, Any]]:
        """The shards of a batch of any number of rows, each behind the number of its first row and its share in the
        batch's losses."""
        rows = size(tf.nest.flatten(data)[0], 0)
        ends = [index * rows // self.shards for index in range(self.shards + 1)]
        parts = [tf.nest.map_structure(lambda x, rows=slice(first, end): x[rows], data)
                 for first, end in zip(ends, ends[1:])]  # fmt: skip
        weights = [self.weigh(self.prepare(part)) for part in parts]
        total = tf.add_n(weights)
        return list(zip(ends, [tf.math.divide_no_nan(weight, total) for weight in weights], parts))

    def make_train_function(self, force: bool = False) -> None:
        """What `fit` calls for each step (or `steps_per_execution` steps): an iterator in, running means out."""
        if self.train_function is not None and not force:
            return
        self.train_function = self._running_mean_of(self._compiled(self.update, self.shards > 1))

    def make_test_function(self, force: bool = False) -> None:
        """What `evaluate` calls for each step."""
        if self.test_function is not None and not force:
            return

        def losses(data, jit=False):
            strategy = tf.distribute.get_strategy()
            values = strategy.run(lambda part: self.losses_on(self.prepare(part), False), args=(data,))
            return {
                name: tf.stack([strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None), 1.0])
                for name, value in values.items()
            }

        self.test_function = self._running_mean_of(self._compiled(losses, False))

    def _compiled(self, step: Callable, inside: bool) -> Callable:
        """`step` as a function; `inside`: what XLA is to compile is a part of it, and it sees to that itself."""
        if self.run_eagerly:
            return step
        inside = inside or self.distribute_strategy.num_replicas_in_sync > 1
        jit = bool(self.jit_compile)
        return tf.function(
            lambda data: step(data, jit=jit and inside),
            jit_compile=jit and not inside,
            reduce_retracing=True,
            autograph=False,
        )

    def _running_mean_of(self, step: Callable) -> Callable:
        """`step` on the next batch of an iterator, and the means of its logs since `reset_metrics`."""

        def add_step(iterator, totals):
            logs = step(next(iterator))
            self._logged = list(logs)
            values, weights = tf.unstack(tf.stack(list(logs.values())), axis=1)
            return totals + tf.stack([values * weights, weights])

        counted = add_step if self.run_eagerly else tf.function(add_step, reduce_retracing=True, autograph=False)

        def function(iterator):
            for done in range(self.steps_per_execution):
                try:
                    self._totals = counted(iterator, self._totals)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if not done:
                        raise StopIteration from None
                    break
            sums, weights = self._totals.numpy()
            return {name: s / w for name, s, w in zip(self._logged, sums, weights) if w > 0}

        return function

    def reset_metrics(self) -> None:
        self._totals = tf.zeros((2, 1))  # takes the shape of the logs with the first addition

    @property
    def metrics(self) -> list:
        return []  # `fit` logs what the steps return; Keras would add a loss of its own

    @staticmethod
    def check_draw(num: int, seed: int | None) -> int:
        """The seed of `num` samples: as given, or a fresh one. ValueError for a number or seed out of range."""
        if num < 1:
            raise ValueError(f"`num` must be at least 1. Received: num={num}")
        seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else seed
        if not 0 <= seed < 2**31:
            raise ValueError(f"`seed` must be from 0 to 2**31 - 1. Received: seed={seed}")
        return seed

    def check_condition(self, condition: Any, num: int) -> np.ndarray | None:
        """(num,) int32 classes, -1 for one drawn by the row's seed, or vectors (num, V) float32; None for an
        unconditional model."""
        if self.condition_dim:
            vectors = None if condition is None else np.asarray(condition, np.float32)
            if vectors is None or vectors.shape not in ((self.condition_dim,), (num, self.condition_dim)):
                found = None if vectors is None else vectors.shape
                raise ValueError(
                    f"`condition` must be vectors of {self.condition_dim}, one for all or one a sample. "
                    f"Received: shape {found}"
                )
            return np.broadcast_to(vectors, (num, self.condition_dim))
        if not self.num_classes:
            if condition is not None:
                raise ValueError(f"`condition` must be None for an unconditional model. Received: {condition!r}")
            return None
        labels = np.broadcast_to(np.asarray(-1 if condition is None else condition), (num,))
        bad = labels[(labels < (-1 if condition is None else 0)) | (labels >= self.num_classes)]
        if bad.size or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"`condition` must be a class from 0 to {self.num_classes - 1}. Received: {condition!r}")
        return labels.astype(np.int32)


def added(losses: Sequence[Losses]) -> Losses:
    """The sum of each loss."""
    return {name: tf.add_n([some[name] for some in losses]) for name in losses[0]}


def by_rows(function: Callable[..., tf.Tensor], *inputs: tf.Tensor | None) -> tf.Tensor:
    """`function(*inputs)` in blocks of `ROWS` rows, the last one filled up with repeated rows.

    Args:
        inputs: tensors with B as their first dimension, or None.
    Returns:
        (B, ...): row i is the same, bit for bit, for every B.
    """
    given = [part for part in inputs if part is not None]
    rows = tf.shape(given[0])[0]
    blocks = tf.maximum(1, -(-rows // ROWS))
    filled = tf.minimum(tf.range(blocks * ROWS), tf.maximum(rows - 1, 0))

    def blocked(part):
        return tf.reshape(tf.gather(part, filled), tf.concat([[blocks, ROWS], tf.shape(part)[1:]], axis=0))

    def one_block(parts):
        parts = iter([tf.ensure_shape(part, (ROWS, *whole.shape[1:])) for part, whole in zip(parts, given)])
        return function(*(None if part is None else next(parts) for part in inputs))

    traced = tf.function(one_block, autograph=False).get_concrete_function(
        [tf.TensorSpec((ROWS, *part.shape[1:]), part.dtype) for part in given]
    )  # once: tracing is most of what a first call takes
    spec = tf.TensorSpec(traced.output_shapes, traced.output_dtypes)
    result = tf.map_fn(traced, [blocked(part) for part in given], fn_output_signature=spec)
    return tf.reshape(result, (-1, *spec.shape[1:]))[:rows]


def _when(due: tf.Tensor, run: Callable[[], dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """`run()` if `due`; zeros, which weigh nothing, if not."""
    names: list[str] = []

    def yes():
        logs = run()
        names[:] = sorted(logs)
        return [logs[name] for name in names]

    # the branches are traced in this order, so that the second knows the names
    return dict(zip(names, tf.cond(due, yes, lambda: [tf.zeros((2,)) for _ in names])))
