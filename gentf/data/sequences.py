"""Sequences as data sources: windows of one stream of tokens, padded rolls, padded pairs.

What a batch holds:

- text, and music as chord or event tokens: {"tokens": int32 (B, block + 1)}, windows of a stream, each with the token
  after it. In train the windows start at another place in each epoch, so that every token comes at every depth.
- music as frames: {"frames": uint8 (B, T, 88), "length": int32 (B,)}. In train pieces are cut to `block` frames; in
  validation and test they are whole.
- pairs: {"source": int32 (B, S), "target": int32 (B, T), "target_length": int32 (B,)}, see `pairs.pad_pairs`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.data import midi, music, pairs, tokenizers
from gentf.data.examples import Element, Examples, Rows, on_host
from gentf.data.order import fixed_order, held_out_sizes
from gentf.data.source import SPLITS, DataSource, DataSpec, Progress, of_stores
from gentf.data.text import pack, read_documents, split_documents, windows
from gentf.errors import UserError

EMBEDDED = {
    "dates": "dates as people write them, and in ISO 8601 (pairs)",
    "arithmetic": "sums and differences, and their results (pairs)",
    "chorales": "four voices by the rules of harmony, generated (music)",
}


class Windows(Examples):
    """Windows of `block` tokens and the one after, in a stream.

    Args:
        stream: (n,) int32, n > block.
        block: tokens.
        moving: whether windows start at another place in each epoch. There is then one window less.
    """

    def __init__(self, stream: np.ndarray, block: int, moving: bool):
        count = windows(len(stream), block)
        spare = len(stream) - 1 - (count - moving) * block
        self.moves = min(block, spare + 1) if moving and count > 1 else 1
        super().__init__(count - (self.moves > 1), (block + 1,), "int32", False, None)
        self.block = block
        self._stream = on_host(np.ascontiguousarray(stream, np.int32))

    @property
    def resident(self) -> Element:
        return {"stream": self._stream}

    def place(self, indices: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        starts = indices * self.block
        if key is None or self.moves == 1:
            return starts
        word = tf.random.stateless_uniform((), key, None, None, tf.uint32, "philox")
        return starts + tf.cast(word % tf.constant(self.moves, tf.uint32), tf.int64)

    def select(self, tensors: Element, rows: tf.Tensor) -> Element:
        places = rows[:, None] + tf.range(self.block + 1, dtype=rows.dtype)
        return {"tokens": tf.gather(tensors["stream"], places)}

    def gather(self, indices: tf.Tensor) -> Element:
        return self.select(self.resident, indices)


def load_text(
    name_or_path: str | os.PathLike,
    *,
    tokenizer: str = "char",
    vocabulary: int | None = None,
    documents: str = "file",
    block: int = 128,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    progress: Progress | None = None,
) -> DataSource:
    """Text as windows of tokens.

    Byte pairs are learned from train alone; the alphabet of characters is that of all splits.

    Args:
        name_or_path: see `gentf.data.text.read_documents`.
        tokenizer: "char", "byte" or "bpe"; vocabulary: of "bpe".
        documents: what a document is; see `read_documents`. Where there are several, token 0 stands between them.
        block: tokens in a window.
        validation_share, test_share: cut from train where the text has no such split.
        progress: called with (label, done, total) now and then.
    Raises:
        UserError: no text, or too little for a window in train.
    """
    found = split_documents(read_documents(name_or_path, progress, documents=documents), validation_share, test_share)
    parts = {name: getattr(found, name) or [] for name in SPLITS}
    learned = found.train if tokenizer == "bpe" else [text for texts in parts.values() for text in texts]
    codec = tokenizers.train(tokenizer, learned, vocabulary)
    streams = {name: pack(codec, texts) if texts else np.zeros(0, np.int32) for name, texts in parts.items()}
    several = any(len(texts) > 1 for texts in parts.values())
    start = (tokenizers.BOUNDARY,) if several else _line_break(codec)
    spec = DataSpec(
        found.name, (block,), "int32", (0, codec.size - 1), licence=found.licence, modality="text",
        tokenizer=codec.to_dict(), start=start, boundary=several,
    )  # fmt: skip
    return _of_streams(spec, streams, block)


def load_music(
    name_or_path: str | os.PathLike,
    *,
    tokens: str = "frames",
    block: int = 128,
    transpose: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> DataSource:
    """Pieces of music as frames of 88 keys, or as chord or event tokens.

    Args:
        name_or_path: see `gentf.data.music.read_rolls`.
        tokens: "frames"; "chords" (see `midi.to_chords`) or "events" (`midi.to_events`), with 0 between pieces.
        block: frames, or tokens, that are learned from together.
        transpose: train on each piece in all keys up to so many semitones away too, as far as its notes stay in range.
        validation_share, test_share: shares of the pieces, where the set has no such split.
    Raises:
        UserError: a set that cannot be read, or too few pieces.
    """
    rolls = music.read_rolls(name_or_path)
    parts = _deal(rolls, validation_share, test_share)
    parts["train"] = [moved for piece in parts["train"] for moved in _transposed(piece, transpose)]
    spec = DataSpec(
        rolls.name, (block, midi.PITCHES), "uint8", (0, 1), licence=rolls.licence, modality="music",
        tokenizer={"kind": tokens},
    )  # fmt: skip
    if tokens == "frames":
        cut = {name: music.cut(p, block) if name == "train" else p for name, p in parts.items()}
        stores = {name: Rows(music.pad_rolls(pieces)) for name, pieces in cut.items() if pieces}
        return of_stores(spec, stores, Rows(music.pad_rolls([np.zeros((1, midi.PITCHES), np.uint8)])))
    to_tokens, names = {"chords": (midi.to_chords, midi.CHORDS), "events": (midi.to_events, midi.EVENTS)}[tokens]
    end = np.zeros(1, np.int32)
    streams = {
        name: np.concatenate([part for piece in pieces for part in (end, to_tokens(piece))] + [end])
        for name, pieces in parts.items()
    }
    spec = DataSpec(
        spec.name, (block,), "int32", (0, len(names) - 1), licence=spec.licence, modality="music",
        tokenizer=spec.tokenizer, start=(0,), boundary=True,
    )  # fmt: skip
    return _of_streams(spec, streams, block)


def load_pairs(
    name_or_path: str | os.PathLike,
    *,
    examples: int = 50_000,
    tokenizer: str = "char",
    vocabulary: int | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> DataSource:
    """Pairs of texts: "dates", "arithmetic", or a file of lines with a tab between source and target.

    Args:
        name_or_path: of the set.
        examples: pairs of a generated set in train; validation and test have a tenth as many.
        tokenizer, vocabulary: see `load_text`; of sources and targets both.
        validation_share, test_share: of a file's lines.
    """
    makers = {"dates": pairs.dates, "arithmetic": pairs.arithmetic}
    name = os.fspath(name_or_path)
    if name in makers:
        sizes = {"train": examples, "validation": examples // 10, "test": examples // 10}
        texts = {split: makers[name](size, seed=0, split=split) for split, size in sizes.items()}
        licence = "generated"
    else:
        sources, targets = pairs.read_pairs(name_or_path)
        held = held_out_sizes(len(sources), validation_share, test_share)
        test, validation, train = np.split(fixed_order(len(sources)), np.cumsum(held))
        rows = {"train": train, "validation": validation, "test": test}
        texts = {s: ([sources[r] for r in which], [targets[r] for r in which]) for s, which in rows.items()}
        licence = "not stated"
    learned = [
        t for split, both in texts.items() for part in both for t in part if split == "train" or tokenizer != "bpe"
    ]
    codec = tokenizers.train(tokenizer, learned, vocabulary)
    arrays = {split: pairs.pad_pairs(codec, *both) for split, both in texts.items() if both[0]}
    longest = {key: max(a[key].shape[1] for a in arrays.values()) for key in ("source", "target")}
    for content in arrays.values():  # one shape for all splits
        for key, size in longest.items():
            content[key] = np.pad(content[key], [(0, 0), (0, size - content[key].shape[1])])
    spec = DataSpec(
        name, (longest["source"], longest["target"]), "int32", (0, codec.size - 1), licence=licence, modality="pairs",
        tokenizer=codec.to_dict(), start=(tokenizers.BOUNDARY,), boundary=True,
    )  # fmt: skip
    return of_stores(spec, {split: Rows(content) for split, content in arrays.items()}, Rows(arrays["train"]))


def _of_streams(spec: DataSpec, streams: Mapping[str, np.ndarray], block: int) -> DataSource:
    stores = {}
    for name, stream in streams.items():
        if len(stream) > block or name == "train":
            stores[name] = Windows(stream, block, moving=name == "train")
    return of_stores(spec, stores, stores["train"])


def _line_break(codec: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The token of a line break; of the first character where the text has none."""
    try:
        return tuple(codec.encode("\n").tolist())
    except UserError:
        return (1,)


