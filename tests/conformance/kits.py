"""Small forms of what presets describe, by family: overrides, data, and how samples are compared."""

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from gentf import config as configs
from gentf import schema
from gentf.data import DataSpec
from gentf.data.sequences import load_music
from gentf.models import build
from gentf.training.steps import Steps

BATCH = 16
CLASSES = ("a", "b", "c", "d")
ALPHABET = "\n " + string.ascii_lowercase[:9]
TEXT = {"kind": "char", "characters": ALPHABET}
LENGTH = 12

SMALL = {
    "gan": ("model.width=8", "model.hidden_units=[16, 24]", "model.latent_dim=10"),
    "rnn": ("model.units=12", "model.layers=2", "model.dropout=0.2"),
    "transformer": ("model.layers=2", "model.width=16", "model.heads=4", "model.dropout=0.2"),
    "encoder_decoder": ("model.layers=1", "model.width=16", "model.heads=2", "model.dropout=0.2"),
    "vae": (
        "model.hidden_units=[12]",
        "model.latent_dim=4",
        "model.width=4",
        "model.units=12",
        "model.components=2",
        "model.prior_components=5",
        "model.anneal_steps=0",
        "model.input_dropout=0.1",
        "model.activation=gated",
        "model.beta=null",
    ),
    "sequence_vae": ("model.units=12", "model.latent_dim=4", "model.input_dropout=0.2", "model.anneal_steps=0"),
    "vqvae": (
        "model.width=8",
        "model.residual_width=4",
        "model.residual_layers=1",
        "model.code_dim=6",
        "model.codes=16",
    ),
    "ladder_vae": (
        "model.latent_dims=[4,3]",
        "model.hidden_units=[12,10]",
        "model.anneal_steps=0",
        "model.activation=relu",
        "model.input_dropout=0.1",
    ),
    "pixelcnn": ("model.layers=2", "model.width=8", "model.first_kernel_size=5", "model.ema_decay=0.5"),
}
# a course of the step size that is over before the tests' few steps, and gradients gathered over two of them
COURSE = {"warmup_steps": 0, "decay_steps": None, "weight_decay": 0.1, "learning_rate": 1e-3}


