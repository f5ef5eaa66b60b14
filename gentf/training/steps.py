"""The compiled training step: many steps a call, with the losses of each."""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from gentf.data import Split
from gentf.models.base import GenerativeModel

#: name -> (steps, 2) float32: a value and its weight for each step, see `GenerativeModel.update`
Logs = dict[str, np.ndarray]


def batches(split: Split, batch_size: int, seed: int, start_step: int, strategy: tf.distribute.Strategy) -> Iterator:
    """The batches of the steps from `start_step` on, each a global batch, spread over the replicas."""
    replicas = strategy.num_replicas_in_sync
    stream = split.stream(batch_size, seed=seed, start_step=start_step)
    if replicas == 1:
        return iter(stream)
    if batch_size % replicas:
        raise ValueError(f"`batch_size` must be a multiple of {replicas} devices. Received: batch_size={batch_size}")

    def for_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines
        rows = batch_size // replicas
        first = context.input_pipeline_id * local

        def by_replica(batch):
            parts = {
                name: tf.reshape(value, (replicas, rows, *value.shape[1:]))[first : first + local]
                for name, value in batch.items()
            }
            return tf.data.Dataset.from_tensor_slices(parts)

        return stream.flat_map(by_replica)

    return iter(strategy.distribute_datasets_from_function(for_worker))


class Feed:
    """Where the batches of steps come from: gathered inside the compiled step where the data lie in memory, else read.

    Data that lie in memory are handed to the device once; what a call then takes is the numbers of its rows.

    Args:
        split, batch_size, seed: see `Split.stream`.
        start_step: the first step that is asked for; steps are asked for in order.
        strategy: of the devices; on several of them batches are read and dealt out.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, start_step: int, strategy: tf.distribute.Strategy):
        self.resident = split.resident() if strategy.num_replicas_in_sync == 1 else None
        self.select = split.select
        if self.resident is None:
            self._iterator = batches(split, batch_size, seed, start_step, strategy)
        else:
            self.resident = {name: tf.identity(values) for name, values in self.resident.items()}  # on the device
            scalar = tf.TensorSpec((), tf.int64)
            self._rows = tf.function(split.rows(batch_size, seed), input_signature=[scalar, scalar])

    def take(self, step: int, count: int) -> list | tf.Tensor:
        """What `Steps.run` takes for `count` steps of one epoch from `step` on."""
        if self.resident is None:
            return [next(self._iterator) for _ in range(count)]
        return self._rows(tf.constant(step, tf.int64), tf.constant(count, tf.int64))


class Steps:
    """Runs steps of a model, `per_call` of them in one compiled call where there is room.

    The calls' boundaries depend on the step alone, never on where a run was resumed, so that a resumed run does the
    same arithmetic in the same calls.

    Args:
        model: compiled, built inside `strategy`'s scope.
        strategy: of the devices.
        per_call: steps in one call; 1 on several devices.
        jit: compile with XLA.
        feed: where the batches come from, if they may be gathered inside the step; None for batches themselves.
    """

    def __init__(
        self,
        model: GenerativeModel,
        strategy: tf.distribute.Strategy,
        per_call: int,
        jit: bool,
        feed: Feed | None = None,
    ):
        several = strategy.num_replicas_in_sync > 1
        self.per_call = 1 if several else per_call
        inside = several or model.shards > 1  # what is compiled then is each part's gradients, inside the step
        self._jit_inside = jit and inside
        self._strategy = strategy
        self._feed = feed
        # no relaxing of shapes: a new one is a new trace, so that traces tell what was compiled
        self._one = tf.function(
            lambda item: model.update(self._batch(item), jit=self._jit_inside),
            jit_compile=jit and not inside,
            autograph=False,
        )
        self._many = tf.function(self._loop(model), jit_compile=jit and not inside, autograph=False)

    @property
    def compilations(self) -> int:
        """How many programs were made of the step. It grows in the first steps (a whole call, and single steps where
        an epoch has a few left) and must not grow after them."""
        return sum(function.experimental_get_tracing_count() for function in (self._one, self._many))

    def run(self, taken: list | tf.Tensor) -> Logs:
        """Run one step on each of what `Feed.take` gave (or of a list of batches): all in one call if they are
        `per_call`, else one by one."""
        count = len(taken)
        with self._strategy.scope():
            if count > 1 and count == self.per_call:
                return {name: value.numpy() for name, value in self._many(taken).items()}
            logs = [self._one(taken[index]) for index in range(count)]
        return {name: np.stack([step[name].numpy() for step in logs]) for name in logs[0]}

    def _batch(self, item):
        """A batch, from itself or from the numbers of its rows."""
        if self._feed is None or self._feed.resident is None:
            return item
        return self._feed.select(self._feed.resident, item)

    def _loop(self, model: GenerativeModel) -> Callable:
        def many(taken):
            stacked = (
                taken if isinstance(taken, tf.Tensor) else tf.nest.map_structure(lambda *parts: tf.stack(parts), *taken)
            )
            first = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape[1:], part.dtype), stacked)
            step = tf.function(lambda item: model.update(self._batch(item), jit=self._jit_inside), autograph=False)
            step = step.get_concrete_function(first)  # traced once, and called by name in the loop
            names = sorted(step.structured_outputs)
            rows = {name: tf.TensorArray(tf.float32, self.per_call, element_shape=(2,)) for name in names}

            def body(index, rows):
                logs = step(tf.nest.map_structure(lambda part: part[index], stacked))
                return index + 1, {name: rows[name].write(index, logs[name]) for name in names}

            _, rows = tf.while_loop(
                lambda index, rows: index < self.per_call, body, (tf.constant(0), rows), parallel_iterations=1
            )
            return {name: row.stack() for name, row in rows.items()}

        return many


def call_sizes(step: int, steps_per_epoch: int, per_call: int) -> int:
    """Steps in the call that starts at `step`: `per_call`, but single ones where an epoch has fewer left."""
    left = steps_per_epoch - step % steps_per_epoch
    return per_call if left >= per_call else 1
