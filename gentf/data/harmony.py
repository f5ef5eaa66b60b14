"""Four-part harmony: chorales made by the rules of music theory, and the rules as measures of any roll.

The set `chorales` needs no file: each piece is drawn from a seed. A piece is in one of the 24 keys and has 3 to 6
phrases of 6 to 8 triads, a quarter note each, on a grid of eighth notes; the last triad of a phrase lasts a half note.

- Progression: a first-order chain over the seven degrees, after the table of common progressions in Kostka & Payne,
  "Tonal Harmony", chapter 7. A phrase ends on an authentic cadence (V I) or a half cadence (V), the piece on a perfect
  authentic one; the chain is drawn conditioned on that.
- Chords: complete triads in root position or first inversion, the diminished ones in first inversion only, cadences in
  root position. In minor, V and vii° have the raised seventh degree. The leading tone is never doubled.
- Voices: each in its range, never crossing or in unison, upper neighbours at most an octave apart. No consecutive
  fifths or octaves between two voices that move, no augmented second, no leap over an octave (over a sixth in the upper
  voices); the leading tone of V and vii° rises to the tonic where the next chord has it. Of all voicings of the
  progression the one with least total motion is taken, by dynamic programming; to the motion are added small costs for
  doubled fifths and thirds, inversions, leaps, and for the soprano's distance from an arch drawn for each phrase.
- Passing tones: some moves by a third are filled in on the second eighth, where no rule above is broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from gentf.data.midi import HIGHEST, LOWEST, PITCHES, check_roll

MODES = ("major", "minor")
# MIDI pitches of bass (E2..C4), tenor (C3..G4), alto (G3..D5) and soprano (C4..G5).
RANGES = ((40, 60), (48, 67), (55, 74), (60, 79))
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_LEADING = 11  # semitones above the tonic, in both modes
_PAIRS = tuple(combinations(range(4), 2))
_I, _IV, _V, _VI, _VII = 0, 3, 4, 5, 6
# Probability of the next degree: rows and columns I ii iii IV V vi vii°.
_CHAIN = np.array(
    [
        [0.00, 0.16, 0.06, 0.28, 0.26, 0.18, 0.06],
        [0.00, 0.00, 0.00, 0.00, 0.80, 0.00, 0.20],
        [0.00, 0.00, 0.00, 0.40, 0.00, 0.60, 0.00],
        [0.25, 0.20, 0.00, 0.00, 0.45, 0.00, 0.10],
        [0.75, 0.00, 0.00, 0.00, 0.00, 0.25, 0.00],
        [0.00, 0.40, 0.00, 0.40, 0.20, 0.00, 0.00],
        [1.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],
    ]
)
_NEVER = 2**20  # the cost of what the rules forbid
# Krumhansl & Kessler's ratings of how well each note above the tonic fits a key.
_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


@dataclass(frozen=True)
class Chorale:
    """A generated piece.

    Args:
        voices: (T, 4) int, MIDI pitches of bass, tenor, alto, soprano in each eighth note.
        tonic: 0..11, C = 0.
        mode: "major" or "minor".
        degrees: of each chord, 0 (I) .. 6 (vii°).
        starts: (number of chords + 1,) int, the frame each chord begins at, and T.
    """

    voices: np.ndarray
    tonic: int
    mode: str
    degrees: tuple[int, ...]
    starts: np.ndarray

    @property
    def roll(self) -> np.ndarray:
        """uint8 (T, 88)."""
        roll = np.zeros((len(self.voices), PITCHES), np.uint8)
        np.put_along_axis(roll, self.voices - LOWEST, 1, axis=1)
        return roll


def chorales(num: int, seed: int = 0) -> list[np.ndarray]:
    """`num` four-part pieces on a grid of eighth notes, by the rules at the head of this module.

    Piece `i` depends on `seed` and `i` alone, so a longer list begins with the shorter one.

    Args:
        num: of pieces, >= 0.
        seed: 0..2**32 - 1.
    Returns:
        Rolls, uint8 (T, 88) each, four pitches in each frame.
    """
    if num < 0:
        raise ValueError(f"`num` must not be negative. Received: num={num}")
    return [compose(seed, index).roll for index in range(num)]


def compose(seed: int, index: int) -> Chorale:
    """The piece of number `index` of `chorales(..., seed)`, with its key, its voices and its chords."""
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**32:
            raise ValueError(f"`{name}` must be in 0..2**32-1. Received: {name}={value}")
    # RandomState's streams are frozen by NumPy's own compatibility policy; those of Generator are not.
    random = np.random.RandomState((seed, index))
    tonic, mode = int(random.random_sample() * 12), MODES[int(random.random_sample() * 2)]
    while True:  # hardly ever twice: nearly every progression can be voiced
        degrees, lengths = _progression(random)
        chords = _lead(tonic, mode, degrees, lengths, random)
        if chords is not None:
            break
    last = np.zeros(len(degrees), bool)
    last[np.cumsum(lengths) - 1] = True
    starts = np.concatenate([[0], np.cumsum(np.where(last, 4, 2))])
    voices = np.repeat(chords, np.diff(starts), axis=0)
    _pass(voices, starts[1:-1][~last[:-1]] - 1, tonic, mode, random)
    return Chorale(voices, tonic, mode, tuple(degrees), starts)


def _progression(random: np.random.RandomState) -> tuple[list[int], list[int]]:
    """Degrees of all chords, and the number of chords of each phrase."""
    phrases = 3 + int(random.random_sample() * 4)
    degrees, lengths = [_I], []
    for phrase in range(phrases):
        size = 6 + int(random.random_sample() * 3)
        half = phrase < phrases - 1 and random.random_sample() < 0.45
        end = [_V] if half else [_V, _I]
        for left in range(size - len(end) - (phrase == 0), 0, -1):
            # Bayes: the next degree, given that `end[0]` is reached in `left` steps after it.
            weights = np.cumsum(_CHAIN[degrees[-1]] * _reach(left)[:, end[0]])
            degrees.append(int(np.searchsorted(weights, random.random_sample() * weights[-1], side="right")))
        degrees += end
        lengths.append(size)
    return degrees, lengths


@cache
def _reach(steps: int) -> np.ndarray:
    return np.linalg.matrix_power(_CHAIN, steps)


def _triad(mode: str, degree: int) -> tuple[int, int, int]:
    """Root, third and fifth, in semitones above the tonic modulo 12."""
    root, third, fifth = (_SCALES[mode][(degree + step) % 7] for step in (0, 2, 4))
    if mode == "minor" and degree in (_V, _VII):
        root, third = (_LEADING if note == 10 else note for note in (root, third))
    return root, third, fifth


@cache
def _voicings(tonic: int, mode: str, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """All voicings of a triad, int16 (n, 4) low to high, and their costs, int32 (n,)."""
    triad = [(tonic + note) % 12 for note in _triad(mode, degree)]
    diminished = (triad[2] - triad[0]) % 12 == 6
    candidates = [
        [p for p in range(low, high + 1) if p % 12 in ((triad[1:2] if diminished else triad[:2]) if v == 0 else triad)]
        for v, (low, high) in enumerate(RANGES)
    ]
    voicings = np.stack(np.meshgrid(*candidates, indexing="ij"), axis=-1).reshape(-1, 4)
    gaps = np.diff(voicings, axis=1)
    counts = np.stack([(voicings % 12 == note).sum(axis=1) for note in triad], axis=1)
    leading = (voicings % 12 == (tonic + _LEADING) % 12).sum(axis=1)
    good = (gaps > 0).all(axis=1) & (gaps[:, 1:] <= 12).all(axis=1) & (gaps[:, 0] <= 19)
    good &= (counts > 0).all(axis=1) & (leading <= 1)
    voicings, counts = voicings[good], counts[good]
    doubled = np.array([3, 0, 3] if diminished else [0, 2, 1])
    cost = (counts > 1) @ doubled + 2 * (voicings[:, 0] % 12 != triad[0])
    return voicings.astype(np.int16), cost.astype(np.int32)


@cache
def _moves(tonic: int, mode: str, first: int, second: int) -> np.ndarray:
    """Cost from each voicing of one chord to each of the next: int32 (n, m), `_NEVER` or more where forbidden."""
    before, after = _voicings(tonic, mode, first)[0][:, None], _voicings(tonic, mode, second)[0][None]
    move = after - before
    size = np.abs(move)
    cost = size.sum(axis=-1, dtype=np.int32) + 2 * np.maximum(size[..., 1:] - 4, 0).sum(axis=-1, dtype=np.int32)
    cost += 6 * (size == 6).sum(axis=-1, dtype=np.int32)  # a tritone
    # A voice above where its upper neighbour was, or the other way round.
    cost += 4 * ((after[..., :3] > before[..., 1:]) | (after[..., 1:] < before[..., :3])).sum(axis=-1, dtype=np.int32)
    wrong = _consecutive(before, after) | (size[..., 0] > 12) | (size[..., 1:] > 9).any(axis=-1)
    degrees = ((before - tonic) % 12, (after - tonic) % 12)
    if mode == "minor":  # the augmented second between the sixth and the raised seventh degree
        wrong |= ((size == 3) & (np.minimum(*degrees) == 8) & (np.maximum(*degrees) == _LEADING)).any(axis=-1)
    if first in (_V, _VII) and second in (_I, _VI):
        wrong |= ((degrees[0] == _LEADING) & (move != 1)).any(axis=-1)
    return cost + _NEVER * wrong


def _consecutive(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(..., 4) and (..., 4) that broadcast -> bool (...): two voices move from a fifth or octave to another one."""
    found = np.zeros(np.broadcast_shapes(before.shape, after.shape)[:-1], bool)
    moves = before != after
    for low, high in _PAIRS:
        was, now = (before[..., high] - before[..., low]) % 12, (after[..., high] - after[..., low]) % 12
        found |= (was == now) & ((was == 0) | (was == 7)) & moves[..., low] & moves[..., high]
    return found