@dataclass
class Kit:
    """One model that presets describe.

    Attributes:
        preset: a name of it.
        spec: of small data.
    """

    preset: str
    spec: DataSpec

    def config(self, *overrides: str) -> schema.Config:
        return configs.resolve(self.preset, [*small(self.preset), *overrides])

    def model(self, *overrides: str) -> Any:
        return build(self.config(*overrides), self.spec)

    def batches(self, count: int = 6) -> list[dict[str, tf.Tensor]]:
        generator = np.random.default_rng(0)
        return [{name: tf.constant(v) for name, v in self._batch(generator).items()} for _ in range(count)]

    def _batch(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        spec = self.spec
        if spec.modality == "image":
            levels = generator.integers(0, 256, (BATCH, *spec.shape)).astype(np.uint8)
            return {"image": levels, "label": generator.permutation(np.arange(BATCH) % 4).astype(np.int32)}
        if spec.modality == "points":
            return {"point": generator.normal(size=(BATCH, *spec.shape)).astype(np.float32)}
        if spec.modality == "pairs":
            length = generator.integers(2, 7, BATCH)
            target = generator.integers(1, spec.vocabulary, (BATCH, 7)) * (np.arange(7) < length[:, None] - 1)
            source = generator.integers(1, spec.vocabulary, (BATCH, 9)) * (np.arange(9) < length[:, None] + 2)
            named = {"source": source, "target": target, "target_length": length}
            return {name: value.astype(np.int32) for name, value in named.items()}
        if spec.vocabulary:
            return {"tokens": generator.integers(0, spec.vocabulary, (BATCH, LENGTH + 1)).astype(np.int32)}
        frames = (generator.random((BATCH, LENGTH, 88)) < 0.1).astype(np.uint8)
        return {"frames": frames, "length": generator.integers(5, LENGTH + 1, BATCH).astype(np.int32)}

    def sample(self, model: Any, num: int, seed: int, **options: Any) -> list[bytes]:
        """Samples as bytes, to be compared."""
        if self.spec.modality in ("image", "points"):
            return [image.tobytes() for image in model.sample(num, seed=seed, **options)]
        prompt = "abc" if self.spec.modality == "pairs" else None
        seeds = np.stack([np.full(num, seed), np.arange(num)], axis=1).astype(np.int32)
        found = model.generate([prompt] * num, seeds=seeds, max_length=10, **options)
        return [row[:length].tobytes() for row, length in zip(found.symbols, found.lengths)]


def small(preset: str) -> list[str]:
    """Overrides that make a preset's model small."""
    config = configs.resolve(preset)
    overrides = list(SMALL[config.model.family])
    if config.model.family == "vae" and config.model.objective == "iwae":
        overrides.append("model.samples=5")
    if config.model.family == "vae" and config.model.network == "conv":
        overrides.append("model.likelihood=mixture")  # one convolutional model is enough
    if config.model.family != "gan":
        overrides += [f"optimizer.{name}={'null' if value is None else value}" for name, value in COURSE.items()]
        overrides += ["optimizer.accumulate=2"] if config.optimizer.accumulate > 1 else []
    return overrides


def spec_of(preset: str) -> DataSpec:
    """A small set of the kind that a preset is for."""
    config = configs.resolve(preset)
    if config.data.modality == "image":
        channels = 1 if config.model.family == "pixelcnn" else 3
        return DataSpec(name="conformance", shape=(12, 9, channels), class_names=CLASSES)
    if config.data.modality == "points":
        return DataSpec("conformance", (2,), "float32", (-1.0, 1.0), CLASSES, modality="points")
    if config.data.modality == "music":
        return load_music("chorales", tokens=config.music.tokens, block=LENGTH).spec
    vocabulary = len(ALPHABET) + 1
    several = config.data.modality == "pairs"
    shape = (9, 7) if several else (LENGTH,)
    return DataSpec(
        "conformance", shape, "int32", (0, vocabulary - 1), modality=config.data.modality, tokenizer=TEXT,
        start=(0,) if several else (1,), boundary=several,
    )  # fmt: skip


def kits() -> list[Kit]:
    """One for each model that differs from the others in more than sizes, data and how it is trained."""
    found: dict[str, Kit] = {}
    for name in configs.preset_names():
        config = configs.resolve(name, small(name))
        model = {key: value for key, value in configs.to_dict(config.model).items() if key != "ema_decay"}
        frames = config.data.modality == "music" and config.music.tokens == "frames"
        if config.model.family == "gan":  # losses and penalties have tests of their own, and do not look at the network
            told = ("network", "discriminator_normalization", "augmentation")
            model = {key: model[key] for key in told}
        key = str([model, config.optimizer.accumulate > 1, frames, config.data.modality == "points"])
        if key not in found:
            found[key] = Kit(name, spec_of(name))
    return list(found.values())


def one_a_family() -> list[Kit]:
    """The first kit of each family; of recurrent models one of tokens and one of frames.

    Left out are objectives over pairs of a batch, which are those of each device's part of it.
    """
    found: dict[Any, Kit] = {}
    for kit in kits():
        model = kit.config().model
        if getattr(model, "objective", None) not in ("beta_tc", "info"):
            found.setdefault((model.family, kit.spec.vocabulary > 0), kit)
    return list(found.values())


def run(model, batches, jit=False, per_call=1) -> dict[str, np.ndarray]:
    """Losses of a step on each batch, name -> (steps,); phases that did not take part are NaN."""
    steps = Steps(model, tf.distribute.get_strategy(), per_call, jit)
    return losses_of([steps.run(batches[start : start + per_call]) for start in range(0, len(batches), per_call)])


def losses_of(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `Steps.run` gave for several calls, as of `run`."""
    logs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: np.where(rows[:, 1] > 0, rows[:, 0], np.nan) for name, rows in logs.items()}
