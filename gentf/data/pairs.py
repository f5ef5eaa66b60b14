"""Pairs of sequences: dates and sums whose right answers are known, pairs from a file, and their tokens."""

import datetime
import os
from collections.abc import Callable, Sequence

import numpy as np

from gentf.data.listing import printable
from gentf.data.order import fixed_order
from gentf.data.source import SPLITS
from gentf.data.text import read_text
from gentf.data.tokenizers import BOUNDARY, Tokenizer
from gentf.errors import UserError

_FIRST, _LAST = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
_MONTHS = ["January", "February", "March", "April", "May", "June"]
_MONTHS += ["July", "August", "September", "October", "November", "December"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
_DIGITS = 4  # of a summand, at most
_MAX_SUMS = 1_000_000
_HELD_OUT = 0.1  # share of the dates, and of the pairs of numbers, that is validation's, and that is test's


class _Day:
    """A date as the formats name it: numbers, names in full and in three letters, "1st"."""

    def __init__(self, date: datetime.date):
        self.y, self.m, self.d = date.year, date.month, date.day
        self.month, self.day = _MONTHS[date.month - 1], _DAYS[date.weekday()]
        self.mon, self.dow = self.month[:3], self.day[:3]
        self.roman = _ROMAN[date.month - 1]
        ending = "th" if 11 <= date.day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
        self.nth = f"{date.day}{ending}"


# In numbers alone the year comes first and the month second, and no year is cut to two digits: each has one reading.
DATE_FORMATS: tuple[Callable[[_Day], str], ...] = (
    lambda t: f"{t.y}-{t.m:02}-{t.d:02}",
    lambda t: f"{t.y}/{t.m}/{t.d}",
    lambda t: f"{t.y}.{t.m:02}.{t.d:02}",
    lambda t: f"{t.y}{t.m:02}{t.d:02}",
    lambda t: f"{t.month} {t.d}, {t.y}",
    lambda t: f"{t.mon} {t.d}, {t.y}",
    lambda t: f"{t.month} {t.nth}, {t.y}",
    lambda t: f"{t.month} the {t.nth}, {t.y}",
    lambda t: f"{t.month.upper()} {t.d}, {t.y}",
    lambda t: f"{t.d} {t.month} {t.y}",
    lambda t: f"{t.d} {t.mon} {t.y}",
    lambda t: f"{t.d:02}-{t.mon}-{t.y}",
    lambda t: f"{t.d:02} {t.mon.upper()} {t.y}",
    lambda t: f"{t.d}. {t.month} {t.y}",
    lambda t: f"{t.d}.{t.roman}.{t.y}",
    lambda t: f"{t.nth} {t.mon} {t.y}",
    lambda t: f"{t.nth} of {t.month} {t.y}",
    lambda t: f"the {t.nth} of {t.month}, {t.y}",
    lambda t: f"{t.day}, {t.month} {t.nth} {t.y}",
    lambda t: f"{t.day}, {t.d} {t.month} {t.y}",
    lambda t: f"{t.day.lower()} {t.d} {t.month.lower()} {t.y}",
    lambda t: f"{t.dow}, {t.d} {t.mon} {t.y}",
    lambda t: f"{t.dow} {t.mon} {t.d} {t.y}",
    lambda t: f"{t.y} {t.month} {t.d}",
    lambda t: f"{t.y}, {t.mon} {t.d:02}",
    lambda t: f"{t.mon}-{t.d:02}-{t.y}",
)


def dates(num: int, seed: int, split: str = "train") -> tuple[list[str], list[str]]:
    """Dates as people write them, and the same in ISO 8601: "Tuesday, March 5th 2019" -> "2019-03-05".

    Every day from 1900 to 2099 belongs to one split, whatever the seed: 80 % to train, 10 % each to validation and
    test. So a date of test was never seen in train, in any format. No pair comes twice.

    Args:
        num: pairs, up to 24 for each day of the split (1,402,536 in train); the first ones of a seed are the same for
            any `num`.
        seed: any integer, modulo 2**32.
        split: "train", "validation" or "test".
    Returns:
        sources and targets, `num` strings each.
    """
    validation, test, train = np.split(fixed_order(_LAST - _FIRST + 1), _ends(_LAST - _FIRST + 1))
    days = {"train": train, "validation": validation, "test": test}[_checked(split)]
    _check_num(num, len(days) * (len(DATE_FORMATS) - 2))  # in May, whose name has three letters, two say the same
    found: dict[str, str] = {}
    for drawn in _random(seed).permutation(len(days) * len(DATE_FORMATS)).tolist():
        date = datetime.date.fromordinal(_FIRST + int(days[drawn // len(DATE_FORMATS)]))
        found.setdefault(DATE_FORMATS[drawn % len(DATE_FORMATS)](_Day(date)), date.isoformat())
        if len(found) == num:
            break
    return list(found), list(found.values())


def arithmetic(num: int, seed: int, split: str = "train") -> tuple[list[str], list[str]]:
    """Sums and differences of numbers of one to four digits, and their results: "123+4567=" -> "4690".

    The digits of each number are as often one as four, as long as there are sums left: none comes twice. Every two
    numbers belong to one split, whatever the seed, their order and the sign between them: about 80 % to train, 10 %
    each to validation and test.

    Args:
        num: pairs, up to 1,000,000; the first ones of a seed are the same for any `num`.
        seed, split: as of `dates`.
    Returns:
        sources and targets, `num` strings each; a target may begin with "-".
    """
    wanted = SPLITS.index(_checked(split))
    _check_num(num, _MAX_SUMS)
    random = _random(seed)
    found: dict[str, str] = {}
    while len(found) < num:
        digits = random.randint(1, _DIGITS + 1, (4096, 2))
        low, high = np.where(digits == 1, 0, 10 ** (digits - 1)), 10**digits
        # random_sample and not randint: its stream does not depend on the type of the bounds.
        numbers = low + np.floor(random.random_sample(digits.shape) * (high - low)).astype(np.int64)
        minus = random.random_sample(len(digits)) < 0.5
        mine = _split_of_numbers(numbers.min(1), numbers.max(1)) == wanted
        for (left, right), sign in zip(numbers[mine].tolist(), minus[mine].tolist()):
            found.setdefault(f"{left}{'-' if sign else '+'}{right}=", str(left - right if sign else left + right))
    return list(found)[:num], list(found.values())[:num]


def read_pairs(path: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Pairs from a text file: a line each, source and target with one tab between them.

    Raises:
        UserError: not UTF-8 text, or a line that is not two texts and a tab between; the message gives its number.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    pairs = [line.split("\t") for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(pair):
            raise UserError(
                f"line {number} of {printable(os.fspath(path))} must be a source, one tab and a target. "
                f"Received: {lines[number - 1]!r:.80}"
            )
    return [source for source, _ in pairs], [target for _, target in pairs]


def pad_pairs(tokenizer: Tokenizer, sources: Sequence[str], targets: Sequence[str]) -> dict[str, np.ndarray]:
    """Tokens of pairs, as a model of sequence to sequence takes them.

    Args:
        tokenizer: of sources and targets both.
        sources: n strings, none empty.
        targets: n strings.
    Returns:
        {"source": (n, S) int32, zeros to the right; "target": (n, T) int32, each ended by the boundary, then zeros;
        "target_length": (n,) int32, tokens of the target with that boundary, which looks like padding}.
    Raises:
        UserError: no pair, an empty source, or text that the tokenizer cannot encode.
    """
    if isinstance(sources, str) or isinstance(targets, str) or len(sources) != len(targets) or not len(sources):
        counts = [repr(given)[:40] if isinstance(given, str) else len(given) for given in (sources, targets)]
        raise UserError(
            "`sources` and `targets` must be sequences of equally many strings, one at least. "
            f"Received: {counts[0]} and {counts[1]}"
        )
    if not all(sources):
        raise UserError(f"`sources` must hold no empty string. Received: sources[{list(sources).index('')}]=''")
    source, _ = _padded([tokenizer.encode(text) for text in sources], 0)
    target, length = _padded([tokenizer.encode(text) for text in targets], 1)
    return {"source": source, "target": target, "target_length": length}


def _padded(rows: list[np.ndarray], extra: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, T) and (n,) int32: the rows with `extra` boundaries after each, and their lengths with them."""
    lengths = np.array([len(row) + extra for row in rows], np.int32)
    padded = np.full((len(rows), lengths.max()), BOUNDARY, np.int32)
    for place, row in zip(padded, rows):
        place[: len(row)] = row
    return padded, lengths


def _split_of_numbers(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The index in `SPLITS` of (n,) pairs of numbers below 2**16: an even hash of them."""
    key = (low.astype(np.uint64) << np.uint64(16)) + high.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # Steele et al. (2014), SplitMix
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    part = (key >> np.uint64(32)).astype(np.float64) / 2**32
    return np.where(part < _HELD_OUT, 1, np.where(part < 2 * _HELD_OUT, 2, 0))


def _ends(size: int) -> list[int]:
    return [round(size * _HELD_OUT), 2 * round(size * _HELD_OUT)]


def _random(seed: int) -> np.random.RandomState:
    """Streams of RandomState are frozen by NumPy's own compatibility policy; those of Generator are not."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
    return np.random.RandomState(int(seed) % 2**32)


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={split!r}")
    return split


def _check_num(num: int, most: int) -> None:
    if isinstance(num, bool) or not isinstance(num, (int, np.integer)) or not 1 <= num <= most:
        raise ValueError(f"`num` must be an integer in 1..{most}. Received: num={num!r}")
