"""`gentf sample`: draw from a run or from an export."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gentf.cli.evaluate import CheckpointType

if TYPE_CHECKING:
    import numpy as np


@click.command()
@click.argument("run", metavar="RUN|EXPORT|FILE.keras")
@click.option("-n", "--num", type=click.IntRange(1, 1_000_000), default=64, show_default=True, help="Samples to draw.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="The same seed, the same samples."
)
@click.option("--label", help="Class to draw, by name or number; conditional models only.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True,
    help="A .png file (grid), an .npz file (`image` uint8, `label`), or a folder (a .png file each).",
)  # fmt: skip
@click.option(
    "--checkpoint", type=CheckpointType(), default="last", show_default=True, help="Checkpoint to draw from; runs only."
)
def sample(run: str, num: int, seed: int, label: str | None, out: Path, checkpoint: str | int) -> None:
    """Draw samples from a run or an exported model.

    The same seed gives the same pixels from both.

    \b
      gentf sample runs/mnist -n 100 --seed 7 --out digits.png
      gentf sample runs/cgan --label 3 --out threes/
      gentf sample saved_models/mnist --out digits.npz
    """
    from gentf.errors import UserError

    if out.suffix not in (".png", ".npz", ""):
        raise UserError(f"`--out` must end in .png or .npz, or name a folder. Received: --out {out}")
    if not Path(run).exists():
        raise UserError(f"`run` must be a run folder or an export. Received: {run}")
    model, names = open_model(run, checkpoint)
    condition = None if label is None else class_index(label, names)

    from gentf.sampling import images

    pixels = images.to_uint8(model.sample(num, condition=condition, seed=seed))
    write(out, pixels, condition)
    click.echo(f"{num} samples: {out}")


def open_model(run: str, checkpoint: str | int):
    """What `sample` draws from, and the names of its classes (empty where it has none, or does not know them)."""
    if (Path(run) / "config.yaml").is_file():
        from gentf.training.run import Run

        folder = Run(run)
        model = folder.load_model(checkpoint, lambda text: click.echo(text, err=True))
        return model, folder.spec.class_names if model.num_classes else ()
    if run.endswith(".keras"):
        from gentf.models.saved import load_model

        return load_model(run), ()
    from gentf.export import load

    served = load(run)
    return served, served.class_names


def class_index(label: str, names: tuple[str, ...]) -> int:
    """The number of the class with this name or number."""
    from gentf.errors import UserError

    if label in names:
        return names.index(label)
    if label.isdigit() and (not names or int(label) < len(names)):
        return int(label)
    accepted = f"one of {', '.join(names)}" if names else "a class number, for a conditional model"
    raise UserError(f"`--label` must be {accepted}. Received: --label {label}")


def write(out: Path, pixels: "np.ndarray", condition: int | None) -> None:
    """Write (n, H, W, C) uint8 as a grid, arrays, or files."""
    import numpy as np

    from gentf.files import atomic_save
    from gentf.sampling import images

    if out.suffix == ".png":
        images.write_png(out, images.grid(pixels))
    elif out.suffix == ".npz":
        content = {"image": pixels} | (
            {} if condition is None else {"label": np.full(len(pixels), condition, np.int32)}
        )
        atomic_save(out, lambda file: np.savez_compressed(file, allow_pickle=False, **content))
    else:
        for index, image in enumerate(pixels):
            images.write_png(out / f"{index:06d}.png", image)
