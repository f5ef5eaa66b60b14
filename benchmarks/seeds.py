"""Trains and evaluates presets over several seeds: `python benchmarks/seeds.py PRESET... [KEY=VALUE...] [--seeds 10]`.

What is finished stands in --results, with the commit it is of, and is not done again; a run that was stopped goes on
where its folder under --folder says. Prints a row a preset: the mean over seeds of each metric, with its standard
error, and the time. "fcd_ratio" is the mean over the extractors that were trained.

    python benchmarks/seeds.py r3gan-mnist sngan-mnist data.name=fashion_mnist --seeds 1 \
        --columns fcd_ratio,kid,precision,recall,density,coverage,train_on_samples,minutes
"""

import json
import os
import subprocess
import time
from pathlib import Path

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).parent


@click.command()
@click.argument("names", metavar="PRESET... [KEY=VALUE...]", nargs=-1, required=True)
@click.option("--seeds", default=10, show_default=True, help="How many, from 0 on.")
@click.option("--samples", default=10_000, show_default=True, help="Samples of an evaluation.")
@click.option("--columns", default="", help="Metrics that are shown, with commas between; default all.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/seeds"), show_default=True)
@click.option(
    "--results", type=click.Path(path_type=Path), default=HERE / "seeds.json", show_default="beside this file"
)
def main(names: tuple[str, ...], seeds: int, samples: int, columns: str, folder: Path, results: Path) -> None:
    from gentf.files import atomic_write

    overrides = [name for name in names if "=" in name]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    rows = {}
    for preset in (name for name in names if "=" not in name):
        label = " ".join([preset, *overrides])
        for seed in range(seeds):
            told = json.loads(results.read_text()) if results.is_file() else {}
            if str(seed) not in told.setdefault(label, {}):
                values = one(preset, overrides, seed, samples, folder)
                told[label][str(seed)] = {"commit": commit.stdout.strip(), "samples": samples, "values": values}
                atomic_write(results, json.dumps(told, indent=1))
            rows.setdefault(label, []).append(told[label][str(seed)]["values"])
            shown = ", ".join(f"{name} {value:.4g}" for name, value in rows[label][-1].items())
            click.echo(f"{label}, seed {seed}: {shown}", err=True)
        click.echo("\n".join(table(rows, columns.split(",") if columns else None)))


def one(preset: str, overrides: list[str], seed: int, samples: int, folder: Path) -> dict[str, float]:
    """The metrics of a run, and its "minutes" of training, as far as they were in one piece."""
    from gentf import evaluation
    from gentf.config import resolve
    from gentf.training.loop import train
    from gentf.training.run import Run

    path = folder / "-".join([preset, *(item.replace("/", "_") for item in overrides), str(seed)])
    started = time.perf_counter()
    run = train(resolve(preset, [*overrides, f"seed={seed}"]), path, resume=(path / "config.yaml").is_file())
    minutes = (time.perf_counter() - started) / 60
    result = evaluation.evaluate(Run(run.path), samples=samples)
    values = {name: entry["value"] for name, entry in result["metrics"].items()}
    ratios = [about["ratio"] for about in result.get("extractors", []) if about["name"].startswith("cnn-")]
    if ratios and None not in ratios:
        values["fcd_ratio"] = sum(ratios) / len(ratios)
    return values | {"minutes": minutes}


def table(rows: dict[str, list[dict[str, float]]], columns: list[str] | None = None) -> list[str]:
    """Lines of Markdown."""
    import numpy as np

    names = columns or list(next(iter(rows.values()))[0])
    lines = ["| run | seeds | " + " | ".join(names) + " |", "|---|" + "---|" * (len(names) + 1)]
    for label, found in rows.items():
        cells = []
        for name in names:
            values = np.array([values.get(name, np.nan) for values in found], np.float64)
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
            cells.append(f"{values.mean():.4g} ± {error:.2g}")
        lines.append(f"| {label} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
