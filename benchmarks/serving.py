"""A warm request to an export beside the same call in Python, in turns: `python benchmarks/serving.py`.

A Transformer of 4 layers of 256 over characters goes on from prompts of several lengths. The export is loaded with XLA
switched off, as in a stock server; Python's call is `sample` as it is by default, without XLA.
"""

import ctypes
import os
import statistics
import tempfile
import time
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from gentf.export import export, load
from gentf.models import Transformer

ALPHABET = "\n !,.:;?" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["ROMEO:", "First Citizen:\nBefore we proceed any further", "A", "The king is dead. Long live"]
LENGTH, ROUNDS = 200, 7


def main() -> None:
    tokenizer = {"kind": "char", "characters": "".join(sorted(ALPHABET))}
    model = Transformer(len(ALPHABET) + 1, 128, 4, 256, 4, tokenizer=tokenizer, start=(1,))
    library = ctypes.CDLL(os.path.join(os.path.dirname(tf.__file__), "libtensorflow_cc.so.2"))
    library._ZN10tensorflow21DisableXlaCompilationEv()
    with tempfile.TemporaryDirectory() as folder:
        served = load(export(model, os.path.join(folder, "served"), check=False, batch_sizes=(1,)).path)
        print("| batch | Python, ms | export, ms | export / Python | same tokens |\n|---|---|---|---|---|")
        for batch in (1, 4, 16):
            prompts = (PROMPTS * batch)[:batch]
            common = {"prompt": prompts, "seed": 7, "temperature": 0.8, "top_p": 0.95, "max_length": LENGTH}
            calls = {
                "python": partial(model.sample, batch, **common),
                "export": partial(served.sample, batch, **common),
            }
            times = {name: [] for name in calls}
            texts = {name: call() for name, call in calls.items()}  # the first traces
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    started = time.perf_counter()
                    call()
                    times[name].append(1000 * (time.perf_counter() - started))
            python, exported = (statistics.median(times[name]) for name in calls)
            same = np.all([a == b for a, b in zip(texts["python"], texts["export"])])
            print(f"| {batch} | {python:.0f} | {exported:.0f} | {exported / python:.2f} | {'yes' if same else 'no'} |")


if __name__ == "__main__":
    main()
