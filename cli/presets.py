"""`gentf presets`: the starting points that come with the package."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gentf.schema import Config

HEADER = ("PRESET", "DATA", "NETWORK", "LOSS", "EPOCHS", "BATCH", "DESCRIPTION")


@click.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the presets, or print one with every value.

    NAME is a preset, or the path of a YAML file. It is printed as YAML with its defaults filled in, which is
    itself such a file:

    \b
      gentf presets gan-mnist > mine.yaml
      gentf train mine.yaml
    """
    from gentf.config import dump_yaml, preset_names, resolve

    if name is not None:
        click.echo(dump_yaml(resolve(name)), nl=False)
        return
    rows = [summary(resolve(preset)) for preset in preset_names()]
    click.echo("\n".join(table([HEADER, *rows])))


def summary(config: "Config") -> tuple[str, ...]:
    """The row of one preset, in the columns of HEADER."""
    model = config.model
    network = getattr(model, "network", getattr(model, "cell", model.family))
    loss = getattr(model, "loss", "likelihood").replace("_", "-")
    loss += ", by class" if getattr(model, "conditional", False) else ""
    return (
        config.preset,
        config.data.name,
        network,
        loss,
        str(config.train.epochs),
        str(config.train.batch_size),
        config.description,
    )


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines with the columns of `rows` padded to one width; numbers are set to the right."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(cell.isdigit() for cell in column[1:]) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]
