"""Speculative sampling: its distribution is the large model's, and each row is what a slow loop over one row makes."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from decoders import hash_of, hashed, log_softmax, markov, random_table

from gentf.kernels import random
from gentf.models.rnn import RNN
from gentf.models.transformer import Transformer
from gentf.sampling import constraints, speculative
from gentf.sampling.decode import Controls, Rules
from gentf.sampling.generate import Generator
from gentf.sampling.speculative import ACCEPT, DRAFT, REPLACE, generate, speculate

V, STATES = 5, 211
TARGET = random_table(12, V, V, seed=1)
BAD, CLOSE = random_table(12, V, V, seed=2), TARGET + random_table(12, V, V, seed=3, scale=0.5)
STATEFUL = random_table(STATES, V, seed=4)
DRAFTS = {"bad": markov(BAD), "perfect": markov(TARGET), "close": markov(CLOSE), "stateful": hashed(STATEFUL)}
# 1 and 3 alone, and never twice the same; or the stop token 0, after two at least
ONLY = np.array(
    [[-1, 1, -1, 2, -1], [-1, -1, -1, 4, -1], [-1, 3, -1, -1, -1], [-1, -1, -1, 4, -1], [-1, 3, -1, -1, -1]]
)
CONSTRAINT = constraints.from_transitions(ONLY, np.array([False, False, False, True, True]))
# "4 4" and "2 1" are found
STOPS = np.array([[0, 0, 1, 0, 2], [0, 3, 1, 0, 2], [0, 0, 1, 0, 3], [3, 3, 3, 3, 3]], np.int32)


def logits_of(name, context):
    """The table's logits after a whole context."""
    if name == "stateful":
        return STATEFUL[hash_of(context, STATES)]
    return {"bad": BAD, "perfect": TARGET, "close": CLOSE}[name][min(len(context) - 1, 11), context[-1]]


def state_of(tokens):
    state = CONSTRAINT.start
    for token in tokens:
        after = CONSTRAINT.next_state[state, token]
        state = after if after >= 0 else state
    return state


def distribution(name, prompt, drawn, limit, options):
    """What may be drawn next, with the probability of each token: (V,) float64."""
    context = [*prompt, *drawn]
    z = logits_of(name, context).astype(np.float64)
    if options.get("constrained"):
        after = CONSTRAINT.next_state[state_of(drawn)]
        distance = np.where(after >= 0, CONSTRAINT.distance[after], 10**6)
        z = np.where(distance <= max(distance.min(), limit - len(drawn) - 1), z, -np.inf)
    if "repetition" in options:
        seen = np.isin(np.arange(V), context)
        z = np.where(seen, np.where(z > 0, z / options["repetition"], z * options["repetition"]), z)
    z = z / options.get("temperature", 1.0)
    if "top_k" in options:
        z = np.where(z >= np.sort(z)[-options["top_k"]], z, -np.inf)
    return np.exp(log_softmax(z))


def over(drawn, limit, options):
    text = drawn[-2:]
    stopped = options.get("stops") and tuple(text) in ((4, 4), (2, 1))
    return drawn[-1] == options.get("end") or stopped or len(drawn) >= limit


@functools.cache
def function_of(drafted, ahead, options, jit, steps):
    """`speculate` for rows of any number, with the options' controls and rules."""
    options = dict(options)
    kinds = {"temperature": np.float32, "top_k": np.int32, "repetition": np.float32}
    end, stops = options.get("end"), tf.constant(STOPS) if options.get("stops") else None
    rules = Rules(end, CONSTRAINT.tables() if options.get("constrained") else None, stops)
    target, draft = markov(TARGET), DRAFTS[drafted]

    def function(prompts, lengths, seeds, limit):
        rows = tf.shape(lengths)
        controls = Controls(**{k: tf.fill(rows, t(options[k])) for k, t in kinds.items() if k in options})
        return speculate(target, draft, prompts, lengths, seeds, limit, steps, ahead, controls, rules)

    shapes = ([None, None], [None], [None, 2], [None])
    signature = None if jit else [tf.TensorSpec(shape, tf.int32) for shape in shapes]
    return tf.function(function, jit_compile=jit, input_signature=signature, autograph=False)


