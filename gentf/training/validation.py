"""What is measured and shown at the end of an epoch: losses on validation data, and samples."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.data import Split
from gentf.data.music import pictures
from gentf.data.sequences import codec_of
from gentf.files import atomic_write
from gentf.metrics.distance import sliced_wasserstein
from gentf.models.base import GenerativeModel, added
from gentf.models.gan import GAN
from gentf.models.images import ImageModel
from gentf.models.sequence import SequenceModel
from gentf.sampling import images
from gentf.schema import Config
from gentf.training.log import DISTANCE, RunLog

GAN_BATCHES = 10  # the losses of both players say little, and a few batches as much
GRID, POINTS, TEXTS, ROLLS, ANSWERS = 64, 2500, 4, 4, 16
TEXT_LENGTH, ROLL_LENGTH = 256, 64


class Validator:
    """Measures a model on validation data.

    Args:
        model: of the run.
        config: of the run.
    """

    def __init__(self, model: GenerativeModel, config: Config):
        self.model, self.config = model, config

        def losses(batch: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            parts = [
                {name: share * value for name, value in model.losses_on(model.prepare(part), False).items()}
                for _, share, part in model.parts(batch)
            ]
            return added(parts), model.weigh(model.prepare(batch))

        self._losses = tf.function(losses, reduce_retracing=True, autograph=False)

    def measure(self, split: Split) -> dict[str, float]:
        """Mean losses over the split, by name; for adversarial models the distance of samples too."""
        if not len(split):
            return {}
        adversarial = isinstance(self.model, GAN)
        sums: dict[str, float] = {}
        total = 0.0
        for batch in split.batches(self.config.train.batch_size).take(GAN_BATCHES if adversarial else -1):
            values, weight = self._losses(batch)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value) * float(weight)
            total += float(weight)
        values = {f"val_{name}": value / max(total, 1e-9) for name, value in sums.items()}
        summary = self.model.summarize(split.batches(self.config.train.batch_size))
        values |= {f"val_{name}": value for name, value in summary.items()}
        number = min(self.config.train.validation_samples, len(split))
        if number and isinstance(self.model, GAN):
            held = next(iter(split.batches(number)))
            labels = held["label"].numpy() if self.model.num_classes else None
            real = self.model.prepare(held)["image"].numpy()
            fake = self.model.sample(number, condition=labels, seed=self.config.seed)
            values[DISTANCE] = sliced_wasserstein(fake, real)
        return values


def write_samples(
    model: GenerativeModel, config: Config, held_out: Split, folder: Path, step: int, log: RunLog
) -> None:
    """Samples of the model at `step` in `folder`: a grid of images, points or piano rolls as a picture, texts, answers.

    Args:
        held_out: the split whose sources are answered, of pairs.
    """
    classes, stem = model.num_classes, f"step-{step:08d}"
    if config.data.modality in ("image", "music", "points"):
        if config.data.modality == "points":
            shown = images.scatter(model.sample(POINTS, seed=config.seed))
        elif isinstance(model, ImageModel):
            condition = np.arange(GRID) % classes if classes else None
            shown = images.grid(images.to_uint8(model.sample(GRID, condition=condition, seed=config.seed)))
        else:
            assert isinstance(model, SequenceModel)
            rolls = model.sample(ROLLS, seed=config.seed, max_length=ROLL_LENGTH)
            heard = [roll[:ROLL_LENGTH] for roll in rolls if len(roll)]
            if not heard:
                return
            shown = pictures(heard)
        images.write_png(folder / f"{stem}.png", shown)
        log.picture(step, "samples", shown)
        return
    if config.data.modality == "pairs":
        texts = _answers(model, held_out)
        atomic_write(folder / f"{stem}.txt", "\n".join(texts) + "\n")
        log.text(step, "samples", texts)
        return
    assert isinstance(model, SequenceModel)
    condition = np.arange(TEXTS) % classes if classes else None
    texts = model.sample(TEXTS, condition=condition, seed=config.seed, max_length=TEXT_LENGTH)
    atomic_write(folder / f"{stem}.txt", "\n----\n".join(texts) + "\n")
    log.text(step, "samples", texts)


def _answers(model: Any, held_out: Split) -> list[str]:
    """The likeliest answers to the first held-out sources, beside the right ones where they differ."""
    codec, content = codec_of(model.tokenizer), held_out.contents()
    assert codec is not None  # pairs are texts
    sources, targets = ([codec.decode(row) for row in content[key][:ANSWERS]] for key in ("source", "target"))
    longest = content["target"].shape[1]
    found = model.sample(len(sources), prompt=sources, seed=0, max_length=longest, temperature=0.0)
    return [
        f"{source} -> {answer}" + ("" if answer == target else f" (right: {target})")
        for source, answer, target in zip(sources, found, targets)
    ]
