"""Byte-level byte pair encoding: how text is cut into words, how the bytes of a word are merged, and training.

A merge joins two neighbouring tokens of one word. In each word the pair whose merge was learned first is merged
wherever it occurs, from left to right, and this is repeated until no pair is left that was learned.
Reference: Sennrich et al. (2016), Neural Machine Translation of Rare Words with Subword Units, section 3.2;
Radford et al. (2019), Language Models are Unsupervised Multitask Learners, section 2.2, for bytes.

Words. Every character has one of five kinds (`_KINDS`). A word is the longest run of

- letters, or of symbols, with one space before it where there is one;
- digits, three at most;
- spaces that belong to no word after them;
- tabs and line breaks;

and a run of more than 32 characters is cut every 32. An apostrophe (' or ’) between two letters is a letter. Words
together are the text, character for character. The bound on their length bounds the number of merging rounds, whatever
text a server is sent. Python finds words by a regular expression, TensorFlow by comparing the kinds of neighbours.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import tensorflow as tf

from gentf.errors import UserError

LONGEST = 32
_DIGITS = 3
_SPACE, _BREAK, _DIGIT, _SYMBOL, _LETTER = range(5)
# (first code point, kind of it and of those up to the next line). Not the categories of Unicode: those change between
# versions, and Python, TensorFlow and a server would each have their own.
_KINDS = (
    (0x00, _SYMBOL),
    (0x09, _BREAK),  # tab, line feed, vertical tab, form feed, carriage return
    (0x0E, _SYMBOL),
    (0x20, _SPACE),
    (0x21, _SYMBOL),
    (0x30, _DIGIT),
    (0x3A, _SYMBOL),
    (0x41, _LETTER),
    (0x5B, _SYMBOL),
    (0x61, _LETTER),
    (0x7B, _SYMBOL),
    (0xC0, _LETTER),
    (0xD7, _SYMBOL),  # multiplication sign
    (0xD8, _LETTER),
    (0xF7, _SYMBOL),  # division sign
    (0xF8, _LETTER),
    (0x2000, _SYMBOL),  # punctuation, currency, arrows, mathematics, drawing
    (0x2C00, _LETTER),
    (0x2E00, _SYMBOL),  # more punctuation
    (0x2E80, _LETTER),
    (0x3000, _SYMBOL),  # Chinese, Japanese, Korean punctuation
    (0x3040, _LETTER),
    (0xFE00, _SYMBOL),  # variation selectors, compatibility forms
    (0xFE50, _LETTER),
    (0xFF00, _SYMBOL),  # full-width punctuation
    (0xFF10, _LETTER),
    (0x1F000, _SYMBOL),  # emoji
    (0x1FB00, _LETTER),
)
_STARTS = np.array([start for start, _ in _KINDS], np.int32)
_KIND_OF_START = np.array([kind for _, kind in _KINDS], np.int32)
_APOSTROPHES = (0x27, 0x2019)
_UNKNOWN = np.iinfo(np.int32).max  # rank of a pair that has no merge


def _expression() -> re.Pattern[str]:
    ends = [*(start - 1 for start, _ in _KINDS[1:]), 0x10FFFF]
    sets = {
        wanted: "".join(rf"\U{start:08x}-\U{end:08x}" for (start, kind), end in zip(_KINDS, ends) if kind == wanted)
        for wanted in (_BREAK, _DIGIT, _SYMBOL, _LETTER)
    }
    letter, symbol = f"[{sets[_LETTER]}]", f"[{sets[_SYMBOL]}]"
    apostrophe = f"(?<={letter})[{''.join(map(chr, _APOSTROPHES))}](?={letter})"
    parts = [f"(?:{letter}|{apostrophe})", symbol]
    words = [form for part in parts for form in (f" {part}{{1,{LONGEST - 1}}}", f"{part}{{1,{LONGEST}}}")]
    spaces = f"(?: (?![{sets[_LETTER]}{sets[_SYMBOL]}])){{1,{LONGEST}}}"
    rest = [f"[{sets[_DIGIT]}]{{1,{_DIGITS}}}", f"[{sets[_BREAK]}]{{1,{LONGEST}}}", spaces]
    return re.compile("|".join(words + rest))


words = _expression().findall
"""(text) -> its words, which together are the text."""


def word_starts(codes: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Where words begin.

    Args:
        codes: (N,) int32 code points of several texts, one after the other.
        rows: (N,) integers, the text that each is of, not decreasing.
    Returns:
        (N,) bool.
    """
    first = tf.concat([[-1], rows], 0)[:-1] != rows
    last = tf.concat([rows, [-1]], 0)[1:] != rows

    def neighbours(kinds):
        before, after = tf.concat([[-1], kinds], 0)[:-1], tf.concat([kinds, [-1]], 0)[1:]
        return tf.where(first, -1, before), tf.where(last, -1, after)  # -1: no kind, so that a text begins a word

    kinds = tf.gather(_KIND_OF_START, tf.searchsorted(_STARTS, codes, side="right") - 1)
    before, after = neighbours(kinds)
    apostrophe = tf.reduce_any(codes[:, None] == tf.constant(_APOSTROPHES)[None, :], axis=1)
    kinds = tf.where(apostrophe & (before == _LETTER) & (after == _LETTER), _LETTER, kinds)
    before, after = neighbours(kinds)
    takes_space = (kinds == _LETTER) | (kinds == _SYMBOL)
    gives_space = (kinds == _SPACE) & ((after == _LETTER) | (after == _SYMBOL))
    starts = gives_space | ((kinds != before) & ~(takes_space & (before == _SPACE)))
    begin = tf.gather(tf.where(starts)[:, 0], tf.cumsum(tf.cast(starts, tf.int32)) - 1)
    place = tf.range(tf.size(codes)) - tf.cast(begin, tf.int32)
    return place % tf.where(kinds == _DIGIT, _DIGITS, LONGEST) == 0


