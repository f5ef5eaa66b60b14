"""Stock Keras: layers, optimizers and `fit` as its guides write them, `jit_compile` as Keras chooses it ("auto")."""

import sys

import keras
import numpy as np
import tensorflow as tf
from rows import (
    CODE,
    CONTEXT,
    EMA_DECAY,
    GAN_ADAM,
    HEADS,
    HEIGHT,
    HIDDEN,
    IMAGES,
    LATENT,
    LAYERS,
    MODEL,
    ROWS,
    STEPS,
    UNITS,
    VOCABULARY,
    WIDTH,
)
from worker import serve

layers = keras.layers
BATCH = ROWS["dcgan"].batch


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, HEIGHT, WIDTH, 1), np.uint8)


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
        self.d_optimizer = keras.optimizers.Adam(**GAN_ADAM)
        self.g_optimizer = keras.optimizers.Adam(**GAN_ADAM, use_ema=True, ema_momentum=EMA_DECAY)

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


def gan(name: str) -> StockGAN:
    norm = {"epsilon": 1e-5, "momentum": 0.9}
    if name == "mlp-gan":
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


class StockVAE(keras.Model):
    """As Keras' own guide writes it."""

    def __init__(self):
        super().__init__()
        relu = {"activation": "relu"}
        self.encoder = keras.Sequential(
            [keras.Input((HEIGHT, WIDTH, 1)), layers.Flatten(), layers.Dense(HIDDEN, **relu),
             layers.Dense(HIDDEN, **relu), layers.Dense(2 * CODE)]
        )  # fmt: skip
        self.decoder = keras.Sequential(
            [keras.Input((CODE,)), layers.Dense(HIDDEN, **relu), layers.Dense(HIDDEN, **relu),
             layers.Dense(HEIGHT * WIDTH)]
        )  # fmt: skip
        self.noise = keras.random.SeedGenerator(0)
        self.mean_loss = keras.metrics.Mean("loss")
        self.built = True

    @property
    def metrics(self):
        return [self.mean_loss]

    def train_step(self, data):
        x = tf.cast(data, tf.float32) / 255.0
        with tf.GradientTape() as tape:
            mean, log_var = keras.ops.split(self.encoder(x, training=True), 2, axis=1)
            z = mean + keras.ops.exp(0.5 * log_var) * keras.random.normal((BATCH, CODE), seed=self.noise)
            logits = self.decoder(z, training=True)
            target = keras.ops.reshape(x, (BATCH, HEIGHT * WIDTH))
            nll = HEIGHT * WIDTH * keras.losses.binary_crossentropy(target, logits, from_logits=True)
            kl = 0.5 * keras.ops.sum(keras.ops.exp(log_var) + mean**2 - 1.0 - log_var, axis=1)
            loss = keras.ops.mean(nll + kl)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.mean_loss.update_state(loss)
        return {"loss": self.mean_loss.result()}


def recurrent(kind: str) -> keras.Model:
    layer = layers.LSTM if kind == "lstm" else layers.GRU
    model = keras.Sequential(
        [keras.Input((STEPS,), dtype="int32"), layers.Embedding(VOCABULARY, UNITS),
         layer(UNITS, return_sequences=True), layer(UNITS, return_sequences=True), layers.Dense(VOCABULARY)]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class TiedHead(layers.Layer):
    """Logits by the table of an embedding layer."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))


def gpt() -> keras.Model:
    tokens = keras.Input((CONTEXT,), dtype="int32")
    embedding = layers.Embedding(VOCABULARY, MODEL)
    x = embedding(tokens) + layers.Embedding(CONTEXT, MODEL)(keras.ops.arange(CONTEXT))
    norm = {"epsilon": 1e-5, "center": False}
    for _ in range(LAYERS):
        y = layers.LayerNormalization(**norm)(x)
        x = x + layers.MultiHeadAttention(HEADS, MODEL // HEADS, use_bias=False)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(**norm)(x)
        y = layers.Dense(4 * MODEL, activation="gelu", use_bias=False)(y)
        x = x + layers.Dense(MODEL, use_bias=False)(y)
    model = keras.Model(tokens, TiedHead(embedding)(layers.LayerNormalization(**norm)(x)))
    tuned = keras.optimizers.AdamW(1e-3, weight_decay=0.1, beta_1=0.9, beta_2=0.99, global_clipnorm=1.0)
    model.compile(tuned, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit_loop(name: str):
    batch = ROWS[name].batch
    if name in ("mlp-gan", "dcgan", "vae"):
        model = StockVAE() if name == "vae" else gan(name)
        if name == "vae":
            model.compile(keras.optimizers.Adam(1e-3))
        data = tf.data.Dataset.from_tensor_slices(images()).shuffle(IMAGES, seed=0)
    else:
        model = gpt() if name == "gpt" else recurrent(name)
        length = CONTEXT if name == "gpt" else STEPS
        drawn = np.random.default_rng(0).integers(0, VOCABULARY, (10 * batch, length + 1), np.int32)
        data = tf.data.Dataset.from_tensor_slices((drawn[:, :-1], drawn[:, 1:]))
    data = data.repeat().batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return lambda number: model.fit(data, steps_per_epoch=number, epochs=1, verbose=0) and None


def main(contender: str, name: str) -> None:
    matrix = tf.random.stateless_normal((1024, 1024), seed=(0, 0))
    serve(lambda: fit_loop(name), lambda: tf.matmul(matrix, matrix).numpy()[0, 0], 20)


if __name__ == "__main__":
    main(*sys.argv[1:])
