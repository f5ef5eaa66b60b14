"""`gentf export`: the model in a run, as TensorFlow Serving loads it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gentf.cli.evaluate import CheckpointType

if TYPE_CHECKING:
    from gentf.export import ExportResult


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
def export(run: str, to: Path | None, version: int | None, xla: bool, checkpoint: str | int) -> None:
    """Export the model in RUN for TensorFlow Serving.

    RUN is a folder that `gentf train` made. DIR/NAME/N/ gets the SavedModel, warm-up requests, batching
    parameters and a model card; DIR/models.config gets an entry. The folder takes its name only when it is
    complete and a process without Keras and gentf, with XLA switched off, has given the same results as
    Python. docs/serving.md goes on from there.

    \b
      gentf export runs/mnist
      gentf export runs/mnist --to /srv/models/digits --checkpoint best
      gentf sample saved_models/mnist --out digits.png
    """
    from gentf.export import export as export_run
    from gentf.training.run import Run

    def warn(text: str) -> None:
        click.echo(f"Warning: {text}", err=True)

    result = export_run(Run(run), to, version=version, xla=xla, checkpoint=checkpoint, warn=warn)
    click.echo("\n".join(report(result)))


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