def _lead(
    tonic: int, mode: str, degrees: Sequence[int], lengths: Sequence[int], random: np.random.RandomState
) -> np.ndarray | None:
    """The cheapest voicing of a progression, int64 (number of chords, 4); None if the rules allow none."""
    totals = np.zeros(0, np.int32)
    back: list[np.ndarray] = []
    chord = 0
    for size in lengths:
        foot, rise = 62 + int(random.random_sample() * 8), int(random.random_sample() * 9)
        for place in range(size):
            degree = degrees[chord]
            voicings, cost = _voicings(tonic, mode, degree)
            arch = foot + 2 * rise * min(place, size - 1 - place) // size
            cost = cost + np.abs(voicings[:, 3] - arch)
            if chord == 0 or place == size - 1:
                root = (tonic + _triad(mode, degree)[0]) % 12
                cost = cost + _NEVER * (voicings[:, 0] % 12 != root)
            if chord == len(degrees) - 1:
                cost = cost + _NEVER * (voicings[:, 3] % 12 != tonic)
            if chord:
                paths = totals[:, None] + _moves(tonic, mode, degrees[chord - 1], degree)
                back.append(paths.argmin(axis=0))
                cost = cost + paths.min(axis=0)
            totals = np.minimum(cost, 2 * _NEVER)  # so that the sum over many chords cannot overflow
            chord += 1
    best = int(totals.argmin())
    if totals[best] >= _NEVER:
        return None
    path = [best]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    pairs = zip(degrees, reversed(path))
    return np.array([_voicings(tonic, mode, degree)[0][place] for degree, place in pairs], np.int64)


