"""Trains and evaluates presets over several seeds: `python benchmarks/seeds.py PRESET... [KEY=VALUE...] [--seeds 10]`.

What is finished stands in --results, with the commit it is of, and is not done again; a run that was stopped goes on
where its folder under --folder says. Prints a row a preset: the mean over seeds of each metric, with its standard
error, and the time. "fcd_ratio" is the mean over the extractors that were trained.

    python benchmarks/seeds.py r3gan-mnist sngan-mnist data.name=fashion_mnist --seeds 1 \
        --columns fcd_ratio,kid,precision,recall,density,coverage,train_on_samples,minutes
"""

import json
import multiprocessing
import os
import queue
import subprocess
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).parent
Results = dict[str, dict[str, dict]]


@click.command()
@click.argument("names", metavar="PRESET... [KEY=VALUE...]", nargs=-1, required=True)
@click.option("--seeds", default=10, show_default=True, help="How many, from 0 on.")
@click.option("--samples", default=10_000, show_default=True, help="Samples of an evaluation.")
@click.option("--jobs", default=1, show_default=True, help="Runs side by side, each on its share of the cores.")
@click.option("--columns", default="", help="Metrics that are shown, with commas between; default all.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/seeds"), show_default=True)
@click.option(
    "--results", type=click.Path(path_type=Path), default=HERE / "seeds.json", show_default="beside this file"
)
def main(
    names: tuple[str, ...], seeds: int, samples: int, jobs: int, columns: str, folder: Path, results: Path
) -> None:
    from gentf.files import atomic_write

    overrides = [name for name in names if "=" in name]
    labels = {preset: " ".join([preset, *overrides]) for preset in names if preset not in overrides}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    about = {"commit": git.stdout.strip(), "samples": samples}
    told: Results = json.loads(results.read_text()) if results.is_file() else {}
    with ThreadPoolExecutor(jobs) as threads:
        cores, shares = sorted(os.sched_getaffinity(0)), queue.SimpleQueue()
        for job in range(jobs):
            shares.put(cores[job % len(cores) :: jobs])
        asked: dict[Future, tuple[str, int]] = {}
        for preset, label in labels.items():
            for seed in range(seeds):
                if str(seed) not in told.get(label, {}):
                    future = threads.submit(alone, shares, preset, overrides, seed, samples, folder)
                    asked[future] = label, seed
        try:
            for future in as_completed(asked):
                label, seed = asked[future]
                values = future.result()
                told.setdefault(label, {})[str(seed)] = about | {"values": values}
                atomic_write(results, json.dumps(told, indent=1))
                shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                click.echo(f"{label}, seed {seed}: {shown}", err=True)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # after a failure nothing more begins
    rows = {label: [told[label][str(seed)]["values"] for seed in range(seeds)] for label in labels.values()}
    click.echo("\n".join(table(rows, columns.split(",") if columns else None)))


def alone(shares: queue.SimpleQueue, *arguments) -> dict[str, float]:
    """`one(*arguments)` in a process of its own, on a share of the cores that no other has."""
    share, context = shares.get(), multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, begin, (share,)) as process:
            return process.submit(one, *arguments).result()
    finally:
        shares.put(share)


def begin(share: list[int]) -> None:
    """Keeps a process to its share of the cores, and ends it with the one that began it."""
    os.sched_setaffinity(0, share)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def one(preset: str, overrides: list[str], seed: int, samples: int, folder: Path) -> dict[str, float]:
    """The metrics of a run, and its "minutes" of training, as far as they were in one piece."""
    from gentf import compilation

    programs = compilation.use_cache()  # before TensorFlow comes in
    from gentf import evaluation
    from gentf.config import resolve
    from gentf.training.loop import train
    from gentf.training.run import Run

    path = folder / "-".join([preset, *(item.replace("/", "_") for item in overrides), str(seed)])
    started = time.perf_counter()
    run = train(resolve(preset, [*overrides, f"seed={seed}"]), path, resume=(path / "config.yaml").is_file())
    minutes = (time.perf_counter() - started) / 60
    result = evaluation.evaluate(Run(run.path), samples=samples)
    if programs:
        compilation.record(programs)
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
