"""`gentf data`: what data sets there are, and what one of them holds."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gentf.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from gentf.data import DataSource, Split

CLASSES_SHOWN = 20
FILES_SHOWN = 10
PAIRS_SHOWN = 3
SECTIONS: dict[str, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("text",),
    "music": ("music",),
    "pairs": ("pairs", "text"),
    "points": (),
}


@click.command()
@click.argument("name", metavar="[NAME|PATH]", required=False)
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--all", "show_all", is_flag=True, help="List every TFDS builder too, with images or without.")
def data(name: str | None, overrides: Sequence[str], show_all: bool) -> None:
    """List the data sets at hand, or describe one.

    NAME is an embedded set or a TFDS builder, PATH a folder or a file of images, text, music or pairs. Which of these
    it is shows in its name or its files; data.modality=image|text|music|pairs|points decides where it does not. Each
    KEY of the sections `data`, `image`, `text`, `music` and `pairs` can be set as for training:

    \b
      gentf data
      gentf data mnist
      gentf data photos image.size=[64,64] data.cache_mb=256
      gentf data novel.txt text.tokenizer=bpe text.vocabulary=1024
      gentf data chorales music.tokens=chords
    """
    if name is None:
        click.echo("\n".join(listing(show_all)))
        return
    if show_all:
        raise UserError(f"`--all` lists data sets: leave it out, or NAME. Received: {name} --all")
    known = ["data", *SECTIONS["image"], *SECTIONS["pairs"], *SECTIONS["music"]]
    wrong = [item for item in overrides if item.partition(".")[0] not in known or item.startswith("data.name=")]
    if wrong:
        raise UserError(f"`KEY` must be one of {', '.join(known)}, and not `data.name`. Received: {wrong[0]}")

    from gentf.cli.train import ProgressBar
    from gentf.config import replace, resolve
    from gentf.data.loading import modality_of
    from gentf.models import load_data

    config = resolve("gan-digits", overrides)
    if not any(item.startswith("data.modality=") for item in overrides):
        config = replace(config, "data.modality", modality_of(name))
    modality = config.data.modality
    idle = [item for item in overrides if item.partition(".")[0] not in ("data", *SECTIONS[modality])]
    if idle:
        accepted = ", ".join(("data", *SECTIONS[modality]))
        raise UserError(f"`KEY` must be one of {accepted} for data of modality {modality}. Received: {idle[0]}")
    bar = ProgressBar()
    try:
        source = load_data(replace(config, "data.name", name), bar.loading if sys.stderr.isatty() else None)
    finally:
        bar.clear()
    click.echo("\n".join(description(source)))


def listing(show_all: bool = False) -> list[str]:
    """Lines that name the data sets at hand."""
    from gentf.data import embedded, points, sequences, stacked, text
    from gentf.data.builders import builder_names, data_dir, prepared_builders

    sets = embedded.EMBEDDED | points.EMBEDDED | {name: f"{about} (text)" for name, about in text.EMBEDDED.items()}
    sets |= sequences.EMBEDDED
    lines = ["embedded:", *(f"  {name}  {about}" for name, about in sets.items())]
    lines += ["made of a builder:", f"  {stacked.NAME}  {stacked.ABOUT}"]
    prepared = prepared_builders()
    lines += [f"prepared in {data_dir()}:", *(f"  {name}" for name in prepared or ["(none)"])]
    if show_all:
        lines += ["TFDS builders, downloaded when first used:", *(f"  {name}" for name in builder_names())]
    else:
        number = len(builder_names())
        lines += [f"downloaded when first used: the sets of images or of text among {number} TFDS builders (--all)"]
    return [
        *lines,
        "your own: images in a folder of PNG, JPEG, BMP or GIF files, or in an .npz file; text in a file or a folder; "
        "music in a folder of MIDI files, a .mat, .json or .npz file; pairs in a .tsv file",
    ]


def description(source: "DataSource") -> list[str]:
    """Lines that say what a data source holds."""
    spec = source.spec
    rows = [("name", spec.name)]
    kinds = {"image": _of_images, "text": _of_text, "music": _of_music, "pairs": _of_pairs, "points": _of_points}
    rows += kinds[spec.modality](source)
    rows.append(("fingerprint", source.fingerprint[:16]))
    return [f"{label + ':' if label else '':<12} {text}" for label, text in rows]


def _of_images(source: "DataSource") -> list[tuple[str, str]]:
    spec = source.spec
    height, width, channels = spec.shape
    low, high = spec.value_range
    shape = f"{height} x {width} x {channels} (height x width x channels), {spec.dtype} in {low:g}..{high:g}"
    rows = [("images", shape)]
    rows += [(name, f"{len(split)} images") for name, split in source.splits.items()]
    rows.append(("classes", shortened(spec.class_names, CLASSES_SHOWN) if spec.class_names else "none"))
    rows.append(("licence", spec.licence))
    if source.corrupt:
        rows.append(("unreadable", f"left out: {shortened(source.corrupt, FILES_SHOWN)}"))
    megabytes = sum(map(len, source.splits.values())) * height * width * channels / 1e6
    megabytes *= 4 if spec.dtype == "float32" else 1
    rows.append(("decoded", f"{megabytes:.1f} MB, {'held in memory' if source.cached else 'streamed'}"))
    return rows


def _of_points(source: "DataSource") -> list[tuple[str, str]]:
    from gentf.data.points import MIXTURES

    spec, mixture = source.spec, MIXTURES[source.spec.name]
    modes = f"{spec.num_classes} normal modes, standard deviation {mixture.scale:g}"
    rows = [("points", f"of {spec.shape[0]} numbers; {modes}")]
    rows += [(name, f"{len(split)} points") for name, split in source.splits.items()]
    return [*rows, ("licence", spec.licence)]


def _of_text(source: "DataSource") -> list[tuple[str, str]]:
    from gentf.data.sequences import codec_of

    spec, codec = source.spec, codec_of(source.spec.tokenizer)
    assert spec.tokenizer is not None and codec is not None  # a text set has one
    rows = [("tokens", f"{spec.tokenizer['kind']}, a vocabulary of {spec.vocabulary} with the boundary, in windows of "
                       f"{spec.shape[0]}")]  # fmt: skip
    for name, split in source.splits.items():
        stream = _stream(split)
        if not len(stream):
            rows.append((name, "none"))
            continue
        documents = max(1, int((stream == 0).sum()) - 1)
        size = f"{len(codec.decode(stream))} characters, {int((stream != 0).sum())} tokens"
        rows.append((name, f"{size}, {documents} document{'s' if documents > 1 else ''}"))
    return [*rows, ("licence", spec.licence)]


def _of_music(source: "DataSource") -> list[tuple[str, str]]:
    import numpy as np

    from gentf.data import midi

    spec = source.spec
    assert spec.tokenizer is not None
    kind, block = spec.tokenizer["kind"], spec.shape[0]
    if kind == "frames":
        rows = [("frames", f"of {spec.shape[1]} keys; train is cut into parts of at most {block}")]
        for name, split in source.splits.items():
            lengths = split.contents()["length"] if len(split) else np.zeros(0, int)
            rows.append((name, f"{len(lengths)} {'parts' if name == 'train' else 'pieces'}, {lengths.sum()} frames"))
        return [*rows, ("licence", spec.licence)]
    rows = [("tokens", f"{kind}, a vocabulary of {spec.vocabulary} with the boundary, in windows of {block}")]
    for name, split in source.splits.items():
        stream = _stream(split)
        first = len(midi.EVENTS) - midi.MAX_SHIFT  # the event that lets one frame pass
        passed = (stream == len(midi.CHORDS) - 1) if kind == "chords" else np.maximum(stream - first + 1, 0)
        pieces = max(0, int((stream == 0).sum()) - 1)
        rows.append((name, f"{pieces} pieces, {int(passed.sum())} frames, {int((stream != 0).sum())} tokens"))
    return [*rows, ("licence", spec.licence)]


def _of_pairs(source: "DataSource") -> list[tuple[str, str]]:
    from gentf.data.sequences import codec_of

    spec, codec = source.spec, codec_of(source.spec.tokenizer)
    assert spec.tokenizer is not None and codec is not None
    rows = [("tokens", f"{spec.tokenizer['kind']}, a vocabulary of {spec.vocabulary} with the boundary; at most "
                       f"{spec.shape[0]} in a source, {spec.shape[1]} in a target")]  # fmt: skip
    rows += [(name, f"{len(split)} pairs") for name, split in source.splits.items()]
    if len(source.train):
        content = source.train.contents()
        for row, (given, wanted) in enumerate(zip(content["source"][:PAIRS_SHOWN], content["target"])):
            shown = f"{codec.decode(given)!r} -> {codec.decode(wanted)!r}"
            rows.append(("examples" if not row else "", shown))
    return [*rows, ("licence", spec.licence)]


def _stream(split: "Split") -> "np.ndarray":
    """The tokens of a split; none where it is empty, or shorter than one window."""
    import numpy as np

    return split.contents()["stream"] if len(split) else np.zeros(0, np.int32)


def shortened(names: Sequence[str], limit: int) -> str:
    """How many there are, and the first of them."""
    return f"{len(names)}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
