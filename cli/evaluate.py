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
    help="Held-out data to compare with.",
)
@click.option(
    "-n",
    "--samples",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Samples to draw: images at most as many as there are training images, points at most 2500, texts or pieces "
    "at most 200; of pairs, those that are answered, at most 2000.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed of the samples and of the standard errors.",
)
@click.option(
    "--checkpoint",
    type=CheckpointType(),
    default="last",
    show_default=True,
    help="Checkpoint to measure.",
)
@click.option(
    "--importance-samples",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Codes an image, of a model whose likelihood is estimated from them.",
)
@click.option(
    "--extractors",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Seeds of the extractor of features that images are measured in; 0 leaves out what needs one, and training on "
    "samples.",
)
@click.option(
    "--extractor", "brought", metavar="inception=PATH",
    help="Measure in a network whose weights you have, too: Inception v3's, without the top, as an .h5 file.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def evaluate(
    run: str,
    split: str,
    samples: int,
    seed: int,
    checkpoint: str | int,
    importance_samples: int,
    extractors: int,
    brought: str | None,
    as_json: bool,
) -> None:
    """Measure how good and how varied what the model in RUN makes is.

    RUN is a folder that `gentf train` made. Each metric is printed with its standard error, and between a
    floor and a ceiling: as a rule what held-out real data and a degenerate generator score. A likelihood
    stands between simple models of the same data: n-grams, or notes and pixels by themselves. Labelled images
    are judged by a small classifier, which is trained the first time and then kept in a cache. The result is
    also written to RUN/evaluation.json, and with pictures to RUN/report.html.
    """
    from gentf.errors import UserError

    if any(Path(run).glob("saved_model.pb")) or any(Path(run).glob("*/saved_model.pb")):
        raise UserError(f"`run` must be a folder that `gentf train` made, not a SavedModel. Received: {run}")

    kind, _, path = (brought or "").partition("=")
    if brought is not None and (kind != "inception" or not path):
        raise UserError(f"`--extractor` must be inception=PATH. Received: --extractor {brought}")

    from gentf import evaluation, report
    from gentf.training.run import Run

    folder = Run(run)

    terminal = sys.stderr.isatty()
    try:
        result = evaluation.evaluate(
            folder,
            split=split,
            samples=samples,
            importance_samples=importance_samples,
            extractors=extractors,
            inception=path or None,
            seed=seed,
            checkpoint=checkpoint,
            progress=show_progress if terminal else None,
            done=lambda model, source, found: report.write(
                folder.path / "report.html", folder, model, source, found, evaluation.METRICS
            ),
            warn=lambda text: click.echo(f"{CLEAR if terminal else ''}Warning: {text}", err=True),
        )
    finally:
        if terminal:
            click.echo(CLEAR, nl=False, err=True)
    text = json_format.dumps(result, indent=1) if as_json else lines_of(result, evaluation.METRICS)
    click.echo(text)


def show_progress(label: str, done: int, total: int) -> None:
    """One line on stderr, written over."""
    click.echo(f"{CLEAR}{label} {done}/{total}", nl=False, err=True)


NOUNS = {"image": "images", "points": "points", "text": "texts", "music": "pieces", "pairs": "answers"}
REAL = {
    "image": "real images score",
    "points": "points of the mixture score",
    "text": "real text scores",
    "music": "real pieces score",
    "pairs": "right answers score",
}
LABELS = {"fcd": "FCD", "kid": "KID"}  # what a distance in an extractor's features is called
UNITS = {"image": "an image", "text": "a token", "music": "a frame", "pairs": "a token"}


def lines_of(result: Mapping[str, Any], meanings: Mapping[str, Any]) -> str:
    """The table for people."""
    references, modality = result["references"], result["modality"]
    beside = {"image": "images", "points": "points", "text": "tokens", "music": "pieces", "pairs": "pairs"}[modality]
    lines = [
        f"{result['run']}: {result['samples']} {NOUNS[modality]} of {result['model']}, checkpoint "
        f"{result['checkpoint']}, beside {references[f'held_out_{beside}']} {result['split']} {beside} of "
        f"{result['data']}",
        "",
        f"{'':26}  {'value':>20}  {'floor':>9}  {'ceiling':>9}",
    ]
    real = False
    for name, entry in result["metrics"].items():
        value = f"{number(entry['value'])} ± {number(entry['stderr'])}"
        ends = (number(entry[end]) + ("*" if meanings[name].real == end else " ") for end in ("floor", "ceiling"))
        label = LABELS.get(name, name)
        if name in LABELS:  # a distance in features is one of its extractor, and never that of another
            label += f"[{result['extractors'][0]['name']}]"
        lines.append(f"{label:26}  {value:>20}  " + "  ".join(f"{end:>9}" for end in ends) + f"  {meanings[name].text}")
        real |= bool(meanings[name].real)
    lines.append("")
    if real:
        lines.append(f"* what {REAL[modality]}; the other end is a degenerate generator")
    if result.get("baselines"):
        told = ", ".join(f"{name} {number(value)}" for name, value in result["baselines"].items())
        lines.append(f"simple models fitted on train, nats {UNITS[modality]}: {told}")
        lines.append("a likelihood has no reference in real data: its floor and ceiling are of these, or certainty")
    if "importance" in result:
        about = result["importance"]
        codes = f"{about['samples']} codes {about['of']}"
        told = f"likelihoods are importance-sampled, {codes}: a bound, which more codes raise"
        if about["stderr"] is not None:
            told += f"; Monte Carlo error of the mean {number(about['stderr'])}"
        lines.append(told)
    if "extractors" in result:
        lines.append(f"distances in features, n={result['samples']}, over what training images score:")
        for about in result["extractors"]:
            told = ", ".join(
                f"{label} {number(about['metrics'][name]['value'])} over {number(about['metrics'][name]['floor'])}"
                for name, label in LABELS.items()
            )
            lines.append(f"  {about['name']}: {told}; FCD ratio {number(about['ratio'])}")
    if "copying" in result:
        said = result["copying"]
        lines.append(f"copies of the training set: {'told by ' + ', '.join(said) if said else 'no sign of them'}")
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
