"""Read `.keras` files that may come from anywhere: data only, nothing in them is run."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from gentf.errors import UserError
from gentf.models.base import GenerativeModel

MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}
MAX_CONFIG = 2**20  # bytes: a model's config is a few thousand


def load_model(path: str | os.PathLike) -> GenerativeModel:
    """The model in a `.keras` file that gentf saved.

    What the file holds is looked at before Keras reads it: it may name classes of gentf and of Keras and nothing else,
    no functions, no Lambda layers, and there may be no other files in it (pickles, names that lead out of a folder).

    Raises:
        UserError: it is no such file, or holds what it must not.
    """
    path = Path(path)
    if path.suffix != ".keras" or not path.is_file():
        raise UserError(f"`path` must be a .keras file. Received: {path}")
    try:
        with zipfile.ZipFile(path) as file:
            names = set(file.namelist())
            if names - MEMBERS:
                raise UserError(
                    f"{path} must hold {', '.join(sorted(MEMBERS))} only. Received: {sorted(names - MEMBERS)[0]!r}"
                )
            damaged = file.testzip()
            if damaged:
                raise UserError(f"{path} is damaged: {damaged} does not match its checksum")
            if file.getinfo("config.json").file_size > MAX_CONFIG:
                raise UserError(f"{path} must have a config of at most {MAX_CONFIG} bytes")
            config = json.loads(file.read("config.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a whole .keras file ({type(error).__name__}: {error})") from None
    for found in _objects(config):
        _check_object(path, found)
    try:
        model = keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # whatever Keras makes of a file that was made by hand
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be loaded ({type(error).__name__}: {reason})") from None
    if not isinstance(model, GenerativeModel):
        raise UserError(f"{path} must hold a model of gentf. Received: {type(model).__name__}")
    return model


def _objects(value: Any) -> Iterator[dict]:
    """Every serialized object in a config, at any depth."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for part in value.values():
            yield from _objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _check_object(path: Path, found: dict) -> None:
    name, module = found["class_name"], found.get("module")
    registered = found.get("registered_name")
    ours = isinstance(registered, str) and registered.startswith("gentf>") and str(module).split(".")[0] == "gentf"
    builtin = isinstance(module, str) and module.split(".")[0] == "keras" and registered in (None, name)
    if not (ours or builtin) or name in ("Lambda", "__lambda__", "function"):
        raise UserError(f"{path} must name classes of gentf and Keras only, and no functions. Received: {name!r}")
