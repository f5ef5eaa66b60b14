"""`gentf evaluate`: metrics of the model in a run folder."""

import json as json_format
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

CLEAR = "\r\x1b[K"  # start of the line, erased


class CheckpointType(click.ParamType):
    """`last`, `best` or a step."""

    name = "last|best|STEP"

    def convert(self, value, param, ctx):
        if value in ("last", "best") or isinstance(value, int):
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is not last, best or a step.", param, ctx)
        return int(value)


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="test",
    show_default=True,
    help="Held-out real images to compare with.",
)
@click.option(
    "-n",
    "--samples",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Images to draw, at most as many as there are training images.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed of the images and of the standard errors.",
)
@click.option(
    "--checkpoint",
    type=CheckpointType(),
    default="last",
    show_default=True,
    help="Checkpoint to measure.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def evaluate(run: str, split: str, samples: int, seed: int, checkpoint: str | int, as_json: bool) -> None:
    """Measure the images that the model in RUN makes.

    RUN is a folder that `gentf train` made. Each metric is printed with its standard error, and between a
    floor and a ceiling: what held-out real images and a degenerate generator score. Labelled data are judged
    by a small classifier, which is trained the first time and then kept in a cache. The result is also
    written to RUN/evaluation.json.
    """
    from gentf.errors import UserError

    if any(Path(run).glob("saved_model.pb")) or any(Path(run).glob("*/saved_model.pb")):
        raise UserError(f"`run` must be a folder that `gentf train` made, not a SavedModel. Received: {run}")

    from gentf import evaluation
    from gentf.training.run import Run

    terminal = sys.stderr.isatty()
    try:
        result = evaluation.evaluate(
            Run(run),
            split=split,
            samples=samples,
            seed=seed,
            checkpoint=checkpoint,
            progress=show_progress if terminal else None,
            warn=lambda text: click.echo(f"{CLEAR if terminal else ''}Warning: {text}", err=True),
        )
    finally:
        if terminal:
            click.echo(CLEAR, nl=False, err=True)
    text = json_format.dumps(result, indent=1) if as_json else report(result, evaluation.METRICS)
    click.echo(text)


def show_progress(label: str, done: int, total: int) -> None:
    """One line on stderr, written over."""
    click.echo(f"{CLEAR}{label} {done}/{total}", nl=False, err=True)


def report(result: Mapping[str, Any], meanings: Mapping[str, Any]) -> str:
    """The table for people."""
    references = result["references"]
    lines = [
        f"{result['run']}: {result['samples']} images of {result['model']}, checkpoint {result['checkpoint']}"
        f", beside {references['held_out_images']} {result['split']} images of {result['data']}",
        "",
        f"{'':22}  {'value':>20}  {'floor':>9}  {'ceiling':>9}",
    ]
    for name, entry in result["metrics"].items():
        value = f"{number(entry['value'])} ± {number(entry['stderr'])}"
        ends = (number(entry[end]) + ("*" if meanings[name].real == end else " ") for end in ("floor", "ceiling"))
        lines.append(f"{name:22}  {value:>20}  " + "  ".join(f"{end:>9}" for end in ends) + f"  {meanings[name].text}")
    lines += ["", "* what real images score; the other end is a degenerate generator"]
    if "classifier" in result:
        accuracy = result["classifier"]
        lines.append(
            "accuracy of the classifier itself on held-out real images: "
            f"{number(accuracy['test_accuracy'])} ± {number(accuracy['stderr'])}"
        )
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Four digits, or `?` where it is undefined."""
    return "?" if value is None else f"{value:.4g}"
