"""Four-part harmony by rules, and the rules as measures."""

import hashlib
import time
from itertools import combinations, pairwise

import numpy as np
import pytest
from rolls import NOTE_ROLL, SILENCE, SPLITS, roll_of, same, wrong

from gentf.data import harmony
from gentf.data.music import read_rolls

PIECES = [harmony.compose(0, index) for index in range(120)]
# Root, third and fifth of I .. vii°, semitones above the tonic in base 12.
TRIADS = {"major": "04725947b5907b2904b25", "minor": "03725837a5807b2803b25"}
NEXT = ({1, 2, 3, 4, 5, 6}, {4, 6}, {3, 5}, {0, 1, 4, 6}, {0, 5}, {1, 3, 4}, {0})  # degrees that may follow I .. vii°


def test_the_embedded_set():
    start = time.monotonic()
    rolls = read_rolls("chorales")
    assert time.monotonic() - start < 5
    splits = [getattr(rolls, split) for split in SPLITS]
    assert [len(split) for split in splits] == [229, 76, 77] and rolls.name == "chorales"
    assert len({piece.tobytes() for split in splits for piece in split}) == 382  # no piece is in two splits
    assert all(piece.dtype == np.uint8 and (piece.sum(axis=1) == 4).all() for split in splits for piece in split)
    same(harmony.chorales(4, seed=2)[3], rolls.test[3])  # a piece depends on its seed and number alone
    # What is compared between versions must not change.
    assert hashlib.sha256(b"".join(p.roll.tobytes() for p in PIECES)).hexdigest()[:16] == "edeef7b5f4fb4699"
    for options in ({"num": -1}, {"num": 1, "seed": -1}, {"num": 1, "seed": 2**32}):
        assert "Received" in wrong(harmony.chorales, **options)


@pytest.mark.parametrize("piece", PIECES[:40])
def test_chords_and_cadences(piece):
    chords, degrees, leading = piece.voices[piece.starts[:-1]], piece.degrees, (piece.tonic + 11) % 12
    triads = [
        [(piece.tonic + int(note, 12)) % 12 for note in TRIADS[piece.mode][3 * degree : 3 * degree + 3]]
        for degree in degrees
    ]
    for chord, (root, third, fifth) in zip(chords, triads):
        assert set(chord % 12) == {root, third, fifth} and (chord % 12 == leading).sum() <= 1
        assert chord[0] % 12 == third or (chord[0] % 12 == root and (fifth - root) % 12 != 6)
    for before, after, one, two in zip(degrees, degrees[1:], chords, chords[1:]):
        assert after in NEXT[before]
        if before in (4, 6) and after in (0, 5):
            assert (two - one)[one % 12 == leading].tolist() == [1]
        if piece.mode == "minor":
            ends = np.sort(np.stack([one, two]) - piece.tonic, axis=0)
            assert not ((ends[1] - ends[0] == 3) & (ends[0] % 12 == 8)).any()
    ends = np.flatnonzero(np.diff(piece.starts) == 4)  # the long chords
    assert 3 <= len(ends) <= 6 and set(np.diff(ends, prepend=-1)) <= {6, 7, 8} and ends[-1] == len(degrees) - 1
    assert all(degrees[end] == 4 or degrees[end - 1 : end + 1] == (4, 0) for end in ends)
    assert all(chords[end, 0] % 12 == triads[end][0] for end in ends)
    assert degrees[0] == degrees[-1] == 0 and piece.voices[-1, 3] % 12 == piece.tonic


@pytest.mark.parametrize("piece", PIECES[:40])
def test_voices_keep_the_rules(piece):
    parts, gaps = piece.voices, np.diff(piece.voices, axis=1)
    assert all(low <= part.min() and part.max() <= high for part, (low, high) in zip(parts.T, harmony.RANGES))
    assert gaps.min() > 0 and gaps[:, 1:].max() <= 12 and np.abs(np.diff(parts, axis=0)).max() <= 12
    for before, after in pairwise(parts.tolist()):
        for low, high in combinations(range(4), 2):
            if before[low] != after[low] and before[high] != after[high]:
                assert {(chord[high] - chord[low]) % 12 for chord in (before, after)} not in ({0}, {7})
    passing = 0
    for start, end in pairwise(piece.starts):
        for voice in np.flatnonzero(parts[end - 1] != parts[start]):  # a step from both sides, in one direction
            steps = np.diff(parts[[start, start + 1, end], voice])
            assert end - start == 2 and abs(steps.sum()) == np.abs(steps).sum() and set(np.abs(steps)) <= {1, 2}
            passing += 1
    assert passing > 0
    assert set(harmony.faults(piece.roll, (piece.tonic, piece.mode), (40, 79)).values()) == {0}
    same(harmony.voices(piece.roll), parts)


