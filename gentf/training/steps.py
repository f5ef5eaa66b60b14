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


class Steps:
    """Runs steps of a model on batches from an iterator, `per_call` of them in one compiled call where there is room.

    The calls' boundaries depend on the step alone, never on where a run was resumed, so that a resumed run does the
    same arithmetic in the same calls.

    Args:
        model: compiled, built inside `strategy`'s scope.
        strategy: of the devices.
        per_call: steps in one call; 1 on several devices.
        jit: compile with XLA.
    """

    def __init__(self, model: GenerativeModel, strategy: tf.distribute.Strategy, per_call: int, jit: bool):
        several = strategy.num_replicas_in_sync > 1
        self.per_call = 1 if several else per_call
        self._strategy = strategy
        self._one = tf.function(
            lambda batch: model.update(batch, jit=jit and several),
            jit_compile=jit and not several,
            reduce_retracing=True,
        )
        self._many = tf.function(self._loop(model), jit_compile=jit, reduce_retracing=True)

    def __call__(self, iterator: Iterator, steps: int) -> Logs:
        """Take `steps` batches and run them: all in one call if `steps` is `per_call`, else one by one."""
        taken = [next(iterator) for _ in range(steps)]
        return self.run(taken)

    def run(self, taken: list) -> Logs:
        """Run one step on each of the batches."""
        with self._strategy.scope():
            if len(taken) > 1 and len(taken) == self.per_call:
                return {name: value.numpy() for name, value in self._many(taken).items()}
            logs = [self._one(batch) for batch in taken]
        return {name: np.stack([step[name].numpy() for step in logs]) for name in logs[0]}

    def _loop(self, model: GenerativeModel) -> Callable:
        def many(taken):
            stacked = tf.nest.map_structure(lambda *parts: tf.stack(parts), *taken)
            step = tf.function(lambda batch: model.update(batch))
            first = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape[1:], part.dtype), stacked)
            names = sorted(step.get_concrete_function(first).structured_outputs)
            rows = {name: tf.TensorArray(tf.float32, self.per_call, element_shape=(2,)) for name in names}

            def body(index, rows):
                logs = model.update(tf.nest.map_structure(lambda part: part[index], stacked))
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
