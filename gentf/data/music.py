"""Sets of piano rolls: read from published files, .npz, JSON and MIDI; cut, padded, and drawn as pictures."""

import io
import json
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gentf.data.harmony import chorales
from gentf.data.midi import HIGHEST, LOWEST, PITCHES, check_roll, read_midi_quietly
from gentf.errors import UserError
from gentf.files import atomic_save

MAX_SET_FRAMES = 2**23  # 0.7 GB: a small file can unpack to any size
MAX_FILE_BYTES = 2**28
_MIDI = (".mid", ".midi")
_FORMATS = ".mat, .npz, .json, .mid or .midi"
_SPLITS = ("train", "validation", "test")
_MAT_KEYS, _JSON_KEYS = ("traindata", "validdata", "testdata"), ("train", "valid", "test")


@dataclass(frozen=True)
class Rolls:
    """A set of pieces in its published splits.

    Args:
        train: rolls, uint8 (T, 88) in {0, 1} each, T >= 1.
        validation, test: the same, or None where the set has no such split.
        name: of the set: an embedded name, or the file's without its ending.
        licence: as far as it is known.
    """

    train: list[np.ndarray]
    validation: list[np.ndarray] | None
    test: list[np.ndarray] | None
    name: str
    licence: str = "not stated"


class _WrongError(Exception):
    """What is wrong with a file's content, in words that follow its name."""


# What damaged bytes make readers raise; RuntimeError is of lists nested too deep and of zip members that are locked.
_DAMAGED = (zipfile.BadZipFile, zlib.error)
_UNREADABLE = (_WrongError, OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, *_DAMAGED)


def read_rolls(path: str | os.PathLike) -> Rolls:
    """Read a set of pieces.

    - "chorales": the embedded set of `gentf.data.harmony`, 229 / 76 / 77 pieces from the seeds 0, 1, 2, in eighths. A
      folder of that name is "./chorales".
    - `.mat` (MATLAB level 5): cell arrays `traindata`, `validdata`, `testdata` of (T, 88) matrices, as the sets of
      Boulanger-Lewandowski et al. (2012) are published.
    - `.json`: {"train": [...], "valid": [...], "test": [...]}, a list of pieces, each a list of frames, each a list of
      MIDI pitches 21..108; -1 is a rest.
    - `.npz`, as `write_rolls` makes it. Nothing in it is unpickled.
    - a MIDI file, or a folder of them (all levels, by name, as `read_midi` with 4 frames a quarter note): one list, no
      splits. Pieces without a note in 21..108 are left out; a warning counts them, and notes left out.

    Raises:
        UserError: nothing there, a damaged file, another content, no pieces, more than 2**23 frames in all.
    Reference: Boulanger-Lewandowski, Bengio & Vincent (2012), "Modeling temporal dependencies in high-dimensional
        sequences", section 5.
    """
    if path == "chorales":
        train, validation, test = (chorales(num, seed) for seed, num in enumerate((229, 76, 77)))
        return Rolls(train, validation, test, "chorales", "generated")
    path = Path(path)
    readers = {".mat": _read_mat, ".npz": _read_npz, ".json": _read_json}
    kind = path.suffix.lower()
    if path.is_dir():
        return Rolls(_read_folder(path), None, None, path.name)
    if kind not in (*readers, *_MIDI):
        raise UserError(f"`path` must be a folder of MIDI files, or a file of kind {_FORMATS}. Received: path={path}")
    if not path.exists():
        raise UserError(f"no file is called {path}")
    if kind in _MIDI:
        return Rolls(_read_folder(path), None, None, path.stem)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _WrongError(f"it has {size} bytes, more than {MAX_FILE_BYTES}")
        splits = readers[kind](path)
        frames = 0
        for name, pieces in splits.items():
            if pieces is not None:
                for number, piece in enumerate(pieces):
                    if not len(piece):
                        raise _WrongError(f"piece {number} of {name} has no frames")
                    frames += len(piece)
        if not splits["train"]:
            raise _WrongError("it holds no pieces to train on")
        _check_frames(frames)
    except _UNREADABLE as error:
        raise _cannot_read(path, error) from error
    return Rolls(splits["train"] or [], splits["validation"], splits["test"], path.stem)


