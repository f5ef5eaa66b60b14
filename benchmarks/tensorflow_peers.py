"""Contenders on TensorFlow: gentf's training loop, gentf under `fit`, and stock Keras under `fit`."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from worker import BATCH, BETA_1, BETA_2, EMA_DECAY, HEIGHT, IMAGES, LATENT, LEARNING_RATE, WIDTH, serve

from gentf import config as configs
from gentf.data import DataSpec
from gentf.data.examples import ArrayExamples, aligned_empty
from gentf.data.source import Split
from gentf.models import build
from gentf.training.devices import choose_jit
from gentf.training.loop import Window
from gentf.training.steps import Steps, batches

PRESETS = {"mlp": "gan-mnist", "dcgan": "dcgan-mnist"}


def images() -> np.ndarray:
    array = aligned_empty((IMAGES, HEIGHT, WIDTH, 1), "uint8")
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)
    return array


def gentf_model(network: str):
    config = configs.resolve(PRESETS[network])
    return build(config, DataSpec(name="random", shape=(HEIGHT, WIDTH, 1)))


def gentf_loop(network: str, jit: bool):
    """The training loop of `gentf train`, with its data pipeline."""
    strategy = tf.distribute.get_strategy()
    split = Split("train", ArrayExamples(images(), None), np.arange(IMAGES))
    steps = Steps(gentf_model(network), strategy, 10, jit)
    iterator = batches(split, BATCH, 0, 0, strategy)

    def run(number: int) -> dict:
        import time

        window, done = Window(), 0
        while done < number:
            started = time.perf_counter()
            taken = [next(iterator) for _ in range(10)]
            waited = time.perf_counter() - started
            logs = steps.run(taken)
            window.add(logs, 10, time.perf_counter() - started, waited)
            done += 10
        return {"data_wait": window.take()["data_wait"]}

    return run


def fit_loop(model):
    data = tf.data.Dataset.from_tensor_slices(images()).shuffle(IMAGES, seed=0).repeat()
    data = data.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return lambda number: model.fit(data, steps_per_epoch=number, epochs=1, verbose=0) and None


class StockGAN(keras.Model):
    """The same training step as Keras' own guides write it: stock layers, stock Adam, a custom `train_step`."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.noise = keras.random.SeedGenerator(0)
        self.bce = keras.losses.BinaryCrossentropy(from_logits=True)
        self.g_loss, self.d_loss = keras.metrics.Mean("g_loss"), keras.metrics.Mean("d_loss")
        self.built = True

    def compile(self):
        super().compile()
        options = {"learning_rate": LEARNING_RATE, "beta_1": BETA_1, "beta_2": BETA_2}
        self.d_optimizer = keras.optimizers.Adam(**options)
        self.g_optimizer = keras.optimizers.Adam(**options, use_ema=True, ema_momentum=EMA_DECAY)

    @property
    def metrics(self):
        return [self.g_loss, self.d_loss]

    def train_step(self, data):
        real = tf.cast(data, tf.float32) / 127.5 - 1.0
        z = keras.random.normal((BATCH, LATENT), seed=self.noise)
        with tf.GradientTape() as tape:
            fake = self.generator(z, training=True)
            real_logits = self.discriminator(real, training=True)
            fake_logits = self.discriminator(tf.stop_gradient(fake), training=True)
            d_loss = self.bce(tf.ones_like(real_logits), real_logits) + self.bce(
                tf.zeros_like(fake_logits), fake_logits
            )
        weights = self.discriminator.trainable_variables
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        z = keras.random.normal((BATCH, LATENT), seed=self.noise)
        with tf.GradientTape() as tape:
            fake_logits = self.discriminator(self.generator(z, training=True), training=True)
            g_loss = self.bce(tf.ones_like(fake_logits), fake_logits)
        weights = self.generator.trainable_variables
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        self.g_loss.update_state(g_loss)
        self.d_loss.update_state(d_loss)
        return {"g_loss": self.g_loss.result(), "d_loss": self.d_loss.result()}


def stock_keras(network: str) -> StockGAN:
    layers = keras.layers
    norm = {"epsilon": 1e-5, "momentum": 0.9}
    if network == "mlp":
        generator = keras.Sequential(
            [keras.Input((LATENT,)), layers.Dense(128, use_bias=False), layers.BatchNormalization(**norm),
             layers.LeakyReLU(0.2), layers.Dense(256, use_bias=False), layers.BatchNormalization(**norm),
             layers.LeakyReLU(0.2), layers.Dense(HEIGHT * WIDTH, activation="tanh"), layers.Reshape((HEIGHT, WIDTH, 1))]
        )  # fmt: skip
        discriminator = keras.Sequential(
            [keras.Input((HEIGHT, WIDTH, 1)), layers.Flatten(), layers.Dense(256), layers.LeakyReLU(0.2),
             layers.Dense(128), layers.LeakyReLU(0.2), layers.Dense(1)]
        )  # fmt: skip
    else:
        conv = {"kernel_size": 4, "strides": 2, "padding": "same"}
        generator = keras.Sequential(
            [keras.Input((LATENT,)), layers.Dense(4 * 4 * 128, use_bias=False), layers.Reshape((4, 4, 128)),
             layers.BatchNormalization(**norm), layers.ReLU(), layers.Conv2DTranspose(64, **conv, use_bias=False),
             layers.Cropping2D(((0, 1), (0, 1))),
             layers.BatchNormalization(**norm), layers.ReLU(), layers.Conv2DTranspose(32, **conv, use_bias=False),
             layers.BatchNormalization(**norm), layers.ReLU(), layers.Conv2DTranspose(1, **conv, activation="tanh")]
        )  # fmt: skip
        discriminator = keras.Sequential(
            [keras.Input((HEIGHT, WIDTH, 1)), layers.Conv2D(32, **conv), layers.LeakyReLU(0.2),
             layers.Conv2D(64, **conv, use_bias=False), layers.BatchNormalization(**norm), layers.LeakyReLU(0.2),
             layers.Conv2D(128, **conv, use_bias=False), layers.BatchNormalization(**norm), layers.LeakyReLU(0.2),
             layers.Flatten(), layers.Dense(1)]
        )  # fmt: skip
    model = StockGAN(generator, discriminator)
    model.compile()
    return model


def main(contender: str, network: str) -> None:
    if contender == "gentf":
        run = gentf_loop(network, choose_jit(configs.resolve(PRESETS[network]), tf.distribute.get_strategy())[0])
    elif contender == "gentf-graph":
        run = gentf_loop(network, jit=False)
    elif contender == "gentf-xla":
        run = gentf_loop(network, jit=True)
    elif contender == "gentf-fit":
        run = fit_loop(gentf_model(network))
    elif contender == "keras-fit":
        run = fit_loop(stock_keras(network))
    else:
        raise ValueError(
            f"`contender` must be gentf, gentf-graph, gentf-xla, gentf-fit or keras-fit. Received: {contender}"
        )
    matrix = tf.random.stateless_normal((1024, 1024), seed=(0, 0))
    serve(run, lambda: tf.matmul(matrix, matrix).numpy()[0, 0])


if __name__ == "__main__":
    main(*sys.argv[1:])
