"""An export, loaded again: samples from `saved_models/NAME`, the same as from the run."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
LENGTH = 256  # symbols of a sequence, where nothing else is asked for
SEQUENCES = ("text", "roll", "tokens")  # outputs of `serving_default`, by what a model of sequences makes


class ServedModel:
    """A SavedModel and what its signatures say of it. Made by `load`.

    Attributes:
        path: the version folder.
        signatures: name -> {"inputs": {name: TensorSpec}, "outputs": {name: TensorSpec}}.
        conditional: whether `serving_default` takes a label.
        num_classes: as far as the export says; None where it does not.
        class_names: one a class, as far as the export says.
        modality: "image", "text", "music", "pairs" or "points", as far as the export says.
        tokenizer: the kind of a sequence's symbols ("char", "chords", ...), as far as the export says.
        max_length: symbols of a sequence at most; None for other models, or where the export does not say.
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
        modality, most = about.get("modality"), about.get("max_length")
        self.modality: str | None = modality if isinstance(modality, str) else None
        kind = about.get("tokenizer")
        self.tokenizer: str | None = kind if isinstance(kind, str) else None
        self.max_length: int | None = most if isinstance(most, int) and not isinstance(most, bool) else None

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

    def sample(
        self,
        num: int,
        *,
        condition: Any = None,
        seed: int = 0,
        prompt: str | Sequence[str] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | Sequence[float] | None = None,
        max_length: int | None = None,
    ) -> Any:
        """Draw `num` samples; row i comes from the row seed [seed, i], as in the model's own `sample`.

        Args:
            num: at least 1.
            condition: of a conditional model: a class for all, or one a sample; None draws classes by the
                row seeds.
            seed: 0 <= seed < 2**31.
            prompt: of a model of text: a text for all, or one a sample. Characters that the tokenizer does not know are
                left out, and of a prompt longer than the context the end is read.
            temperature, top_p: of a model of sequences, as of its own `sample`; one for all, or one a sample.
            max_length: symbols generated a row, at most; None: 256, or as many as the export can make.
        Returns:
            (num, H, W, C) float32 in [-1, 1], or (num, D) float32 of points; of a model of sequences a list of texts
            without the prompt, of rolls uint8 (T, 88), or of arrays of tokens.
        """
        given = {"prompt": prompt, "temperature": temperature, "top_p": top_p, "max_length": max_length}
        kind = next((name for name in SEQUENCES if name in self._default("outputs")), None)
        if kind is None:
            for name, value in given.items():
                if value is not None:
                    raise UserError(f"`{name}` must be None for a model of images. Received: {name}={value!r}")
            return self._draw("point" if "point" in self._default("outputs") else "image", num, condition, seed)
        inputs = self._sequence_inputs(num, **given)
        answers = self._rows(DEFAULT, num, condition, seed, inputs)
        if kind == "text":
            return [text.decode() for answer in answers for text in answer["text"]]
        dtype = np.uint8 if kind == "roll" else np.int32
        pairs = [pair for answer in answers for pair in zip(answer[kind], answer["length"])]
        return [row[:length].astype(dtype) for row, length in pairs]

    def stream(
        self,
        prompt: str = "",
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_length: int | None = None,
        block: int = 16,
    ) -> Iterator[str]:
        """One text in parts, as they are made: joined they are the first that `sample` gives.

        Args:
            prompt, seed, temperature, top_p, max_length: as of `sample`.
            block: tokens of a part.
        """
        if "step" not in self.signatures or self.conditional:
            raise UserError(f"`export` must have a signature `step` without a label to stream. Received: {self.path}")
        if block < 1:
            raise UserError(f"`block` must be at least 1. Received: block={block}")
        row = self._sequence_inputs(1, prompt=prompt, temperature=temperature, top_p=top_p, max_length=max_length)
        row |= {"seed": np.array([[seed, 0]]), "block": np.array([block])}
        answer: Arrays = {"tokens": np.zeros((1, 0)), "length": np.zeros(1), "done": np.zeros(1, bool)}
        while not answer["done"][0]:
            answer = self.call("step", tokens=answer["tokens"], length=answer["length"], **row)
            yield answer["text"][0].decode()

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Minus the log-likelihood of whole texts, as the model's own `log_prob` counts it: (n,) float32, in nats."""
        if "score" not in self.signatures or "label" in self.signatures["score"]["inputs"]:
            raise UserError(f"`export` must have a signature `score` without a label. Received: {self.path}")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"`texts` must be a list of strings. Received: {texts!r:.80}")
        return np.array([self.call("score", text=[text.encode()])["nats"][0] for text in texts], np.float32)

    def image_bytes(self, num: int, *, condition: Any = None, seed: int = 0) -> list[bytes]:
        """The samples that `sample` gives, each as the content of a PNG file that the export encodes."""
        return list(self._draw("image_bytes", num, condition, seed))

    def _draw(self, output: str, num: int, condition: Any, seed: int) -> np.ndarray:
        signature = self.signatures.get(DEFAULT, {"inputs": {}, "outputs": {}})
        known = {"seed", "label"}
        if output not in signature["outputs"] or "seed" not in signature["inputs"] or set(signature["inputs"]) - known:
            raise UserError(f"`export` must give `{output}` for a `seed` in {DEFAULT}. Received: {self.path}")
        return np.concatenate([answer[output] for answer in self._rows(DEFAULT, num, condition, seed, {})])

    def _default(self, direction: str) -> Mapping[str, Any]:
        return self.signatures.get(DEFAULT, {"inputs": {}, "outputs": {}})[direction]

    def _rows(self, signature: str, num: int, condition: Any, seed: int, inputs: Mapping[str, np.ndarray]) -> list:
        """The answers for `num` rows, `ROWS` of them at a time; `inputs` have a value for each row."""
        if num < 1:
            raise UserError(f"`num` must be at least 1. Received: num={num}")
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"`seed` must be from 0 to 2**31 - 1. Received: seed={seed}")
        labels = self._labels(condition, num)
        whole = {**inputs, "seed": np.stack([np.full(num, seed), np.arange(num)], axis=1)}
        whole |= {} if labels is None else {"label": labels}
        parts = [slice(start, start + ROWS) for start in range(0, num, ROWS)]
        return [self.call(signature, **{name: value[part] for name, value in whole.items()}) for part in parts]

    def _sequence_inputs(self, num: int, **given: Any) -> dict[str, np.ndarray]:
        """What `serving_default` of a model of sequences takes besides seeds and labels; None is a default."""
        most = self.max_length if self.max_length is not None else np.iinfo(np.int32).max
        defaults = {"prompt": "", "temperature": 1.0, "top_p": 1.0, "max_length": min(LENGTH, most)}
        known = self._default("inputs")
        found = {}
        for name, default in defaults.items():
            value = default if given[name] is None else given[name]
            if name not in known:
                if given[name] is not None:
                    raise UserError(f"`{name}` must be None for this export. Received: {name}={value!r}")
                continue
            if name == "prompt":
                found[name] = self._prompts(known[name], value, num)
                continue
            numbers = np.asarray(value)
            low, high = {"temperature": (0.0, np.inf), "top_p": (0.0, 1.0), "max_length": (1, most)}[name]
            inside = numbers.dtype.kind in "iuf" and numbers.shape in ((), (num,)) and np.isfinite(numbers).all()
            if not inside or (numbers < low).any() or (numbers > high).any() or (name == "top_p" and not numbers.all()):
                ends = {"temperature": "at least 0", "top_p": "in (0, 1]", "max_length": f"in 1..{high}"}[name]
                raise UserError(f"`{name}` must be {ends}, one number or one a sample. Received: {name}={value!r}")
            found[name] = np.broadcast_to(numbers, (num,))
        if "prompt_length" in known:
            found |= {"prompt": np.zeros((num, 1), np.int32), "prompt_length": np.zeros(num, np.int32)}
        return found

    @staticmethod
    def _prompts(spec: tf.TensorSpec, value: Any, num: int) -> np.ndarray:
        if spec.dtype != tf.string:
            if value:
                raise UserError(
                    f"`prompt` must be None for an export of tokens: give them to `call`. Received: {value!r}"
                )
            return np.zeros((num, 1), np.int32)
        texts = [value] * num if isinstance(value, str) else list(value) if isinstance(value, Sequence) else []
        if len(texts) != num or not all(isinstance(text, str) for text in texts):
            raise UserError(f"`prompt` must be a text, or a list of {num}. Received: {value!r:.80}")
        return np.array([*(text.encode() for text in texts), None], object)[:-1]

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
