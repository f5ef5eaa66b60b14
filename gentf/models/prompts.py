"""Prompts and what is generated, between people's form (texts, rolls) and symbols."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gentf.data import midi
from gentf.data.sequences import codec_of

KEYS = midi.PITCHES


class Codec:
    """From texts or rolls to symbols, and back.

    Args:
        kind: the tokenizer's mapping, as `DataSpec.tokenizer`; None: symbols are given and taken as they are.
        start: tokens before a text where no prompt is given.
        boundary: whether token 0 stands before each text.
    """

    def __init__(self, kind: Mapping[str, Any] | None, start: Sequence[int] = (), boundary: bool = False):
        self.kind = kind["kind"] if kind else None
        self.text = codec_of(kind) if kind else None
        self.start, self.boundary = tuple(start) or (0,), boundary

    def encode(self, prompt: Any) -> np.ndarray:
        """A prompt, or a whole sequence, as symbols: (P,) int32, at least one, or frames (P, 88) float32."""
        if self.kind == "frames":
            empty = prompt is None or (isinstance(prompt, str) and not prompt)
            return np.zeros((0, KEYS), np.float32) if empty else midi.check_roll(np.asarray(prompt)).astype(np.float32)
        if self.text is not None and isinstance(prompt, (str, type(None))):
            tokens = self.text.encode(prompt or "")
        elif self.kind in ("chords", "events") and np.ndim(prompt) == 2:
            tokens = (midi.to_chords if self.kind == "chords" else midi.to_events)(np.asarray(prompt))
        else:
            tokens = np.asarray([] if prompt is None or isinstance(prompt, str) else prompt, np.int32)
            if tokens.ndim != 1:
                raise ValueError(f"`prompt` must be (P,) tokens. Received: shape {tokens.shape}")
        if self.boundary:
            return np.concatenate([np.zeros(1, np.int32), tokens])
        return tokens if len(tokens) else np.asarray(self.start, np.int32)

    def decode(self, symbols: np.ndarray) -> Any:
        """Generated symbols as a text or a roll uint8 (T, 88); themselves where nothing is known of them."""
        if self.kind == "frames":
            return symbols.astype(np.uint8)
        if self.text is not None:
            return self.text.decode(symbols)
        if self.kind in ("chords", "events"):
            return (midi.from_chords if self.kind == "chords" else midi.from_events)(symbols)
        return symbols


def cut_before(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    return text[: min([place for stop in stops if (place := text.find(stop)) >= 0], default=len(text))]


def fit(prompts: list[np.ndarray], context: int | None) -> list[np.ndarray]:
    """The last `context` symbols of each prompt, with a warning where that leaves something out."""
    if context is None:
        return prompts
    longest = max(map(len, prompts))
    if longest > context:
        warnings.warn(
            f"a prompt of {longest} symbols is longer than the context: only its last {context} are read", stacklevel=5
        )
    return [prompt[-context:] for prompt in prompts]


def controls_of(num: int, **given: Any) -> dict[str, np.ndarray]:
    """Controls as arrays of one number a row; those at a value that changes nothing are left out.

    Raises:
        ValueError: out of range, or not one number a row.
    """
    known = {  # name: dtype, value that changes nothing, least, most, whether the least is allowed
        "temperature": (np.float32, 1.0, 0.0, np.inf, True),
        "top_k": (np.int32, 0, 0, np.inf, True),
        "top_p": (np.float32, 1.0, 0.0, 1.0, False),
        "min_p": (np.float32, 0.0, 0.0, 1.0, True),
        "repetition": (np.float32, 1.0, 0.0, np.inf, False),
    }
    found = {}
    for name, value in given.items():
        dtype, neutral, low, high, closed = known[name]
        array = np.asarray(value)
        inside = array.dtype.kind in "iuf" and array.shape in ((), (num,)) and np.isfinite(array).all()
        if not inside or not ((array >= low if closed else array > low) & (array <= high)).all():
            ends = f"at least {low:g}" if high == np.inf else f"in {'[' if closed else '('}{low:g}, {high:g}]"
            ends = "positive" if high == np.inf and not closed else ends
            raise ValueError(f"`{name}` must be {ends}, one number or one a sample. Received: {name}={value!r}")
        if not (array == neutral).all():
            found[name] = np.broadcast_to(array, (num,)).astype(dtype)
    return found
