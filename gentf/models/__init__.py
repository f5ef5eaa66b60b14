"""Models, and how a config becomes one."""

import dataclasses
from collections.abc import Sequence

import keras

from gentf.config import Config, resolve
from gentf.data import DataSpec, load
from gentf.errors import UserError
from gentf.kernels.optimizer import Adam
from gentf.models.base import GenerativeModel, Phase, Signature
from gentf.models.gan import GAN

FAMILIES: dict[str, type[GenerativeModel]] = {"gan": GAN}

__all__ = ["FAMILIES", "GAN", "GenerativeModel", "Phase", "Signature", "build", "from_preset"]


def build(config: Config, spec: DataSpec) -> GenerativeModel:
    """The model that `config` describes, for data of `spec`: compiled, with initial weights from `config.seed`.

    Raises:
        UserError: a conditional model for data without labels or with a single class.
    """
    arguments = dataclasses.asdict(config.model)
    family = FAMILIES[arguments.pop("family")]
    conditional = arguments.pop("conditional")
    if conditional and spec.num_classes < 2:
        found = f"{spec.num_classes} classes in {spec.name}"
        raise UserError(f"`model.conditional` must be false for data with fewer than 2 classes. Received: {found}")
    model = family(
        image_shape=spec.shape,
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

    def adam(learning_rate: float) -> keras.optimizers.Optimizer:
        return Adam(learning_rate=learning_rate, beta_1=options.beta_1, beta_2=options.beta_2)

    second = options.discriminator_learning_rate
    return {
        "optimizer": adam(options.learning_rate),
        "discriminator_optimizer": adam(options.learning_rate if second is None else second),
    }


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
    return load(data.pop("name"), **dataclasses.asdict(config.image), **data, progress=progress)
