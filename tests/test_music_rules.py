"""Musical rules on chord tokens: exactly what they allow, what a model then samples, and what it costs."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from gentf.data import harmony, midi
from gentf.errors import UserError
from gentf.kernels import random
from gentf.models.rnn import RNN
from gentf.sampling import constraints, decode
from gentf.sampling.music_rules import FRAME_END, KEYS, LEAPS, VOCABULARY, chord_rules


def keys(*pitches: int) -> np.ndarray:
    """MIDI pitches as the keys of a piano, (88,) bool."""
    return np.isin(np.arange(21, 109), pitches)


def obeys(tokens, pitches, voices, max_leap, leap_of, frames) -> bool:
    """The rule, read frame by frame."""
    if not tokens or tokens[-1] != FRAME_END:
        return False
    chords, chord = [], []
    for token in tokens:
        if token == FRAME_END:
            chords.append(chord)
            chord = []
        else:
            chord.append(token + 20)
    sounding = [chord[0] if leap_of == "bass" else chord[-1] for chord in chords if chord]
    return (
        all(chord == sorted(set(chord)) for chord in chords)
        and all(pitch in pitches for chord in chords for pitch in chord)
        and all(voices[0] <= len(chord) <= voices[1] for chord in chords)
        and (max_leap is None or all(abs(a - b) <= max_leap for a, b in itertools.pairwise(sounding)))
        and frames in (None, len(chords))
    )


@pytest.mark.parametrize(
    ("voices", "max_leap", "frames"),
    [((0, 88), None, None), ((0, 1), 2, None), ((1, 2), 2, None), ((2, 3), 0, None), ((0, 88), 2, None),
     ((1, 2), 2, 2), ((0, 2), 1, 3), ((1, 88), None, 1)],
)  # fmt: skip
@pytest.mark.parametrize("leap_of", LEAPS)
def test_exactly_the_sequences_that_obey_are_accepted(voices, max_leap, leap_of, frames):
    pitches = (60, 62, 65)
    rule = chord_rules(keys(*pitches), voices, max_leap, leap_of=leap_of, frames=frames)
    alphabet = [FRAME_END, *(pitch - 20 for pitch in (*pitches, 61))]
    found = 0
    for length in range(6):
        for tokens in itertools.product(alphabet, repeat=length):
            expected = obeys(tokens, pitches, voices, max_leap, leap_of, frames)
            assert rule.accepts(tokens) == expected, tokens
            found += expected
    assert found > 0 and not rule.accepts([0, FRAME_END])


def test_chorales_of_the_generator_obey_their_own_key_and_voices():
    for piece in harmony.chorales(5, seed=1):
        tonic, mode = harmony.key_of(piece)
        tokens = midi.to_chords(piece)
        counts = piece.sum(axis=1)
        assert chord_rules(harmony.pitches_in_key(tonic, mode), (4, 4), 12).accepts(tokens) == (
            bool((counts == 4).all() and not harmony.faults(piece, (tonic, mode))["out_of_key"])
        )
        assert not chord_rules(harmony.pitches_in_key(tonic, mode), (1, 3)).accepts(tokens)


@pytest.mark.parametrize("leap_of", LEAPS)
def test_an_untrained_model_writes_chorales_that_obey(leap_of):
    model = RNN(VOCABULARY, units=16, layers=1, tokenizer={"kind": "chords"}, start=(0,), boundary=True)
    allowed = harmony.pitches_in_key(2, "minor", 48, 72)
    rule = chord_rules(allowed, (2, 4), 5, leap_of=leap_of)
    pieces = model.sample(200, seed=1, max_length=60, constraint=rule)
    free = model.sample(200, seed=1, max_length=60)
    assert sum(map(len, pieces)) > 1000
    for piece in pieces:
        assert len(piece) and not piece[:, ~allowed].any()
        assert set(piece.sum(axis=1)) <= {2, 3, 4}
        voice = piece.argmax(axis=1) if leap_of == "bass" else KEYS - 1 - piece[:, ::-1].argmax(axis=1)
        assert np.abs(np.diff(voice)).max(initial=0) <= 5
    assert any(piece[:, ~allowed].any() for piece in free)


def constant(logits) -> decode.Decoder:
    """A model that gives the same logits at every step."""
    table = tf.constant(logits, tf.float32)

    def after(symbol):
        return tf.tile(table[None], (tf.shape(symbol)[0], 1))

    return decode.Decoder(
        lambda rows, capacity, label=None: (),
        lambda symbols, lengths, state: (after(symbols), state),
        lambda symbol, position, state: (after(symbol), state),
    )


def test_the_cost_is_the_probability_that_was_taken_away():
    logits = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32)
    probability = np.exp(logits) / np.exp(logits).sum()
    rule = chord_rules(keys(60, 64), (1, 1), 0, frames=2)
    rules = decode.Rules(end=0, tables=rule.tables())
    prompt = tf.zeros((8, 1), tf.int32)
    start = decode.begin(constant(logits), prompt, tf.ones(8, tf.int32), 10, rules)
    tokens, end = decode.advance(constant(logits), start, random.spread(3, 8), tf.fill((8,), 9), 9, rules=rules)
    tokens, first, second = tokens.numpy(), 60 - 20, 64 - 20
    # one of two notes; the frame's end; the same note again; the frame's end; the piece's end
    forced = [2 * math.log(probability[FRAME_END]), math.log(probability[0])]
    for row, cost, nats in zip(tokens, end.cost.numpy(), end.nats.numpy()):
        note = row[0]
        assert note in (first, second) and list(row[:5]) == [note, FRAME_END, note, FRAME_END, 0]
        kept = math.log(probability[first] + probability[second])
        assert cost == pytest.approx(-kept - math.log(probability[note]) - sum(forced), rel=1e-5)
        assert nats == pytest.approx(-2 * math.log(probability[note]) - sum(forced), rel=1e-5)
    assert set(tokens[:, 0]) == {first, second}


def test_a_leap_over_four_voices_and_the_whole_piano_fits():
    for leap_of in LEAPS:
        rule = chord_rules(np.ones(KEYS, bool), (1, 4), 12, leap_of=leap_of)
        assert rule.states < constraints.MAX_STATES
    assert chord_rules(np.ones(KEYS, bool)).states < 100


def test_what_cannot_be_is_said():
    every = np.ones(KEYS, bool)
    with pytest.raises(UserError, match=r"at most max_states=20000 states.*frames=100"):
        chord_rules(every, (1, 4), 12, frames=100)
    with pytest.raises(UserError, match=r"`voices` must be at most the 2 keys.*voices=\(3, 4\)"):
        chord_rules(keys(60, 62), (3, 4))
    for bad, name in [
        ({"pitches": every.astype(int)}, "pitches"),
        ({"pitches": every[:80]}, "pitches"),
        ({"pitches": every, "voices": (2, 1)}, "voices"),
        ({"pitches": every, "voices": (-1, 1)}, "voices"),
        ({"pitches": every, "max_leap": -1}, "max_leap"),
        ({"pitches": every, "leap_of": "alto"}, "leap_of"),
        ({"pitches": every, "frames": 0}, "frames"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            chord_rules(**bad)
