"""What is compared: sizes and names, shared by every contender. Imports no framework."""

import math
from dataclasses import dataclass

# GANs
LATENT, HEIGHT, WIDTH = 100, 28, 28
IMAGES = 12800  # drawn once: no contender reads files
GAN_ADAM = {"learning_rate": 2e-4, "beta_1": 0.5, "beta_2": 0.999}
EMA_DECAY = 0.999
# VAE
HIDDEN, CODE = 200, 50
# recurrent layers: V characters, embedded, two layers
VOCABULARY, UNITS, STEPS = 65, 256, 128
# GPT: the configuration of nanoGPT's guide for a laptop
LAYERS, MODEL, HEADS, CONTEXT = 4, 128, 4, 64
# decoding
DECODE_LAYERS, DECODE_MODEL, DECODE_HEADS, TOKENS = 6, 384, 6, 256


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        batch: examples a step.
        steps: of one measurement.
        gflop: of the model's matrix products in a step (forward, and both products of the backward pass), counted as
            the layers are written down; None where convolutions make it no measure.
        contenders: in the order of the table; the first one is what `gentf train` does.
        jit: whether gentf compiles with XLA, where a preset does not say it.
    """

    title: str
    batch: int
    steps: int
    contenders: tuple[str, ...]
    gflop: float | None = None
    jit: bool = True


TRAIN = ("gentf", "gentf-graph", "gentf-xla", "keras-fit", "torch-eager", "torch-compiled")
WITHOUT_XLA = ("gentf", "keras-fit", "torch-eager", "torch-compiled")  # minutes to compile, and slower
GATES = {"lstm": 4, "gru": 3}


def recurrent_gflop(kind: str, batch: int) -> float:
    products = 2 * 2 * UNITS * GATES[kind] * UNITS + UNITS * VOCABULARY  # two layers, input and state; the last layer
    return 3 * 2 * batch * STEPS * products / 1e9


def gpt_gflop(batch: int) -> float:
    layer = 12 * MODEL**2 + 2 * CONTEXT * MODEL  # weights, and the two products of attention
    return 3 * 2 * batch * CONTEXT * (LAYERS * layer + MODEL * VOCABULARY) / 1e9


def dense_gflop(batch: int, *widths: int) -> float:
    return 3 * 2 * batch * sum(a * b for a, b in zip(widths, widths[1:])) / 1e9


ROWS = {
    "mlp-gan": Row("MLP GAN 100-128-256-784 / 784-256-128-1, batch 128", 128, 200, TRAIN),
    "dcgan": Row("DCGAN 28x28x1, channels 32-64-128, batch 128", 128, 20, WITHOUT_XLA, jit=False),
    "vae": Row("MLP VAE 784-200-200-50, batch 128", 128, 200, TRAIN,
               dense_gflop(128, HEIGHT * WIDTH, HIDDEN, HIDDEN, 2 * CODE)
               + dense_gflop(128, CODE, HIDDEN, HIDDEN, HEIGHT * WIDTH)),
    "lstm": Row("LSTM 2 x 256, 128 steps, batch 64", 64, 10, TRAIN, recurrent_gflop("lstm", 64)),
    "gru": Row("GRU 2 x 256, 128 steps, batch 64", 64, 10, TRAIN, recurrent_gflop("gru", 64)),
    "gpt": Row("GPT 4 layers of 128, context 64, batch 12", 12, 50, TRAIN, gpt_gflop(12)),
    "decode-1": Row("Decoding, 6 layers of 384, 256 tokens, batch 1", 1, TOKENS, ("gentf", "transformers")),
    "decode-16": Row("Decoding, 6 layers of 384, 256 tokens, batch 16", 16, TOKENS, ("gentf", "transformers")),
}  # fmt: skip


def decode_bytes(batch: int) -> float:
    """Bytes read for a token: every weight, and the cache, half full on average."""
    weights = 12 * DECODE_LAYERS * DECODE_MODEL**2 + VOCABULARY * DECODE_MODEL
    return 4.0 * (weights + batch * DECODE_LAYERS * 2 * DECODE_MODEL * TOKENS / 2)


def scale(units: int) -> float:
    """The bound of the uniform initial weights that PyTorch gives recurrent layers."""
    return 1.0 / math.sqrt(units)
