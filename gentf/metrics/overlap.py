"""Is a sequence model repeating its training text? Longest matches, near copies, exact match, edit distance."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gentf.metrics.estimate import Estimate, share_of
from gentf.metrics.ngram import to_tokens


class Match(NamedTuple):
    """A stretch of training text: `length` tokens from `position` on. Length 0 has position -1."""

    length: int
    position: int


class SuffixArray:
    """All suffixes of a training text in order, in which any stretch of tokens is found by bisection.

    It takes about 85 bytes a token while it is built, and 50 after.

    Attributes:
        positions: (n,) int64, where the suffixes start: the least suffix first, and a prefix before what it begins.
    """

    def __init__(self, tokens: np.ndarray):
        """Sort the suffixes by doubling: (n,) integers, n >= 1.

        In each round the suffixes are in the order of their first k tokens; the rank of the suffix k tokens on
        orders them by 2 k. Reference: Manber & Myers (1993).
        """
        tokens = to_tokens(tokens)
        if tokens.size == 0:
            raise ValueError("`tokens` must hold at least one token. Received: 0 tokens")
        self._alphabet, symbols = np.unique(tokens, return_inverse=True)
        symbols = symbols.reshape(-1).astype(np.int64) + 1  # 0 is past the end
        base = self._alphabet.size + 1
        width = max(1, int(62 / np.log2(base)))  # symbols that one int64 holds
        keys = np.zeros(tokens.size, np.int64)
        for offset in range(width):
            keys *= base
            keys[: max(0, tokens.size - offset)] += symbols[offset:]
        order = np.argsort(keys)
        while True:
            ranks = np.empty(tokens.size, np.int64)
            ranks[order] = np.cumsum(np.diff(keys[order], prepend=-1) != 0)  # from 1
            if ranks[order[-1]] == tokens.size:
                break
            keys = ranks * (tokens.size + 1)
            keys[:-width] += ranks[width:]
            order = np.argsort(keys)
            width *= 2
        self.positions = order
        # Bytes compare as the symbols do, first byte first; a list is what `bisect` reads quickest.
        self._bytes = 1 if base <= 2**8 else 2 if base <= 2**16 else 4
        self._order = order.tolist()
        self._text = self._encode(symbols)

    def __len__(self) -> int:
        return self.positions.size

    def longest_match(self, sample: np.ndarray) -> Match:
        """The longest stretch of a sample that the training text also has.

        Args:
            sample: (m,) integers, m >= 0; they need not occur in the training text.
        Returns:
            Its length, and one of the positions it has in the training text.
        """
        sample = to_tokens(sample, "sample")
        # A token that the text lacks becomes a symbol that it lacks.
        rows = np.minimum(np.searchsorted(self._alphabet, sample), self._alphabet.size - 1)
        query = self._encode(np.where(self._alphabet[rows] == sample, rows + 1, 0))
        best = Match(0, -1)
        for start in range(0, len(query), self._bytes):
            # Most starts fall here, where the next token beyond the best length decides.
            stop = start + (best.length + 1) * self._bytes
            if stop > len(query):
                break
            row = self._find(query[start:stop], 0)
            if row < len(self._order) and self._at(row, stop - start) == query[start:stop]:
                # The longest match is with one of the two suffixes between which the rest of the sample falls.
                rest = query[start:]
                row = self._find(rest, row)
                for near in (row - 1, row):
                    if 0 <= near < len(self._order):
                        best = max(best, Match(self._common(near, rest), self._order[near]), key=lambda m: m.length)
        return best

    def longest_matches(self, samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """`longest_match` of each sample: lengths and positions, (n,) int64 both."""
        matches = [self.longest_match(sample) for sample in samples]
        return np.array([m.length for m in matches], np.int64), np.array([m.position for m in matches], np.int64)

    def _encode(self, symbols):
        return symbols.astype(f">u{self._bytes}").tobytes()

    def _at(self, row, size):
        """The first `size` bytes of a suffix, or what there is of it."""
        start = self._order[row] * self._bytes
        return self._text[start : start + size]

    def _find(self, query, low):
        """The first row, from `low`, whose suffix does not come before `query`."""
        text, width, size = self._text, self._bytes, len(query)
        return bisect_left(self._order, query, low, key=lambda p: text[p * width : p * width + size])

    def _common(self, row, query):
        """Tokens that a suffix and `query` begin with alike."""
        suffix = self._at(row, len(query))
        kind = f">u{self._bytes}"
        size = len(suffix) // self._bytes
        different = np.frombuffer(suffix, kind) != np.frombuffer(query, kind)[:size]
        return int(different.argmax()) if different.any() else size


def near_copies(
    samples: Sequence[np.ndarray],
    held_out_samples: Sequence[np.ndarray],
    train: SuffixArray | np.ndarray,
    quantile: float = 0.99,
) -> Estimate:
    """Share of samples that repeat a longer stretch of the training text than real text hardly ever does.

    Args:
        samples: token arrays, (T,) integers, all of the same length.
        held_out_samples: windows of held-out real text, of that length.
        train: training text, (n,) integers; as a `SuffixArray` it is sorted once for several calls.
        quantile: of the windows' longest matches; above it is a near copy. Real text itself scores at most about
            1 - quantile.
    Returns:
        The share, in [0, 1]. The bound is taken as given: the standard error is that of the samples alone.
    """
    lengths = {}
    for name, arrays in (("samples", samples), ("held_out_samples", held_out_samples)):
        for index, array in enumerate(arrays):
            lengths[to_tokens(array, f"{name}[{index}]").size] = f"{name}[{index}]"
    if len(samples) == 0 or len(held_out_samples) == 0:
        raise ValueError(
            "`samples` and `held_out_samples` must hold at least one each. "
            f"Received: {len(samples)} and {len(held_out_samples)}"
        )
    if len(lengths) > 1 or 0 in lengths:
        received = ", ".join(f"{name} of {length}" for length, name in sorted(lengths.items())[:3])
        raise ValueError(
            "`samples` and `held_out_samples` must all have the same number of tokens, at least 1. "
            f"Received: {received}"
        )
    text = train if isinstance(train, SuffixArray) else SuffixArray(train)
    threshold = copy_threshold(text.longest_matches(held_out_samples)[0], next(iter(lengths)), quantile)
    return share_of(text.longest_matches(samples)[0] > threshold)


def copy_threshold(held_out_lengths: np.ndarray, window: int, quantile: float = 0.99) -> int:
    """The length of the longest match above which a sample counts as a near copy.

    It is window - 1 where that quantile is the whole window (held-out text that is in the training text too), so
    that a sample copied from end to end always counts.

    Args:
        held_out_lengths: (m,) longest matches of held-out windows, from `SuffixArray.longest_matches`.
        window: tokens of a window, >= 1.
        quantile: of the lengths; the lowest one that at least this share of the windows does not exceed.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"`quantile` must lie between 0 and 1. Received: quantile={quantile}")
    if window < 1:
        raise ValueError(f"`window` must be positive. Received: window={window}")
    lengths = np.asarray(held_out_lengths).reshape(-1)
    if lengths.size == 0:
        raise ValueError("`held_out_lengths` must hold at least one length. Received: 0 lengths")
    return min(int(np.quantile(lengths, quantile, method="inverted_cdf")), window - 1)


