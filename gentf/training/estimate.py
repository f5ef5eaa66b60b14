"""What a training would be: shapes, sizes, and a measured guess at time and memory. Nothing is written."""

import resource
import time
from collections.abc import Callable

import numpy as np

from gentf.config import dump_yaml, replace
from gentf.data import DataSpec
from gentf.models import build, load_data
from gentf.schema import Config
from gentf.training import checkpoint, devices
from gentf.training.loop import total_steps
from gentf.training.steps import Feed, Steps, call_sizes

MB = 1024.0**2


def estimate(config: Config, loading: Callable[[str, int, int], None] | None = None) -> str:
    """Describe the training of `config`, for people to read.

    Time and memory are measured on a few steps of a model that is then thrown away.
    """
    devices.prepare_logical_devices(config.train.devices)
    strategy = devices.make_strategy(config.train.devices)
    data = load_data(config, loading)
    with strategy.scope():
        model = build(config, data.spec)
    jit, why = devices.choose_jit(config, strategy)
    config = replace(config, "train.shards", devices.choose_shards(config, jit))
    devices.set_shards(model, config, strategy)
    feed = Feed(data.train, config.train.batch_size, config.seed, 0, strategy)
    steps = Steps(model, strategy, config.train.steps_per_call, jit, feed)
    steps_per_epoch = data.train.steps(config.train.batch_size)
    total = total_steps(config, steps_per_epoch)
    seconds = _seconds_a_step(steps, feed, call_sizes(0, steps_per_epoch, steps.per_call))
    size = sum(array.nbytes for array in checkpoint.arrays(model).values())
    parts = {layer.name: layer.count_params() for layer in model.layers} if config.model.family == "gan" else {}
    parts = parts or {"in all": model.count_params()}
    splits = {split.name: len(split) for split in (data.train, data.validation, data.test)}
    lines = [
        dump_yaml(config).rstrip(),
        "",
        f"data         {data.spec.name}: " + ", ".join(f"{count:,} {name}" for name, count in splits.items()),
        f"example      {data.spec.modality}, {' x '.join(map(str, data.spec.shape))}, {_kinds(data.spec)}",
        "parameters   " + ", ".join(f"{count:,} {name}" for name, count in parts.items()),
        f"steps        {steps_per_epoch:,} an epoch x {config.train.epochs} = {total:,}",
        f"XLA          {'on' if jit else 'off'} ({why})",
        f"checkpoint   {size / MB:.1f} MB each, {config.train.keep_checkpoints} kept and the best",
        f"memory       about {_peak_memory() / MB:,.0f} MB (peak of this process after the steps that were measured)",
        f"time         about {_duration(seconds * total)} ({1000 * seconds:.1f} ms a step)",
    ]
    return "\n".join(lines)


def _kinds(spec: DataSpec) -> str:
    return f"{spec.vocabulary} tokens" if spec.vocabulary else f"{spec.num_classes} classes"


def _seconds_a_step(steps: Steps, feed: Feed, size: int) -> float:
    steps.run(feed.take(0, size))  # traces and compiles
    times = []
    for _ in range(3):
        started = time.perf_counter()
        steps.run(feed.take(0, size))
        times.append((time.perf_counter() - started) / size)
    return float(np.median(times))


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