def run(drafted, prompts, lengths, seeds, limit, ahead, options, jit=False, steps=8):
    function = function_of(drafted, ahead, tuple(options.items()), jit, steps)
    found = function(*map(tf.constant, (prompts, lengths, seeds, limit)))
    return type(found)(*(x.numpy() for x in found))


# The distribution


def chi_square(drafted, ahead, options, rows=32768, first=3, limit=5):
    """Pearson's statistic of the first three tokens against the exact distribution; its degrees of freedom; the share
    accepted."""
    prompts = np.tile(np.array([[2, 4]], np.int32), (rows, 1))
    seeds = random.spread(11, rows).numpy()
    found = run(
        drafted, prompts, np.full(rows, 2, np.int32), seeds, np.full(rows, limit, np.int32), ahead, options, steps=limit
    )
    expected = {}
    for tokens in itertools.product(range(V), repeat=first):
        probability, drawn = 1.0, []
        for token in tokens:
            probability *= distribution("perfect", (2, 4), drawn, limit, options)[token]
            drawn.append(token)
            if over(drawn, limit, options):
                break
        expected[(*drawn, *(0,) * (first - len(drawn)), len(drawn))] = probability
    np.testing.assert_allclose(sum(expected.values()), 1.0, atol=1e-9)
    ends = options.get("end")
    counts = dict.fromkeys(expected, 0)
    for row, length in zip(found.symbols[:, :first], found.lengths):
        drawn = list(row[:length]) + ([ends] if ends is not None and length < first else [])
        stopped = [n for n in range(1, len(drawn) + 1) if over(drawn[:n], limit, options)]
        key = drawn[: min(stopped, default=first)][:first]
        counts[(*map(int, key), *(0,) * (first - len(key)), len(key))] += 1  # a KeyError is a broken rule
    observed = np.array([counts[key] for key in expected])
    mean = rows * np.array(list(expected.values()))
    assert not observed[mean == 0].any()
    small = mean < 5
    observed = np.append(observed[~small], observed[small].sum())
    mean = np.append(mean[~small], mean[small].sum())
    observed, mean = observed[mean > 0], mean[mean > 0]
    return ((observed - mean) ** 2 / mean).sum(), len(mean) - 1, found.accepted.mean()


def bound(degrees):
    """Five standard deviations above the mean: passed by chance about once in 10,000 times, or less."""
    return degrees + 5.0 * (2.0 * degrees) ** 0.5


@pytest.mark.parametrize(
    "drafted, ahead, options",
    [
        ("bad", 4, {}),
        ("perfect", 2, {}),
        ("stateful", 3, {"end": 0}),
        ("bad", 3, {"temperature": 0.7, "top_k": 4, "repetition": 1.3}),
        ("stateful", 2, {"end": 0, "constrained": True}),
        ("close", 3, {"end": 0, "stops": True}),
    ],
)
def test_distribution_is_the_large_models(drafted, ahead, options):
    statistic, degrees, accepted = chi_square(drafted, ahead, options)
    assert statistic < bound(degrees), (statistic, degrees)
    if drafted == "perfect":
        assert accepted == 1.0
    elif drafted == "bad":
        assert accepted < 0.7


def test_the_test_sees_wrong_rules(monkeypatch):
    function_of.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(speculative, "accept", lambda u, p, q: tf.ones_like(u, tf.bool))
        statistic, degrees, accepted = chi_square("close", 2, {})
    assert statistic > 4 * bound(degrees) and accepted == 1.0
    function_of.cache_clear()
    with monkeypatch.context() as patch:  # rejected tokens drawn from p itself, not from what is left of it
        patch.setattr(speculative, "residual", lambda p, q: p)
        statistic, degrees, _ = chi_square("close", 2, {})
    function_of.cache_clear()
    assert statistic > 4 * bound(degrees)