class Merges:
    """Merges in the order in which they were learned, and the tokens that they make.

    Token 0 has no bytes and no merge; 1 to 256 are the bytes; each merge whose bytes no token has makes the next one.

    Args:
        pairs: (left, right) tokens of each merge, both known before it, no pair twice.
    Raises:
        UserError: pairs that are not so; the message names the first.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]]):
        pieces = [b"", *(bytes([value]) for value in range(256))]
        tokens = {piece: token for token, piece in enumerate(pieces)}
        ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, pair in enumerate(pairs):
            if not _is_pair(pair, len(pieces)) or tuple(pair) in ranks:
                raise UserError(
                    f"`merges` must be pairs of tokens from 1 to those made before, each once. "
                    f"Received: merges[{rank}]={pair!r}"
                )
            left, right = pair
            piece = pieces[left] + pieces[right]
            if tokens.setdefault(piece, len(pieces)) == len(pieces):
                pieces.append(piece)
            ranks[left, right] = rank, tokens[piece]
        self.pieces = tuple(pieces)
        self._ranks = ranks
        size = np.int64(len(pieces))
        codes = np.array([left * size + right for left, right in ranks], np.int64)
        order = np.argsort(codes)
        self._codes, self._order = codes[order], order.astype(np.int32)
        self._results = np.array([token for _, token in ranks.values()], np.int32)

    @property
    def pairs(self) -> list[list[int]]:
        """The pairs as lists, for JSON."""
        return [list(pair) for pair in self._ranks]

    def apply(self, word: bytes) -> list[int]:
        """The tokens of one word."""
        tokens = [value + 1 for value in word]
        while len(tokens) > 1:
            pair = min(pairwise(tokens), key=lambda pair: self._ranks.get(pair, (_UNKNOWN,)))
            if pair not in self._ranks:
                break
            merged, place = [], 0
            while place < len(tokens):
                found = tokens[place] == pair[0] and tokens[place + 1 : place + 2] == [pair[1]]
                merged.append(self._ranks[pair][1] if found else tokens[place])
                place += 2 if found else 1
            tokens = merged
        return tokens

    def apply_tensor(self, tokens: tf.Tensor, word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`apply` to many words at once.

        Args:
            tokens: (N,) int32, bytes as tokens.
            word: (N,) int32, the number of the word that each is of: 0, 1, ... in order.
        Returns:
            (M,) int32 tokens and (M,) int32 words, M <= N.
        """
        if not self._codes.size:
            return tokens, word
        count = tf.reduce_max(tf.concat([[-1], word], 0)) + 1
        size, highest = len(self.pieces), len(self._codes) - 1
        codes, order, results = (tf.constant(x) for x in (self._codes, self._order, self._results))

        def ranks(tokens, word):
            right = tf.concat([tokens, [0]], 0)[1:]
            together = tf.concat([word, [-1]], 0)[1:] == word
            code = tf.cast(tokens, tf.int64) * size + tf.cast(right, tf.int64)
            place = tf.minimum(tf.searchsorted(codes, code), highest)
            return tf.where(together & (tf.gather(codes, place) == code), tf.gather(order, place), _UNKNOWN)

        def merge(tokens, word, rank):
            lowest = tf.gather(tf.math.unsorted_segment_min(rank, word, count), word)
            match = (rank == lowest) & (rank != _UNKNOWN)
            # Of matches side by side, as in "aaaa", every second one is a merge.
            opens = match & ~tf.concat([[False], match], 0)[:-1]
            number = tf.maximum(tf.cumsum(tf.cast(opens, tf.int32)) - 1, 0)
            distance = tf.range(tf.size(match)) - tf.cast(tf.gather(tf.where(opens)[:, 0], number), tf.int32)
            merged = match & (distance % 2 == 0)
            tokens = tf.where(merged, tf.gather(results, tf.minimum(rank, highest)), tokens)
            kept = ~tf.concat([[False], merged], 0)[:-1]
            tokens, word = tf.boolean_mask(tokens, kept), tf.boolean_mask(word, kept)
            return tokens, word, ranks(tokens, word)

        tokens, word, _ = tf.while_loop(
            lambda tokens, word, rank: tf.reduce_any(rank != _UNKNOWN),
            merge,
            (tokens, word, ranks(tokens, word)),
            shape_invariants=(tf.TensorShape([None]),) * 3,
            parallel_iterations=1,
        )
        return tokens, word


