"""Piano rolls, and what they are read from and written to: MIDI files, event tokens, chord tokens.

A piano roll is uint8 (T, 88) in {0, 1}: T frames of equal duration, column `p - 21` is 1 where MIDI pitch `p` sounds.
It holds which pitches sound, not how often they are struck: a note repeated without a rest is one long note.
"""

import io
import os
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import mido
import numpy as np

from gentf.errors import UserError
from gentf.files import atomic_write

LOWEST, HIGHEST, PITCHES = 21, 108, 88
MAX_FRAMES = 2**18  # of one MIDI file, 23 MB as a roll: four delta times of 4 bytes each can claim 10**9 frames
MAX_MIDI_BYTES = 2**21  # ten times the longest symphony; messages take far more memory than bytes
MAX_SHIFT = 32
_DRUMS = 9  # channel 10, counted from 0
_VELOCITY = 80

_NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_NAMES = tuple(f"{note}{octave}" for octave in range(-1, 10) for note in _NOTES)
_PITCH_NAMES = _NAMES[LOWEST : HIGHEST + 1]
# Names of the tokens, by number: 209 events, 90 chord tokens.
EVENTS = (
    "boundary",
    *(f"on {name}" for name in _PITCH_NAMES),
    *(f"off {name}" for name in _PITCH_NAMES),
    *(f"shift {frames}" for frames in range(1, MAX_SHIFT + 1)),
)
CHORDS = ("boundary", *_PITCH_NAMES, "frame end")
_ON, _OFF, _SHIFT = 1, 1 + PITCHES, 1 + 2 * PITCHES  # the first token of each kind
_FRAME_END = len(CHORDS) - 1


class _DamagedError(Exception):
    """What is wrong with a file, in words that follow its name."""


def check_roll(roll: np.ndarray, name: str = "roll") -> np.ndarray:
    """The roll as uint8 (T, 88), T >= 0; values 0 and 1 of any real type are accepted.

    Raises:
        ValueError: another shape, type or value; the message names `name`.
    """
    roll = np.asarray(roll)
    if roll.ndim != 2 or roll.shape[1] != PITCHES or roll.dtype.kind not in "buif":
        raise ValueError(
            f"`{name}` must be a real array of shape (T, {PITCHES}). Received: shape={roll.shape}, dtype={roll.dtype}"
        )
    checked = roll.astype(np.uint8) if roll.dtype == bool else (roll == 1).astype(np.uint8)
    wrong = int((checked != roll).sum())
    if wrong:
        raise ValueError(f"`{name}` must hold only 0 and 1. Received: {wrong} other values")
    return checked


# MIDI files


def read_midi(path: str | os.PathLike, steps_per_quarter: int = 4) -> np.ndarray:
    """Read a standard MIDI file (format 0 or 1) as a piano roll.

    Starts and ends of notes go to the nearest frame, a half up, and a note lasts at least a frame. All channels are
    united but the drums (channel 10). Tempo, velocity and pedals do not matter; a note-on of velocity 0 is a
    note-off, a note-off ends all notes of its pitch and channel, and what is never ended lasts to the end of its
    track. The roll is as long as the longest track, rests included. Notes outside pitches 21..108 are left out, and
    a warning counts them.

    Args:
        path: of the file, at most 2 MiB.
        steps_per_quarter: frames a quarter note, 1..960.
    Returns:
        uint8 (T, 88), 1 <= T <= 262,144.
    Raises:
        UserError: no such file, not a MIDI file, cut short, damaged, empty, of format 2 or in SMPTE time, or too long.
    Reference: MIDI Manufacturers Association (1996), Standard MIDI Files 1.0.
    """
    roll, outside = read_midi_quietly(path, steps_per_quarter)
    if outside:
        warnings.warn(f"{path}: left out {outside} notes outside pitches {LOWEST}..{HIGHEST}", stacklevel=2)
    return roll


