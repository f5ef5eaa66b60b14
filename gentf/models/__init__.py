"""Models, and how a config becomes one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from gentf.config import resolve
from gentf.data import DataSpec, load
from gentf.errors import UserError
from gentf.kernels.optimizer import Adam, AdamW, Lion
from gentf.models.base import GenerativeModel, Phase, Signature
from gentf.models.encoder_decoder import EncoderDecoder
from gentf.models.gan import GAN
from gentf.models.images import ImageModel
from gentf.models.ladder_vae import LadderVAE
from gentf.models.pixelcnn import PixelCNN
from gentf.models.rnn import RNN
from gentf.models.sequence import SequenceModel
from gentf.models.sequence_vae import SequenceVAE
from gentf.models.transformer import Transformer
from gentf.models.vae import VAE
from gentf.models.vqvae import VQVAE
from gentf.schema import Config, GANConfig

FAMILIES: dict[str, type[GenerativeModel]] = {
    "gan": GAN,
    "rnn": RNN,
    "transformer": Transformer,
    "encoder_decoder": EncoderDecoder,
    "pixelcnn": PixelCNN,
    "vae": VAE,
    "ladder_vae": LadderVAE,
    "vqvae": VQVAE,
    "sequence_vae": SequenceVAE,
}
#: Names of the variables that weight decay leaves alone: biases, gains, and tables of which few rows are read.
NOT_DECAYED = ["bias", "gain", "shift", "embedding", "positions", "class_state"]

__all__ = [
    "FAMILIES",
    "GAN",
    "VAE",
    "VQVAE",
    "RNN",
    "EncoderDecoder",
    "GenerativeModel",
    "LadderVAE",
    "ImageModel",
    "Phase",
    "PixelCNN",
    "SequenceModel",
    "SequenceVAE",
    "Signature",
    "Transformer",
    "build",
    "from_preset",
]


def build(config: Config, spec: DataSpec) -> GenerativeModel:
    """The model that `config` describes, for data of `spec`: compiled, with initial weights from `config.seed`.

    Raises:
        UserError: a family that does not know this kind of data, or a conditional model for data without labels or
            with a single class.
    """
    arguments = dataclasses.asdict(config.model)
    family = FAMILIES[arguments.pop("family")]
    conditional = arguments.pop("conditional", False)
    if conditional and spec.num_classes < 2:
        found = f"{spec.num_classes} classes in {spec.name}"
        raise UserError(f"`model.conditional` must be false for data with fewer than 2 classes. Received: {found}")
    images = issubclass(family, ImageModel)
    if images != (spec.modality in ("image", "points")) or (images and len(spec.shape) not in family.ranks):
        kinds = "text or music" if not images else "images or points" if 1 in family.ranks else "images"
        raise UserError(
            f"`model.family` must be one for data of modality {spec.modality}. Received: "
            f"model.family={config.model.family}, which is for {kinds}"
        )
    if isinstance(config.model, GANConfig) and spec.modality == "points" and config.model.network != "mlp":
        raise UserError(f"`model.network` must be mlp for points. Received: model.network={config.model.network}")
    if spec.modality == "pairs" and family is not EncoderDecoder:
        raise UserError(
            f"`model.family` must be encoder_decoder for pairs. Received: model.family={config.model.family}"
        )
    if images:
        arguments["image_shape"] = spec.shape
    else:
        arguments |= {"vocabulary": spec.vocabulary, "tokenizer": spec.tokenizer, "start": spec.start,
                      "boundary": spec.boundary}  # fmt: skip
        if "context" in arguments and arguments["context"] is None:
            arguments["context"] = spec.shape[0]
    model = family(
        num_classes=spec.num_classes if conditional else 0,
        seed=config.seed,
        dtype=config.train.precision,
        **arguments,
    )
    model.compile(**optimizers(config), jit_compile=False)
    return model


def optimizers(config: Config) -> dict[str, keras.optimizers.Optimizer]:
    """The optimizers of `config`, as arguments of the model's `compile`."""
    options = config.optimizer
    kind = {"adam": Adam, "adamw": AdamW, "lion": Lion}[options.name]
    common: dict[str, Any] = {"beta_1": options.beta_1, "beta_2": options.beta_2}
    common |= {"global_clipnorm": options.clip_norm} if options.clip_norm else {}
    common |= {"weight_decay": options.weight_decay} if options.name != "adam" and options.weight_decay else {}
    common |= {"gradient_accumulation_steps": options.accumulate} if options.accumulate > 1 else {}

    def optimizer(rate: float) -> keras.optimizers.Optimizer:
        made = kind(learning_rate=_schedule(rate, config), **common)
        if common.get("weight_decay"):
            made.exclude_from_weight_decay(var_names=NOT_DECAYED)
        return made

    found = {"optimizer": optimizer(options.learning_rate)}
    if config.model.family == "gan":
        second = options.discriminator_learning_rate
        found["discriminator_optimizer"] = optimizer(options.learning_rate if second is None else second)
    return found


def _schedule(rate: float, config: Config) -> Any:
    """The step size: a number, or its course over the updates."""
    options = config.optimizer
    if options.decay_steps is not None:
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if options.warmup_steps else rate,
            decay_steps=options.decay_steps,
            alpha=options.final_share,
            warmup_target=rate if options.warmup_steps else None,
            warmup_steps=options.warmup_steps,
        )
    if options.warmup_steps:
        return keras.optimizers.schedules.PolynomialDecay(0.0, options.warmup_steps, end_learning_rate=rate)
    return rate


def from_preset(
    name: str,
    overrides: Sequence[str] = (),
    *,
    image_shape: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
) -> GenerativeModel:
    """A compiled model from a preset, with initial weights.

    Args:
        name: a preset's name, or the path of a config in YAML.
        overrides: "KEY=VALUE" changes, as on the command line.
        image_shape: (height, width, channels); None takes that of the preset's data set, which is loaded for it.
        class_names: what a conditional model is conditioned on, where `image_shape` is given.
    """
    config = resolve(name, overrides)
    if image_shape is not None:
        height, width, channels = image_shape
        spec = DataSpec(name=config.data.name, shape=(height, width, channels), class_names=tuple(class_names))
    else:
        spec = load_data(config).spec
    return build(config, spec)


def load_data(config: Config, progress=None):
    """The data that `config` names, as a `gentf.data.DataSource`."""
    data = dataclasses.asdict(config.data)
    sections: dict[str, tuple[Any, ...]] = {
        "image": (config.image,),
        "text": (config.text,),
        "music": (config.music,),
        "pairs": (config.pairs, config.text),
        "points": (),
    }
    for section in sections[config.data.modality]:
        data |= dataclasses.asdict(section)
    return load(data.pop("name"), **data, progress=progress)
