"""What a run is made of: frozen dataclasses, read from YAML, changed by `KEY=VALUE` overrides.

A field's allowed range or choices stand in its metadata, and one function (`check`) holds every value to them,
wherever it comes from. Misspelt keys are answered with the nearest ones.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from gentf.errors import UserError


def field(default: Any, text: str, *, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """A dataclass field with its help text and the values it accepts (`low` and `high` included)."""
    metadata = {"help": text, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and how they are cut into train, validation and test."""

    name: str = field("digits", "embedded set, TFDS builder, or path of a folder of images or an .npz file")
    cache_mb: int = field(1024, "decoded examples are held in memory up to this many MB, else streamed", low=0)
    validation_share: float = field(0.1, "cut from train where the data have no validation split", low=0.0, high=0.9)
    test_share: float = field(0.1, "cut from train where the data have no test split", low=0.0, high=0.9)
    max_corrupt_share: float = field(0.01, "corrupt files are skipped up to this share of all", low=0.0, high=1.0)


@dataclass(frozen=True)
class ImageConfig:
    """How images are brought to one shape."""

    size: tuple[int, int] | None = field(None, "[height, width] in pixels to resize to; null keeps the size", low=1)
    channels: int | None = field(None, "1 grey, 3 colour, 4 with alpha; null keeps the files' own", choices=(1, 3, 4))
    fit: str = field("crop", "crop keeps the aspect ratio, stretch does not", choices=("crop", "stretch"))


