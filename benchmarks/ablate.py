"""Where the milliseconds of gentf's GPT step go: the step again, with one part at a time left out.

    python benchmarks/ablate.py     a Markdown table

A part costs what the step saves without it; what XLA fuses into a neighbour seems free, and parts need not add up.
"""

import logging
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import ours
import tensorflow as tf
from rows import CONTEXT, ROWS, VOCABULARY

import gentf.models
import gentf.nn.transformer
from gentf.training import devices
from gentf.training.steps import Steps

CONFIG = ours.settings("gpt", "auto")
ROUNDS = 7


def step_of(model):
    model.shards = CONFIG.train.shards
    steps = Steps(model, tf.distribute.get_strategy(), ours.PER_CALL, True)
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, (ours.PER_CALL, ROWS["gpt"].batch, CONTEXT + 1), np.int32)
    batches = [{"tokens": tf.constant(part)} for part in drawn]
    steps.run(batches)
    return lambda: steps.run(batches)


def frozen():
    """The model with its gradients taken, and added up instead of applied."""
    model = ours.likelihood("gpt")

    def update(batch, jit=False):
        losses, gradients = model._gradients(model.phases()[0], batch, jit)
        used = tf.add_n([tf.reduce_sum(tf.convert_to_tensor(gradient)) for gradient in gradients])
        model.step.assign_add(1)
        return {"loss": tf.stack([losses["loss"] + 0.0 * used, 1.0])}

    model.update = update
    return model


def mean_logits(hidden, kernel, bias, labels, weights, transpose):
    return tf.reduce_mean(tf.matmul(hidden, kernel, transpose_b=transpose))


def main() -> None:
    devices.use_one_thread_an_operation(CONFIG)
    block, model = gentf.nn.transformer, gentf.models.sequence
    parts = {
        "nothing": [],
        "attention between its projections": [(block.attention, "attention", lambda q, k, v, **_: q + k + v)],
        "layer norms": [(owner, "normalized", lambda x, values: x * values[0])
                        for owner in (block, gentf.models.transformer)],
        "GELU (ReLU in its place)": [(tf.nn, "gelu", lambda x, approximate: tf.nn.relu(x))],
        "softmax and cross-entropy": [(model, "weighted_linear_cross_entropy", mean_logits)],
    }  # fmt: skip
    functions = {}
    for name, replaced in parts.items():
        kept = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in replaced]
        for owner, attribute, function in replaced:
            setattr(owner, attribute, function)
        functions[name] = step_of(ours.likelihood("gpt"))
        for owner, attribute, function in kept:
            setattr(owner, attribute, function)
    functions["AdamW and clipping"] = step_of(frozen())
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, run in functions.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started) / ours.PER_CALL)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # a function for each size is meant
    alone = ours.products_alone("gpt", CONFIG.train.shards)
    whole = statistics.median(times["nothing"])
    print("| left out | ms a step | saved |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} | {whole - statistics.median(values):.2f} |")
    print(f"\nThe products alone: {statistics.median(alone() for _ in range(3)):.2f} ms.")


if __name__ == "__main__":
    main()
