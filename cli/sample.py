"""`gentf sample`: draw from a run or from an export."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gentf.cli.evaluate import CheckpointType

if TYPE_CHECKING:
    import numpy as np

#: What a kind of model takes besides the seed, number, output and checkpoint.
TEXT = ("label", "prompt", "prompt_file", "max_length", "temperature", "top_k", "top_p", "min_p", "repetition", "stop",
        "stream", "regex", "json_schema", "jit")  # fmt: skip
FRAMES = ("label", "prompt_file", "max_length", "temperature", "jit", "key", "range", "steps_per_quarter")
EVENTS = (*FRAMES, "top_k", "top_p", "min_p", "repetition")
TAKES = {
    "images": ("label", "truncation"),
    "points": ("label", "truncation"),
    "text": TEXT,
    "pairs": TEXT,
    "frames": FRAMES,
    "events": EVENTS,
    "chords": (*EVENTS, "voices", "max_leap", "leap_of"),
}
SERVED = (
    "label",
    "prompt",
    "prompt_file",
    "max_length",
    "temperature",
    "top_p",
    "stream",
    "steps_per_quarter",
)  # of an export


@click.command()
@click.argument("run", metavar="RUN|EXPORT|FILE.keras")
@click.option(
    "-n", "--num", type=click.IntRange(1, 1_000_000),
    help="Samples to draw.  [default: 64 images, 2500 points, 1 text or piece]",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="The same seed, the same samples."
)
@click.option("--label", help="Class to draw, by name or number; conditional models only.")
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Images: .png (grid), .npz (`image` uint8, `label`) or a folder. Points: .csv, .npz or .png. Text: .txt, "
    ".jsonl or a folder. Music: .mid (several are numbered), .png, .npz or a folder.  [default: "
    "samples.png, samples.csv, stdout for text, samples.mid]",
)  # fmt: skip
@click.option(
    "--checkpoint", type=CheckpointType(), default="last", show_default=True, help="Checkpoint to draw from; runs only."
)
@click.option(
    "--truncation", type=click.FloatRange(0.01, 1.0),
    help="GANs: share of the noise, or of a style's way from the mean style; less is safer and more alike.",
)  # fmt: skip
@click.option("--prompt", metavar="TEXT", help="Text: what is gone on from; of pairs, the source.")
@click.option(
    "--prompt-file", type=click.Path(path_type=Path), metavar="FILE",
    help="The prompt in a file, as it stands there: text, or MIDI for music.",
)  # fmt: skip
@click.option(
    "--max-length", type=click.IntRange(1, 1_000_000),
    help="Tokens or frames at most.  [default: 256 of text, 128 frames, 1024 chord or event tokens]",
)  # fmt: skip
@click.option("--temperature", type=float, help="0 takes the likeliest; below 1 is safer, above 1 bolder.")
@click.option("--top-k", type=int, help="Draw from the K likeliest tokens; 0: from all.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that hold this probability, in (0, 1].")
@click.option("--min-p", type=float, help="Leave out tokens below this share of the likeliest one's probability.")
@click.option("--repetition", type=float, help="Penalty of tokens that occurred, 1 is none.")
@click.option("--stop", metavar="TEXT", multiple=True, help="Text ends before this; may be given several times.")
@click.option("--stream", is_flag=True, help="Text: print it as it is made; one sample.")
@click.option("--regex", metavar="PATTERN", help="Text: only what matches as a whole; says what that costs.")
@click.option(
    "--json-schema", type=click.Path(path_type=Path), metavar="FILE",
    help="Text: only JSON that satisfies the schema in FILE; says what that costs.",
)  # fmt: skip
@click.option("--key", help='Music: only notes of a key, "C major" or "F# minor"; says what that costs.')
@click.option("--range", metavar="LOW-HIGH", help="Music: only MIDI pitches of this range, 48-81.")
@click.option("--voices", metavar="N|LEAST-MOST", help="Chord tokens: notes in every frame, 4 or 2-4.")
@click.option("--max-leap", type=click.IntRange(0, 87), help="Chord tokens: semitones a voice moves between frames.")
@click.option("--leap-of", type=click.Choice(["bass", "top"]), help="Which voice --max-leap binds.  [default: bass]")
@click.option(
    "--steps-per-quarter", type=click.IntRange(1, 960),
    help="Music: frames a quarter note in MIDI files; 2 for the embedded chorales.  [default: 4]",
)  # fmt: skip
@click.option("--jit", is_flag=True, help="Text, music: compile with XLA: seconds at first, then faster.")
def sample(run: str, num: int | None, seed: int, out: Path | None, checkpoint: str | int, **options: Any) -> None:
    """Draw samples from a run or an exported model.

    The same seed gives the same samples from both. Which options mean something depends on what the model makes;
    the others are an error. An export takes --prompt, --max-length, --temperature, --top-p, --stream and --label
    only.

    \b
      gentf sample runs/mnist -n 100 --seed 7 --out digits.png
      gentf sample runs/cgan --label 3 --out threes/
      gentf sample runs/shakespeare --prompt "ROMEO:" --temperature 0.8 --stream
      gentf sample runs/shakespeare --regex "[A-Z]{3,8}" -n 20 --out names.jsonl
      gentf sample runs/dates --prompt "March 5th, 2019" --temperature 0
      gentf sample runs/chorales --key "C major" --range 48-81 --voices 4 --out chorale.mid
      gentf sample saved_models/mnist --out digits.npz
    """
    from gentf.errors import UserError

    if not Path(run).exists():
        raise UserError(f"`run` must be a run folder or an export. Received: {run}")
    model, names, kind, served = open_model(run, checkpoint)
    # 0 is a value, though it equals False
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    check_options(given, kind, served)
    condition = class_index(given.pop("label"), names) if "label" in given else None
    if "truncation" in given:
        if not hasattr(model, "truncation"):
            raise UserError(f"`--truncation` must be left out but for GANs. Received: {type(model).__name__}")
        model.truncation = given["truncation"]
    if kind == "images":
        number, out = num or 64, out or Path("samples.png")
        check_out(out, (".png", ".npz"))

        from gentf.sampling import images

        pixels = images.to_uint8(model.sample(number, condition=condition, seed=seed))
        write(out, pixels, condition)
        click.echo(f"{number} samples: {out}")
        return

    if kind == "points":
        number, out = num or 2500, out or Path("samples.csv")
        check_out(out, (".csv", ".npz", ".png"), folder=False)
        write_points(out, model.sample(number, condition=condition, seed=seed))
        click.echo(f"{number} samples: {out}")
        return

    from gentf.cli import sequences

    if kind in ("text", "pairs"):
        check_out(out, (".txt", ".jsonl"))
        sequences.sample_text(model, kind, num or 1, seed, out, condition, given)
    else:
        out = out or Path("samples.mid")
        check_out(out, (".mid", ".png", ".npz"))
        sequences.sample_music(model, kind, num or 1, seed, out, condition, given)


class Opened(NamedTuple):
    """What is drawn from.

    Attributes:
        model: a model, or an export as `gentf.export.load` gives it.
        names: of its classes; empty where it has none, or does not know them.
        kind: of what it makes, a key of `TAKES`.
        served: whether it is an export.
    """

    model: Any
    names: tuple[str, ...]
    kind: str
    served: bool = False


def open_model(run: str, checkpoint: str | int) -> Opened:
    """The model in a run folder, an export or a .keras file."""
    if (Path(run) / "config.yaml").is_file():
        from gentf.training.run import Run

        folder = Run(run)
        model = folder.load_model(checkpoint, lambda text: click.echo(text, err=True))
        return Opened(model, folder.spec.class_names if model.num_classes else (), kind_of(model))
    if run.endswith(".keras"):
        from gentf.models.saved import load_model

        model = load_model(run)
        return Opened(model, (), kind_of(model))
    from gentf.export import load

    served = load(run)
    return Opened(served, served.class_names, kind_of_served(served), served=True)


def kind_of(model: Any) -> str:
    """What a model makes: a key of `TAKES`."""
    from gentf.errors import UserError
    from gentf.models import EncoderDecoder, SequenceModel

    if not isinstance(model, SequenceModel):
        return "points" if len(model.image_shape) == 1 else "images"
    kind = model.tokenizer["kind"] if model.tokenizer else None
    if kind is None:
        raise UserError("`run` must be a model that knows what its tokens stand for. Received: one without a tokenizer")
    if kind in ("frames", "chords", "events"):
        return kind
    return "pairs" if isinstance(model, EncoderDecoder) else "text"


def kind_of_served(served: Any) -> str:
    """What an export makes, by what it answers and what it says about itself: a key of `TAKES`."""
    from gentf.errors import UserError
    from gentf.export.served import SEQUENCES

    outputs = served.signatures.get("serving_default", {"outputs": {}})["outputs"]
    answer = next((name for name in SEQUENCES if name in outputs), None)
    if answer is None:
        return "points" if "point" in outputs else "images"
    if answer == "text":
        return "pairs" if served.modality == "pairs" else "text"
    kind = "frames" if answer == "roll" else served.tokenizer
    if kind not in ("frames", "chords", "events"):
        raise UserError(f"`run` must be an export that knows what its tokens stand for. Received: {served.path}")
    return kind


def check_options(given: dict[str, Any], kind: str, served: bool) -> None:
    """Raise UserError for an option that means nothing for this kind of model."""
    from gentf.errors import UserError

    for name in given:
        option = f"--{name.replace('_', '-')}"
        if name not in TAKES[kind]:
            known = ("images", "points", "text", "pairs")
            described = f"a model of {kind if kind in known else f'music as {kind}'}"
            raise UserError(f"`{option}` must be left out for {described}. Received: {option} {given[name]}")
        if served and name not in SERVED:
            raise UserError(f"`{option}` must be left out for an export. Received: {option} {given[name]}")


def check_out(out: Path | None, endings: tuple[str, ...], folder: bool = True) -> None:
    """Raise UserError unless `out` has one of the endings, or, where a `folder` will do, none."""
    from gentf.errors import UserError

    if out is not None and out.suffix not in (*endings, *([""] if folder else [])):
        known = " or ".join((", ".join(endings[:-1]), endings[-1]))
        raise UserError(f"`--out` must end in {known}{', or name a folder' if folder else ''}. Received: --out {out}")


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


def write_points(out: Path, points: "np.ndarray") -> None:
    """Write (n, D) float32 as lines of numbers, an array, or a picture."""
    import numpy as np

    from gentf.files import atomic_save, atomic_write
    from gentf.sampling import images

    if out.suffix == ".png":
        images.write_png(out, images.scatter(points))
    elif out.suffix == ".npz":
        atomic_save(out, lambda file: np.savez_compressed(file, allow_pickle=False, point=points))
    else:
        atomic_write(out, "".join(",".join(f"{number:.9g}" for number in point) + "\n" for point in points.tolist()))
