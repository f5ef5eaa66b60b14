"""`gentf data`: what data sets there are, and what one of them holds."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gentf.errors import UserError

if TYPE_CHECKING:
    from gentf.data import DataSource

CLASSES_SHOWN = 20
FILES_SHOWN = 10


@click.command()
@click.argument("name", metavar="[NAME|PATH]", required=False)
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--all", "show_all", is_flag=True, help="List every TFDS builder too, with images or without.")
def data(name: str | None, overrides: Sequence[str], show_all: bool) -> None:
    """List the data sets at hand, or describe one.

    NAME is an embedded set or a TFDS image builder, PATH a folder of images or an .npz file. The keys of the
    sections `data` and `image` can be set as for training:

    \b
      gentf data
      gentf data mnist
      gentf data photos image.size=[64,64] data.cache_mb=256
    """
    if name is None:
        click.echo("\n".join(listing(show_all)))
        return
    if show_all:
        raise UserError(f"`--all` lists data sets: leave it out, or NAME. Received: {name} --all")
    wrong = [item for item in overrides if not item.startswith(("data.", "image.")) or item.startswith("data.name=")]
    if wrong:
        raise UserError(f"`KEY` must be one of `data` or `image`, and not `data.name`. Received: {wrong[0]}")

    from gentf.cli.train import ProgressBar
    from gentf.config import resolve
    from gentf.data import load

    config = resolve("gan-digits", overrides)
    settings = {**dataclasses.asdict(config.image), **dataclasses.asdict(config.data)}
    del settings["name"]
    bar = ProgressBar()
    try:
        source = load(name, **settings, progress=bar.loading if sys.stderr.isatty() else None)
    finally:
        bar.clear()
    click.echo("\n".join(description(source)))


def listing(show_all: bool = False) -> list[str]:
    """Lines that name the data sets at hand."""
    from gentf.data.builders import builder_names, data_dir, prepared_builders
    from gentf.data.embedded import EMBEDDED

    lines = ["embedded:", *(f"  {name}  {text}" for name, text in EMBEDDED.items())]
    prepared = prepared_builders()
    lines += [f"prepared in {data_dir()}:", *(f"  {name}" for name in prepared or ["(none)"])]
    if show_all:
        lines += ["TFDS builders, downloaded when first used:", *(f"  {name}" for name in builder_names())]
    else:
        lines += [f"downloaded when first used: the image sets among {len(builder_names())} TFDS builders (--all)"]
    return [*lines, "your own: a folder of PNG, JPEG, BMP or GIF files, or an .npz file"]


def description(source: "DataSource") -> list[str]:
    """Lines that say what a data source holds."""
    spec = source.spec
    height, width, channels = spec.shape
    low, high = spec.value_range
    rows = [
        ("name", spec.name),
        ("images", f"{height} x {width} x {channels} (height x width x channels), {spec.dtype} in {low:g}..{high:g}"),
    ]
    rows += [(name, f"{len(split)} images") for name, split in source.splits.items()]
    rows.append(("classes", shortened(spec.class_names, CLASSES_SHOWN) if spec.class_names else "none"))
    rows.append(("licence", spec.licence))
    if source.corrupt:
        rows.append(("unreadable", f"left out: {shortened(source.corrupt, FILES_SHOWN)}"))
    megabytes = sum(map(len, source.splits.values())) * height * width * channels / 1e6
    megabytes *= 4 if spec.dtype == "float32" else 1
    rows.append(("decoded", f"{megabytes:.1f} MB, {'held in memory' if source.cached else 'streamed'}"))
    rows.append(("fingerprint", source.fingerprint[:16]))
    return [f"{label + ':':<12} {text}" for label, text in rows]


def shortened(names: Sequence[str], limit: int) -> str:
    """How many there are, and the first of them."""
    return f"{len(names)}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