def read_midi_quietly(path: str | os.PathLike, steps_per_quarter: int = 4) -> tuple[np.ndarray, int]:
    """As `read_midi`, without its warning: (roll, number of notes left out)."""
    _check_steps(steps_per_quarter)
    try:
        size = Path(path).stat().st_size
        if size > MAX_MIDI_BYTES:
            raise UserError(f"{path} must have at most {MAX_MIDI_BYTES} bytes. Received: {size}")
        data = Path(path).read_bytes()
        notes, frames = _parse(data, steps_per_quarter)
    except (_DamagedError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {path}: {reason}") from error
    table = np.array(notes, np.int64).reshape(-1, 3)
    inside = (table[:, 2] >= LOWEST) & (table[:, 2] <= HIGHEST)
    start, end, pitch = table[inside].T
    sounding = np.zeros((frames + 1, PITCHES), np.int32)  # by sums: many long notes take no longer than short ones
    np.add.at(sounding, (start, pitch - LOWEST), 1)
    np.subtract.at(sounding, (end, pitch - LOWEST), 1)
    np.cumsum(sounding, axis=0, out=sounding)
    return (sounding[:frames] > 0).astype(np.uint8), int((~inside).sum())


def _parse(data: bytes, steps: int) -> tuple[list[tuple[int, int, int]], int]:
    """Notes (first frame, frame after the last, pitch) of a whole file, and its number of frames."""
    if not data:
        raise _DamagedError("the file is empty")
    if data[:4] != b"MThd":
        raise _DamagedError("not a MIDI file")
    try:
        file = mido.MidiFile(file=io.BytesIO(data))
    except EOFError:
        raise _DamagedError("the file is cut short") from None
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:  # whatever damaged bytes come to
        raise _DamagedError(f"damaged ({' '.join(str(error).split()) or type(error).__name__})") from None
    if file.type > 1:
        raise _DamagedError(f"format must be 0 or 1. Received: {file.type}")
    if not 0 < file.ticks_per_beat < 2**15:
        raise _DamagedError(f"time must be in ticks a quarter note, 1..32767. Received: {file.ticks_per_beat}")
    notes: list[tuple[int, int, int]] = []
    frames = max((_notes_of(track, file.ticks_per_beat, steps, notes) for track in file.tracks), default=0)
    if not frames:
        raise _DamagedError("the file holds no notes")
    return notes, frames


def _notes_of(track: Iterable, division: int, steps: int, notes: list[tuple[int, int, int]]) -> int:
    """Append the notes of one track's messages to `notes`; return the frame it ends at."""
    ticks, frame, last = 0, 0, 0
    sounding: dict[tuple[int, int], int] = {}
    for message in track:
        ticks += message.time
        frame = (2 * ticks * steps + division) // (2 * division)
        if frame >= MAX_FRAMES:
            raise _DamagedError(f"longer than {MAX_FRAMES} frames at {steps} a quarter note")
        if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
            continue
        key = message.channel, message.note
        if message.type == "note_on" and message.velocity:
            sounding.setdefault(key, frame)
        elif key in sounding:
            start = sounding.pop(key)
            notes.append((start, max(frame, start + 1), message.note))
            last = max(last, start + 1)
    for (_, pitch), start in sounding.items():
        notes.append((start, max(frame, start + 1), pitch))
        last = max(last, start + 1)
    return max(frame, last)


def write_midi(roll: np.ndarray, path: str | os.PathLike, *, tempo: float = 100.0, steps_per_quarter: int = 4) -> None:
    """Write a piano roll as a MIDI file of one track (format 0, piano, one velocity), as a whole or not at all.

    A pitch that sounds in consecutive frames is one held note. `read_midi` with the same `steps_per_quarter` gives
    the roll back, rests at its ends included.

    Args:
        roll: uint8 (T, 88) in {0, 1}, 1 <= T < 262,144.
        path: of the file.
        tempo: quarter notes a minute, 4..1000.
        steps_per_quarter: frames a quarter note, 1..960.
    """
    roll = check_roll(roll)
    if not 0 < len(roll) < MAX_FRAMES:
        raise ValueError(f"`roll` must have 1 to {MAX_FRAMES - 1} frames. Received: {len(roll)}")
    if not 4 <= tempo <= 1000:
        raise ValueError(f"`tempo` must be in 4..1000 quarter notes a minute. Received: tempo={tempo}")
    _check_steps(steps_per_quarter)
    ticks = max(1, 480 // steps_per_quarter)  # of a frame
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=round(6e7 / tempo))])
    now = 0
    for frame, on, column in _changes(roll, closed=True).tolist():
        kind, velocity = ("note_on", _VELOCITY) if on else ("note_off", 0)
        track.append(mido.Message(kind, note=LOWEST + column, velocity=velocity, time=(frame - now) * ticks))
        now = frame
    track.append(mido.MetaMessage("end_of_track", time=(len(roll) - now) * ticks))
    content = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=ticks * steps_per_quarter, tracks=[track]).save(file=content)
    atomic_write(path, content.getvalue())


def _check_steps(steps: int) -> None:
    if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= 960:
        raise ValueError(f"`steps_per_quarter` must be an integer in 1..960. Received: steps_per_quarter={steps}")


def _changes(roll: np.ndarray, closed: bool) -> np.ndarray:
    """Rows (frame, 1 on or 0 off, column) in that order; `closed`: what sounds at the end goes off at frame T."""
    signed = np.diff(roll.astype(np.int8), axis=0, prepend=0, append=0)
    frame, column = np.nonzero(signed if closed else signed[:-1])
    on = (signed[frame, column] > 0).astype(np.int64)
    return np.stack([frame, on, column], axis=1)[np.lexsort((column, on, frame))]


# Tokens


