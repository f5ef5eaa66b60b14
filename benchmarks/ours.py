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
from gentf.schema import Config, GANConfig
from gentf.training import devices
from gentf.training.loop import Window
from gentf.training.steps import Feed, Steps

# whose configuration says how a row is trained; the sizes are the row's own
PRESETS = {"mlp-gan": "gan-mnist", "dcgan": "dcgan-mnist", "vae": "vae-mnist", "lstm": "lstm-shakespeare",
           "gru": "lstm-shakespeare", "gpt": "gpt-shakespeare"}  # fmt: skip
# the row's discriminator is DCGAN's, with batch normalization, as the peers' is
OVERRIDES = {"dcgan": ["model.discriminator_normalization=batch", "model.r1=0", "optimizer.learning_rate=2e-4",
                       "optimizer.beta_1=0.5", "optimizer.beta_2=0.999"]}  # fmt: skip
PER_CALL = 10
GEMMS = 4  # products whose rate is measured between the rounds


def images() -> np.ndarray:
    array = aligned_empty((IMAGES, HEIGHT, WIDTH, 1), "uint8")
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)
    return array


def settings(name: str, jit: str) -> Config:
    """The row's configuration, with the shards that `gentf train` chooses for it."""
    train = [f"train.batch_size={ROWS[name].batch}", f"train.jit={jit}"]
    config = configs.resolve(PRESETS[name], OVERRIDES.get(name, []) + train)
    compiled, _ = devices.choose_jit(config, tf.distribute.get_strategy())
    return configs.replace(config, "train.shards", devices.choose_shards(config, compiled))


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


def loop(name: str, config: Config):
    """Trains the row as `gentf train` does a run of `config`."""
    strategy = tf.distribute.get_strategy()
    row = ROWS[name]
    if isinstance(config.model, GANConfig):
        model = build(config, DataSpec(name="random", shape=(HEIGHT, WIDTH, 1)))
    else:
        model = likelihood(name)
    jit, _ = devices.choose_jit(config, strategy)
    model.shards = config.train.shards
    if config.data.modality == "image":
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


def products_alone(name: str, shards: int):
    """Measures what the row's matrix products take by themselves: each size in a compiled loop, those of all shards at
    once; the best of three."""
    times = 20

    def compiled(product):
        def operands(shard):
            return tuple(tf.random.stateless_normal((product.batch, *shape), seed=(0, shard))
                         for shape in ((product.m, product.k), (product.k, product.n)))  # fmt: skip

        @tf.function(jit_compile=True)
        def multiply(a, b):
            # each product reads something of the one before, or the compiler would take it out of the loop
            return tf.while_loop(lambda i, c: i < times, lambda i, c: (i + 1, tf.matmul(a + 0.0 * c[:, :1, :1], b)),
                                 (0, tf.zeros((product.batch, product.m, product.n))))[1]  # fmt: skip

        each = [operands(shard) for shard in range(shards)]
        run = tf.function(lambda: tf.add_n([multiply(a, b)[0, 0, 0] for a, b in each]), jit_compile=shards == 1)
        run()
        return run

    functions = [(product, compiled(product)) for product in ROWS[name].products(ROWS[name].batch // shards)]

    def seconds(function) -> float:
        started = time.perf_counter()
        function().numpy()
        return (time.perf_counter() - started) / times

    return lambda: sum(1000 * product.count * min(seconds(run) for _ in range(3)) for product, run in functions)


def main(contender: str, name: str) -> None:
    shards = 1
    if name.startswith("decode"):
        make, warm_up = lambda: decoder(ROWS[name].batch), ROWS[name].steps
    else:
        config = settings(name, {"gentf": "auto", "gentf-graph": "false", "gentf-xla": "true"}[contender])
        devices.use_one_thread_an_operation(config)
        shards = config.train.shards
        make, warm_up = lambda: loop(name, config), 2 * PER_CALL
    matrices = [tf.random.stateless_normal((1024, 1024), seed=(0, seed)) for seed in range(GEMMS)]
    # several at once, so that all cores work where an operation has but one thread
    gemms = tf.function(lambda: tf.add_n([tf.matmul(matrix, matrix)[0, 0] for matrix in matrices]))
    measured = contender == "gentf" and ROWS[name].gflop
    products = (lambda: products_alone(name, shards)) if measured else lambda: None
    serve(make, lambda: gemms().numpy(), warm_up, products, GEMMS)


if __name__ == "__main__":
    main(*sys.argv[1:])
