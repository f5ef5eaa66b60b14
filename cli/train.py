"""`gentf train`: fit a preset in a run folder."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click


@click.command()
@click.argument("preset", metavar="PRESET|RUN")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--data", metavar="NAME|PATH", help="Data set in place of the preset's: a name, a folder, a file.")
@click.option("--run", "run", metavar="DIR", help="Run folder to make, or to resume.  [default: runs/PRESET]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the run.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Decides every random number.")
@click.option("--dry-run", is_flag=True, help="Print config, shapes, steps and an estimate of time and memory only.")
def train(
    preset: str,
    overrides: Sequence[str],
    data: str | None,
    run: str | None,
    resume: bool,
    seed: int | None,
    dry_run: bool,
) -> None:
    """Train PRESET, with KEY=VALUE changes to its config.

    A killed or stopped run goes on where its last checkpoint is, as if it had never stopped:

    \b
      gentf train gan-mnist train.epochs=50 --run runs/mnist
      gentf train --resume runs/mnist
      gentf train --resume runs/mnist train.epochs=80
    """
    from gentf.config import load_yaml, preset_names, replace, resolve, with_override
    from gentf.errors import UserError

    is_run = (Path(preset) / "config.yaml").is_file()
    if resume and is_run:
        if run is not None:
            raise UserError(f"`--run` must be left out where RUN is given. Received: --run {run}")
        run = preset
        config = load_yaml(Path(run) / "config.yaml")
        for override in overrides:
            config = with_override(config, override)
    elif is_run and preset not in preset_names():
        raise UserError(
            f"`preset` must be a preset or a .yaml file; to go on with a run add --resume. Received: {preset}"
        )
    else:
        config = resolve(preset, overrides)
        run = run or str(Path("runs") / config.preset)
    if seed is not None:
        config = replace(config, "seed", seed)

    from gentf import compilation

    compiled = compilation.use_cache()  # before TensorFlow is imported

    from gentf.training import Interrupted, devices
    from gentf.training import train as fit
    from gentf.training.loop import with_data

    config = with_data(config, data or config.data.name)
    devices.use_one_thread_an_operation(config)
    bar = ProgressBar()
    try:
        if dry_run:
            from gentf.training.estimate import estimate

            click.echo(estimate(config, bar.loading))
            return
        fit(config, run, resume=resume, reporter=bar)
    except Interrupted as stop:
        bar.clear()
        click.echo(f"{stop}. Go on with: gentf train --resume {run}", err=True)
        raise click.exceptions.Exit(128 + stop.number) from None
    finally:
        bar.clear()
        if compiled:
            compilation.record(compiled)
    click.echo(f"trained: {run}  (samples: {run}/samples, curves: {run}/curves.png)")


class ProgressBar:
    """Shows a training on stderr: a bar on a terminal, one line an epoch elsewhere."""

    WIDTH = 24
    SECONDS = 0.1  # between redraws

    def __init__(self):
        self.live = sys.stderr.isatty()
        self._drawn = 0.0
        self._loaded = ""
        self._started: tuple[float, int] | None = None

    def message(self, text: str) -> None:
        self.clear()
        click.echo(text, err=True)

    def loading(self, label: str, done: int, total: int) -> None:
        if self.live:
            self._draw(done, total, label, force=done >= total)
        elif label != self._loaded:
            self.message(f"{label} ...")
        self._loaded = label

    def progress(self, step: int, total: int, epoch: int, epochs: int, values: dict[str, float]) -> None:
        if self._started is None:
            self._started = (time.monotonic(), step)
        if not self.live:
            return
        seconds, done = time.monotonic() - self._started[0], step - self._started[1]
        left = f"{clock(seconds / done * (total - step))} left" if done else ""
        self._draw(step, total, f"epoch {epoch}/{epochs}", f"{losses(values)}  {speed(values)}  {left}")

    def epoch(self, epoch: int, epochs: int, step: int, seconds_left: float, values: dict[str, float]) -> None:
        self.message(
            f"epoch {epoch}/{epochs}  step {step}  {losses(values)}  {speed(values)}  {clock(seconds_left)} left"
        )

    def clear(self) -> None:
        if self.live:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _draw(self, done: int, total: int, before: str, after: str = "", force: bool = False) -> None:
        if not force and time.monotonic() - self._drawn < self.SECONDS:
            return
        self._drawn = time.monotonic()
        share = min(1.0, done / max(1, total))
        full = int(share * self.WIDTH)
        bar = "#" * full + "-" * (self.WIDTH - full)
        click.echo(f"\r\x1b[K{before} [{bar}] {share:4.0%}  {after}", nl=False, err=True)


def losses(values: dict[str, float]) -> str:
    shown = [name for name in values if name.endswith("loss") and not name.startswith("val_")]
    shown += [name for name in ("val_sliced_wasserstein", "val_loss") if name in values][:1]
    return "  ".join(f"{name} {values[name]:.4g}" for name in shown)


def speed(values: dict[str, float]) -> str:
    if "steps_per_second" not in values:
        return ""
    return f"{values['steps_per_second']:.3g} steps/s  waiting for data {values['data_wait']:.1%}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
