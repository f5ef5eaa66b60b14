"""What the contenders share: a process that times steps when it is told to.

The parent writes a number of steps to standard input, the worker answers with milliseconds a step (and the share of
them spent waiting for data, where it measures that).
"""

import json
import sys
import time
from collections.abc import Callable

BATCH, LATENT, HEIGHT, WIDTH = 128, 100, 28, 28
IMAGES = 12800  # drawn once: no contender reads files
LEARNING_RATE, BETA_1, BETA_2 = 2e-4, 0.5, 0.999
EMA_DECAY = 0.999


def serve(run: Callable[[int], dict | None], gemm: Callable[[], object]) -> None:
    """Answer requests. `run(steps)` trains that many; `gemm()` multiplies two 1024 x 1024 float32 matrices."""
    run(20)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        started = time.perf_counter()
        extra = run(steps) or {}
        seconds = time.perf_counter() - started
        rates = []
        for _ in range(5):
            started = time.perf_counter()
            gemm()
            rates.append(2 * 1024**3 / (time.perf_counter() - started) / 1e9)
        print(json.dumps({"ms": 1000 * seconds / steps, "gflops": max(rates)} | extra), flush=True)
