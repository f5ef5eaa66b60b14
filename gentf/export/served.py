"""An export, loaded again: samples from `saved_models/NAME` with the same pixels as from the run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.errors import UserError
from gentf.export import graph
from gentf.export.check import one_line
from gentf.export.exporter import META
from gentf.export.folders import versions
from gentf.export.saved_model import DEFAULT, Arrays
from gentf.export.serving import EXTRA

ROWS = 64  # of a request
MAX_SEED = 2**31 - 1


class ServedModel:
    """A SavedModel and what its signatures say of it. Made by `load`.

    Attributes:
        path: the version folder.
        signatures: name -> {"inputs": {name: TensorSpec}, "outputs": {name: TensorSpec}}.
        conditional: whether `serving_default` takes a label.
        num_classes: as far as the export says; None where it does not.
        class_names: one a class, as far as the export says.
    """

    def __init__(self, path: Path, functions: Mapping[str, Any], loaded: Any, about: Mapping[str, Any]):
        self.path = path
        self._functions = functions
        self._loaded = loaded  # keeps the variables alive: the functions only refer to them
        self.signatures = {
            name: {"inputs": dict(f.structured_input_signature[1]), "outputs": dict(f.structured_outputs)}
            for name, f in functions.items()
        }
        inputs = self.signatures.get(DEFAULT, {"inputs": {}})["inputs"]
        self.conditional = "label" in inputs
        classes, names = about.get("num_classes"), about.get("class_names")
        self.num_classes: int | None = classes if isinstance(classes, int) and not isinstance(classes, bool) else None
        self.class_names: tuple[str, ...] = tuple(map(str, names)) if isinstance(names, list) else ()

    def __repr__(self) -> str:
        return f"ServedModel({str(self.path)!r}, signatures={sorted(self.signatures)})"

    def call(self, signature: str, **inputs: Any) -> Arrays:
        """Answer one request.

        Args:
            signature: a name in `signatures`.
            inputs: an array for each of its inputs, batch first; the dtype is made to fit.
        Returns:
            name -> array; strings as an array of bytes objects.
        """
        if signature not in self._functions:
            accepted = ", ".join(sorted(self._functions))
            raise UserError(f"`signature` must be one of {accepted}. Received: signature={signature!r}")
        specs = self.signatures[signature]["inputs"]
        if sorted(inputs) != sorted(specs):
            raise UserError(f"`inputs` of {signature} must be {', '.join(sorted(specs))}. Received: {sorted(inputs)}")
        tensors = {}
        for name, spec in specs.items():
            value = np.asarray(inputs[name], spec.dtype.as_numpy_dtype)
            if not spec.shape.is_compatible_with(value.shape):
                raise UserError(f"`{name}` must have shape {spec.shape}. Received: {name}.shape={value.shape}")
            tensors[name] = tf.constant(value)
        return {name: value.numpy() for name, value in self._functions[signature](**tensors).items()}

    def sample(self, num: int, *, condition: Any = None, seed: int = 0) -> np.ndarray:
        """Draw `num` samples; row i comes from the row seed [seed, i], as in the model's own `sample`.

        Args:
            num: at least 1.
            condition: of a conditional model: a class for all, or one a sample; None draws classes by the
                row seeds.
            seed: 0 <= seed < 2**31.
        Returns:
            (num, H, W, C) float32 in [-1, 1].
        """
        return self._draw("image", num, condition, seed)

    def image_bytes(self, num: int, *, condition: Any = None, seed: int = 0) -> list[bytes]:
        """The samples that `sample` gives, each as the content of a PNG file that the export encodes."""
        return list(self._draw("image_bytes", num, condition, seed))

    def _draw(self, output: str, num: int, condition: Any, seed: int) -> np.ndarray:
        signature = self.signatures.get(DEFAULT, {"inputs": {}, "outputs": {}})
        known = {"seed", "label"}
        if output not in signature["outputs"] or "seed" not in signature["inputs"] or set(signature["inputs"]) - known:
            raise UserError(f"`export` must give `{output}` for a `seed` in {DEFAULT}. Received: {self.path}")
        if num < 1:
            raise UserError(f"`num` must be at least 1. Received: num={num}")
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"`seed` must be from 0 to 2**31 - 1. Received: seed={seed}")
        labels = self._labels(condition, num)
        parts = []
        for start in range(0, num, ROWS):
            rows = np.arange(start, min(start + ROWS, num))
            inputs = {"seed": np.stack([np.full_like(rows, seed), rows], axis=1)}
            if labels is not None:
                inputs["label"] = labels[rows]
            parts.append(self.call(DEFAULT, **inputs)[output])
        return np.concatenate(parts)

    def _labels(self, condition: Any, num: int) -> np.ndarray | None:
        if not self.conditional:
            if condition is not None:
                raise UserError(f"`condition` must be None for an unconditional model. Received: {condition!r}")
            return None
        if condition is None:
            return np.full(num, -1, np.int32)
        labels = np.asarray(condition)
        highest = labels.max(initial=0) if self.num_classes is None else self.num_classes - 1
        if (
            not np.issubdtype(labels.dtype, np.integer)
            or labels.shape not in ((), (num,))
            or np.any((labels < 0) | (labels > highest))
        ):
            accepted = f"a class from 0 to {highest}" if self.num_classes is not None else "a class of at least 0"
            raise UserError(f"`condition` must be {accepted}, or one a sample. Received: {condition!r}")
        return np.broadcast_to(labels, (num,)).astype(np.int32)


def load(path: str | os.PathLike) -> ServedModel:
    """Load an export: `saved_models/NAME` (its newest version), or a version folder.

    The graph is looked through before anything of it runs: one that calls Python, touches files or holds
    operations that TensorFlow does not know is refused (`gentf.export.graph`). Any SavedModel that passes can
    be loaded, not only those that `export` wrote.

    Raises:
        UserError: there is no SavedModel, it is damaged, or it is refused.
    """
    folder = find(path)
    meta = graph.read(folder)
    try:
        graph.check_safe(meta)
    except UserError as error:
        raise UserError(f"`export` must be a graph that only computes. Received: {folder}: {error}") from None
    if not graph.signature_names(meta):
        raise UserError(f"`export` must have a signature to call. Received: {folder}, which has none")
    try:
        loaded = tf.saved_model.load(str(folder))
        functions = {name: loaded.signatures[name] for name in graph.signature_names(meta)}
    except Exception as error:  # what a damaged file makes TensorFlow raise is not documented
        raise UserError(f"`export` must be a whole SavedModel. Received: {folder} ({one_line(error)})") from error
    return ServedModel(folder, functions, loaded, _about(folder))


def is_export(path: str | os.PathLike) -> bool:
    """Whether `path` looks like an export: a SavedModel, or a folder with versions of one."""
    path = Path(path)
    return (path / graph.GRAPH_FILE).is_file() or any(
        (path / str(number) / graph.GRAPH_FILE).is_file() for number in versions(path)
    )


def find(path: str | os.PathLike) -> Path:
    """The version folder that `path` means: itself or its newest version; UserError if it is neither."""
    folder = Path(path)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise UserError(f"`export` must be a folder that `gentf export` wrote. Received: {path}, which is {what}")
    if (folder / graph.GRAPH_FILE).is_file():
        return folder
    whole = [number for number in versions(folder) if (folder / str(number) / graph.GRAPH_FILE).is_file()]
    if not whole:
        expected = f"{graph.GRAPH_FILE}, or version folders with one, in it"
        raise UserError(f"`export` must be a folder with {expected}. Received: {path}")
    return folder / str(max(whole))


def _about(folder: Path) -> dict[str, Any]:
    """What the export says about itself; empty where it says nothing, or nothing readable."""
    try:
        about = json.loads((folder / EXTRA / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