def _deal(rolls: music.Rolls, validation_share: float, test_share: float) -> dict[str, list[np.ndarray]]:
    """The pieces of each split; those that a set lacks are dealt from its train, whole."""
    parts = {name: list(getattr(rolls, name) or []) for name in SPLITS}
    shares = [0.0 if getattr(rolls, name) is not None else share
              for name, share in (("validation", validation_share), ("test", test_share))]  # fmt: skip
    if not any(shares):
        return parts
    sizes = held_out_sizes(len(parts["train"]), *shares)
    if len(parts["train"]) <= sum(sizes):
        raise UserError(f"{rolls.name} must have pieces for each split. Received: {len(parts['train'])} pieces")
    test, validation, train = np.split(fixed_order(len(parts["train"])), np.cumsum(sizes))
    for name, rows in (("test", test), ("validation", validation)):
        parts[name] += [parts["train"][row] for row in np.sort(rows)]
    parts["train"] = [parts["train"][row] for row in np.sort(train)]
    return parts


def _transposed(piece: np.ndarray, most: int) -> Sequence[np.ndarray]:
    """The piece, and its transpositions that lose no note."""
    used = np.flatnonzero(piece.any(axis=0))
    if not used.size:
        return [piece]
    steps = [n for n in range(-most, most + 1) if used[0] + n >= 0 and used[-1] + n < midi.PITCHES]
    return [np.roll(piece, n, axis=1) for n in sorted(steps, key=abs)]


def codec_of(kind: Mapping[str, Any] | None) -> tokenizers.Tokenizer | None:
    """The tokenizer that `DataSpec.tokenizer` describes, of a text set; None for music and images."""
    return tokenizers.Tokenizer.from_dict(kind) if kind and kind["kind"] in ("char", "byte", "bpe") else None