def _pass(voices: np.ndarray, frames: np.ndarray, tonic: int, mode: str, random: np.random.RandomState) -> None:
    """Put passing tones into `frames` of (T, 4) `voices`, in place: each is the second eighth of a chord."""
    scale = {(tonic + note) % 12 for note in _SCALES[mode]}
    for frame in frames.tolist():
        before, after = voices[frame - 1], voices[frame + 1]
        for voice in range(4):
            low, high = sorted((int(before[voice]), int(after[voice])))
            if high - low not in (3, 4) or random.random_sample() >= 0.5:
                continue
            for pitch in range(high - 2, low + 3):
                if pitch % 12 in scale:
                    tried = voices[frame].copy()
                    tried[voice] = pitch
                    gaps = np.diff(tried)
                    if (gaps > 0).all() and (gaps[1:] <= 12).all():
                        wrong = _consecutive(before, tried) | _consecutive(tried, after)
                        if not wrong:
                            voices[frame] = tried
                    break


# Rules as measures


def key_of(roll: np.ndarray) -> tuple[int, str]:
    """The key of a piece: (tonic 0..11 with C = 0, "major" or "minor").

    The durations of the twelve pitch classes are correlated with the ratings of Krumhansl & Kessler for each of the
    24 keys; the highest correlation wins, of equal ones the first, major before minor.

    Args:
        roll: (T, 88) in {0, 1}, with at least one sounding pitch.
    Reference: Krumhansl (1990), "Cognitive Foundations of Musical Pitch", chapters 2 and 4.
    """
    roll = check_roll(roll)
    pitch, total = roll.sum(axis=0, dtype=np.int64), int(roll.sum(dtype=np.int64))
    if not total:
        raise ValueError("`roll` must have at least one sounding pitch. Received: silence")
    durations = np.bincount(np.arange(LOWEST, HIGHEST + 1) % 12, weights=pitch, minlength=12)
    durations -= durations.mean()
    scores = []
    for mode in MODES:
        profile = np.array(_PROFILES[mode]) - np.mean(_PROFILES[mode])
        scores.append([np.roll(profile, tonic) @ durations / np.linalg.norm(profile) for tonic in range(12)])
    mode_index, tonic = divmod(int(np.argmax(np.round(scores, 9))), 12)
    return tonic, MODES[mode_index]