def test_least_motion_is_found_as_by_trying_every_path():
    degrees, random = [0, 3, 4, 0], np.random.RandomState(5)
    found = harmony._lead(0, "major", degrees, [4], np.random.RandomState(5))
    foot, rise = 62 + int(random.random_sample() * 8), int(random.random_sample() * 9)
    costs, total = [], np.zeros((1, 1), np.int64)
    for place, degree in enumerate(degrees):
        voicings, cost = harmony._voicings(0, "major", degree)
        outer = (voicings[:, 0] % 12 != 0) * (place in (0, 3)) + (voicings[:, 3] % 12 != 0) * (place == 3)
        costs.append(cost + np.abs(voicings[:, 3] - foot - (2 * rise // 4) * (place in (1, 2))) + 2**20 * outer)
    total = costs[0].astype(np.int64)
    for one, two, cost in zip(degrees, degrees[1:], costs[1:]):
        total = total[..., None] + harmony._moves(0, "major", one, two) + cost
    path = [(harmony._voicings(0, "major", d)[0] == chord).all(axis=1).argmax() for d, chord in zip(degrees, found)]
    assert total[tuple(path)] == total.min() < 2**20


def test_keys():
    assert np.mean([harmony.key_of(piece.roll) == (piece.tonic, piece.mode) for piece in PIECES]) > 0.9
    scale = roll_of([60], [62], [64], [65], [67], [69], [71], [72], [67], [60])
    assert [harmony.key_of(np.roll(scale, shift, axis=1)) for shift in range(12)] == [(k, "major") for k in range(12)]
    assert harmony.key_of(roll_of([57], [59], [60], [62], [64], [65], [68], [69], [64], [57])) == (9, "minor")
    assert "must have at least one sounding pitch" in wrong(harmony.key_of, SILENCE)
    inside = np.flatnonzero(harmony.pitches_in_key(3, "minor")) + 21
    assert {(pitch - 3) % 12 for pitch in inside} == {0, 2, 3, 5, 7, 8, 10, 11} and len(inside) == 58
    assert (np.flatnonzero(harmony.pitches_in_key(0, "major", 60, 67)) + 21).tolist() == [60, 62, 64, 65, 67]
    for bad in ((12, "major"), (-1, "minor"), (0.5, "major"), (0, "dorian"), (0, "major", 20), (0, "major", 70, 60)):
        assert "must be" in wrong(harmony.pitches_in_key, *bad)


def test_voices_by_hand():
    frames = [[48, 55, 64, 72], [], [48, 64, 72], [48, 72], [71], [40], [40, 50, 52, 64, 71], [66]]
    expected = [[48, 55, 64, 72], [-1] * 4, [48, -1, 64, 72], [48, -1, -1, 72], [-1, -1, -1, 71], [-1, -1, -1, 40]]
    assert harmony.voices(roll_of(*frames)).tolist() == [*expected, [40, 52, 64, 71], [-1, -1, 66, -1]]


@pytest.mark.parametrize(
    "frames, expected",
    [
        ([[48, 55, 64, 72], [50, 57, 65, 74]], {"parallel_fifths": 1, "parallel_octaves": 1}),
        ([[48, 55, 64, 72], [48, 55, 64, 72], [48, 57, 65, 72]], {}),
        ([[48, 55], [50, 69]], {"leaps": 1, "parallel_fifths": 1}),  # a fifth, then a twelfth
        ([[50, 69], [48, 79]], {}),  # in contrary motion
        ([[60], [72], [60], [73]], {"out_of_key": 1, "leaps": 1}),
        ([[30, 60], [30, 90], [30, 60]], {"out_of_range": 4, "out_of_key": 4, "leaps": 2}),
        ([[], []], {}),
    ],
)
def test_faults(frames, expected):
    found = harmony.faults(roll_of(*frames), (0, "major"), (36, 81))
    zero = dict.fromkeys(("out_of_key", "out_of_range", "parallel_fifths", "parallel_octaves", "leaps"), 0)
    assert found == {**zero, **expected}
    assert harmony.faults(roll_of(*frames)) == {**found, "out_of_key": 0, "out_of_range": 0}
    assert "`range` must be 21 <= low <= high <= 108" in wrong(harmony.faults, NOTE_ROLL, None, (9, 60))
    assert "`mode` must be one of major, minor" in wrong(harmony.faults, NOTE_ROLL, (0, "x"))
    assert "`roll` must hold only 0 and 1" in wrong(harmony.faults, NOTE_ROLL * 3)
