"""What the contenders share: a process that times steps when it is told to.

The parent writes a number of steps to standard input, the worker answers with milliseconds a step (and the share of
them spent waiting for data, where it measures that).
"""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(
    make: Callable[[], Callable[[int], dict | None]],
    gemm: Callable[[], object],
    warm_up: int,
    products: Callable[[], Callable[[], float] | None] = lambda: None,
    gemms: int = 1,
) -> None:
    """Answer requests.

    Args:
        make: builds the contender; `make()(steps)` trains that many steps.
        gemm: multiplies two 1024 x 1024 float32 matrices, or `gemms` pairs of them.
        warm_up: steps before the first measurement, enough to compile everything.
        products: builds what measures the milliseconds of the row's matrix products by themselves.
    """
    before = peak_mb()
    started = time.perf_counter()
    run = make()
    run(warm_up)
    first = time.perf_counter() - started
    print(json.dumps({"ready": True, "first_s": first, "memory_mb": peak_mb() - before}), flush=True)
    own = products()
    for line in sys.stdin:
        steps = int(line)
        started = time.perf_counter()
        extra = run(steps) or {}
        seconds = time.perf_counter() - started
        rates = []
        for _ in range(5):
            started = time.perf_counter()
            gemm()
            rates.append(2 * gemms * 1024**3 / (time.perf_counter() - started) / 1e9)
        if own is not None:
            extra["products_ms"] = own()
        print(json.dumps({"ms": 1000 * seconds / steps, "gflops": max(rates)} | extra), flush=True)


def peak_mb() -> float:
    """The largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
