"""gentf's contenders: the training loop of `gentf train`, with its data pipeline where the row has images."""

import sys
import time

import keras
import numpy as np
import tensorflow as tf
from rows import (
    CODE,
    CONTEXT,
    DECODE_HEADS,
    DECODE_LAYERS,
    DECODE_MODEL,
    HEADS,
    HEIGHT,
    HIDDEN,
    IMAGES,
    LAYERS,
    MODEL,
    ROWS,
    STEPS,
    TOKENS,
    UNITS,
    VOCABULARY,
    WIDTH,
)
from worker import serve

from gentf import config as configs
from gentf.data import DataSpec
from gentf.data.examples import ArrayExamples, aligned_empty
from gentf.data.source import Split
from gentf.kernels import optimizer
from gentf.models import RNN, VAE, Transformer, build
from gentf.training.devices import choose_jit
from gentf.training.loop import Window
from gentf.training.steps import Feed, Steps

PRESETS = {"mlp-gan": "gan-mnist", "dcgan": "dcgan-mnist"}
# the row's discriminator is DCGAN's, with batch normalization, as the peers' is
OVERRIDES = {"dcgan": ["model.discriminator_normalization=batch", "model.r1=0", "optimizer.learning_rate=2e-4",
                       "optimizer.beta_1=0.5", "optimizer.beta_2=0.999"]}  # fmt: skip
PER_CALL = 10


def images() -> np.ndarray:
    array = aligned_empty((IMAGES, HEIGHT, WIDTH, 1), "uint8")
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)
    return array


def gan(name: str):
    config = configs.resolve(PRESETS[name], OVERRIDES.get(name, []))
    return config, build(config, DataSpec(name="random", shape=(HEIGHT, WIDTH, 1)))


def likelihood(name: str) -> keras.Model:
    """The package's own model of the row, as its preset builds it."""
    if name == "vae":
        model = VAE((HEIGHT, WIDTH, 1), latent_dim=CODE, hidden_units=(HIDDEN, HIDDEN))
        model.compile(optimizer.Adam(1e-3))
    elif name == "gpt":
        model = Transformer(VOCABULARY, CONTEXT, LAYERS, MODEL, HEADS, positions="learned")
        model.compile(optimizer.AdamW(1e-3, weight_decay=0.1, beta_1=0.9, beta_2=0.99, global_clipnorm=1.0))
    else:
        model = RNN(VOCABULARY, name, layers=2, units=UNITS)
        model.compile(optimizer.Adam(1e-3))
    return model


def decoder(batch: int):
    """A function that generates `TOKENS` tokens after one, by the model's own `generate`."""
    model = Transformer(
        VOCABULARY, 2 * TOKENS, DECODE_LAYERS, DECODE_MODEL, DECODE_HEADS, positions="learned", bias=True
    )
    prompts, seeds = [np.zeros(1, np.int32)] * batch, np.zeros((batch, 2), np.int32)

    def run(number: int) -> None:
        for _ in range(number // TOKENS):
            found = model.generate(prompts, seeds=seeds, max_length=TOKENS, temperature=0.0, jit=True)
            assert found.symbols.shape == (batch, TOKENS)

    return run


def loop(name: str, jit: bool | None):
    """`jit` None: as `gentf train` chooses."""
    strategy = tf.distribute.get_strategy()
    row = ROWS[name]
    if name in PRESETS:
        config, model = gan(name)
        jit = choose_jit(config, strategy)[0] if jit is None else jit
    else:
        model = likelihood(name)
        jit = row.jit if jit is None else jit
    if name in (*PRESETS, "vae"):
        split = Split("train", ArrayExamples(images(), None), np.arange(IMAGES))
        feed = Feed(split, row.batch, 0, 0, strategy)
        steps, take = Steps(model, strategy, PER_CALL, jit, feed), feed.take
    else:
        length = CONTEXT if name == "gpt" else STEPS
        drawn = np.random.default_rng(0).integers(0, VOCABULARY, (PER_CALL, row.batch, length + 1), np.int32)
        data = tf.data.Dataset.from_tensor_slices({"tokens": drawn}).repeat()
        iterator = iter(data.prefetch(tf.data.AUTOTUNE))
        steps = Steps(model, strategy, PER_CALL, jit)

        def take(step: int, count: int) -> list:
            return [next(iterator) for _ in range(count)]

    taken_steps = 0

    def run(number: int) -> dict:
        nonlocal taken_steps
        window, done = Window(), 0
        while done < number:
            started = time.perf_counter()
            taken = take(taken_steps, PER_CALL)
            taken_steps += PER_CALL
            waited = time.perf_counter() - started
            logs = steps.run(taken)
            window.add(logs, PER_CALL, time.perf_counter() - started, waited)
            done += PER_CALL
        return {"data_wait": window.take()["data_wait"]}

    return run


def products_alone(name: str):
    """Measures what the row's matrix products take by themselves: each size in a compiled loop, the best of three."""
    times = 20

    def compiled(product):
        a, b = (tf.random.stateless_normal((product.batch, *shape), seed=(0, 0))
                for shape in ((product.m, product.k), (product.k, product.n)))  # fmt: skip

        @tf.function(jit_compile=True)
        def run():
            # each product reads something of the one before, or the compiler would take it out of the loop
            return tf.while_loop(lambda i, c: i < times, lambda i, c: (i + 1, tf.matmul(a + 0.0 * c[:, :1, :1], b)),
                                 (0, tf.zeros((product.batch, product.m, product.n))))[1]  # fmt: skip

        run()
        return run

    functions = [(product, compiled(product)) for product in ROWS[name].products]

    def seconds(function) -> float:
        started = time.perf_counter()
        function()[0, 0, 0].numpy()
        return (time.perf_counter() - started) / times

    return lambda: sum(1000 * product.count * min(seconds(run) for _ in range(3)) for product, run in functions)


def main(contender: str, name: str) -> None:
    matrix = tf.random.stateless_normal((1024, 1024), seed=(0, 0))
    jit = {"gentf": None, "gentf-graph": False, "gentf-xla": True}[contender]
    if name.startswith("decode"):
        make, warm_up = lambda: decoder(ROWS[name].batch), ROWS[name].steps
    else:
        make, warm_up = lambda: loop(name, jit), 2 * PER_CALL
    measured = contender == "gentf" and ROWS[name].products
    products = (lambda: products_alone(name)) if measured else lambda: None
    serve(make, lambda: tf.matmul(matrix, matrix).numpy()[0, 0], warm_up, products)


if __name__ == "__main__":
    main(*sys.argv[1:])
