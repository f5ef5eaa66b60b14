"""`make bench`: time training steps, decoding and kernels beside their peers, in turns, and write RESULTS.md.

A run of a part of them writes to the folder part/, and leaves the results of the last whole run as they are.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import operations
from rows import ROWS, SCALING, Row, decode_bytes

HERE = Path(__file__).parent
SCRIPTS = {"gentf": "ours.py", "keras": "keras_peers.py", "torch": "torch_peers.py", "transformers": "torch_peers.py"}


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, name: str, python: str, sizes: dict[str, int] | None = None):
        self.name = contender
        self.results: list[dict] = []
        script = SCRIPTS[contender.split("-")[0]] if name in ROWS else "operations.py"
        self._process = subprocess.Popen(
            [python, str(HERE / script), contender, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE,
            env=os.environ | {"GENTF_BENCH_SIZES": json.dumps(sizes or {})},
        )  # fmt: skip
        self.start = self._read()

    def measure(self, steps: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self.results.append(self._read())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def median(self, key: str = "ms") -> float:
        return statistics.median(result[key] for result in self.results if key in result)

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} stopped with status {self._process.wait()}")
        return json.loads(line)


def python_of(contender: str) -> str | None:
    """The interpreter of a contender; None where it is not installed."""
    if not contender.startswith(("torch", "transformers")):
        return sys.executable
    python = os.environ.get("GENTF_BENCH_TORCH")
    module = contender.split("-")[0]
    if not python or subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
        return None
    return python


def compare(name: str, rounds: int, contenders: list[str], sizes: dict[str, int] | None = None) -> list[Worker]:
    """Workers of a row or a kernel that have taken turns."""
    steps = ROWS[name].steps if name in ROWS else operations.STEPS[name]
    workers = []
    for contender in contenders:
        python = python_of(contender)
        if python is None:
            print(f"{name}: {contender} is not installed, left out", file=sys.stderr)
            continue
        started = time.perf_counter()
        workers.append(Worker(contender, name, python, sizes))
        print(f"{name}: {contender} is ready after {time.perf_counter() - started:.1f} s", file=sys.stderr)
    for number in range(rounds):
        for worker in workers:
            worker.measure(steps)
        told = ", ".join(f"{worker.name} {worker.results[-1]['ms']:.2f}" for worker in workers)
        print(f"{name}: round {number + 1}/{rounds}, ms a step: {told}", file=sys.stderr)
    for worker in workers:
        worker.stop()
    return workers


def best_peer(workers: list[Worker]) -> Worker | None:
    peers = [worker for worker in workers if not worker.name.startswith("gentf")]
    return min(peers, key=Worker.median, default=None)


def table(name: str, row: Row, workers: list[Worker]) -> str:
    ours = workers[0].median()
    rate = statistics.median(result["gflops"] for worker in workers for result in worker.results)
    told = f"Matrix products in between: {rate:.0f} GFLOP/s (1024 x 1024, float32)."
    if row.gflop:
        told += f" The model's {row.gflop:.3g} GFLOP a step take {1000 * row.gflop / rate:.3g} ms at that rate."
    if name.startswith("decode"):
        told += f" A token reads {decode_bytes(row.batch) / 1e6:.0f} MB of weights and cache."
    lines = [
        f"## {row.title}",
        "",
        told,
        "",
        "| contender | ms a step, median | least to most | times gentf | of the bound | first steps, s | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        times, middle = [result["ms"] for result in worker.results], worker.median()
        bound = f"{1000 * row.gflop / rate / middle:.0%}" if row.gflop else ""
        lines.append(
            f"| {worker.name} | {middle:.2f} | {min(times):.2f} to {max(times):.2f} | {middle / ours:.2f} | {bound} "
            f"| {worker.start['first_s']:.1f} | {worker.start['memory_mb']:.0f} |"
        )
    if any("products_ms" in result for result in workers[0].results):
        alone = workers[0].median("products_ms")
        lines += ["", f"The products at their own sizes, one after another and compiled by XLA, take {alone:.3g} ms, "
                  f"{alone / ours:.0%} of gentf's step."]  # fmt: skip
    if any("data_wait" in result for result in workers[0].results):
        lines += ["", f"gentf waits for data {workers[0].median('data_wait'):.1%} of the time."]
    return "\n".join(lines)


def kernel_tables(kernels: dict[str, list[str]], rounds: int) -> str:
    """Markdown tables of kernels, each in the forms named."""
    lines = ["## Kernels", "", "Forward and backward; memory is the peak above what the process held before."]
    for kernel, forms in kernels.items():
        workers = compare(kernel, rounds, forms)
        ours = workers[0].median()
        rate = statistics.median(result["gflops"] for worker in workers for result in worker.results)
        lines += [
            "",
            f"### {operations.TITLES[kernel]}",
            "",
            f"Matrix products in between: {rate:.0f} GFLOP/s (1024 x 1024, float32).",
            "",
            f"| form | ms, median | least to most | times {workers[0].name} | first, s | peak memory, MiB |",
            "|---|---|---|---|---|---|",
        ]
        for worker in workers:
            times, middle = [result["ms"] for result in worker.results], worker.median()
            lines.append(
                f"| {worker.name} | {middle:.1f} | {min(times):.1f} to {max(times):.1f} | {middle / ours:.2f} "
                f"| {worker.start['first_s']:.1f} | {worker.start['memory_mb']:.0f} |"
            )
    return "\n".join(lines)


def scaling(rounds: int, folder: Path) -> str:
    """Markdown tables and a picture of how a step's time grows, gentf beside eager PyTorch."""
    from matplotlib.figure import Figure

    lines = ["## How cost grows", "", "One size changed at a time; milliseconds a step, medians.", "",
             "![time by size](scaling.png)"]  # fmt: skip
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    panels = figure.subplots(len(SCALING), max(map(len, SCALING.values())), squeeze=False)
    for (name, changes), axes in zip(SCALING.items(), panels):
        lines += [
            "",
            f"### {ROWS[name].title}",
            "",
            "| changed | gentf | torch-eager | times gentf |",
            "|---|---|---|---|",
        ]
        for (size, values), panel in zip(changes.items(), axes):
            curves: dict[str, list[tuple[int, float]]] = {}
            for value in values:
                workers = compare(name, rounds, ["gentf", "torch-eager"], {size: value})
                times = [worker.median() for worker in workers]
                for worker, middle in zip(workers, times):
                    curves.setdefault(worker.name, []).append((value, middle))
                peer = f"{times[1]:.2f} | {times[1] / times[0]:.2f}" if len(times) > 1 else " | "
                lines.append(f"| {size.lower()} {value} | {times[0]:.2f} | {peer} |")
            for contender, points in curves.items():
                panel.loglog(*zip(*points), marker="o", label=contender)
            panel.set(xlabel=size.lower(), ylabel="ms a step", title=name)
            panel.set_xticks(values, [str(value) for value in values], minor=False)
            panel.minorticks_off()
            panel.legend(fontsize=7)
    figure.savefig(folder / "scaling.png", dpi=110)
    return "\n".join(lines)