@dataclass(frozen=True)
class GANConfig:
    """An adversarial model; the fields are the arguments of `gentf.models.GAN`."""

    family: str = field("gan", "model family", choices=("gan",))
    network: str = field("mlp", "network of generator and discriminator", choices=("mlp", "dcgan"))
    loss: str = field(
        "non_saturating",
        "adversarial loss",
        choices=("minimax", "non_saturating", "least_squares", "hinge", "wasserstein"),
    )
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")
    latent_dim: int = field(100, "numbers of noise an image is made from", low=1, high=100_000)
    hidden_units: tuple[int, ...] = field((128, 256), "mlp: generator layers; the discriminator mirrors them", low=1)
    generator_normalization: str = field("batch", "mlp: normalization in the generator", choices=("none", "batch"))
    width: int = field(64, "dcgan: channels of the layer next to the image", low=1, high=4096)
    discriminator_normalization: str = field(
        "batch", "dcgan: normalization in the discriminator", choices=("none", "batch", "layer")
    )
    gradient_penalty: float = field(0.0, "weight of the gradient penalty; 10 for WGAN-GP", low=0.0)
    r1: float = field(0.0, "gamma of the R1 penalty, the discriminator's slope at real images", low=0.0)
    discriminator_steps: int = field(1, "discriminator updates a generator update", low=1, high=100)
    ema_decay: float = field(0.999, "decay a step of the averaged generator that samples", low=0.0, high=0.999999)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, for generator and discriminator."""

    learning_rate: float = field(2e-4, "step size", low=0.0, high=10.0)
    discriminator_learning_rate: float | None = field(None, "null: as learning_rate", low=0.0, high=10.0)
    beta_1: float = field(0.5, "decay of the mean of gradients", low=0.0, high=0.999999)
    beta_2: float = field(0.999, "decay of the mean of squared gradients", low=0.0, high=0.9999999)


@dataclass(frozen=True)
class TrainConfig:
    """How long and how a model is trained."""

    epochs: int = field(20, "passes over the train split", low=1)
    batch_size: int = field(64, "examples a step, over all devices", low=1)
    jit: str = field("auto", "compile the step with XLA: auto, true or false", choices=("auto", "true", "false"))
    precision: str = field("float32", "dtype policy", choices=("float32", "mixed_bfloat16"))
    devices: int | None = field(None, "number of devices; null: every GPU, or the CPU", low=1)
    steps_per_call: int = field(10, "steps in one compiled call; on several devices it is 1", low=1, high=1000)
    log_every: int = field(100, "steps between lines of metrics.jsonl", low=1)
    checkpoint_every: int | None = field(None, "steps between checkpoints; null: each epoch", low=1)
    keep_checkpoints: int = field(3, "last checkpoints kept, besides the best", low=1)
    sample_every: int = field(1, "epochs between sample grids", low=1)
    validation_samples: int = field(1000, "samples compared with validation images each epoch; 0: none", low=0)
    max_loss: float = field(1e5, "a loss beyond this magnitude stops the run", low=0.0)


@dataclass(frozen=True)
class Config:
    """A whole run. `preset` is the starting point's name and `seed` decides every random number."""

    preset: str = field("custom", "name of the preset it started from")
    description: str = field("", "one line on what it is")
    seed: int = field(0, "initial weights, shuffling, noise", low=0, high=2**31 - 1)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    model: GANConfig = dataclasses.field(default_factory=GANConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def preset_names() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    files = resources.files("gentf.presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def resolve(preset: str, overrides: Sequence[str] = ()) -> Config:
    """The Config of a preset name (or of a YAML file's path), with `KEY=VALUE` overrides applied in order.

    Raises:
        UserError: unknown preset or key (the nearest names are given), wrong type, value out of range.
    """
    names = preset_names()
    if preset in names:
        config = from_dict(
            yaml.safe_load((resources.files("gentf.presets") / f"{preset}.yaml").read_text()) | {"preset": preset}
        )
    elif preset.endswith((".yaml", ".yml")):
        config = load_yaml(preset)
    else:
        raise UserError(f"`preset` must be {_nearest(preset, names)} or the path of a .yaml file. Received: {preset!r}")
    for override in overrides:
        config = with_override(config, override)
    return config


def load_yaml(path: str | Path) -> Config:
    """The Config in a YAML file. Raises UserError if it cannot be read or does not describe one."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"`config` must be a readable YAML file. Received: {path} ({_one_line(error)})") from None
    if not isinstance(content, Mapping):
        raise UserError(f"`config` must be a mapping of sections. Received: {path}")
    return from_dict(content)


def dump_yaml(config: Config) -> str:
    """`config` as YAML; `load_yaml` of it gives an equal Config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=110)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (tuples become lists), for YAML and JSON."""
    return {
        item.name: to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, item.name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for item in dataclasses.fields(config)
    }


def from_dict(values: Mapping[str, Any]) -> Config:
    """The Config of nested plain values; what is missing takes its default."""
    return _build(Config, values, "")


def with_override(config: Config, override: str) -> Config:
    """`config` with one `section.key=value` applied; the value is read as YAML and held to the field's type."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"`override` must have the form KEY=VALUE. Received: {override!r}")
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError:
        value = text
    return replace(config, key.strip(), value, text.strip())


def replace(config: Config, key: str, value: Any, text: str | None = None) -> Config:
    """`config` with the field at the dotted `key` set to `value`; `text` is what the user typed, for str fields."""
    *sections, name = key.split(".")
    owners: list[Any] = [config]
    for section in sections:
        item = _fields(owners[-1]).get(section)
        if item is None or not dataclasses.is_dataclass(getattr(owners[-1], section)):
            raise _unknown(key)
        owners.append(getattr(owners[-1], section))
    item = _fields(owners[-1]).get(name)
    if item is None or dataclasses.is_dataclass(getattr(owners[-1], name)):
        raise _unknown(key)
    new: Any = check(type(owners[-1]), item, value, key, text)
    for owner, part in zip(reversed(owners), reversed([*sections, name])):
        new = dataclasses.replace(owner, **{part: new})
    return new


def keys(config_type: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key that an override may name."""
    found: list[str] = []
    for item in dataclasses.fields(config_type):
        hint = typing.get_type_hints(config_type)[item.name]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        found += keys(hint, f"{prefix}{item.name}.") if nested else [prefix + item.name]
    return found


def differences(first: Config, second: Config) -> list[str]:
    """Dotted keys whose values differ."""
    a, b = _flat(to_dict(first)), _flat(to_dict(second))
    return [key for key in a if a[key] != b.get(key)]


def check(owner: type, item: dataclasses.Field, value: Any, key: str, text: str | None = None) -> Any:
    """`value` brought to the type of the field `item` and held to its range; UserError naming `key` otherwise."""
    hint = typing.get_type_hints(owner)[item.name]
    accepted, optional = _unwrap(hint)
    received = value if text is None else text
    if value is None and optional:
        return None
    if accepted is str and item.metadata.get("choices") and isinstance(value, bool):
        value = str(value).lower()  # YAML reads true and false as booleans
    if accepted is str and not isinstance(value, str) and text is not None:
        value = text  # a name that YAML reads as a number, such as 2026
    new = _coerce(value, accepted)
    if new is None:
        raise UserError(f"`{key}` must be {_describe(hint)}. Received: {key}={received}")
    low, high, choices = (item.metadata.get(name) for name in ("low", "high", "choices"))
    if choices and new not in choices:
        raise UserError(f"`{key}` must be one of {', '.join(map(str, choices))}. Received: {key}={received}")
    for number in new if isinstance(new, tuple) else (new,):
        if isinstance(number, (int, float)) and (
            (low is not None and number < low) or (high is not None and number > high) or not math.isfinite(number)
        ):
            bounds = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise UserError(f"`{key}` must be {bounds}. Received: {key}={received}")
    return new


def _build(config_type: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"`{prefix.rstrip('.')}` must be a mapping. Received: {values!r}")
    known = {item.name: item for item in dataclasses.fields(config_type)}
    hints = typing.get_type_hints(config_type)
    built = {}
    for name, value in values.items():
        if name not in known:
            raise _unknown(f"{prefix}{name}")
        nested = dataclasses.is_dataclass(hints[name])
        key = f"{prefix}{name}"
        built[name] = _build(hints[name], value, key + ".") if nested else check(config_type, known[name], value, key)
    return config_type(**built)


def _coerce(value: Any, accepted: Any) -> Any:
    """`value` as the type `accepted`, or None where it is something else."""
    if typing.get_origin(accepted) is tuple:
        parts = typing.get_args(accepted)
        if not isinstance(value, (list, tuple)) or not value:
            return None
        if parts[-1] is not Ellipsis and len(parts) != len(value):
            return None
        items = tuple(_coerce(item, parts[0]) for item in value)
        return None if None in items else items
    if accepted is bool or isinstance(value, bool):
        return value if accepted is bool and isinstance(value, bool) else None
    if accepted is float and isinstance(value, (int, float, str)):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as text
        except (ValueError, OverflowError):
            return None
    if accepted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, accepted) else None


def _unwrap(hint: Any) -> tuple[Any, bool]:
    """The type in `X | None`, and whether None is accepted."""
    if isinstance(hint, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return inner[0], True
    return hint, False


def _describe(hint: Any) -> str:
    accepted, optional = _unwrap(hint)
    if typing.get_origin(accepted) is tuple:
        parts = typing.get_args(accepted)
        text = "a list of integers" if parts[-1] is Ellipsis else f"a list of {len(parts)} integers"
    else:
        text = {int: "an integer", float: "a number", bool: "true or false", str: "text"}[accepted]
    return text + (" or null" if optional else "")


def _fields(config: Any) -> dict[str, dataclasses.Field]:
    return {item.name: item for item in dataclasses.fields(config)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _unknown(key: str) -> UserError:
    return UserError(f"`key` must be {_nearest(key, keys())}. Received: {key!r}")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "a known name (did you mean " + " or ".join(near) + "?)"
    return "one of " + ", ".join(names)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
