"""Train a Config in a run folder, from the start or from the last checkpoint, step for step the same."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from gentf.config import differences, dump_yaml, replace
from gentf.data import DataSource
from gentf.errors import UserError
from gentf.files import atomic_path, atomic_write
from gentf.models import build, load_data
from gentf.models.base import GenerativeModel
from gentf.schema import Config, GANConfig
from gentf.training import checkpoint, devices, validation
from gentf.training.log import RunLog, draw_curves
from gentf.training.run import Run
from gentf.training.steps import Feed, Logs, Steps, call_sizes

LOOKED_AT = 256  # images of the train split that are looked at before training


class Reporter(Protocol):
    """Who shows a training to people; the command line's is a progress bar."""

    def message(self, text: str) -> None: ...

    def loading(self, label: str, done: int, total: int) -> None: ...

    def progress(self, step: int, total: int, epoch: int, epochs: int, values: dict[str, float]) -> None: ...

    def epoch(self, epoch: int, epochs: int, step: int, seconds_left: float, values: dict[str, float]) -> None: ...


class Silent:
    """A Reporter that shows nothing."""

    def message(self, text: str) -> None:
        pass

    def loading(self, label: str, done: int, total: int) -> None:
        pass

    def progress(self, step: int, total: int, epoch: int, epochs: int, values: dict[str, float]) -> None:
        pass

    def epoch(self, epoch: int, epochs: int, step: int, seconds_left: float, values: dict[str, float]) -> None:
        pass


