"""Beam search against all sequences of a tiny vocabulary, and against greedy decoding."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from decoders import hash_of, hashed, log_softmax, markov, random_table

from gentf.models.rnn import RNN
from gentf.models.transformer import Transformer
from gentf.sampling import constraints
from gentf.sampling.beam import beam, length_norm, search
from gentf.sampling.decode import Controls, Rules, advance, begin
from gentf.sampling.generate import Generator

V, STEPS, STATES = 4, 4, 53
TABLE = random_table(STATES, V, seed=3)
PROMPTS = np.array([[1, 2, 3], [2, 0, 0], [3, 3, 0]], np.int32)
LENGTHS = np.array([3, 1, 2], np.int32)


def likelihood(prompt, tokens):
    """The log-likelihood of `tokens` after `prompt`, one by one."""
    total = 0.0
    for number, token in enumerate(tokens):
        total += log_softmax(TABLE[hash_of([*prompt, *tokens[:number]], STATES)])[token]
    return total


def brute_force(prompt, end, penalty, allowed=lambda tokens: True, over=lambda tokens: False):
    """All sequences that end: (score, tokens with the end token), best first."""
    found = {}
    for tokens in itertools.product(range(V), repeat=STEPS):
        for length in range(1, STEPS + 1):
            if tokens[length - 1] == end or over(tokens[:length]) or length == STEPS:
                cut = tokens[:length]
                if allowed(cut):
                    found[cut] = likelihood(prompt, cut) / ((5 + len(cut)) / 6) ** penalty
                break
    return sorted(((score, tokens) for tokens, score in found.items()), reverse=True)


def run(width, rules, penalty=0.0, jit=False, prompts=PROMPTS, lengths=LENGTHS, decoder=None):
    decoder = hashed(TABLE) if decoder is None else decoder

    def function(prompts, lengths):
        return beam(decoder, prompts, lengths, 3 + STEPS, width, STEPS, rules, penalty)

    found = tf.function(function, jit_compile=jit)(tf.constant(prompts), tf.constant(lengths))
    return type(found)(*(x.numpy() for x in found))


def check_rows(found, expected, end):
    """The hypotheses of a row are the expected ones; equal scores come in any order."""
    best = expected[: len(found.scores)]
    np.testing.assert_allclose(found.scores[: len(best)], [score for score, _ in best], atol=1e-4)
    known = {
        (tokens + (0,) * (STEPS - len(tokens)), len(tokens) - (tokens[-1] == end)): (score, tokens)
        for score, tokens in expected
    }
    seen = set()
    for tokens, length, score in list(zip(found.tokens, found.lengths, found.scores))[: len(best)]:
        expected_score, _ = known[tuple(tokens), length]
        np.testing.assert_allclose(score, expected_score, atol=1e-4)
        seen.add((tuple(tokens), length))
    assert len(seen) == len(best)
    assert (found.scores[len(best) :] == -np.inf).all() and not found.tokens[len(best) :].any()


def row_of(found, row):
    return type(found)(*(x[row] for x in found))


@pytest.mark.parametrize("end, penalty", [(None, 0.0), (0, 0.0), (0, 1.0), (2, 0.6)])
def test_full_width_is_brute_force(end, penalty):
    found = run(V**STEPS, Rules(end=end), penalty)
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS)):
        check_rows(row_of(found, row), brute_force(prompt[:length], end, penalty), end)


def test_constrained_full_width_is_brute_force():
    # tokens 1 and 3 alone, not twice the same, then the stop token 0
    table = np.full((3, V), -1, np.int32)
    table[0, [1, 3]], table[1, 3], table[2, 1] = [1, 2], 2, 1
    rule = constraints.from_transitions(table, np.array([True, True, True]))
    found = run(V**STEPS, Rules(end=0, tables=rule.tables()))
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS)):
        expected = brute_force(prompt[:length], 0, 0.0, lambda tokens: tokens[-1] == 0 and rule.accepts(tokens[:-1]))
        assert len(expected) == 1 + 2 + 2 + 2
        check_rows(row_of(found, row), expected, 0)


def test_stop_strings_end_a_hypothesis():
    # "12" is found: states 0, after a 1, found
    stops = np.array([[0, 1, 0, 0], [0, 1, 2, 0], [2, 2, 2, 2]], np.int32)
    found = run(V**STEPS, Rules(end=0, stops=tf.constant(stops)))
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS)):
        expected = brute_force(prompt[:length], 0, 0.0, over=lambda tokens: tokens[-2:] == (1, 2))
        assert any(tokens[-2:] == (1, 2) and len(tokens) < STEPS for _, tokens in expected)
        check_rows(row_of(found, row), expected, 0)


@pytest.mark.parametrize("end", [None, 0])
def test_width_one_is_greedy(end):
    prompts = np.random.default_rng(0).integers(1, V, (40, 3)).astype(np.int32)
    lengths = np.full(40, 3, np.int32)
    found = run(1, Rules(end=end), prompts=prompts, lengths=lengths)
    decoder, rules = hashed(TABLE), Rules(end=end)
    start = begin(decoder, tf.constant(prompts), tf.constant(lengths), 3 + STEPS, rules)
    greedy = Controls(temperature=tf.zeros(40))
    tokens, last = advance(decoder, start, tf.zeros((40, 2), tf.int32), tf.fill([40], STEPS), STEPS, greedy, rules)
    np.testing.assert_array_equal(found.tokens[:, 0], tokens)
    np.testing.assert_array_equal(found.lengths[:, 0], last.lengths)
    np.testing.assert_allclose(found.nats[:, 0], last.nats, atol=1e-4)


def test_wider_is_at_least_as_likely_as_greedy_and_scores_fall():
    prompts = np.random.default_rng(0).integers(1, V, (40, 3)).astype(np.int32)
    wide, narrow = (run(width, Rules(end=0), 0.0, False, prompts, np.full(40, 3, np.int32)) for width in (6, 1))
    gain = wide.scores[:, 0] - narrow.scores[:, 0]
    assert gain.min() > -1e-5 and gain.max() > 0.1
    assert (np.diff(wide.scores, axis=1) <= 0.0).all()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_compiled_is_plain_and_a_row_stands_alone(penalty):
    rules = Rules(end=0)
    plain, compiled = (run(5, rules, penalty, jit) for jit in (False, True))
    for ours, theirs in zip(plain, compiled):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for row in range(3):
        alone = run(5, rules, penalty, prompts=PROMPTS[row : row + 1], lengths=LENGTHS[row : row + 1])
        for ours, theirs in zip(alone, plain):
            np.testing.assert_allclose(ours[0], theirs[row], atol=1e-5)


def test_length_norm_is_that_of_wu():
    np.testing.assert_allclose(length_norm(tf.constant([1, 7]), 0.5), [1.0, 2.0**0.5], rtol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer"])
def test_models_scores_are_their_log_likelihood(kind):
    if kind == "transformer":
        model = Transformer(7, context=32, layers=2, width=16, heads=2, groups=1, tied=False, seed=1)
        model.head.kernel.assign(model.head.kernel * 40.0)
    else:
        model = RNN(7, cell=kind, layers=2, units=8, seed=1)
        model.head.assign(model.head * 4.0)
    prompts = [np.array([1, 2, 3, 4, 5], np.int32), np.array([6, 1], np.int32)]
    found = search(model.generator(), prompts, 3, 6)
    for row, prompt in enumerate(prompts):
        assert len(np.unique(found.tokens[row], axis=0)) == 3
        for hypothesis in range(3):
            tokens = np.concatenate([prompt, found.tokens[row, hypothesis]])
            nats = model.nats(model.prepare(tf.constant(tokens[None])))[0, len(prompt) - 1 :]
            np.testing.assert_allclose(found.nats[row, hypothesis], np.sum(nats), atol=1e-4)


def test_search_in_parts_and_by_fixed_graphs():
    decoder = markov(random_table(12, V, V, seed=5))
    prompts = [
        np.array(p[: 1 + n % 3], np.int32) for n, p in enumerate(np.random.default_rng(1).integers(0, V, (9, 3)))
    ]
    plain, compiled = Generator(lambda: decoder, 0), Generator(lambda: decoder, 0, jit=True)
    ours, theirs = (search(g, prompts, 16, STEPS, Rules(end=0), 0.5) for g in (plain, compiled))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    assert plain.compilations == 1  # parts of four, four and one row
    for row, prompt in enumerate(prompts):
        alone = search(plain, [prompt], 16, STEPS, Rules(end=0), 0.5)
        np.testing.assert_array_equal(alone.tokens[0], ours.tokens[row])
    assert plain.compilations == 1


def test_bad_input():
    decoder = markov(random_table(4, V, V))
    for options in ({"width": 0}, {"length_penalty": -1.0}, {"steps": 0}):
        name = next(iter(options))
        arguments = {"width": 2, "steps": 3, "length_penalty": 0.0} | options
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            search(Generator(lambda: decoder, 0), [np.ones(2, np.int32)], **arguments)
    with pytest.raises(ValueError, match="`decoder` must be of tokens"):
        beam(decoder._replace(width=88), tf.zeros((1, 2, 88)), tf.constant([2]), 5, 2, 3)
