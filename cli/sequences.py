"""What `gentf sample` does with models of text, of pairs, and of music."""

import codecs
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from gentf.data import harmony, midi, music
from gentf.data.text import read_text
from gentf.errors import UserError
from gentf.files import atomic_write
from gentf.kernels import random
from gentf.models.prompts import cut_before
from gentf.models.sequence import SequenceModel
from gentf.sampling import constraints, images
from gentf.sampling.json_schema import json_schema
from gentf.sampling.music_rules import chord_rules
from gentf.sampling.regex import regex

if TYPE_CHECKING:
    from gentf.sampling.constraints import Constraint
    from gentf.sampling.generate import Generated

BLOCK = 16  # tokens that are printed together
LENGTHS = {"text": 256, "pairs": 256, "frames": 128, "chords": 1024, "events": 1024}
CONTROLS = ("temperature", "top_k", "top_p", "min_p", "repetition")
BETWEEN = "\n----\n"
TONICS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "b": -1}


class Drawn(NamedTuple):
    """What came of a request: symbols, without the prompt, of each of n samples.

    Attributes:
        rows: n texts or rolls.
        nats: (n,) minus the log-likelihood of each; None where it is not known.
        cost: (n,) nats that the rule cost each.
    """

    rows: list[Any]
    nats: np.ndarray | None
    cost: np.ndarray


def sample_text(
    model: Any, kind: str, num: int, seed: int, out: Path | None, condition: int | None, given: Mapping[str, Any]
) -> None:
    """Draw texts, and print or write them.

    Args:
        model: of text or of pairs, or an export of one.
        kind: "text" or "pairs".
        num: samples.
        seed: of the samples.
        out: a .txt or .jsonl file, a folder, or None for stdout.
        condition: class, or None.
        given: options of the command, by name; those that were not given are missing.
    """
    prompt = text_prompt(given)
    if kind == "pairs" and not prompt:
        raise UserError("`--prompt` must be given for a model of pairs: the source. Received: none")
    rule = text_rule(model, given)
    if given.get("stream"):
        if num != 1 or out is not None:
            received = f"-n {num}" if num != 1 else f"--out {out}"
            raise UserError(f"`--stream` prints one sample, on stdout. Received: {received}")
        if not isinstance(model, SequenceModel):
            for text in model.stream(prompt, seed=seed, **served_request(model, kind, given)):
                click.echo(text, nl=False)
            click.echo()
            return
        with told_warnings():
            blocks = model.generate([prompt], block=BLOCK, **request(kind, 1, seed, condition, rule, given))
            last = print_stream(model, blocks, given.get("stop", ()))
        tell_cost(rule, last.cost)
        return
    with told_warnings():
        found = draw(model, kind, num, seed, prompt, condition, rule, given)
    if out is None:
        click.echo(BETWEEN.join(found.rows))
    else:
        write_texts(out, prompt, found)
        click.echo(f"{num} sample{'s' if num > 1 else ''}: {out}")
    tell_cost(rule, found.cost)


def sample_music(
    model: Any, kind: str, num: int, seed: int, out: Path, condition: int | None, given: Mapping[str, Any]
) -> None:
    """Draw pieces, and write them.

    Args:
        model, num, seed, condition, given: as of `sample_text`.
        kind: "frames", "chords" or "events".
        out: a .mid, .png or .npz file, or a folder of .mid files.
    """
    steps = given.get("steps_per_quarter", 4)
    if "steps_per_quarter" in given and out.suffix not in (".mid", "") and "prompt_file" not in given:
        raise UserError(f"`--steps-per-quarter` is of MIDI files. Received: --out {out}")
    rule = music_rule(kind, given)
    with told_warnings():
        prompt = midi.read_midi(given["prompt_file"], steps) if "prompt_file" in given else None
        found = draw(model, kind, num, seed, prompt, condition, rule, given)
    pieces = {number: roll for number, roll in enumerate(found.rows) if len(roll)}
    if not pieces:
        raise UserError(
            f"the model ended every piece before its first frame: try another seed. Received: --seed {seed}"
        )
    if len(pieces) < num:
        click.echo(f"Warning: left out {num - len(pieces)} of {num} pieces, which have no frame", err=True)
    write_pieces(out, pieces, num, steps)
    frames = sum(map(len, pieces.values()))
    click.echo(f"{len(pieces)} piece{'s' if len(pieces) > 1 else ''}, {frames} frames: {out}")
    tell_cost(rule, found.cost)


