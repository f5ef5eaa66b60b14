"""What the tests of music and harmony share: piano rolls, and the one line of an error."""

from functools import partial

import numpy as np
import pytest

from gentf.errors import UserError

SPLITS = ("train", "validation", "test")
same = np.testing.assert_array_equal


def roll_of(*frames):
    """A roll from the MIDI pitches of each frame."""
    roll = np.zeros((len(frames), 88), np.uint8)
    for row, pitches in zip(roll, frames):
        row[[pitch - 21 for pitch in pitches]] = 1
    return roll


def random_roll(seed, frames=50, density=0.05, hold=0.8):
    """Random notes that are held for a while; silent at both ends."""
    random = np.random.default_rng(seed)
    roll = (random.random((frames, 88)) < density).astype(np.uint8)
    for now in range(1, frames):
        roll[now] |= roll[now - 1] & (random.random(88) < hold)
    roll[:2] = roll[-3:] = 0
    return roll


SILENCE, FRAMES, NOTE_ROLL = np.zeros((100, 88), np.uint8), np.zeros((3, 88), np.uint8), roll_of([60])
ROLLS = [random_roll(0), random_roll(1, density=0.5), random_roll(2, 7, hold=0), roll_of([21, 108], [21, 108], [])]
ROLLS += [NOTE_ROLL, np.ones((3, 88), np.uint8), np.concatenate([SILENCE, NOTE_ROLL, SILENCE[:64]]), SILENCE[:70]]


def refused(call, *arguments, error=UserError, **options):
    """The message, one line, of the error that a call raises."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    return str(caught.value)


wrong = partial(refused, error=ValueError)