def write_rolls(rolls: Rolls, path: str | os.PathLike) -> None:
    """Write a set as .npz, as a whole or not at all.

    For each split that is there: `train` uint8 (frames, 88), all pieces one after another, and `train_length` int32
    (pieces,), the frames of each; likewise `validation` and `test`.
    """
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"`path` must end in .npz. Received: path={path}")
    arrays: dict[str, Any] = {}
    for split in _SPLITS:
        pieces = getattr(rolls, split)
        if pieces is not None:
            pieces = _check_pieces(pieces, split)
            arrays[split] = np.concatenate([np.zeros((0, PITCHES), np.uint8), *pieces])
            arrays[f"{split}_length"] = np.array([len(piece) for piece in pieces], np.int32)
    atomic_save(path, lambda file: np.savez_compressed(file, **arrays))


def _cannot_read(path: Path, error: BaseException) -> UserError:
    """The error in one line, whatever bytes of the file are in it."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    printable = "".join(c if c.isprintable() else " " for c in reason)
    return UserError(f"cannot read {path}: {' '.join(printable.split()) or type(error).__name__}")


def _check_frames(frames: int) -> None:
    if frames > MAX_SET_FRAMES:
        raise _WrongError(f"it has more than {MAX_SET_FRAMES} frames")


def _read_folder(path: Path) -> list[np.ndarray]:
    """The pieces of a folder of MIDI files, or of one file."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _MIDI and file.is_file())
        if not files:
            raise UserError(f"{path} holds no MIDI files (.mid, .midi)")
    pieces, notes, silent, frames = [], 0, 0, 0
    for file in files:
        roll, outside = read_midi_quietly(file)
        notes += outside
        if not roll.any():
            silent += 1
            continue
        frames += len(roll)
        if frames > MAX_SET_FRAMES:
            raise UserError(f"{path} must have at most {MAX_SET_FRAMES} frames")
        pieces.append(roll)
    if not pieces:
        raise UserError(f"{path} holds no notes in pitches {LOWEST}..{HIGHEST}")
    if notes or silent:
        warnings.warn(
            f"{path}: left out {notes} notes outside pitches {LOWEST}..{HIGHEST} and {silent} files without notes",
            stacklevel=3,
        )
    return pieces


def _read_json(path: Path) -> dict[str, list[np.ndarray] | None]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _JSON_KEYS):
        raise _WrongError(f"it must hold an object of the lists {', '.join(_JSON_KEYS)}")
    return {split: _json_pieces(content[key], key) for split, key in zip(_SPLITS, _JSON_KEYS)}


def _json_pieces(pieces: list, key: str) -> list[np.ndarray]:
    frames = 0
    rolls = []
    for number, piece in enumerate(pieces):
        if not isinstance(piece, list) or not all(isinstance(frame, list) for frame in piece):
            raise _WrongError(f"piece {number} of {key} must be a list of frames, each a list of pitches")
        frames += len(piece)
        _check_frames(frames)
        roll = np.zeros((len(piece), PITCHES), np.uint8)
        for place, frame in enumerate(piece):
            for pitch in frame:
                # The published files have some pitches as 67.0.
                whole = type(pitch) in (int, float) and pitch % 1 == 0
                if not whole or not (LOWEST <= pitch <= HIGHEST or pitch == -1):
                    raise _WrongError(
                        f"piece {number} of {key}, frame {place}: pitches must be integers in {LOWEST}..{HIGHEST}, "
                        f"or -1. Received: {str(pitch)[:40]}"
                    )
                if pitch > 0:
                    roll[place, int(pitch) - LOWEST] = 1
        rolls.append(roll)
    return rolls