def learn(texts: Iterable[str], size: int) -> list[tuple[int, int]]:
    """Learn merges from texts: the most frequent pair, again and again, while a pair occurs twice.

    Args:
        texts: one string a document; no word runs from one into the next.
        size: of the vocabulary to reach, more than 257; a short text gives fewer.
    Returns:
        pairs as `Merges` takes them; the same for the same texts.
    Raises:
        UserError: the package `tokenizers` is missing.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError("to train a BPE tokenizer install the package `tokenizers`: pip install tokenizers") from error
    # Each byte is the character 256 above it: none of those is a space, or treated specially. Byte 255 is in no
    # UTF-8 text, and stands between words.
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(chr(256 + 255))
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(256 + value) for value in range(256)],
    )
    joined = (b"\xff".join(word.encode() for word in words(text)) for text in texts)
    with _one_thread():
        learner.train_from_iterator(
            ((np.frombuffer(data, np.uint8).astype("<u2") + 256).tobytes().decode("utf-16-le") for data in joined),
            trainer,
        )
    tokens = {chr(256 + value): 1 + value for value in range(256)}
    pairs = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        pairs.append((tokens[left], tokens[right]))
        tokens.setdefault(left + right, len(tokens) + 1)
    return pairs


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Once the library has used threads it warns at every later fork of the process."""
    name, before = "TOKENIZERS_PARALLELISM", os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _is_pair(pair: object, size: int) -> bool:
    return (
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(isinstance(token, int) and not isinstance(token, bool) and 1 <= token < size for token in pair)
    )