class Interrupted(Exception):
    """A signal stopped the run; a checkpoint at `step` was saved. `number` is the signal's."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; saved at step {step}")
        self.number = number
        self.step = step


def train(config: Config, path: str | os.PathLike, *, resume: bool = False, reporter: Reporter | None = None) -> Run:
    """Train `config` in the folder `path`.

    Args:
        config: what to train.
        path: the run folder: new or empty, or an existing run with `resume`.
        resume: go on from the last whole checkpoint. The config must be the run's own; only `train.epochs` and
            `train.steps` may grow.
        reporter: shows what happens.
    Returns:
        The finished run.
    Raises:
        UserError: the folder, the data or the config will not do; or the loss is no longer a number.
        Interrupted: SIGINT or SIGTERM arrived; the run was saved first.
    """
    reporter = reporter or Silent()
    keras.utils.set_random_seed(config.seed)
    devices.prepare_logical_devices(config.train.devices)
    if resume:
        before = _with_shards(Run(path).config, 1)  # which a run has that knows of none
        config = _with_shards(config, before.train.shards)
        _check_resume(before, config)
    strategy = devices.make_strategy(config.train.devices)
    jit, why = devices.choose_jit(config, strategy)
    config = _with_shards(config, devices.choose_shards(config, jit))  # a run keeps them, on whatever cores it goes on
    if strategy.num_replicas_in_sync > 1 and config.optimizer.accumulate > 1:
        raise UserError(
            "`optimizer.accumulate` must be 1 on several devices. "
            f"Received: optimizer.accumulate={config.optimizer.accumulate}"
        )
    data = load_data(config, reporter.loading)
    if data.corrupt:
        names = ", ".join(data.corrupt[:3]) + (", ..." if len(data.corrupt) > 3 else "")
        reporter.message(f"skipped {len(data.corrupt)} corrupt files: {names}")
    with strategy.scope():
        model = build(config, data.spec)
    devices.set_shards(model, config, strategy)
    if resume:
        run = Run(path)
        atomic_write(run.path / "config.yaml", dump_yaml(config))
        run.config = config
    else:
        run = Run.create(path, config, data.spec)
    reporter.message(
        f"XLA {'on' if jit else 'off'} ({why}); {strategy.num_replicas_in_sync} device(s), {model.shards} shard(s)"
    )
    trainer = Trainer(run, config, data, model, strategy, jit, reporter)
    if resume:
        trainer.restore()
    trainer.fit()
    return run


class Trainer:
    """One training: the state between steps is the model, its optimizers, and the step."""

    def __init__(
        self,
        run: Run,
        config: Config,
        data: DataSource,
        model: GenerativeModel,
        strategy: tf.distribute.Strategy,
        jit: bool,
        reporter: Reporter,
    ):
        self.run, self.config, self.data, self.model = run, config, data, model
        self.strategy, self.reporter = strategy, reporter
        self.steps_per_epoch = data.train.steps(config.train.batch_size)
        self.total = total_steps(config, self.steps_per_epoch)
        self.step = 0
        self.best = math.inf
        if isinstance(config.model, GANConfig) and (config.model.r1 or config.model.r2):
            reporter.message(gamma_heuristic(config, data.spec.shape))
        self._jit = jit
        self._validator = validation.Validator(model, config)

    def restore(self) -> None:
        """Go back to the last whole checkpoint; to the start where there is none yet."""
        if self.run.checkpoints.steps():
            values, meta = self.run.checkpoints.load("last", self.reporter.message)
            checkpoint.restore(self.model, values)
            self.step = meta["step"]
            self.best = math.inf if meta["best"] is None else meta["best"]
        for step in self.run.checkpoints.steps():
            if step > self.step:  # damaged, or it would not have been passed over
                self.run.checkpoints.path(step).unlink()
        self.reporter.message(f"going on from step {self.step} of {self.total}")

    def fit(self) -> None:
        """Train to the end of the last epoch."""
        self._look_at_data()
        self.log = RunLog(self.run.path, self.step)
        self.window = Window()
        options = self.config.train
        feed = Feed(self.data.train, options.batch_size, self.config.seed, self.step, self.strategy)
        steps = Steps(self.model, self.strategy, options.steps_per_call, self._jit, feed)
        with stop_signals() as received:
            while self.step < self.total:
                before = self.step
                size = min(call_sizes(self.step, self.steps_per_epoch, steps.per_call), self.total - self.step)
                size = size if size == steps.per_call else 1
                started = time.perf_counter()
                taken = feed.take(self.step, size)
                waited = time.perf_counter() - started
                logs = steps.run(taken)
                self._check(logs)
                self.step += size
                self.window.add(logs, size, time.perf_counter() - started, waited)
                if _crossed(before, self.step, options.log_every):
                    self._log_window()
                epoch = min(self.step // self.steps_per_epoch + 1, options.epochs)
                self.reporter.progress(self.step, self.total, epoch, options.epochs, self.window.last)
                self._after_call(before)
                if received:
                    self._save()
                    self.log.close()
                    raise Interrupted(received[0], self.step)
        self.log.close()
        self._save_model()

    def _look_at_data(self) -> None:
        """Refuse data that the model is not for, before a step is spent on them."""
        if self.config.data.modality != "image":
            return
        images, labels = self.data.train.arrays(LOOKED_AT)
        problem = self.model.problem({"image": images, "label": labels})
        if problem:
            raise UserError(f"the data must be such as the model is for: {problem}. Received: {self.data.spec.name}")

    def _after_call(self, before: int) -> None:
        options = self.config.train
        if _crossed(before, self.step, self.steps_per_epoch) or self.step == self.total:
            self._end_epoch(-(-self.step // self.steps_per_epoch))
        elif options.checkpoint_every and _crossed(before, self.step, options.checkpoint_every):
            self._save()

    def _end_epoch(self, epoch: int) -> None:
        options = self.config.train
        # a mean over a few left-over steps would be a spike among the others: they join the next epoch's first line
        if 2 * self.window.steps >= min(options.log_every, self.steps_per_epoch) or self.step == self.total:
            self._log_window()
        values = self._validator.measure(self.data.validation)
        if values:
            self.log.write(self.step, epoch, values)
        if epoch % options.sample_every == 0 or self.step == self.total:
            held_out = self.data.validation if len(self.data.validation) else self.data.train
            validation.write_samples(self.model, self.config, held_out, self.run.path / "samples", self.step, self.log)
            draw_curves(self.run.path)
        remark = self.model.remark(values) if self.step == self.total else None
        if remark:
            self.reporter.message(remark)
        best = values.get(self.model.monitor, math.inf) < self.best
        if best:
            self.best = values[self.model.monitor]
        self._save(best, values)
        left = (self.total - self.step) / max(self.window.rate, 1e-9)
        self.reporter.epoch(epoch, options.epochs, self.step, left, self.window.last | values)

    def _save(self, best: bool = False, values: dict[str, float] | None = None) -> None:
        if tf.distribute.in_cross_replica_context() and not _is_chief():
            return  # one writer: every worker has the same weights
        meta = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "best": None if math.isinf(self.best) else self.best,
            "values": values or {},
        }
        try:
            self.run.checkpoints.save(self.model, meta, best)
        except FloatingPointError as error:
            raise self._diverged(f"{error} at step {self.step}") from None
        except OSError as error:
            raise UserError(
                f"cannot save at step {self.step}: {error.strerror or error}. {self._last_good()}; free space, then "
                f"`gentf train --resume {self.run.path}`"
            ) from None

    def _save_model(self) -> None:
        with atomic_path(self.run.path / "model.keras") as temporary:
            self.model.save(temporary)

    def _log_window(self) -> None:
        values = self.window.take()
        if values:
            self.log.write(self.step, self.step / self.steps_per_epoch, values)

    def _check(self, logs: Logs) -> None:
        """Stop if a loss is not a number or beyond all measure, before anything is saved."""
        for name, rows in logs.items():
            if not name.endswith("loss"):
                continue
            bad = np.flatnonzero((rows[:, 1] > 0) & ~(np.abs(rows[:, 0]) <= self.config.train.max_loss))
            if bad.size:
                step = self.step + int(bad[0]) + 1
                raise self._diverged(f"{name} is {rows[bad[0], 0]:.4g} at step {step}")

    def _diverged(self, what: str) -> UserError:
        rate = self.config.optimizer.learning_rate / 2
        other = "optimizer.clip_norm=1"
        if self.config.model.family == "gan":
            other = "another model.loss, or model.gradient_penalty=10 with model.discriminator_normalization=layer"
        return UserError(
            f"training stopped: {what}. {self._last_good()}. Try optimizer.learning_rate={rate:g}, {other}"
        )

    def _last_good(self) -> str:
        steps = self.run.checkpoints.steps()
        return f"The last good checkpoint is {self.run.checkpoints.path(steps[-1])}" if steps else "No checkpoint yet"


class Window:
    """Means of losses, and speed, since the last line of the log."""

    def __init__(self):
        self.rate = 0.0
        self.last: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self.steps, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, logs: Logs, steps: int, seconds: float, waited: float) -> None:
        for name, rows in logs.items():
            total = np.array([np.sum(rows[:, 0] * rows[:, 1]), np.sum(rows[:, 1])])
            self._sums[name] = self._sums.get(name, 0.0) + total
        self.steps += steps
        self._seconds += seconds
        self._waited += waited

    def take(self) -> dict[str, float]:
        """The means; "steps_per_second"; and "data_wait", the share of the time spent waiting for batches."""
        if not self.steps:
            return {}
        values = {name: float(total[0] / total[1]) for name, total in self._sums.items() if total[1]}
        self.rate = self.steps / self._seconds
        self.last = values | {"steps_per_second": self.rate, "data_wait": self._waited / self._seconds}
        self._clear()
        return self.last


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list while the block runs; a second SIGINT interrupts at once."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals go elsewhere
        yield received
        return
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def gamma_heuristic(config: Config, shape: tuple[int, ...]) -> str:
    """A gamma to start looking from, beside the run's own.

    Reference: Karras et al. (2020), "Training generative adversarial networks with limited data", appendix C.
    """
    model = config.model
    assert isinstance(model, GANConfig)
    pixels, batch = math.prod(shape[:2]) if len(shape) == 3 else 1, config.train.batch_size
    return (
        f"gamma: r1 {model.r1:g}, r2 {model.r2:g}; the heuristic 0.0002 x pixels / batch says "
        f"{0.0002 * pixels / batch:.2g} (more where training is unstable, less where samples lack detail)"
    )


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Steps of the whole training."""
    total = steps_per_epoch * config.train.epochs
    return total if config.train.steps is None else min(total, config.train.steps)


def _crossed(before: int, after: int, every: int) -> bool:
    return after // every > before // every


def _is_chief() -> bool:
    resolver = tf.distribute.get_strategy().cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def _check_resume(old: Config, new: Config) -> None:
    changed = [key for key in differences(old, new) if key not in ("train.epochs", "train.steps")]
    if changed:
        raise UserError(
            f"`config` must be the run's own to resume it ({', '.join(changed)} differ). Received: "
            + ", ".join(f"{key}={_value(new, key)} where the run has {_value(old, key)}" for key in changed[:3])
        )
    for name in ("epochs", "steps"):
        before, now = (getattr(config.train, name) or math.inf for config in (old, new))
        if now < before:
            raise UserError(
                f"`train.{name}` must be at least the run's {before} to resume it. Received: train.{name}={now}"
            )


def _with_shards(config: Config, shards: int | None) -> Config:
    return config if config.train.shards else replace(config, "train.shards", shards)


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def with_data(config: Config, name: str | Path) -> Config:
    """`config` on other data; a path is made absolute, so that the run can be resumed from anywhere."""
    text = str(name)
    if Path(text).exists():
        text = str(Path(text).resolve())
    return replace(config, "data.name", text, text)
