"""`gentf export`: the model in a run, as TensorFlow Serving loads it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gentf.cli.evaluate import CheckpointType

if TYPE_CHECKING:
    from gentf.export import ExportResult
    from gentf.sampling.constraints import Constraint
    from gentf.training.run import Run


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="DIR/NAME",
    help="Folder of the model; clients ask the server for NAME.  [default: saved_models/ and the run's name]",
)
@click.option(
    "--version",
    type=click.IntRange(1, 2**63 - 1),
    metavar="N",
    help="Version number; one that is there is never overwritten.  [default: the next integer]",
)
@click.option("--xla", is_flag=True, help="Also write DIR/NAME-xla, for servers that compile with XLA.")
@click.option("--checkpoint", type=CheckpointType(), default="last", show_default=True, help="Checkpoint to export.")
@click.option(
    "--regex", metavar="NAME=PATTERN", multiple=True,
    help="Text: also a signature generate_NAME, whose text matches as a whole; may be given several times.",
)  # fmt: skip
@click.option(
    "--json-schema", metavar="NAME=FILE", multiple=True,
    help="Text: also a signature generate_NAME, whose text is JSON that satisfies the schema in FILE.",
)  # fmt: skip
def export(
    run: str,
    to: Path | None,
    version: int | None,
    xla: bool,
    checkpoint: str | int,
    regex: tuple[str, ...],
    json_schema: tuple[str, ...],
) -> None:
    """Export the model in RUN for TensorFlow Serving.

    RUN is a folder that `gentf train` made. DIR/NAME/N/ gets the SavedModel, warm-up requests, batching
    parameters and a model card; DIR/models.config gets an entry. The folder takes its name only when it is
    complete and a process without Keras and gentf, with XLA switched off, has given the same results as
    Python. docs/serving.md goes on from there.

    \b
      gentf export runs/mnist
      gentf export runs/mnist --to /srv/models/digits --checkpoint best
      gentf sample saved_models/mnist --out digits.png
      gentf export runs/docs --regex "number=[0-9]{1,4}"
    """
    from gentf.export import export as export_run
    from gentf.training.run import Run

    def warn(text: str) -> None:
        click.echo(f"Warning: {text}", err=True)

    source = Run(run)
    rules = constraints(source, regex, json_schema)
    result = export_run(
        source, to, version=version, xla=xla, checkpoint=checkpoint, constraints=rules or None, warn=warn
    )
    click.echo("\n".join(report(result)))


def constraints(run: "Run", regexes: tuple[str, ...], schemas: tuple[str, ...]) -> dict[str, "Constraint"]:
    """The rules that the options name, over the tokens of the run's model."""
    found: dict[str, Constraint] = {}
    if not regexes and not schemas:
        return found
    import json

    from gentf.data.sequences import codec_of
    from gentf.data.text import read_text
    from gentf.errors import UserError
    from gentf.sampling.json_schema import json_schema
    from gentf.sampling.regex import regex

    codec = codec_of(run.spec.tokenizer)
    if codec is None:
        raise UserError("`--regex` and `--json-schema` must be left out for a model that is not of text. Received: one")
    for option, values in (("--regex", regexes), ("--json-schema", schemas)):
        for value in values:
            name, separator, rule = value.partition("=")
            if not separator or not name or not rule or name in found:
                what = "PATTERN" if option == "--regex" else "FILE"
                raise UserError(f"`{option}` must be NAME={what}, each name once. Received: {option} {value}")
            if option == "--regex":
                found[name] = regex(rule, codec.pieces)
                continue
            try:
                schema = json.loads(read_text(rule))
            except json.JSONDecodeError as error:
                raise UserError(f"`--json-schema` must be a file of JSON. Received: {rule} ({error})") from None
            found[name] = json_schema(schema, codec.pieces)
    return found


def report(result: "ExportResult") -> list[str]:
    """What was written and checked, one line a signature."""
    lines = []
    for part in (result, result.xla):
        if part is None:
            continue
        lines.append(f"{part.path}: {part.name}, version {part.version}, {part.warmup} warm-up requests")
        lines += [
            f"  {found.name}: {found.rows} rows agree with Python, floats within {found.max_difference:.2g}"
            for found in part.signatures
        ]
    lines.append(f"{result.models}: entry for {', '.join(p.name for p in (result, result.xla) if p is not None)}")
    return lines
