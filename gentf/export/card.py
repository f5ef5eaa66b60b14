"""The model card of an export: what it is and was made from, how good it is, how to call it, its limits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gentf import __version__
from gentf.config import dump_yaml
from gentf.export.check import SignatureReport
from gentf.export.saved_model import DEFAULT

#: Of a tensor, or of a signature's tensor.
RANGES = {
    "seed": "any integers; row i of `sample(n, seed=s)` is `[s, i]`",
    "z": "independent N(0, 1)",
    "image": "[-1, 1]",
    "image_bytes": "PNG file content",
    "point": "as in the data",
    "logit": "> 0: taken for real, < 0: taken for generated",
    "prompt": "UTF-8, empty for none; characters the tokenizer does not know are left out, and of a long one the end "
    "is read",
    "prompt_length": "tokens of each row of `prompt`; what is beyond is not read",
    "temperature": "0 or less: the likeliest; 1: as the model has it",
    "top_p": "(0, 1]; what is outside counts as 1",
    "text": "UTF-8; what is generated comes without the prompt",
    "step.text": "UTF-8, what the block adds",
    "score.text": "UTF-8, a whole text",
    "nats": "minus the log-likelihood, that of an end token included",
    "length": "tokens or frames of a row",
    "tokens": "padded with zeros",
    "step.tokens": "what was generated so far, padded with zeros; in: what `step` gave before, or a zero",
    "step.length": "tokens of a row that count; in: 0 at first",
    "score.tokens": "how many were counted",
    "roll": "0 or 1 for the keys of a piano, A0 to C8; frames beyond `length` are 0",
    "block": "tokens to add, at least 1",
    "done": "whether the text has ended",
}
#: Values for a request that shows how to call a model.
SHOWN = {"seed": [7, 0], "prompt": "The ", "temperature": 0.8, "top_p": 0.95, "max_length": 64, "text": "The "}


def model_card(
    name: str,
    version: int,
    model: Any,
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, Any]],
    checked: Sequence[SignatureReport],
    *,
    xla: bool = False,
    run: Any = None,
    checkpoint: str | int = "last",
    max_length: int | None = None,
) -> str:
    """The card in Markdown.

    Args:
        name, version: of the export.
        model: what was exported; `num_classes` and `count_params` are used where it has them.
        inputs, outputs: signature name -> tensor name -> something with its dtype and shape.
        checked: what the check found; empty if it was left out.
        xla: whether this is the compiled variant.
        run: the `Run` it comes from, for data, training and evaluation; None leaves those sections out.
        checkpoint: which of the run's checkpoints it is.
        max_length: symbols that a request may ask for, of a model of sequences.
    """
    parts = [f"# {name}, version {version}", _what(model, xla, run)]
    if run is not None:
        parts += [_data(run), _training(run, model, checkpoint), _evaluation(run.path / "evaluation.json")]
    parts += [
        _signatures(model, inputs, outputs, max_length),
        _check(checked, xla),
        _call(name, inputs),
        _limits(model, xla, run, max_length),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(model: Any, xla: bool, run: Any) -> str:
    text = f"A `{type(model).__name__}` of gentf {__version__}, exported for TensorFlow Serving."
    if run is not None and run.config.description:
        text += f" {run.config.description.rstrip('.')}."
    if xla:
        text += " This is the variant that XLA compiles: to run it, a server must be started with"
        text += " `--xla_cpu_compilation_enabled=true` (or `--xla_gpu_compilation_enabled=true`)."
        text += " The plain variant lies beside it."
    return text


def _data(run: Any) -> str:
    spec = run.spec
    if spec.modality == "image":
        what = f"images of shape {tuple(spec.shape)}"
    elif spec.modality == "points":
        what = f"points of {spec.shape[0]} numbers"
    else:
        kind = spec.tokenizer["kind"] if spec.tokenizer else "tokens"
        what = spec.modality if kind == "frames" else f"{spec.modality} as {kind} tokens, {spec.vocabulary} of them"
        what += " in frames of 88 keys" if kind == "frames" else ""
        what += "" if spec.modality == "pairs" else f", learned {spec.shape[0]} at a time"
    lines = [
        "## Data",
        f"- set: `{spec.name}`, {what}",
        f"- licence of the set: {spec.licence}",
    ]
    if spec.class_names:
        lines.append(f"- classes: {', '.join(spec.class_names)}")
    return "\n".join(lines)


def _training(run: Any, model: Any, checkpoint: str | int) -> str:
    train = run.config.train
    step = int(model.step)
    seen = step * train.batch_size
    return "\n".join(
        [
            "## Training",
            f"- run: `{run.name}`, checkpoint `{checkpoint}`: {step:,} steps of {train.batch_size} examples "
            f"({seen:,} examples); epochs planned: {train.epochs}",
            f"- weights in the whole model: {model.count_params():,}",
            f"- precision: {train.precision}",
            "",
            "The configuration in full:",
            "```yaml",
            dump_yaml(run.config).rstrip(),
            "```",
        ]
    )


def _evaluation(path: Path) -> str:
    """The numbers in a run's evaluation.json."""
    if not path.is_file():
        return "## Evaluation\n\nNot measured (`gentf evaluate` on the run, then export again)."
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## Evaluation",
        "",
        f"{found['samples']} samples with seed {found['seed']} beside the {found['split']} split of "
        f"`{found['data']}`; checkpoint `{found.get('checkpoint', 'last')}` of the run as it was then.",
        "",
        "| metric | value | standard error | floor | ceiling |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, entry in found["metrics"].items():
        cells = (_number(entry[key]) for key in ("value", "stderr", "floor", "ceiling"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "classifier" in found:
        accuracy = _number(found["classifier"].get("test_accuracy"))
        lines += ["", f"The classifier behind these numbers is right on {accuracy} of held-out real images."]
    return "\n".join(lines)


def _signatures(model: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], max_length: int | None) -> str:
    lines = [
        "## Signatures",
        "",
        "B is the batch; every tensor has it first, and it must be the same in all inputs of a request.",
        "",
        "| signature | tensor | dtype | shape | range |",
        "|---|---|---|---|---|",
    ]
    for name in inputs:
        for direction, tensors in (("in", inputs[name]), ("out", outputs[name])):
            for key, spec in tensors.items():
                shape = ", ".join(["B", *("?" if size is None else str(size) for size in spec.shape[1:])])
                text = _range(name, key, model, max_length)
                lines.append(f"| `{name}` | {direction}: `{key}` | {spec.dtype.name} | [{shape}] | {text} |")
    return "\n".join(lines)


def _range(signature: str, key: str, model: Any, max_length: int | None) -> str:
    classes = getattr(model, "num_classes", 0)
    if key == "max_length" and max_length is not None:
        return f"1 to {max_length}; what is outside is clipped"
    if key == "label" and classes and max_length is not None:
        return f"0 to {classes - 1}; what is none is drawn by the seed"
    if key == "label" and classes:
        return f"0 to {classes - 1}; in `serving_default` -1 draws a class by the seed"
    return RANGES.get(f"{signature}.{key}", RANGES.get(key, ""))


def _check(checked: Sequence[SignatureReport], xla: bool) -> str:
    if not checked:
        return "## Check\n\nLeft out when this was exported."
    mode = "with XLA" if xla else "with XLA switched off, as in a stock server"
    lines = [
        "## Check",
        "",
        f"Before this folder was given its name, a process without Keras and gentf loaded it {mode}, and "
        "compared it with Python's results; strings and integers were equal.",
        "",
        "| signature | rows | largest difference of floats |",
        "|---|---:|---:|",
    ]
    lines += [f"| `{entry.name}` | {entry.rows} | {entry.max_difference:.2g} |" for entry in checked]
    return "\n".join(lines)


def _call(name: str, inputs: Mapping[str, Any]) -> str:
    signature = DEFAULT if DEFAULT in inputs else next(iter(inputs))
    row = {}
    for key, spec in inputs[signature].items():
        zero = np.zeros([1 if size is None else size for size in spec.shape[1:]], int).tolist()
        row[key] = SHOWN.get(key, "" if spec.dtype.name == "string" else zero)
    instance = json.dumps({"signature_name": signature, "instances": [row]})
    return "\n".join(
        [
            "## How to call it",
            "",
            "From a server (docs/serving.md of gentf has gRPC, batching and version labels too):",
            "```sh",
            f"curl -d '{instance}' http://localhost:8501/v1/models/{name}:predict",
            "```",
            "From Python, with nothing but TensorFlow:",
            "```python",
            "import tensorflow as tf",
            "",
            'model = tf.saved_model.load("path/of/this/folder")',
            f'print(model.signatures["{signature}"].structured_input_signature)',
            "```",
        ]
    )


def _limits(model: Any, xla: bool, run: Any, max_length: int | None) -> str:
    sequences = max_length is not None
    lines = [
        "## Limits",
        "",
        "- The same seed gives the same bytes on machines of one kind; other processors, and GPUs, round "
        "differently in the last digits.",
        "- It makes what its data set shows and nothing else; the shares and the flaws of the set are in its samples.",
    ]
    if run is not None:
        examples = "examples" if sequences else "images"
        lines.append(f"- Samples may come close to training {examples}: see the evaluation for how close.")
    if sequences:
        lines.append(
            "- Rows of a batch are padded to the longest, so that another batch may round a logit differently in its "
            "last bits: that moves a token only where two are as likely but for that."
        )
    if getattr(model, "num_classes", 0) and not sequences:
        lines.append("- A label outside of the classes gives an image of no class, without an error.")
    if xla:
        lines.append("- Each batch size is compiled when it is first met, which takes seconds: the warm-up does it.")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
