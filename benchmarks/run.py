"""`make bench`: time the training steps beside their peers, in turns, and write RESULTS.md and results.png."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
# gentf is what `gentf train` does (`train.jit=auto`); gentf-graph does not compile with XLA, gentf-xla does.
CONTENDERS = ("gentf", "gentf-graph", "gentf-xla", "gentf-fit", "keras-fit", "torch-eager", "torch-compiled")
# Compiling ten steps of the DCGAN in one loop takes XLA more than a minute on a CPU, and it is slower then.
LEFT_OUT = {"mlp": ("gentf-xla",), "dcgan": ("gentf-graph", "gentf-xla")}
STEPS = {"mlp": 200, "dcgan": 20}
TITLES = {
    "mlp": "MLP GAN 100-128-256-784 / 784-256-128-1, batch 128",
    "dcgan": "DCGAN 28x28x1, channels 32-64-128, batch 128",
}


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, network: str):
        torch = os.environ.get("GENTF_BENCH_TORCH")
        python, file = (
            (torch, "torch_peers.py") if contender.startswith("torch") else (sys.executable, "tensorflow_peers.py")
        )
        self.name = contender
        self.results: list[dict] = []
        self._process = subprocess.Popen(
            [str(python), str(HERE / file), contender, network],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE,
        )  # fmt: skip
        if not self._read().get("ready"):
            raise RuntimeError(f"{contender} did not start")

    def measure(self, steps: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self.results.append(self._read())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} stopped with status {self._process.wait()}")
        return json.loads(line)


def compare(network: str, rounds: int, contenders: list[str]) -> list[Worker]:
    names = [name for name in contenders if not name.startswith("torch") or os.environ.get("GENTF_BENCH_TORCH")]
    workers = []
    for name in names:
        started = time.perf_counter()
        workers.append(Worker(name, network))
        print(f"{network}: {name} is ready after {time.perf_counter() - started:.1f} s", file=sys.stderr)
    for number in range(rounds):
        for worker in workers:
            worker.measure(STEPS[network])
        told = ", ".join(f"{worker.name} {worker.results[-1]['ms']:.2f}" for worker in workers)
        print(f"{network}: round {number + 1}/{rounds}, ms a step: {told}", file=sys.stderr)
    for worker in workers:
        worker.stop()
    return workers


def table(network: str, workers: list[Worker]) -> str:
    ours = statistics.median(result["ms"] for result in workers[0].results)
    rate = statistics.median(result["gflops"] for worker in workers for result in worker.results)
    lines = [
        f"## {TITLES[network]}",
        "",
        f"Matrix products in between: {rate:.0f} GFLOP/s (1024 x 1024, float32).",
        "",
        "| contender | ms a step, median | least to most | times gentf | waiting for data |",
        "|---|---|---|---|---|",
    ]
    for worker in workers:
        times = [result["ms"] for result in worker.results]
        middle = statistics.median(times)
        waits = [result["data_wait"] for result in worker.results if "data_wait" in result]
        waiting = f"{statistics.median(waits):.1%}" if waits else ""
        lines.append(
            f"| {worker.name} | {middle:.2f} | {min(times):.2f} to {max(times):.2f} | {middle / ours:.2f} | {waiting} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, list[Worker]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(results), 3), layout="constrained")
    for axes, (network, workers) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items()):
        names = [worker.name for worker in workers]
        axes.barh(names[::-1], [statistics.median(r["ms"] for r in worker.results) for worker in workers][::-1])
        axes.set(title=TITLES[network].split(",")[0], xlabel="ms a step")
    figure.savefig(HERE / "results.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="all by default that are worth the time")
    arguments = parser.parse_args()
    results = {}
    for network in arguments.networks:
        usual = [name for name in CONTENDERS if name not in LEFT_OUT[network]]
        results[network] = compare(network, arguments.rounds, arguments.contenders or usual)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    head = [
        "# Training steps beside their peers",
        "",
        f"`make bench` at commit {commit.stdout.strip() or 'unknown'}; {os.cpu_count()} cores, {platform.machine()}, "
        f"{arguments.rounds} rounds in turns. What is compared, and how, stands in [README.md](README.md).",
        "",
        "![ms a step](results.png)",
        "",
    ]
    text = "\n".join(head) + "\n" + "\n\n".join(table(network, workers) for network, workers in results.items()) + "\n"
    (HERE / "RESULTS.md").write_text(text)
    draw(results)
    print(text)


if __name__ == "__main__":
    main()