def test_acceptance_is_the_overlap_of_the_distributions():
    """One proposed token a row: kept with probability sum(min(p, q)). Leviathan et al., corollary 3.6."""
    rows = 20000
    found = run("bad", np.full((rows, 1), 3, np.int32), np.ones(rows, np.int32), random.spread(5, rows).numpy(),
                np.full(rows, 2, np.int32), 1, {}, steps=2)  # fmt: skip
    share = 0.0
    for token, probability in enumerate(distribution("perfect", [3], [], 2, {})):
        p, q = (distribution(name, [3], [token], 2, {}) for name in ("perfect", "bad"))
        share += probability * np.minimum(p, q).sum()
    assert abs(found.accepted.mean() - share) < 5 * (share * (1 - share) / rows) ** 0.5


# Each row


def numbers(seeds, counts=16):
    """What each row draws with, (rows, counts, ...): Gumbel numbers, uniform ones, Gumbel ones of replacements."""
    rows = len(seeds)
    of = tf.tile(tf.range(counts), [rows])
    drafts, accepts, others = (
        tf.repeat(random.fold_in(tf.constant(seeds), stream), counts, axis=0) for stream in (DRAFT, ACCEPT, REPLACE)
    )
    gumbel = [random.to_gumbel(random.uniform(seed, (V,), of)) for seed in (drafts, others)]
    found = (gumbel[0], random.uniform(accepts, (), of), gumbel[1])
    return [tf.reshape(x, (rows, counts, *x.shape[1:])).numpy() for x in found]


def slow(drafted, prompt, numbers, limit, ahead, options):
    """Algorithm 1 for one row, from whole contexts, without a cache or a batch."""
    drafts, uniform, others = numbers

    def draw(gumbel, probabilities):
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(probabilities) + gumbel))

    drawn, kept, judged, passes, nats = [], 0, 0, -1, 0.0
    while not drawn or not over(drawn, limit, options):
        proposed, passes = [], passes + 1
        for place in range(ahead if drawn else 0):  # the first token is the large model's own
            q = distribution(drafted, prompt, drawn + proposed, limit, options)
            proposed.append(draw(drafts[len(drawn) + place], q))
        for token in [*proposed, None]:
            p = distribution("perfect", prompt, drawn, limit, options)
            rejected = False
            if token is not None:
                q = distribution(drafted, prompt, drawn, limit, options)
                rejected = not uniform[len(drawn)] * q[token] < p[token]
                kept, judged = kept + (not rejected), judged + 1
            if token is None or rejected:
                token = draw(others[len(drawn)], np.maximum(p - q, 0.0) if rejected else p)
            nats -= log_softmax(logits_of("perfect", [*prompt, *drawn]))[token]
            drawn.append(token)
            if rejected or over(drawn, limit, options):
                break
    return drawn, kept / max(judged, 1), passes, nats


PROMPTS = np.array([[1, 2, 3], [4, 0, 0], [0, 3, 0], [2, 2, 0], [3, 0, 0], [4, 1, 2]], np.int32)
LENGTHS = np.array([3, 1, 2, 2, 1, 3], np.int32)
LIMITS = np.array([8, 8, 7, 1, 5, 8], np.int32)


@pytest.mark.parametrize(
    "drafted, ahead, options",
    [
        ("bad", 3, {}),
        ("close", 2, {"end": 0, "stops": True, "temperature": 1.5}),
        ("close", 5, {"repetition": 1.5, "top_k": 3, "temperature": 0.8}),
        ("stateful", 3, {"end": 0}),
        ("stateful", 2, {"end": 0, "constrained": True, "repetition": 0.8}),
    ],
)
def test_rows_are_those_of_a_slow_loop(drafted, ahead, options):
    for seed in range(3):
        seeds = random.spread(seed, 6).numpy()
        found, drawn_with = run(drafted, PROMPTS, LENGTHS, seeds, LIMITS, ahead, options), numbers(seeds)
        for row in range(6):
            prompt = [int(token) for token in PROMPTS[row, : LENGTHS[row]]]
            drawn, accepted, passes, nats = slow(
                drafted, prompt, [x[row] for x in drawn_with], LIMITS[row], ahead, options
            )
            assert found.symbols[row].tolist() == drawn + [0] * (8 - len(drawn))
            assert found.lengths[row] == len(drawn) - (drawn[-1] == options.get("end"))
            assert found.passes[row] == passes
            np.testing.assert_allclose([found.accepted[row], found.nats[row]], [accepted, nats], atol=1e-4)


