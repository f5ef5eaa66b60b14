"""Write a model to a folder that TensorFlow Serving watches: complete and checked, or not at all."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from gentf import __version__
from gentf.errors import UserError
from gentf.export import folders, graph, serving
from gentf.export import saved_model as writer
from gentf.export.card import model_card
from gentf.export.check import Case, SignatureReport, check, one_line
from gentf.models.sequence import SequenceModel
from gentf.training.run import Run

BASE = Path("saved_models")
XLA_SUFFIX = "-xla"
CARD = "MODEL_CARD.md"
META = "gentf.json"  # in assets.extra: what `gentf.export.load` wants to know and the graph does not say
CHECKED_ROWS = (1, 5)  # rows of the requests that are compared: one, and a number that fills no block


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the version folder.
        name, version: as a server knows them.
        signatures: what the check found for each; empty without a check.
        warmup: warm-up records written.
        models: the path of models.config.
        left_out: signatures or outputs that the compiled variant is without, and why.
        xla: the compiled variant, if it was asked for.
    """

    path: Path
    name: str
    version: int
    signatures: tuple[SignatureReport, ...]
    warmup: int
    models: Path
    left_out: Mapping[str, str]
    xla: "ExportResult | None" = None


def export(
    source: Any,
    to: str | os.PathLike | None = None,
    *,
    version: int | None = None,
    xla: bool = False,
    checkpoint: str | int = "last",
    batch_sizes: Sequence[int] = serving.BATCH_SIZES,
    labels: Mapping[str, int] | None = None,
    constraints: Mapping[str, Any] | None = None,
    check: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Export a model for TensorFlow Serving.

    Writes `to`/<version>/ (SavedModel, warm-up records, batching parameters, model card) and the model's
    entry in models.config beside `to`. The version folder is written under a temporary name, checked in a
    fresh process, and renamed: a server that watches `to` never sees a part of one, or a wrong one. On an
    error nothing is left behind.

    Args:
        source: a `Run`, or a model with `signatures()`: name -> (function, inputs).
        to: BASE/NAME, where NAME is what clients ask the server for; None: saved_models/ and the run's name.
        version: None takes the next integer. One that is there already is never overwritten.
        xla: also write BASE/NAME-xla/<version>/, whose functions XLA compiles, without string outputs.
        checkpoint: of the run: "last", "best" or a step.
        batch_sizes: what a batching server runs; the last one is the largest. There is a warm-up request
            for each.
        labels: version labels to set in models.config, such as {"canary": 3}.
        constraints: of a model of sequences: name -> rule, each a signature `generate_NAME` more. See
            `gentf.models.serving.signatures`.
        check: compare the export with Python's results in a process without Keras and gentf, XLA switched
            off.
        warn: called with a line about something that was left out or repaired.
    Raises:
        UserError: the version is there, or the name, version or checkpoint cannot be used.
        ValueError: the model cannot be served, or the export does not agree with Python.
    """
    run = source if isinstance(source, Run) else None
    if to is None:
        if run is None:
            raise UserError(
                "`to` must name the folder to write to, for a model that comes from no run. Received: to=None"
            )
        to = BASE / run.name
    batch_sizes = serving.check_batch_sizes(batch_sizes)
    target = Path(to).absolute()
    folders.check_name(target, to)
    targets = [target, target.with_name(target.name + XLA_SUFFIX)] if xla else [target]
    number = folders.free_version(targets, version)
    # a damaged list is found before the work, not after it
    serving.read_models(target.parent / serving.MODELS)
    model = run.load_model(checkpoint, warn) if run is not None else source

    subject = _Subject.of(model, run, checkpoint, batch_sizes, constraints)
    created = folders.make(targets)
    made: list[Path] = []
    try:
        results = []
        for folder in targets:
            made.append(folders.temporary(folder, number))
            results.append(_build(subject, made[-1], folder.name, number, xla=folder != target, check_it=check))
        for index, folder in enumerate(targets):
            made[index] = folders.publish(made[index], folder / str(number))
        models = serving.update_models(target.parent, [folder.name for folder in targets], labels)
    except BaseException:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
        for folder in created:
            folders.remove_empty(folder)
        raise
    plain, *variants = [
        ExportResult(path, path.parent.name, number, tuple(found), records, models, left_out)
        for path, (found, records, left_out) in zip(made, results, strict=True)
    ]
    for variant in variants:
        for name, reason in variant.left_out.items():
            warn(f"{variant.name} is without {name}: {reason}")
    return dataclasses.replace(plain, xla=variants[0] if variants else None)


@dataclass(frozen=True)
class _Subject:
    """What is exported, traced once for both variants."""

    model: Any
    run: Run | None
    checkpoint: str | int
    batch_sizes: tuple[int, ...]
    signatures: Mapping[str, Any]
    plain: Mapping[str, Any]  # name -> traced function

    @classmethod
    def of(
        cls,
        model: Any,
        run: Run | None,
        checkpoint: str | int,
        batch_sizes: tuple[int, ...],
        constraints: Mapping[str, Any] | None,
    ) -> "_Subject":
        if constraints and not isinstance(model, SequenceModel):
            raise ValueError(f"`constraints` must be None for a {type(model).__name__}. Received: constraints")
        signatures = model.signatures(constraints=constraints) if constraints else model.signatures()
        traced: dict[Any, Any] = {}  # one function may go by two names
        plain = {}
        for name, signature in signatures.items():
            if signature.function not in traced:
                traced[signature.function] = writer.trace(name, signature)
            plain[name] = traced[signature.function]
        return cls(model, run, checkpoint, batch_sizes, signatures, plain)

    @property
    def num_classes(self) -> int:
        return int(getattr(self.model, "num_classes", 0))

    @property
    def max_length(self) -> int | None:
        """Symbols that a request may ask for; None where none are generated."""
        return getattr(self.signatures.get("generate"), "max_length", None)

    @property
    def tokenizer(self) -> str | None:
        """The kind of a model's symbols."""
        kind = getattr(self.model, "tokenizer", None)
        return kind["kind"] if kind else None

    @property
    def modality(self) -> str | None:
        """What the data are: from the run, or as far as the model tells."""
        if self.run is not None:
            return self.run.spec.modality
        if self.tokenizer is None:
            return None
        return "music" if self.tokenizer in ("frames", "chords", "events") else "text"

    def examples(self, name: str, rows: int) -> writer.Arrays:
        return writer.examples(self.signatures[name], rows, self.num_classes)

    def cases(self, functions: Mapping[str, Any], sizes: Sequence[int]) -> list[Case]:
        """Requests of these numbers of rows to each signature, with Python's answers to them."""
        cases = []
        for name, function in functions.items():
            for rows in sizes:
                inputs = self.examples(name, rows)
                answers = writer.call(self.plain[name], inputs)
                cases.append(Case(name, inputs, {output: answers[output] for output in function.structured_outputs}))
        return cases


def _build(
    subject: _Subject, folder: Path, name: str, version: int, *, xla: bool, check_it: bool
) -> tuple[list[SignatureReport], int, dict[str, str]]:
    """Write everything of one version to the empty `folder`, and check it."""
    functions, left_out = _compiled(subject) if xla else (subject.plain, {})
    writer.save(functions, folder, subject.model)
    meta = graph.read(folder)
    try:
        graph.check_plain(meta, xla=xla)
    except ValueError as error:
        raise ValueError(f"{name} cannot be served: {error}") from None
    requests = {key: partial(subject.examples, key) for key in functions}
    records = serving.write_warmup(folder, name, requests, subject.batch_sizes)
    specs = [spec for key in functions for spec in subject.signatures[key].inputs.values()]
    ragged = any(None in spec.shape[1:] for spec in specs)
    (folder / serving.BATCHING).write_text(serving.batching_params(subject.batch_sizes, ragged))
    (folder / serving.EXTRA / META).write_text(json.dumps(_meta(subject, name, version, xla), indent=1) + "\n")
    found: list[SignatureReport] = []
    if check_it:
        sizes = subject.batch_sizes[:2] if xla else CHECKED_ROWS  # a new size costs a compilation
        # in bfloat16 a sum in another order, or a fused operation, differs in the third digit
        half = graph.computes_in_bfloat16(meta)
        tolerance = (5e-2 if half else 1e-3) if xla else (1e-2 if half else 1e-5)
        try:
            found, replayed = check(folder, subject.cases(functions, sizes), xla=xla, rtol=tolerance, atol=tolerance)
        except ValueError as error:
            raise ValueError(f"the export of {name} does not pass its check, and was removed: {error}") from None
        if replayed != records:
            raise ValueError(f"the export of {name} was removed: {replayed} of {records} warm-up records can be read")
    inputs = {key: subject.signatures[key].inputs for key in functions}
    outputs = {key: function.structured_outputs for key, function in functions.items()}
    card = model_card(
        name,
        version,
        subject.model,
        inputs,
        outputs,
        found,
        xla=xla,
        run=subject.run,
        checkpoint=subject.checkpoint,
        max_length=subject.max_length,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    return found, records, left_out


def _compiled(subject: _Subject) -> tuple[dict[str, Any], dict[str, str]]:
    """The signatures that XLA can compile, and what is missing: its name and why."""
    functions, left_out = {}, {}
    for name, signature in subject.signatures.items():
        function = writer.trace_compiled(name, signature)
        if function is None:
            left_out[name] = "strings cannot be compiled"
            continue
        try:
            writer.call(function, subject.examples(name, 1))
        except tf.errors.OpError as error:
            left_out[name] = one_line(error.message.strip().splitlines()[0])
            continue
        functions[name] = function
        for output in sorted(set(subject.plain[name].structured_outputs) - set(function.structured_outputs)):
            left_out[f"{name} `{output}`"] = "strings cannot be compiled"
    if not functions:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise ValueError(f"`xla` must be False for this model, which XLA cannot compile. {reasons}")
    return functions, left_out


def _meta(subject: _Subject, name: str, version: int, xla: bool) -> dict[str, Any]:
    return {
        "gentf": __version__,
        "name": name,
        "version": version,
        "model": type(subject.model).__name__,
        "xla": xla,
        "num_classes": subject.num_classes,
        "class_names": list(subject.run.spec.class_names) if subject.run is not None and subject.num_classes else [],
        "modality": subject.modality,
        "tokenizer": subject.tokenizer,
        "max_length": subject.max_length,
    }