def exact_match(predicted: Sequence[str], target: Sequence[str]) -> Estimate:
    """Share of predicted strings that equal their targets, character by character."""
    if len(predicted) != len(target) or len(target) == 0:
        raise ValueError(
            f"`predicted` and `target` must be as many, and at least one. Received: {len(predicted)} and {len(target)}"
        )
    for name, strings in (("predicted", predicted), ("target", target)):
        wrong = [string for string in strings if not isinstance(string, str)]
        if isinstance(strings, str) or wrong:
            kind = "one str" if isinstance(strings, str) else type(wrong[0]).__name__
            raise ValueError(f"`{name}` must be a list of str. Received: {kind}")
    return share_of(np.array([ours == theirs for ours, theirs in zip(predicted, target)]))


def edit_distance(a: str | np.ndarray, b: str | np.ndarray) -> int:
    """Fewest insertions, deletions and substitutions of one token that turn `a` into `b`.

    Args:
        a, b: strings, token by character, or (n,) integers, n >= 0; both of one kind.
    Returns:
        An integer from the difference of the lengths to the greater length.
    Reference: Levenshtein (1966); Wagner & Fischer (1974), row by row.
    """
    if isinstance(a, str) != isinstance(b, str):
        raise ValueError(f"`a` and `b` must both be str or arrays. Received: {type(a).__name__}, {type(b).__name__}")
    first, second = _symbols(a, "a"), _symbols(b, "b")
    steps = np.arange(second.size + 1)
    row = steps
    for symbol in first:
        # Without insertions; then each entry may be reached from any to its left, at one an insertion.
        kept = np.append(row[0] + 1, np.minimum(row[1:] + 1, row[:-1] + (second != symbol)))
        row = np.minimum.accumulate(kept - steps) + steps
    return int(row[-1])


def _symbols(value, name):
    return np.array([ord(c) for c in value], np.int64) if isinstance(value, str) else to_tokens(value, name)