def pitches_in_key(tonic: int, mode: str, low: int = LOWEST, high: int = HIGHEST) -> np.ndarray:
    """Which pitches belong to a key and a range: bool (88,), column `p - 21` for MIDI pitch `p`.

    Minor is the natural scale and the raised seventh degree: eight pitch classes.

    Args:
        tonic: 0..11, C = 0.
        mode: "major" or "minor".
        low, high: MIDI pitches, both included, 21 <= low <= high <= 108.
    """
    tonic, mode = _check_key((tonic, mode))
    low, high = _check_range((low, high))
    pitches = np.arange(LOWEST, HIGHEST + 1)
    return np.isin((pitches - tonic) % 12, (*_SCALES[mode], _LEADING)) & (low <= pitches) & (pitches <= high)


def voices(roll: np.ndarray) -> np.ndarray:
    """The four voices of a roll, int64 (T, 4) MIDI pitches low to high, -1 where a voice is silent.

    Four pitches of a frame are the four voices. Of more, the lowest and the three highest are. Fewer take the voices of
    the frame before if it has as many; else, in order, those whose last pitches are nearest in total, at first the
    middles of `RANGES`, and of equally near ones the higher.

    Args:
        roll: (T, 88) in {0, 1}.
    """
    roll = check_roll(roll)
    parts = np.full((len(roll), 4), -1, np.int64)
    last, taken = np.array([(low + high) // 2 for low, high in RANGES]), [0, 1, 2, 3]
    for frame, row in enumerate(roll):
        pitches = np.flatnonzero(row) + LOWEST
        if len(pitches) > 4:
            pitches = pitches[[0, -3, -2, -1]]
        if len(pitches) != len(taken):
            choices = [list(reversed(c)) for c in combinations((3, 2, 1, 0), len(pitches))]  # the higher voices first
            distances = [np.abs(last[choice] - pitches).sum() for choice in choices]
            taken = choices[int(np.argmin(distances))]
        parts[frame, taken] = last[taken] = pitches
    return parts


def faults(
    roll: np.ndarray, key: tuple[int, str] | None = None, range: tuple[int, int] = (LOWEST, HIGHEST)
) -> dict[str, int]:
    """How often a roll breaks the rules.

    Args:
        roll: (T, 88) in {0, 1}.
        key: as of `key_of`; None counts no note as out of key.
        range: lowest and highest MIDI pitch, both included.
    Returns:
        "out_of_key" and "out_of_range": sounding pitches, one a frame. "parallel_fifths" and "parallel_octaves": pairs
        of `voices` a fifth (an octave or a unison) apart, give or take octaves, that both move in one direction to the
        same interval in the next frame. "leaps": moves of a voice by more than an octave from one frame to the next.
    """
    roll = check_roll(roll)
    low, high = _check_range(range)
    parts = voices(roll)
    before, after = parts[:-1], parts[1:]
    both = (before >= 0) & (after >= 0)
    move = np.where(both, after - before, 0)
    counts = {7: 0, 0: 0}
    for one, two in _PAIRS:
        together = np.sign(move[:, one]) * np.sign(move[:, two]) > 0
        was, now = (before[:, two] - before[:, one]) % 12, (after[:, two] - after[:, one]) % 12
        for interval in counts:
            counts[interval] += int((together & (was == interval) & (now == interval)).sum())
    inside = pitches_in_key(*key) if key is not None else np.ones(PITCHES, bool)
    return {
        "out_of_key": int(roll[:, ~inside].sum()),
        "out_of_range": int(roll[:, : low - LOWEST].sum() + roll[:, high - LOWEST + 1 :].sum()),
        "parallel_fifths": counts[7],
        "parallel_octaves": counts[0],
        "leaps": int((np.abs(move) > 12).sum()),
    }


def _check_key(key: tuple[int, str]) -> tuple[int, str]:
    tonic, mode = key
    if not isinstance(tonic, (int, np.integer)) or not 0 <= tonic < 12:
        raise ValueError(f"`tonic` must be an integer in 0..11. Received: tonic={tonic}")
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: mode={mode!r}")
    return int(tonic), mode


def _check_range(range: tuple[int, int]) -> tuple[int, int]:
    low, high = range
    if not LOWEST <= low <= high <= HIGHEST:
        raise ValueError(f"`range` must be {LOWEST} <= low <= high <= {HIGHEST}. Received: low={low}, high={high}")
    return low, high