def to_events(roll: np.ndarray) -> np.ndarray:
    """A roll as event tokens: notes going off, notes going on, and time that passes.

    Token 0 is the boundary between pieces and never occurs here; 1..88 are note-on of pitch 21..108, 89..176
    note-off, 177..208 shifts of 1..32 frames; `EVENTS` has their names. At one time notes go off before others go on,
    each from low to high; a long time is as many shifts of 32 as fit, then the rest. What sounds at the end is not
    turned off: the last shift ends the piece.

    Args:
        roll: (T, 88) in {0, 1}, T >= 0.
    Returns:
        int32 (n,).
    """
    roll = check_roll(roll)
    frame, on, column = _changes(roll, closed=False).T
    times = np.append(np.unique(frame), len(roll))
    gaps = np.diff(times, prepend=0)  # time that passes before each of `times`
    whole, rest = gaps // MAX_SHIFT, gaps % MAX_SHIFT
    tokens = [
        np.where(on == 1, _ON, _OFF) + column,
        np.repeat(_SHIFT + MAX_SHIFT - 1, whole.sum()),
        _SHIFT - 1 + rest[rest > 0],
    ]
    when = np.concatenate([frame, np.repeat(times, whole), times[rest > 0]])
    kind = np.repeat([2, 0, 1], [len(part) for part in tokens])  # changes come last, in the order they have
    return np.concatenate(tokens)[np.lexsort((kind, when))].astype(np.int32)


def from_events(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """The roll of event tokens: the inverse of `to_events`.

    Any sequence is accepted, also one that a model made: a note that goes on twice goes on once, one that goes off
    without sounding is as it was, a change after the last shift is not heard. Boundaries at the start are skipped,
    and the next one ends the piece.

    Args:
        tokens: (n,) integers in 0..208.
    Returns:
        uint8 (T, 88), T the sum of the shifts.
    Raises:
        ValueError: not such integers, or more than 2**23 frames.
    """
    tokens = _one_piece(tokens, len(EVENTS))
    shifts = np.where(tokens >= _SHIFT, tokens - _SHIFT + 1, 0)
    time = np.cumsum(shifts)
    frames = int(time[-1]) if len(time) else 0
    if frames > 2**23:
        raise ValueError(f"`tokens` must shift time by at most {2**23} frames. Received: {frames}")
    notes = (tokens < _SHIFT) & (time < frames)
    pitch, off = np.divmod(tokens[notes] - 1, PITCHES)[::-1]
    last = np.zeros((frames, PITCHES), np.int8)  # the last change of each frame: of equal indices the last is kept
    last[time[notes], pitch] = 1 - 2 * off
    source = np.where(last != 0, np.arange(frames)[:, None], 0)
    np.maximum.accumulate(source, axis=0, out=source)
    return (np.take_along_axis(last, source, axis=0) > 0).astype(np.uint8)


def to_chords(roll: np.ndarray) -> np.ndarray:
    """A roll as chord tokens: each frame is its pitches from low to high, then the token that ends a frame.

    Token 0 is the boundary between pieces and never occurs here; 1..88 are pitches 21..108, 89 ends a frame; `CHORDS`
    has their names.

    Args:
        roll: (T, 88) in {0, 1}, T >= 0.
    Returns:
        int32 (n,), one token a sounding pitch and frame, and one a frame.
    """
    roll = check_roll(roll)
    ended = np.concatenate([roll, np.ones((len(roll), 1), np.uint8)], axis=1)
    return (np.nonzero(ended)[1] + 1).astype(np.int32)


def from_chords(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """The roll of chord tokens: the inverse of `to_chords`.

    Any sequence is accepted, also one that a model made: pitches may come in any order and twice, and a last frame
    that is not ended is left out. Boundaries at the start are skipped, and the next one ends the piece.

    Args:
        tokens: (n,) integers in 0..89.
    Returns:
        uint8 (T, 88).
    Raises:
        ValueError: not such integers.
    """
    tokens = _one_piece(tokens, len(CHORDS))
    ends = tokens == _FRAME_END
    frame = np.cumsum(ends)
    roll = np.zeros((int(ends.sum()), PITCHES), np.uint8)
    heard = ~ends & (frame < len(roll))
    roll[frame[heard], tokens[heard] - 1] = 1
    return roll


def _one_piece(tokens, vocabulary: int) -> np.ndarray:
    """The tokens, int64, between the boundaries at the start and the next one."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise ValueError(f"`tokens` must be integers (n,). Received: shape={tokens.shape}, dtype={tokens.dtype}")
    tokens = tokens.astype(np.int64)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        raise ValueError(f"`tokens` must lie in 0..{vocabulary - 1}. Received: {tokens.min()}..{tokens.max()}")
    inside = np.flatnonzero(tokens)
    if not inside.size:
        return tokens[:0]
    tokens = tokens[inside[0] :]
    stops = np.flatnonzero(tokens == 0)
    return tokens[: stops[0]] if stops.size else tokens
