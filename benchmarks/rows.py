"""What is compared: sizes and names, shared by every contender. Imports no framework."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

SIZES = json.loads(os.environ.get("GENTF_BENCH_SIZES", "{}"))  # what a point of the scaling tables changes

# GANs
LATENT, HEIGHT, WIDTH = 100, 28, 28
IMAGES = 12800  # drawn once: no contender reads files
GAN_ADAM = {"learning_rate": 2e-4, "beta_1": 0.5, "beta_2": 0.999}
EMA_DECAY = 0.999
# VAE
HIDDEN, CODE = 200, 50
# recurrent layers: V characters, embedded, two layers
VOCABULARY, UNITS, STEPS = 65, SIZES.get("UNITS", 256), SIZES.get("STEPS", 128)
# GPT: the configuration of nanoGPT's guide for a laptop
LAYERS, MODEL, HEADS, CONTEXT = 4, SIZES.get("MODEL", 128), 4, SIZES.get("CONTEXT", 64)
# decoding
DECODE_LAYERS, DECODE_MODEL, DECODE_HEADS, TOKENS = 6, 384, 6, 256


@dataclass(frozen=True)
class Product:
    """`count` times (batch, m, k) @ (batch, k, n), one after another."""

    count: int
    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def gflop(self) -> float:
        return 2e-9 * self.count * self.batch * self.m * self.k * self.n


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        batch: examples a step.
        steps: of one measurement.
        contenders: in the order of the table; the first one is what `gentf train` does.
        products: batch -> the model's matrix products in a step (forward, and both products of the backward pass), as
            the layers are written down; none where convolutions make them no measure.
    """

    title: str
    batch: int
    steps: int
    contenders: tuple[str, ...]
    products: Callable[[int], tuple[Product, ...]] = lambda batch: ()

    @property
    def gflop(self) -> float:
        return sum(product.gflop for product in self.products(self.batch))


TRAIN = ("gentf", "gentf-graph", "gentf-xla", "keras-fit", "torch-eager", "torch-compiled")
WITHOUT_XLA = ("gentf", "keras-fit", "torch-eager", "torch-compiled")  # minutes to compile, and slower
GATES = {"lstm": 4, "gru": 3}


def trained(m: int, k: int, n: int, count: int = 1, batch: int = 1) -> tuple[Product, ...]:
    """A product, and the two that its gradients take."""
    return (Product(count, m, k, n, batch), Product(count, m, n, k, batch), Product(count, k, m, n, batch))


def recurrent_products(kind: str, batch: int) -> tuple[Product, ...]:
    rows, gates = batch * STEPS, GATES[kind] * UNITS
    state = (Product(2 * STEPS, batch, UNITS, gates), Product(2 * STEPS, batch, gates, UNITS),
             Product(2, UNITS, rows, gates))  # fmt: skip
    return trained(rows, UNITS, gates, 2) + state + trained(rows, UNITS, VOCABULARY)


def gpt_products(batch: int) -> tuple[Product, ...]:
    rows = batch * CONTEXT
    shapes = ((MODEL, 3 * MODEL), (MODEL, MODEL), (MODEL, 4 * MODEL), (4 * MODEL, MODEL))
    layers = sum((trained(rows, *shape, count=LAYERS) for shape in shapes), ())
    heads = trained(CONTEXT, MODEL // HEADS, CONTEXT, LAYERS, batch * HEADS)  # scores; the mix of values costs the same
    return layers + heads + heads + trained(rows, MODEL, VOCABULARY)


def dense_products(batch: int, *widths: int) -> tuple[Product, ...]:
    return sum((trained(batch, a, b) for a, b in zip(widths, widths[1:])), ())


def batch_of(number: int) -> int:
    return SIZES.get("BATCH", number)


ROWS = {
    "mlp-gan": Row("MLP GAN 100-128-256-784 / 784-256-128-1, batch 128", 128, 200, TRAIN),
    "dcgan": Row("DCGAN 28x28x1, channels 32-64-128, batch 128", 128, 20, WITHOUT_XLA),
    "vae": Row("MLP VAE 784-200-200-50, batch 128", 128, 200, TRAIN,
               lambda batch: dense_products(batch, HEIGHT * WIDTH, HIDDEN, HIDDEN, 2 * CODE)
               + dense_products(batch, CODE, HIDDEN, HIDDEN, HEIGHT * WIDTH)),
    "lstm": Row("LSTM 2 x 256, 128 steps, batch 64", batch_of(64), 10, TRAIN,
                partial(recurrent_products, "lstm")),
    "gru": Row("GRU 2 x 256, 128 steps, batch 64", batch_of(64), 10, TRAIN,
               partial(recurrent_products, "gru")),
    "gpt": Row("GPT 4 layers of 128, context 64, batch 12", batch_of(12), 50, TRAIN, gpt_products),
    "decode-1": Row("Decoding, 6 layers of 384, 256 tokens, batch 1", 1, TOKENS, ("gentf", "transformers")),
    "decode-16": Row("Decoding, 6 layers of 384, 256 tokens, batch 16", 16, TOKENS, ("gentf", "transformers")),
}  # fmt: skip

# How cost grows: one size changed at a time, the others as in the row.
SCALING = {
    "lstm": {"BATCH": (16, 64, 256), "STEPS": (32, 128, 512), "UNITS": (128, 256, 512)},
    "gpt": {"BATCH": (3, 12, 48), "CONTEXT": (16, 64, 256), "MODEL": (64, 128, 512)},
}


def decode_bytes(batch: int) -> float:
    """Bytes read for a token: every weight, and the cache, half full on average."""
    weights = 12 * DECODE_LAYERS * DECODE_MODEL**2 + VOCABULARY * DECODE_MODEL
    return 4.0 * (weights + batch * DECODE_LAYERS * 2 * DECODE_MODEL * TOKENS / 2)


def scale(units: int) -> float:
    """The bound of the uniform initial weights that PyTorch gives recurrent layers."""
    return 1.0 / math.sqrt(units)