def _read_npz(path: Path) -> dict[str, list[np.ndarray] | None]:
    splits: dict[str, list[np.ndarray] | None] = {}
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        for split in _SPLITS:
            if split not in names and split != "train":
                splits[split] = None
                continue
            if not {split, f"{split}_length"} <= names:
                found = ", ".join(sorted(names)) or "no array"
                raise _WrongError(f"it must hold arrays `{split}` and `{split}_length`. Received: {found}")
            frames, lengths = (_npz_member(archive, name) for name in (split, f"{split}_length"))
            frames = check_roll(frames, split)
            if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths.size and lengths.min() < 1):
                raise _WrongError(f"`{split}_length` must be positive integers (pieces,)")
            if sum(lengths.tolist()) != len(frames):
                raise _WrongError(f"`{split}_length` must sum to the {len(frames)} frames. Received: {lengths.sum()}")
            splits[split] = np.split(frames, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return splits


def _npz_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    _check_frames(info.file_size // PITCHES)  # no more than this is unpacked
    try:
        # Read as a whole, which checks the CRC: NumPy's parser of headers raises whatever damaged ones make it raise.
        array = np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)
    except (SyntaxError, TypeError, tokenize.TokenError) as error:
        raise _WrongError(f"the header of `{name}` is damaged") from error
    if array.dtype.kind not in "bui":
        raise _WrongError(f"`{name}` must be integers. Received: dtype={array.dtype}")
    return array


# MATLAB files. SciPy reads them too, but takes the sizes that a file claims at their word: a cell array of 240 bytes
# made it use 4 GB. Here no more is held than the bytes that are there.

_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED, _CELL, _NUMERIC = 14, 15, 1, range(6, 16)


def _read_mat(path: Path) -> dict[str, list[np.ndarray] | None]:
    """Reference: MathWorks, "MAT-File Format", level 5."""
    data = path.read_bytes()
    if data.startswith(b"\x89HDF") or data[:10] == b"MATLAB 7.3":
        raise _WrongError("it is a MATLAB 7.3 file: save it with -v7")
    if len(data) < 128 or data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise _WrongError("not a MATLAB level 5 file, or it is cut short")
    order = "<" if data[126:][:2] == b"IM" else ">"
    found: dict[str, list[np.ndarray]] = {}
    left, names = MAX_SET_FRAMES * PITCHES, []
    for kind, body in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(body, max(left, 1))  # 0 would be no bound
            if not unpacker.eof:
                raise _WrongError("a compressed part is cut short, or the file unpacks to too many bytes")
            left -= len(unpacked)
            kind, body = next(_elements(memoryview(unpacked), order), (0, body))
        if kind == _MATRIX:
            shape, name, mat_class, parts = _matrix(body, order)
            names.append(name)
            if name in _MAT_KEYS:
                if mat_class != _CELL:
                    raise _WrongError(f"`{name}` must be a cell array")
                cells = [part for part_kind, part in parts if part_kind == _MATRIX]
                if len(cells) != math.prod(shape):
                    raise _WrongError(f"`{name}` holds {len(cells)} cells, not as many as its shape {shape} says")
                found[name] = [_numbers(cell, order, f"{name}[{place}]") for place, cell in enumerate(cells)]
    missing = [key for key in _MAT_KEYS if key not in found]
    if missing:
        raise _WrongError(
            f"it must hold the cell arrays {', '.join(_MAT_KEYS)}. Received: {', '.join(names) or 'none'}"
        )
    return {split: found[key] for split, key in zip(_SPLITS, _MAT_KEYS)}


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, bytes) of each element that `data` holds."""
    position = 0
    while position < len(data):
        if len(data) - position < 8:
            raise _WrongError("it is damaged or cut short")
        (first,) = struct.unpack_from(f"{order}I", data, position)
        if first >> 16:  # up to four bytes, in the tag itself
            kind, size, start = first & 0xFFFF, first >> 16, position + 4
            position += 8
        else:
            (size,) = struct.unpack_from(f"{order}I", data, position + 4)
            kind, start = first, position + 8
            position = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data) or (first >> 16 and size > 4):
            raise _WrongError("it is damaged or cut short")
        yield kind, data[start : start + size]


def _matrix(body: memoryview, order: str) -> tuple[tuple[int, ...], str, int, Iterator[tuple[int, memoryview]]]:
    """Shape, name, class, and the elements that follow, of a matrix element."""
    parts = _elements(body, order)
    header = [next(parts, (0, memoryview(b""))) for _ in range(3)]
    if [kind for kind, _ in header] != [6, 5, 1] or len(header[0][1]) != 8 or len(header[1][1]) % 4:
        raise _WrongError("it is damaged: an array without its header")
    (flags,) = struct.unpack_from(f"{order}I", header[0][1])
    shape = tuple(int(size) for size in np.frombuffer(header[1][1], f"{order}i4"))
    return shape, bytes(header[2][1]).decode("ascii", "replace"), flags & 0xFF, parts


def _numbers(body: memoryview, order: str, name: str) -> np.ndarray:
    """The roll in a matrix element."""
    if not len(body):
        raise _WrongError(f"`{name}` is empty")
    shape, _, mat_class, parts = _matrix(body, order)
    kind, stored = next(parts, (0, memoryview(b"")))
    if mat_class not in _NUMERIC or kind not in _STORED:
        raise _WrongError(f"`{name}` must be a full numeric matrix")
    values = np.frombuffer(stored, order + _STORED[kind])
    if len(values) != math.prod(shape):
        raise _WrongError(f"`{name}` holds {len(values)} numbers, not as many as its shape {shape} says")
    return check_roll(values.reshape(shape, order="F"), name)


# Batches and pictures


def pad_rolls(pieces: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
    """Pieces as one array, silent after each one's end.

    Args:
        pieces: n >= 1 rolls, (T_i, 88) in {0, 1}.
    Returns:
        "frames": uint8 (n, T, 88), T the longest; "length": int32 (n,), the frames of each.
    """
    pieces = _check_pieces(pieces, "pieces")
    if not pieces:
        raise ValueError("`pieces` must hold at least one roll. Received: none")
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    frames = np.zeros((len(pieces), lengths.max(), PITCHES), np.uint8)
    for row, piece in zip(frames, pieces):
        row[: len(piece)] = piece
    return {"frames": frames, "length": lengths}


def cut(pieces: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """Pieces cut into parts of `length` frames, in order; the last part of a piece is what is left.

    Args:
        pieces: rolls, (T_i, 88) in {0, 1}.
        length: frames, >= 1.
    """
    if length < 1:
        raise ValueError(f"`length` must be positive. Received: length={length}")
    return [
        piece[start : start + length]
        for piece in _check_pieces(pieces, "pieces")
        for start in range(0, len(piece), length)
    ]


def picture(roll: np.ndarray, *, scale: int = 2, low: int = LOWEST, high: int = HIGHEST) -> np.ndarray:
    """A roll as a grey picture, pitch upwards and time to the right: notes black, rows of black keys light grey.

    Args:
        roll: (T, 88) in {0, 1}, T >= 1.
        scale: pixels of a frame and of a pitch, >= 2.
        low, high: MIDI pitches shown, both included.
    Returns:
        uint8 (H, W, 1): H = scale * (high - low + 1), W = scale * T.
    """
    roll = check_roll(roll)
    if not len(roll):
        raise ValueError("`roll` must have at least one frame. Received: 0")
    if scale < 2:
        raise ValueError(f"`scale` must be at least 2. Received: scale={scale}")
    if not LOWEST <= low <= high <= HIGHEST:
        raise ValueError(f"`low` and `high` must be {LOWEST} <= low <= high <= {HIGHEST}. Received: {low}, {high}")
    pitches = np.arange(low, high + 1)
    rows = np.where(np.isin(pitches % 12, (1, 3, 6, 8, 10)), 225, 255)[:, None]
    image = np.where(roll.T[low - LOWEST : high - LOWEST + 1], 0, rows).astype(np.uint8)[::-1]
    return image.repeat(scale, axis=0).repeat(scale, axis=1)[..., None]


def pictures(rolls: Sequence[np.ndarray], scale: int = 4) -> np.ndarray:
    """`picture` of several rolls, one above the other: uint8 (H, W, 1), as wide as the longest."""
    drawn = [picture(roll, scale=scale) for roll in rolls]
    width = max(one.shape[1] for one in drawn)
    return np.concatenate(
        [np.pad(one, [(0, 4), (0, width - one.shape[1]), (0, 0)], constant_values=255) for one in drawn]
    )


def _check_pieces(pieces: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
    return [check_roll(piece, f"{name}[{place}]") for place, piece in enumerate(pieces)]
