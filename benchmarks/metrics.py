"""Precision, recall, density, coverage beside the package `prdc`: `python benchmarks/metrics.py [POINTS] [FEATURES]`.

Each runs in a process of its own, in turns, on two sets drawn from N(0, I): values, seconds, and the peak of memory
beyond what the process had before. With a third argument, DRAWS, ours alone: how the values differ from draw to draw.
"""

import json
import subprocess
import sys

import numpy as np

ROUNDS = 3
RUN = """
import json, resource, sys, time
import numpy as np
generator = np.random.default_rng(0)
real, generated = (generator.standard_normal((POINTS, FEATURES)) for _ in range(2))
if CONTENDER == "gentf":
    from gentf.metrics.manifold import prdc
    score = lambda: {name: estimate.value for name, estimate in prdc(real, generated, 5).items()}
else:
    import prdc
    score = lambda: prdc.compute_prdc(real, generated, 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
sys.stdout = sys.stderr
found = score()
sys.stdout = sys.__stdout__
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"seconds": seconds, "mib": peak / 1024} | {name: float(value) for name, value in found.items()}))
"""


def main(points: int = 10_000, features: int = 1000, draws: int = 0) -> None:
    if draws:
        return spread(points, features, draws)
    found: dict[str, list[dict[str, float]]] = {"gentf": [], "prdc": []}
    for _ in range(ROUNDS):
        for contender, rows in found.items():
            code = RUN.replace("POINTS", str(points)).replace("FEATURES", str(features))
            done = subprocess.run(
                [sys.executable, "-c", code.replace("CONTENDER", repr(contender))],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    for contender, rows in found.items():
        middle = sorted(rows, key=lambda row: row["seconds"])[ROUNDS // 2]
        print(contender, ", ".join(f"{name} {value:.6g}" for name, value in middle.items()))
    ours, theirs = (found[name][0] for name in found)
    apart = max(abs(ours[name] - theirs[name]) for name in ("precision", "recall", "density", "coverage"))
    print(f"largest difference {apart:.2g}")


def spread(points: int, features: int, draws: int) -> None:
    from gentf.metrics.manifold import prdc

    found: dict[str, list[float]] = {}
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        real, generated = (generator.standard_normal((points, features)) for _ in range(2))
        for name, estimate in prdc(real, generated, 5).items():
            found.setdefault(name, []).append(estimate.value)
    for name, values in found.items():
        told = f"{np.mean(values):.4g}, deviation of one draw {np.std(values, ddof=1):.2g}"
        print(f"{name} {told}, from {min(values):.4g} to {max(values):.4g}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
