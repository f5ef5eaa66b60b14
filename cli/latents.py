"""`gentf latents`: pictures of what a model's codes hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gentf.cli.evaluate import CheckpointType

if TYPE_CHECKING:
    import numpy as np

SHOWN = ("reconstruct", "interpolate", "traverse")
SPAN = 3.0  # standard deviations of a normal prior, to both sides


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("what", metavar="WHAT", type=click.Choice(SHOWN))
@click.option("-n", "--rows", type=click.IntRange(1, 100), default=8, show_default=True, help="Rows of the picture.")
@click.option("--steps", type=click.IntRange(2, 100), default=9, show_default=True, help="Images in a row.")
@click.option("--linear", is_flag=True, help="interpolate: on straight lines; else on great circles.")
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True,
    help="Where the images come from: the first of it.",
)  # fmt: skip
@click.option("--checkpoint", type=CheckpointType(), default="last", show_default=True, help="Checkpoint of the run.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("latents.png"), show_default=True, help="A .png file."
)
def latents(
    run: str, what: str, rows: int, steps: int, linear: bool, split: str, checkpoint: str | int, out: Path
) -> None:
    """Draw what the codes of an autoencoder hold.

    RUN is the folder of one that was trained on images, WHAT one of these. reconstruct: images, and under them what is
    left of them after encoding and decoding. interpolate: from one image to another by way of their codes. traverse:
    one image, with one number of its code from -3 to 3 in each row; the numbers that vary most over images come first.

    \b
      gentf latents runs/vae reconstruct --out reconstructions.png
      gentf latents runs/vae interpolate -n 4 --steps 12
      gentf latents runs/vae traverse -n 10
    """
    from gentf.errors import UserError
    from gentf.sampling import images as pictures
    from gentf.training.run import Run

    if out.suffix.lower() != ".png":
        raise UserError(f"`out` must end in .png. Received: {out}")
    folder = Run(run)
    model: Any = folder.load_model(checkpoint)
    needed = ("reconstruct",) if what == "reconstruct" else ("encode", "decode", "latent_width")
    if folder.spec.modality != "image" or not all(hasattr(model, name) for name in needed):
        raise UserError(f"`run` must hold an autoencoder of images to {what}. Received: {type(model).__name__}")
    source = folder.load_data()
    held: Any = source.splits[split]
    wanted = {"reconstruct": rows * steps, "interpolate": 2 * rows, "traverse": 256}[what]
    images, labels = held.arrays(wanted)
    if len(images) < 2:
        raise UserError(f"the {split} split must hold at least two images. Received: {len(images)}")
    labels = labels if model.num_classes else None
    drawn = draw(model, what, images, labels, rows, steps, linear)
    pictures.write_png(out, pictures.grid(pictures.to_uint8(drawn), steps))
    click.echo(f"{what}: {out}")


def draw(
    model: Any, what: str, images: "np.ndarray", labels: "np.ndarray | None", rows: int, steps: int, linear: bool
) -> "np.ndarray":
    """(rows * steps, H, W, C) float32 in [-1, 1], row by row."""
    import numpy as np

    from gentf.sampling import latents as ways

    signed = images.astype(np.float32) / 127.5 - 1.0 if images.dtype == np.uint8 else images
    given = (images,) if labels is None else (images, labels)
    if what == "reconstruct":
        rebuilt = model.reconstruct(*given)
        lines = []
        for start in range(0, min(len(images), -(-rows // 2) * steps), steps):
            part = slice(start, start + steps)
            blank = np.ones((steps - len(signed[part]), *signed.shape[1:]), np.float32)
            lines += [signed[part], blank, rebuilt[part], blank]
        return np.concatenate(lines)
    codes = model.encode(*given)
    if what == "interpolate":
        pairs = min(rows, len(codes) // 2)
        path = (ways.linear if linear else ways.spherical)(codes[:pairs], codes[pairs : 2 * pairs], steps)
        along = None if labels is None else np.repeat(labels[:pairs], steps)
    else:
        most = np.argsort(-codes.var(axis=0), kind="stable")[:rows]
        path = ways.traverse(codes[0], most, np.linspace(-SPAN, SPAN, steps))
        along = None if labels is None else np.repeat(labels[:1], path.shape[0] * steps)
    path = path.reshape(-1, codes.shape[1])
    return model.decode(path) if along is None else model.decode(path, along)