def test_compiled_is_plain_and_a_row_stands_alone(drafted="close"):
    options, seeds = {"end": 0, "temperature": 0.9}, random.spread(7, 6).numpy()
    plain, compiled = (run(drafted, PROMPTS, LENGTHS, seeds, LIMITS, 3, options, jit) for jit in (False, True))
    for ours, theirs in zip(plain, compiled):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for row in range(6):
        alone = run(drafted, *(x[row : row + 1] for x in (PROMPTS, LENGTHS, seeds, LIMITS)), 3, options)
        for ours, theirs in zip(alone, plain):
            np.testing.assert_allclose(ours[0], theirs[row], atol=1e-5)


# Models


def transformer(seed):
    model = Transformer(11, context=40, layers=1, width=16, heads=2, tied=False, seed=seed, positions="learned")
    model.head.kernel.assign(model.head.kernel * 30.0)
    return model


@pytest.mark.parametrize("cell, jit", [("lstm", True), (None, False)])
def test_greedy_models_give_the_large_ones_text(cell, jit):
    target = transformer(0)
    draft = transformer(5) if cell is None else RNN(11, cell=cell, layers=1, units=8, seed=5)
    prompts = [np.array(p, np.int32) for p in ([1, 2, 3, 4, 5, 6], [7], [8, 9])]
    seeds, cold = random.spread(3, 3).numpy(), Controls(temperature=np.zeros(3, np.float32))
    expected = target.generator()(prompts, seeds, 12, cold, Rules(end=0))
    found = generate(target.generator(jit), draft.decoder, prompts, seeds, 12, 3, cold, Rules(end=0))
    np.testing.assert_array_equal(found.symbols, expected.symbols)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.nats, expected.nats, atol=1e-3)
    assert (found.accepted < 1.0).any()


def test_own_draft_is_always_accepted():
    target = transformer(0)
    prompts, seeds = [np.array([n, n + 1], np.int32) for n in range(8)], random.spread(3, 8).numpy()
    found = generate(target.generator(), target.decoder, prompts, seeds, 15, 4)
    assert found.accepted.min() == 1.0 and (found.passes == 3).all() and (found.lengths == 15).all()
    programs = target.generator().compilations
    again = generate(target.generator(), target.decoder, prompts[:3], seeds[:3], 9, 4)
    np.testing.assert_array_equal(again.symbols, found.symbols[:3, :9])
    assert target.generator().compilations == programs


def test_bad_input():
    good, prompt = markov(TARGET), tf.ones((1, 2), tf.int32)

    def ask(target=good, draft=good, **options):
        return speculate(
            target, draft, prompt, tf.constant([2]), tf.zeros((1, 2), tf.int32), tf.constant([3]), 3, **options
        )

    with pytest.raises(ValueError, match="`target` must be a model whose state can be taken back"):
        ask(target=hashed(STATEFUL))
    with pytest.raises(ValueError, match="`draft` must be of tokens"):
        ask(draft=good._replace(width=88))
    with pytest.raises(ValueError, match="`draft` must be of 5 tokens"):
        ask(draft=hashed(random_table(3, 4)))
    with pytest.raises(ValueError, match="`ahead` must be positive"):
        ask(ahead=0)
    with pytest.raises(ValueError, match="`max_length` must be positive"):
        generate(Generator(lambda: good, 0), lambda: good, [np.ones(1, np.int32)], np.zeros((1, 2), np.int32), 0)