def draw(
    model: Any,
    kind: str,
    num: int,
    seed: int,
    prompt: Any,
    condition: int | None,
    rule: Any,
    given: Mapping[str, Any],
) -> Drawn:
    """Samples from a model or an export, all at once."""
    if not isinstance(model, SequenceModel):
        return draw_served(model, kind, num, seed, prompt, condition, given)
    stop = given.get("stop", ())
    found = model.generate([prompt] * num, **request(kind, num, seed, condition, rule, given))
    codec = model._codec()
    rows = [codec.decode(row[:length]) for row, length in zip(found.symbols, found.lengths)]
    return Drawn([cut_before(row, stop) for row in rows] if stop else rows, found.nats, found.cost)


def request(
    kind: str, num: int, seed: int, condition: int | None, rule: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of `SequenceModel.generate`."""
    return {
        "seeds": random.spread(seed, num).numpy(),
        "max_length": given.get("max_length", LENGTHS[kind]),
        "condition": condition,
        "stop": given.get("stop", ()),
        "constraint": rule,
        "jit": given.get("jit", False),
        **{name: given[name] for name in CONTROLS if name in given},
    }


def draw_served(
    served: Any, kind: str, num: int, seed: int, prompt: Any, condition: int | None, given: Mapping[str, Any]
) -> Drawn:
    """The same from an export, which tells no likelihood."""
    if kind not in ("text", "pairs") and prompt is not None:
        raise UserError("`--prompt-file` must be left out for an export of music. Received: a prompt")
    rows = served.sample(num, condition=condition, seed=seed, prompt=prompt, **served_request(served, kind, given))
    if kind in ("chords", "events"):
        rows = [(midi.from_chords if kind == "chords" else midi.from_events)(tokens) for tokens in rows]
    return Drawn(rows, None, np.zeros(num, np.float32))


def served_request(served: Any, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ServedModel.sample`."""
    most = served.max_length or LENGTHS[kind]
    controls = {name: given[name] for name in ("temperature", "top_p") if name in given}
    return {"max_length": given.get("max_length", min(LENGTHS[kind], most)), **controls}


# Text


def text_prompt(given: Mapping[str, Any]) -> str:
    """What `--prompt` or `--prompt-file` says; "" for neither."""
    if "prompt" in given and "prompt_file" in given:
        raise UserError("`--prompt` and `--prompt-file` must not both be given. Received: both")
    return read_text(given["prompt_file"]) if "prompt_file" in given else given.get("prompt", "")


def text_rule(model: Any, given: Mapping[str, Any]) -> "Constraint | None":
    """What `--regex` or `--json-schema` asks of a text."""
    if "regex" in given and "json_schema" in given:
        raise UserError("`--regex` and `--json-schema` must not both be given. Received: both")
    if "regex" in given:
        return regex(given["regex"], model._codec().text.pieces)
    if "json_schema" not in given:
        return None
    try:
        schema = json.loads(read_text(given["json_schema"]))
    except json.JSONDecodeError as error:
        raise UserError(f"`--json-schema` must be a file of JSON. Received: {given['json_schema']} ({error})") from None
    return json_schema(schema, model._codec().text.pieces)


def print_stream(model: Any, blocks: "Iterator[Generated]", stop: Sequence[str]) -> "Generated":
    """Print a text as its blocks come; the last block."""
    last: list[Generated] = []

    def pieces() -> Iterator[bytes]:
        codec, done = model._codec().text, 0
        for block in blocks:
            last[:] = [block]
            new, done = block.symbols[0][: block.lengths[0] - done], int(block.lengths[0])
            yield b"".join(codec.pieces[token] for token in new)

    for text in whole_characters(pieces(), stop):
        click.echo(text, nl=False)
    click.echo()
    return last[0]


def whole_characters(pieces: Iterator[bytes], stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of UTF-8 bytes that come in pieces, as far as it is certain.

    What may yet become a character, or one of the strings `stop`, is held back. Joined it is the text of all bytes up
    to the first of these strings; bytes that are no UTF-8 are U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    for piece in pieces:
        held += decoder.decode(piece)
        text = cut_before(held, stop)
        if len(text) < len(held):
            yield text
            for _ in pieces:  # to the end, for whoever looks at what is generated
                pass
            return
        keep = max((size for one in stop for size in range(1, len(one)) if held.endswith(one[:size])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield cut_before(held + decoder.decode(b"", True), stop)


def write_texts(out: Path, prompt: str, found: Drawn) -> None:
    """Write texts as a .txt file, as a line of JSON each, or as files in a folder."""
    if out.suffix == ".txt":
        atomic_write(out, BETWEEN.join(found.rows) + "\n")
    elif out.suffix == ".jsonl":
        rows: list[dict[str, Any]] = [{"prompt": prompt, "text": text} for text in found.rows]
        if found.nats is not None:
            for row, nats in zip(rows, found.nats):
                row["nats"] = round(float(nats), 4)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        atomic_write(out, "\n".join(lines) + "\n")
    else:
        for number, text in enumerate(found.rows):
            atomic_write(out / f"{number:06d}.txt", text)


# Music


def music_rule(kind: str, given: Mapping[str, Any]) -> "Constraint | np.ndarray | None":
    """What `--key`, `--range`, `--voices` and `--max-leap` ask: a constraint on tokens, or the keys of frames."""
    if "leap_of" in given and "max_leap" not in given:
        raise UserError(f"`--leap-of` needs --max-leap. Received: --leap-of {given['leap_of']} alone")
    if not {"key", "range", "voices", "max_leap"} & set(given):
        return None
    low, high = pitch_range(given["range"]) if "range" in given else (midi.LOWEST, midi.HIGHEST)
    pitches = np.arange(midi.LOWEST, midi.HIGHEST + 1)
    keys = (low <= pitches) & (pitches <= high)
    if "key" in given:
        keys &= harmony.pitches_in_key(*musical_key(given["key"]))
    if not keys.any():
        raise UserError(
            f"`--range` must hold a note of the key. Received: --range {given['range']} --key {given['key']}"
        )
    if kind == "frames":
        return keys
    if kind == "chords":
        voices = voice_counts(given["voices"]) if "voices" in given else (0, midi.PITCHES)
        return chord_rules(keys, voices, given.get("max_leap"), leap_of=given.get("leap_of", "bass"))
    notes = 1 + np.flatnonzero(keys)
    rest = np.arange(1 + 2 * midi.PITCHES, len(midi.EVENTS))  # time that passes
    return constraints.tokens(np.concatenate([notes, notes + midi.PITCHES, rest]), len(midi.EVENTS))


def musical_key(text: str) -> tuple[int, str]:
    """Tonic 0..11 and mode of "C major", "F# minor" or "Bb major"."""
    found = re.fullmatch(r"([A-G])([#b]?) (major|minor)", text)
    if found is None:
        raise UserError(f'`--key` must be a note and major or minor, as "F# minor". Received: --key {text}')
    return (TONICS[found[1]] + ACCIDENTALS[found[2]]) % 12, found[3]


def pitch_range(text: str) -> tuple[int, int]:
    """Lowest and highest pitch of "48-81"."""
    found = re.fullmatch(r"(\d{1,3})-(\d{1,3})", text)
    if found is None or not midi.LOWEST <= int(found[1]) <= int(found[2]) <= midi.HIGHEST:
        ends = f"{midi.LOWEST} to {midi.HIGHEST}"
        raise UserError(f"`--range` must be LOW-HIGH, MIDI pitches from {ends}. Received: --range {text}")
    return int(found[1]), int(found[2])


def voice_counts(text: str) -> tuple[int, int]:
    """Least and most notes of "4" or "2-4"."""
    found = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 <= least <= most or not 1 <= most <= midi.PITCHES:
        raise UserError(f"`--voices` must be N or LEAST-MOST, up to {midi.PITCHES}. Received: --voices {text}")
    return least, most


def write_pieces(out: Path, pieces: Mapping[int, np.ndarray], num: int, steps: int) -> None:
    """Write rolls, by their number among `num` samples, as MIDI files, a picture, or a set that `load` reads."""
    if out.suffix == ".npz":
        music.write_rolls(music.Rolls(list(pieces.values()), None, None, out.stem), out)
    elif out.suffix == ".png":
        images.write_png(out, music.pictures(list(pieces.values())))
    else:
        for number, roll in pieces.items():
            path = out / f"{number:06d}.mid"
            if out.suffix == ".mid":
                path = out if num == 1 else out.with_name(f"{out.stem}-{number:06d}.mid")
            midi.write_midi(roll, path, steps_per_quarter=steps)


# Both


def tell_cost(rule: Any, cost: np.ndarray) -> None:
    """Say on stderr what a rule cost."""
    if rule is None:
        return
    spread = f", {cost.min():.2f} to {cost.max():.2f}" if len(cost) > 1 else ""
    number = f" (mean of {len(cost)}{spread})" if len(cost) > 1 else ""
    click.echo(f"the rule cost {cost.mean():.2f} nats of likelihood a sample{number}", err=True)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"Warning: {message}", err=True)
        yield