def summary(results: dict[str, list[Worker]]) -> str:
    lines = ["| row | gentf, ms | next best | its ratio to gentf |", "|---|---|---|---|"]
    ratios = []
    for name, workers in results.items():
        peer = best_peer(workers)
        if peer is None:
            continue
        ratio = peer.median() / workers[0].median()
        if not name.startswith("decode"):
            ratios.append(ratio)
        lines.append(f"| {ROWS[name].title} | {workers[0].median():.2f} | {peer.name} | {ratio:.2f} |")
    if ratios:
        lines += ["", f"Median ratio of the training rows: {statistics.median(ratios):.2f}."]
    return "\n".join(lines)


def draw(results: dict[str, list[Worker]], folder: Path) -> None:
    """Each contender's time as a multiple of gentf's; shorter is faster."""
    from matplotlib.figure import Figure

    names = sorted({worker.name for workers in results.values() for worker in workers})
    figure = Figure(figsize=(9, 1.2 + 0.16 * sum(len(workers) + 1 for workers in results.values())))
    axes = figure.subplots()
    place, ticks = 0.0, []
    for name, workers in results.items():
        ours = workers[0].median()
        for worker in workers:
            axes.barh(-place, worker.median() / ours, color=f"C{names.index(worker.name)}", height=0.9)
            told = f"{worker.median():.3g}" if worker.median() < 100 else f"{worker.median():.0f}"
            axes.text(worker.median() / ours, -place, f" {worker.name} {told} ms", va="center", size=7)
            place += 1
        ticks.append((-(place - (len(workers) + 1) / 2), name))
        place += 1
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.axvline(1.0, color="0.5", linewidth=0.8)
    axes.set(xlabel="time of a step, in times gentf's", title="Steps beside their peers")
    axes.margins(x=0.15)
    figure.savefig(folder / "results.png", dpi=110, bbox_inches="tight")


def command() -> str:
    """What this run was asked for, in the form in which it can be asked again."""
    options = shlex.join(sys.argv[1:])
    return f"make bench ARGS='{options}'" if options else "make bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--kernels", nargs="*", default=list(operations.TITLES), choices=list(operations.TITLES))
    parser.add_argument("--no-scaling", action="store_true", help="leave out how cost grows with the sizes")
    parser.add_argument("--contenders", nargs="+", help="of rows and kernels; all of them by default")
    arguments = parser.parse_args()
    everything = arguments.rows == list(ROWS) and arguments.kernels == list(operations.TITLES)
    folder = HERE if everything and not arguments.no_scaling and not arguments.contenders else HERE / "part"
    folder.mkdir(exist_ok=True)

    def chosen(known: tuple[str, ...]) -> list[str]:
        return [name for name in known if not arguments.contenders or name in arguments.contenders]

    rows = {name: names for name in arguments.rows if (names := chosen(ROWS[name].contenders))}
    results = {name: compare(name, arguments.rounds, names) for name, names in rows.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    head = [
        "# Steps beside their peers",
        "",
        f"`{command()}` at commit {commit.stdout.strip() or 'unknown'}; {os.cpu_count()} cores, {platform.machine()}, "
        f"{arguments.rounds} rounds in turns. What is compared, and how, stands in [README.md](README.md).",
        "",
    ]
    if results:
        draw(results, folder)
        head += [summary(results), "", "![times of a step](results.png)", ""]
    tables = "\n\n".join(table(name, ROWS[name], workers) for name, workers in results.items())
    if not arguments.no_scaling:
        tables += "\n\n" + scaling(max(1, arguments.rounds - 1), folder)
    if arguments.kernels:
        forms = {kernel: names for kernel in arguments.kernels if (names := chosen(operations.FORMS[kernel]))}
        tables += "\n\n" + kernel_tables(forms, arguments.rounds)
    (folder / "RESULTS.md").write_text("\n".join(head) + "\n" + tables + "\n")
    print("\n".join(head) + "\n" + tables)


if __name__ == "__main__":
    main()
