"""Trains and evaluates presets over several seeds: `python benchmarks/seeds.py PRESET... [KEY=VALUE...] [--seeds 10]`.

Each run lies in its own folder under --folder, and what is finished there is not done again: a stopped series goes on
where it was. Prints a row a preset: the mean over seeds of each metric, with its standard error, and the time.
"""

import json
import os
import time
from pathlib import Path

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@click.command()
@click.argument("names", metavar="PRESET... [KEY=VALUE...]", nargs=-1, required=True)
@click.option("--seeds", default=10, show_default=True, help="How many, from 0 on.")
@click.option("--samples", default=10_000, show_default=True, help="Samples of an evaluation.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/seeds"), show_default=True)
def main(names: tuple[str, ...], seeds: int, samples: int, folder: Path) -> None:
    overrides = [name for name in names if "=" in name]
    rows = {}
    for preset in (name for name in names if "=" not in name):
        found = [one(preset, overrides, seed, samples, folder) for seed in range(seeds)]
        rows[" ".join([preset, *overrides])] = found
        click.echo("\n".join(table(rows)))


def one(preset: str, overrides: list[str], seed: int, samples: int, folder: Path) -> dict[str, float]:
    """The metrics of a run, and its "minutes"."""
    from gentf import evaluation
    from gentf.config import resolve
    from gentf.training.loop import train
    from gentf.training.run import Run

    path = folder / "-".join([preset, *(item.replace("/", "_") for item in overrides), str(seed)])
    done = path / "seeds.json"
    if not done.is_file():
        started = time.perf_counter()
        run = train(resolve(preset, [*overrides, f"seed={seed}"]), path, resume=(path / "config.yaml").is_file())
        minutes = (time.perf_counter() - started) / 60
        metrics = evaluation.evaluate(Run(run.path), samples=samples)["metrics"]
        values = {name: entry["value"] for name, entry in metrics.items()} | {"minutes": minutes}
        done.write_text(json.dumps(values))
    values = json.loads(done.read_text())
    click.echo(f"{path.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()), err=True)
    return values


def table(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of Markdown."""
    import numpy as np

    names = list(next(iter(rows.values()))[0])
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
