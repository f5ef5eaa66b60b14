"""What a run is made of: a `Config`, read from YAML, changed by `KEY=VALUE` overrides.

One function (`check`) holds every value to its field's range or choices, wherever it comes from. Misspelt keys are
answered with the nearest ones.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from gentf.errors import UserError
from gentf.schema import MODELS, Config, ImageConfig, ModelConfig, MusicConfig, PairsConfig, TextConfig


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
    """`config` as YAML, without sections of other modalities at their defaults; `load_yaml` gives an equal Config."""
    values, used = to_dict(config), {config.data.modality} | ({"text"} if config.data.modality == "pairs" else set())
    for name, kind in (("image", ImageConfig), ("text", TextConfig), ("music", MusicConfig), ("pairs", PairsConfig)):
        if name not in used and getattr(config, name) == kind():
            del values[name]
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)


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
            raise _unknown(key, config)
        owners.append(getattr(owners[-1], section))
    item = _fields(owners[-1]).get(name)
    if item is None or dataclasses.is_dataclass(getattr(owners[-1], name)):
        raise _unknown(key, config)
    if key == "model.family" and value in MODELS and value != config.model.family:
        return dataclasses.replace(config, model=MODELS[value]())  # the other family's own defaults
    new: Any = check(type(owners[-1]), item, value, key, text)
    for owner, part in zip(reversed(owners), reversed([*sections, name])):
        new = dataclasses.replace(owner, **{part: new})
    return new


def keys(config: Any = None, prefix: str = "") -> list[str]:
    """Every dotted key that an override of `config` may name; of the default one if None."""
    config, found = Config() if config is None else config, []
    for name in _fields(config):
        value = getattr(config, name)
        found += keys(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else [prefix + name]
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
    if prefix == "model.":
        family = values.get("family", "gan")
        if family not in MODELS:
            raise UserError(f"`model.family` must be one of {', '.join(MODELS)}. Received: model.family={family}")
        config_type = MODELS[family]
    known = {item.name: item for item in dataclasses.fields(config_type)}
    hints = typing.get_type_hints(config_type)
    built = {}
    for name, value in values.items():
        if name not in known:
            default = Config(model=config_type()) if prefix == "model." else Config()
            raise _unknown(f"{prefix}{name}", default)
        nested = dataclasses.is_dataclass(hints[name]) or hints[name] == ModelConfig
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


def _unknown(key: str, config: Config) -> UserError:
    return UserError(f"`key` must be {_nearest(key, keys(config))}. Received: {key!r}")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "a known name (did you mean " + " or ".join(near) + "?)"
    return "one of " + ", ".join(names)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
