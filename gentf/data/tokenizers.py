"""Text to integers and back: characters, bytes, or byte pairs, the same in Python and in a served graph."""

import abc
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import ClassVar

import numpy as np
import tensorflow as tf

from gentf.data import bpe
from gentf.errors import UserError

BOUNDARY = 0
_NAMED = 3  # unknown characters named in a message
_REMEMBERED = 2**18  # words whose tokens are kept
_BPE_SIZE = 4096
_MAX_SIZE = 2**20


class Tokenizer(abc.ABC):
    """Strings to tokens and back.

    Token 0, `BOUNDARY`, has no text: it stands between documents, ends a generated text, and pads. The others
    follow from 1.

    Args:
        pieces: the bytes of each token; b"" for token 0 alone.
    """

    kind: ClassVar[str]
    BOUNDARY: ClassVar[int] = BOUNDARY

    def __init__(self, pieces: tuple[bytes, ...]):
        self.pieces = pieces

    @property
    def size(self) -> int:
        """Number of tokens, the boundary among them."""
        return len(self.pieces)

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: (n,) int32, none of them 0.

        Raises:
            UserError: a character that the tokenizer has no token for, or half of a surrogate pair.
        """

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of (n,) tokens, all of them: 0 is left out and does not end it.

        What is not UTF-8, as a character cut off at the end, becomes U+FFFD.

        Raises:
            ValueError: a token outside 0..size-1.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise ValueError(f"`tokens` must be (n,) integers. Received: {tokens.dtype} of shape {tokens.shape}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.size:
            raise ValueError(f"`tokens` must lie in 0..{self.size - 1}. Received: {tokens.min()}..{tokens.max()}")
        return b"".join(map(self.pieces.__getitem__, tokens.astype(np.int64).tolist())).decode("utf-8", "replace")

    def encode_tensor(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`encode` of many texts in TensorFlow's own operations, which an exported graph may hold.

        The tokens of a text do not depend on the texts beside it.

        Args:
            text: (B,) string, UTF-8.
        Returns:
            tokens (B, T) int32, T the length of the longest, zeros to the right; lengths (B,) int32.
        """
        tokens, rows = self._flat(text)
        ragged = tf.RaggedTensor.from_value_rowids(tokens, rows, tf.size(text, tf.int64), validate=False)
        return ragged.to_tensor(0), tf.cast(ragged.row_lengths(), tf.int32)

    def decode_tensor(self, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """`decode` of many texts in TensorFlow's own operations.

        Args:
            tokens: (B, T) int32; 0 and what lies outside the vocabulary is left out.
            lengths: (B,) int32: `tokens[b, :lengths[b]]` is decoded.
        Returns:
            (B,) string, always UTF-8: what is not becomes U+FFFD, as in `decode`.
        """
        counted = tf.range(tf.shape(tokens)[1])[None, :] < lengths[:, None]
        known = counted & (tokens >= 0) & (tokens < self.size)
        parts = tf.gather(tf.constant(self.pieces), tf.where(known, tokens, BOUNDARY))
        joined = tf.strings.reduce_join(parts, axis=1)
        return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace")

    @abc.abstractmethod
    def _flat(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(B,) string -> tokens (N,) int32 of all texts, one after the other, and the text each is of (N,) int64."""

    @abc.abstractmethod
    def to_dict(self) -> dict:
        """What `from_dict` makes the same tokenizer of; JSON can hold it."""

    @staticmethod
    def from_dict(content: Mapping) -> "Tokenizer":
        """A tokenizer from what `to_dict` gave.

        Raises:
            UserError: anything else.
        """
        kind = content.get("kind") if isinstance(content, Mapping) else None
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise UserError(
                f"a tokenizer must be a mapping with `kind` one of {', '.join(_FIELDS)}. "
                f"Received: {f'kind={kind!r}' if isinstance(content, Mapping) else type(content).__name__}"
            )
        fields = {"kind", *_FIELDS[kind]}
        if set(content) != fields:
            raise UserError(
                f"a tokenizer of kind {kind} must have the keys {', '.join(sorted(fields))}. "
                f"Received: {', '.join(sorted(map(str, content)))}"
            )
        return _KINDS[kind](*(content[name] for name in _FIELDS[kind]))


class CharTokenizer(Tokenizer):
    """One token a character (code point) of a fixed alphabet.

    Args:
        characters: the alphabet, in the order of the code points, each once; tokens 1, 2, ...
    Raises:
        UserError: none, out of order, twice, or half of a surrogate pair.
    """

    kind = "char"

    def __init__(self, characters: str):
        if not isinstance(characters, str) or not characters or characters != "".join(sorted(set(characters))):
            raise UserError(
                "`characters` must be a string of one or more characters in the order of their code points, each "
                f"once. Received: characters={characters!r:.60}"
            )
        _check_text(characters, "characters")
        super().__init__((b"", *(character.encode() for character in characters)))
        self.characters = characters
        self._codes = _code_points(characters).astype(np.int32)
        self._table = np.zeros(self._codes[-1] + 2, np.int32)  # the last entry is of all code points above
        self._table[self._codes] = np.arange(1, len(characters) + 1)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: (n,) int32.

        Raises:
            UserError: characters outside the alphabet; the message names the first three.
        """
        _check_string(text)
        tokens = self._table[np.minimum(_code_points(text), len(self._table) - 1)]
        if not tokens.all():
            unknown = list(dict.fromkeys(text[place] for place in np.flatnonzero(tokens == 0)))
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:_NAMED])
            raise UserError(f"`text` must hold no characters outside the alphabet. Received: {named}{more}")
        return tokens

    def encode_tensor(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Tokenizer.encode_tensor`; characters outside the alphabet are left out."""
        return super().encode_tensor(text)

    def _flat(self, text):
        codes, rows = _characters(text)
        place = tf.minimum(tf.searchsorted(self._codes, codes), len(self._codes) - 1)
        known = tf.gather(self._codes, place) == codes
        return tf.boolean_mask(place + 1, known), tf.boolean_mask(rows, known)

    def to_dict(self) -> dict:
        """{"kind": "char", "characters": the alphabet}."""
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer(Tokenizer):
    """One token a byte of the text's UTF-8: the byte's value and 1. 257 tokens."""

    kind = "byte"

    def __init__(self):
        super().__init__((b"", *(bytes([value]) for value in range(256))))

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: (n,) int32.

        Raises:
            UserError: half of a surrogate pair, which has no UTF-8.
        """
        _check_string(text)
        _check_text(text, "text")
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 1

    def encode_tensor(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Tokenizer.encode_tensor`; bytes that are not UTF-8 are kept as they are."""
        return super().encode_tensor(text)

    def _flat(self, text):
        return _bytes(text)

    def to_dict(self) -> dict:
        """{"kind": "byte"}."""
        return {"kind": self.kind}


class BPETokenizer(Tokenizer):
    """Byte pair encoding over the bytes of words: see `gentf.data.bpe`. 257 tokens, and those of the merges.

    Args:
        merges: pairs of tokens, in the order in which they were learned; see `gentf.data.bpe.Merges`.
    Raises:
        UserError: pairs of tokens that are not there yet, or a pair twice.
    """

    kind = "bpe"

    def __init__(self, merges: Iterable[tuple[int, int]]):
        if isinstance(merges, (str, bytes, Mapping)) or not isinstance(merges, Iterable):
            raise UserError(f"`merges` must be pairs of tokens. Received: merges={merges!r:.60}")
        self._merges = bpe.Merges(merges)
        super().__init__(self._merges.pieces)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: (n,) int32.

        Raises:
            UserError: half of a surrogate pair, which has no UTF-8.
        """
        _check_string(text)
        _check_text(text, "text")
        words = bpe.words(text)
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        known = self._known
        for word in set(words).difference(known):
            known[word] = self._merges.apply(word.encode())
        return np.fromiter(chain.from_iterable(map(known.__getitem__, words)), np.int32)

    def encode_tensor(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Tokenizer.encode_tensor`; what is not UTF-8 is taken as U+FFFD."""
        return super().encode_tensor(text)

    def _flat(self, text):
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
        starts = bpe.word_starts(*_characters(text))
        word_of_character = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        tokens, rows = _bytes(text)
        leads = tf.bitwise.bitwise_and(tokens - 1, 0xC0) != 0x80  # the bytes of a character after its first: 10xxxxxx
        word = tf.gather(word_of_character, tf.cumsum(tf.cast(leads, tf.int32)) - 1)
        row_of_word = tf.math.unsorted_segment_max(rows, word, tf.reduce_sum(tf.cast(starts, tf.int32)))
        tokens, word = self._merges.apply_tensor(tokens, word)
        return tokens, tf.gather(row_of_word, word)

    def to_dict(self) -> dict:
        """{"kind": "bpe", "merges": [[left, right], ...]}."""
        return {"kind": self.kind, "merges": self._merges.pairs}


_KINDS = {one.kind: one for one in (CharTokenizer, ByteTokenizer, BPETokenizer)}
_FIELDS: dict[str, tuple[str, ...]] = {"char": ("characters",), "byte": (), "bpe": ("merges",)}


def train(kind: str, text: Iterable[str], size: int | None = None) -> Tokenizer:
    """A tokenizer for a text: the same for the same text.

    Args:
        kind: "char" (the characters that occur), "byte" (nothing is learned), or "bpe".
        text: documents.
        size: of the vocabulary, for "bpe" alone: 257 to 2**20, 4,096 by default. A text in which too few pairs occur
            twice gives a smaller one.
    Raises:
        UserError: no text to learn from.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(_KINDS)}. Received: kind={kind!r}")
    if kind != "bpe" and size is not None:
        raise ValueError(f"`size` must be None for kind {kind!r}, which has its own. Received: size={size!r}")
    if kind == "byte":
        return ByteTokenizer()
    documents = [text] if isinstance(text, str) else text
    if kind == "char":
        characters = set().union(*(_checked(document) for document in documents))
        if not characters:
            raise UserError("`text` must hold at least one character to learn from. Received: none")
        return CharTokenizer("".join(sorted(characters)))
    size = _BPE_SIZE if size is None else size
    if isinstance(size, bool) or not isinstance(size, int) or not 257 <= size <= _MAX_SIZE:
        raise ValueError(f"`size` must be an integer in 257..{_MAX_SIZE}. Received: size={size!r}")
    seen = False

    def checked():
        nonlocal seen
        for document in documents:
            seen = seen or bool(document)
            yield _checked(document)

    merges = bpe.learn(checked(), size)
    if not seen:
        raise UserError("`text` must hold at least one character to learn from. Received: none")
    return BPETokenizer(merges)


def _characters(text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(B,) string -> code points (N,) int32 of all, and the row of each (N,) int64."""
    ragged = tf.strings.unicode_decode(text, "UTF-8", errors="replace")
    return ragged.values, ragged.value_rowids()


def _bytes(text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(B,) string -> bytes as tokens (N,) int32 of all, and the row of each (N,) int64."""
    values = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8), tf.int32)
    return values + 1, tf.repeat(tf.range(tf.size(text, tf.int64)), tf.strings.length(text))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _checked(text: str) -> str:
    _check_string(text)
    _check_text(text, "text")
    return text


def _check_string(text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"`text` must be a string. Received: {type(text).__name__}")


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"`{name}` must be Unicode text. Received: {text[error.start]!r}, half of a surrogate pair, at character "
            f"{error.start}"
        ) from error
