"""N-gram models, piano-roll baselines, diversity and copies: slow references, cases by hand, laws, real data."""

import itertools
import math
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gentf.metrics.diversity import distinct_n, repetition, self_bleu
from gentf.metrics.frames import bernoulli_nats, markov_nats
from gentf.metrics.ngram import NGram, to_tokens
from gentf.metrics.overlap import Match, SuffixArray, copy_threshold, edit_distance, exact_match, near_copies

DATA = Path(os.environ.get("GENTF_TEST_DATA", "nowhere"))
TEXT = DATA / "text/tinyshakespeare/input.txt"
ROLLS = DATA / "music/poly_music"
needs_text = pytest.mark.skipif(not TEXT.is_file(), reason="needs text/tinyshakespeare in GENTF_TEST_DATA")
needs_rolls = pytest.mark.skipif(not ROLLS.is_dir(), reason="needs music/poly_music in GENTF_TEST_DATA")


def chain(length, vocabulary=6, seed=0, sharp=2.0):
    """Text of a random second-order Markov chain: some n-grams frequent, some rare, some absent."""
    draw = np.random.default_rng(seed)
    logits = sharp * np.random.default_rng(99).normal(size=(vocabulary, vocabulary, vocabulary))
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    tokens = [0, 1]
    for uniform in draw.random(length):
        tokens.append(int(np.searchsorted(np.cumsum(shares[tokens[-2], tokens[-1]])[:-1], uniform)))
    return np.array(tokens[2:], np.int32)


def shakespeare():
    tokens = np.unique(np.frombuffer(TEXT.read_bytes(), np.uint8), return_inverse=True)[1].astype(np.int32)
    assert tokens.max() == 64
    cut = int(0.9 * tokens.size)
    return tokens[:cut], tokens[cut:]


# N-gram models


def slow_probability(tokens, order, vocabulary, context, token, kneser_ney):
    """p(token | context) by the textbook recursion over dictionaries."""
    grams = [Counter(tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1)) for k in range(order + 2)]

    def counts_of(k):
        if not kneser_ney or k == order:
            return grams[k]
        return Counter(gram[1:] for gram in grams[k + 1])

    def probability(context, k):
        if k == 0:
            return 1 / vocabulary
        context = context[len(context) - k + 1 :]
        lower = probability(context, k - 1)
        counts = counts_of(k)
        here = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not here:
            return lower
        total = sum(here.values())
        if not kneser_ney:
            return (here.get(token, 0) + len(here) * lower) / (total + len(here))
        n1, n2, n3, n4 = (sum(count == times for count in counts.values()) for times in (1, 2, 3, 4))
        discounts = [0, 0.5, 1, 1.5]
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            estimate = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            discounts = estimate if min(estimate[1:]) > 0 else discounts
        freed = sum(discounts[min(count, 3)] for count in here.values())
        count = here.get(token, 0)
        return (count - discounts[min(count, 3)] + freed * lower) / total

    return probability(tuple(context)[-(order - 1) :] if order > 1 else (), min(order, len(context) + 1))


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_matches_the_slow_recursion(order, smoothing):
    train, test = chain(600), chain(40, seed=1)
    nats = NGram.fit(train, order, 7, smoothing).nats(test)
    slow = [
        slow_probability(
            train.tolist(), order, 7, test[max(0, i - order + 1) : i].tolist(), test[i], smoothing[0] == "k"
        )
        for i in range(len(test))
    ]
    np.testing.assert_allclose(nats, -np.log(slow), rtol=1e-9)


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell"])
@pytest.mark.parametrize("size", [4, 30, 2000])
def test_probabilities_sum_to_one_after_every_context(size, smoothing):
    model = NGram.fit(chain(size), 4, 7, smoothing)  # token 6 never occurs
    for length in range(5):
        for context in itertools.product(range(7), repeat=min(length, 3)):
            context = (3,) * (length - 3) + context
            p = model.probabilities(np.array(context, np.int32))
            assert p.min() > 0
            assert p.sum() == pytest.approx(1, abs=1e-12)


def test_nats_are_those_of_the_probabilities():
    model, test = NGram.fit(chain(500), 3, 7), np.array([0, 6, 6, 2, 3, 1, 0, 5, 4])
    expected = [-math.log(model.probabilities(test[:i])[test[i]]) for i in range(len(test))]
    np.testing.assert_allclose(model.nats(test), expected, rtol=1e-12)


def test_witten_bell_by_hand():
    # 0 0 1 with 4 tokens: N = 3, T = 2; after 0: N = 2, T = 2
    p = (2 + 2 / 4) / 5, (1 + 2 / 4) / 5, (0 + 2 / 4) / 5
    model = NGram.unigram(np.array([0, 0, 1]), 4, "witten-bell")
    np.testing.assert_allclose(model.probabilities(np.array([], int)), [*p, p[-1]])
    model = NGram.markov(np.array([0, 0, 1]), 4, "witten-bell")
    np.testing.assert_allclose(model.nats(np.array([0, 1, 3]))[1:], -np.log([(1 + 2 * p[1]) / 4, p[2]]))


def test_unigram_and_markov_are_orders_one_and_two():
    text, test = chain(3000), chain(500, seed=1)
    for model, order in ((NGram.unigram(text, 6), 1), (NGram.markov(text, 6), 2)):
        assert model.order == order
        np.testing.assert_array_equal(model.nats(test), NGram.fit(text, order, 6).nats(test))
    # with much text, the frequencies themselves
    np.testing.assert_allclose(NGram.unigram(text, 6).probabilities([]), np.bincount(text) / 3000, atol=1e-3)


def test_the_right_order_reaches_the_entropy_of_a_chain():
    train, test = chain(50_000), chain(20_000, seed=1)
    nats = [NGram.fit(train, order, 6).nats(test).mean() for order in (1, 2, 3, 5)]
    assert nats[0] > nats[1] + 0.1 > nats[2] + 0.2
    assert nats[2] < nats[3] < nats[2] + 0.05  # a longer context adds nothing, and does little harm
    counts = np.zeros((6, 6, 6))
    np.add.at(counts, (test[:-2], test[1:-1], test[2:]), 1)
    entropy = -(counts * np.log(np.maximum(counts / counts.sum(axis=-1, keepdims=True), 1e-9))).sum() / counts.sum()
    assert nats[2] == pytest.approx(entropy, abs=0.01)


def test_a_context_not_seen_leaves_the_order_below():
    model = NGram.fit(chain(300), 3, 8)
    np.testing.assert_array_equal(model.probabilities([7, 2]), model.probabilities([6, 2]))
    assert np.abs(model.probabilities([1, 2]) - model.probabilities([7, 2])).max() > 0.01


def test_large_vocabularies_and_orders_do_not_overflow():
    text = np.tile(np.random.default_rng(0).integers(0, 2**31 - 1, 50), 40)
    nats = NGram.fit(text, 9, 2**31 - 1).nats(text)
    assert np.isfinite(nats).all()
    assert nats[50:].max() < 0.1 < nats[0]


def test_a_million_tokens_at_order_five():
    text = np.random.default_rng(0).zipf(1.2, 1_000_000).clip(0, 999).astype(np.int32)
    start = time.perf_counter()
    NGram.fit(text, 5, 1000).nats(text[:100_000])
    assert time.perf_counter() - start < 10


@pytest.mark.data
@needs_text
def test_tinyshakespeare_by_order():
    train, test = shakespeare()
    nats = [NGram.fit(train, order, 65).nats(test).mean() for order in range(1, 7)]
    np.testing.assert_allclose(nats, [3.347, 2.484, 2.038, 1.719, 1.561, 1.523], atol=1e-3)
    assert NGram.fit(train, 5, 65, "witten-bell").nats(test).mean() == pytest.approx(1.669, abs=1e-3)


# Piano rolls


def rolls(num, seed=0, notes=5):
    """Pieces of independent notes that stay on or off with probability 0.8; each piece has its own busyness."""
    draw = np.random.default_rng(seed)
    pieces = []
    for length in draw.integers(5, 40, num):
        piece = draw.random((length, notes)) < draw.uniform(0.1, 0.9)
        for t in range(1, length):
            piece[t] = np.where(draw.random(notes) < 0.8, piece[t - 1], piece[t])
        pieces.append(piece.astype(np.uint8))
    return pieces


def test_bernoulli_by_hand():
    train = [np.array([[1, 0], [1, 0]]), np.array([[1, 1]])]
    # means (3 + 1/2) / 4 and (1 + 1/2) / 4, over both pieces
    p, q = 7 / 8, 3 / 8
    test = [np.array([[1, 1], [0, 0]]), np.array([[1, 0]])]
    frames = [-math.log(p * q), -math.log((1 - p) * (1 - q)), -math.log(p * (1 - q))]
    assert bernoulli_nats(train, test).value == pytest.approx(sum(frames) / 3)


def test_markov_by_hand():
    train = [np.array([[0], [1], [1], [1], [0]]), np.array([[0], [0]])]
    # before off: 0 -> 1, 0 -> 0; before on: 1 -> 1, 1 -> 1, 1 -> 0; and 3 of 7 frames on
    off, on, mean = 1.5 / 3, 2.5 / 4, 3.5 / 8
    test = [np.array([[1], [1], [0]]), np.array([[0], [1]])]
    nats = -np.log([on, 1 - on, off])
    assert markov_nats(train, test).value == pytest.approx(nats.mean())
    assert markov_nats(train, test, first=True).value == pytest.approx((nats.sum() - math.log(mean * (1 - mean))) / 5)


@pytest.mark.parametrize("measure", [bernoulli_nats, lambda *rolls: markov_nats(*rolls, first=True)])
def test_frame_models_are_distributions(measure):
    pieces = [np.array(bits, np.float32).reshape(2, 2) for bits in itertools.product([0, 1], repeat=4)]
    probabilities = [math.exp(-2 * measure(rolls(3, notes=2), [piece]).value) for piece in pieces]
    assert sum(probabilities) == pytest.approx(1)


@pytest.mark.parametrize("measure", [bernoulli_nats, markov_nats])
def test_frame_errors_are_those_of_other_pieces(measure):
    train = rolls(200, seed=1000)
    estimates = [measure(train, rolls(60, seed=seed)) for seed in range(120)]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert np.mean([estimate.stderr for estimate in estimates]) == pytest.approx(spread, rel=0.25)
    assert math.isnan(measure(train, train[:1]).stderr)


@pytest.mark.data
@needs_rolls
@pytest.mark.parametrize("name, alone, given", [("JSB_Chorales", 11.06, 10.49), ("Nottingham", 10.25, 5.15)])
def test_published_frame_baselines(name, alone, given):
    archive = pytest.importorskip("scipy.io").loadmat(ROLLS / f"{name}.mat")
    train, test = (list(archive[split][0]) for split in ("traindata", "testdata"))
    assert bernoulli_nats(train, test).value == pytest.approx(alone, abs=0.005)
    assert markov_nats(train, test).value == pytest.approx(given, abs=0.005)
    assert 0 < markov_nats(train, test).stderr < 0.2


@pytest.mark.parametrize("measure", [bernoulli_nats, markov_nats])
@pytest.mark.parametrize(
    "train, test, message",
    [
        ([], [np.zeros((2, 3))], "`train` must hold at least one piece. Received: 0 pieces"),
        ([np.zeros((2, 3))], [], "`test` must hold at least one piece. Received: 0 pieces"),
        ([np.zeros(3)], [np.zeros((2, 3))], r"`train` must be pieces of shape \(T, P\), T >= 1. Received: train\[0\]"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], [np.zeros((2, 3))], r"shape \(T, 3\).* Received: train\[1\] .*\(2, 4\)"),
        ([np.zeros((2, 3))], [np.zeros((0, 3))], r"`test` must be pieces .* Received: test\[0\] of shape \(0, 3\)"),
        ([np.zeros((2, 3))], [np.full((2, 3), 127)], r"`test` must be 0 or 1 everywhere. Received: test\[0\]"),
        ([np.full((2, 3), np.nan)], [np.zeros((2, 3))], r"`train` must be 0 or 1 everywhere. Received: train\[0\]"),
    ],
)
def test_frame_mistakes(measure, train, test, message):
    with pytest.raises(ValueError, match=message):
        measure(train, test)


def test_markov_needs_a_frame_before():
    with pytest.raises(ValueError, match="`test` must hold a frame with one before it. Received: pieces of one frame"):
        markov_nats(rolls(2), [np.zeros((1, 5))])
    assert markov_nats(rolls(2), [np.zeros((1, 5))], first=True).value > 0


# Diversity


def grams_of(sample, n):
    return Counter(tuple(sample[i : i + n]) for i in range(len(sample) - n + 1))


def slow_bleu(sample, others, n):
    """BLEU of one sample, by its definition."""
    log = 0.0
    for k in range(1, n + 1):
        grams = grams_of(sample, k)
        matched = sum(min(count, max(grams_of(other, k)[gram] for other in others)) for gram, count in grams.items())
        if k == 1 and not matched:
            return 0.0
        log += math.log((matched or 0.1) / max(1, sum(grams.values()))) / n
    closest = min((abs(len(other) - len(sample)), len(other)) for other in others)[1]
    return math.exp(log + min(0.0, 1 - closest / len(sample)))


def some_samples(num, lengths, vocabulary, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocabulary, draw.integers(*lengths)) for _ in range(num)]


def test_distinct_and_repetition_by_hand():
    samples = [np.array([1, 2, 1, 2]), np.array([2, 1]), np.array([7])]
    assert distinct_n(samples, 1) == 3 / 7
    assert distinct_n(samples, 2) == 2 / 4  # 12 21 12, 21
    assert repetition(samples, 1).value == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert repetition(samples, 2).value == pytest.approx((1 / 3 + 0) / 2)
    assert repetition(samples, 2).stderr == pytest.approx(1 / 6)


def test_distinct_and_repetition_match_counters():
    samples = some_samples(30, (0, 60), 4) + [np.zeros(0, int)]
    for n in (1, 2, 3, 6):
        grams = [grams_of(sample.tolist(), n) for sample in samples]
        total = sum(sum(counts.values()) for counts in grams)
        assert distinct_n(samples, n) == pytest.approx(len(set().union(*grams)) / total)
        shares = [1 - len(counts) / sum(counts.values()) for counts in grams if counts]
        assert repetition(samples, n).value == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("lengths, vocabulary", [((1, 12), 3), ((5, 30), 8), ((20, 21), 2), ((3, 6), 60)])
def test_self_bleu_matches_its_definition(n, lengths, vocabulary):
    samples = [sample.tolist() for sample in some_samples(14, lengths, vocabulary)]
    slow = [slow_bleu(sample, samples[:i] + samples[i + 1 :], n) for i, sample in enumerate(samples)]
    assert self_bleu(samples, n).value == pytest.approx(np.mean(slow), rel=1e-12)


def test_self_bleu_error_is_the_jackknife():
    samples = [sample.tolist() for sample in some_samples(9, (12, 13), 3)]
    without = [self_bleu(samples[:j] + samples[j + 1 :], 3).value for j in range(9)]
    assert self_bleu(samples, 3).stderr == pytest.approx(math.sqrt(8 * np.var(without)), rel=1e-9)
    assert math.isnan(self_bleu(samples[:2]).stderr)


def test_self_bleu_error_is_the_spread_over_text():
    text = chain(120_000, vocabulary=12)
    starts = np.random.default_rng(0).integers(0, text.size - 40, (80, 50))
    estimates = [self_bleu([text[start : start + 40] for start in row]) for row in starts]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert 0.8 * spread < np.mean([estimate.stderr for estimate in estimates]) < 1.8 * spread


def test_self_bleu_of_copies_and_of_strangers():
    assert self_bleu([np.arange(10)] * 5) == (pytest.approx(1), pytest.approx(0))
    assert self_bleu([np.arange(10) + 10 * i for i in range(5)]).value == 0
    assert self_bleu([np.arange(10), np.zeros(0, int), np.arange(10)]).value == pytest.approx(2 / 3)


def test_self_bleu_draws_at_most_max_samples():
    samples = some_samples(60, (20, 30), 5)
    drawn = self_bleu(samples, max_samples=20, seed=3)
    assert drawn == self_bleu(samples, max_samples=20, seed=3)
    assert drawn != self_bleu(samples, max_samples=20, seed=4)
    assert drawn.value < self_bleu(samples).value == self_bleu(samples, max_samples=60, seed=9).value


# Copies of the training text, and strings against targets


def slow_longest(sample, train):
    """Length of the longest common stretch, by trying all."""
    found = {tuple(train[i:j]) for i in range(len(train)) for j in range(i + 1, min(len(train), i + len(sample)) + 1)}
    stretches = [(i, j) for i in range(len(sample)) for j in range(i + 1, len(sample) + 1)]
    return max((j - i for i, j in stretches if tuple(sample[i:j]) in found), default=0)


@pytest.mark.parametrize("vocabulary, size", [(1, 70), (2, 200), (4, 300), (1000, 300), (2, 1), (3, 2)])
def test_suffixes_are_sorted(vocabulary, size):
    text = np.random.default_rng(1).integers(-5, vocabulary - 5, size)
    for tokens in (text, np.tile(text, 5)):
        expected = sorted(range(tokens.size), key=lambda start: tokens[start:].tolist())
        np.testing.assert_array_equal(SuffixArray(tokens).positions, expected)


@pytest.mark.parametrize("vocabulary", [1, 2, 4, 300])
def test_longest_match_is_that_of_trying_all(vocabulary):
    draw = np.random.default_rng(vocabulary)
    train = draw.integers(0, vocabulary, 120)
    array = SuffixArray(train)
    # one token more than the text has, so that some are unknown
    samples = [draw.integers(0, vocabulary + 1, size) for size in draw.integers(0, 15, 60)]
    lengths, positions = array.longest_matches(samples)
    assert lengths.tolist() == [slow_longest(sample.tolist(), train.tolist()) for sample in samples]
    for sample, length, position in zip(samples, lengths, positions):
        stretch = train[position : position + length].tolist() if length else []
        assert any(sample[i : i + length].tolist() == stretch for i in range(len(sample) - length + 1))
        assert (position == -1) == (length == 0)


@pytest.mark.parametrize("vocabulary", [200, 255, 256, 5000, 65_535, 65_536, 80_000])
def test_planted_copies_are_found_in_any_alphabet(vocabulary):
    train = np.random.default_rng(0).permutation(np.arange(vocabulary) * 1000 - 10**6)
    sample = np.concatenate([[-1, -1], train[90:121], [-1], train[5:15]])
    array = SuffixArray(train)
    assert array.longest_match(sample) == Match(31, 90)
    assert array.longest_match(train[-7:]) == Match(7, vocabulary - 7)
    assert array.longest_match([-1, 10**9]) == array.longest_match([]) == Match(0, -1)
    assert len(array) == vocabulary  # and the token with the largest symbol is found
    assert array.longest_match([train.max()]) == Match(1, train.argmax())


@pytest.mark.parametrize("kind", ["one token", "twice the same", "random"])
def test_a_million_tokens_are_sorted_in_seconds(kind):
    half = np.zeros(500_000, np.int32) if kind == "one token" else np.random.default_rng(0).integers(0, 65, 500_000)
    text = np.concatenate([half, half[::-1] if kind == "random" else half])
    start = time.perf_counter()
    array = SuffixArray(text)
    assert array.longest_match(text[400_000:401_000]).length == 1000
    assert time.perf_counter() - start < 15


def test_a_sampler_that_replays_its_text_is_caught_and_real_text_is_not():
    text = chain(60_000, vocabulary=12)
    train, held_out = text[:40_000], text[40_000:].reshape(-1, 50)
    array = SuffixArray(train)
    replay = [train[start : start + 50] for start in np.random.default_rng(0).integers(0, 39_000, 80)]
    assert near_copies(replay, held_out[:200], array).value == 1
    # half of each sample is copied
    mixed = [np.concatenate([copy[:25], real[25:]]) for copy, real in zip(replay, held_out)]
    assert near_copies(mixed, held_out[:200], train).value > 0.9
    # fresh real text at its nominal rate, less where matches of equal length straddle the quantile
    for quantile in (0.9, 0.5):
        rates = [near_copies(held_out[i::2], held_out[1 - i :: 2], array, quantile).value for i in (0, 1)]
        lengths = array.longest_matches(held_out)[0]
        nominal = (lengths > copy_threshold(lengths, 50, quantile)).mean()
        assert 0.3 * (1 - quantile) < nominal <= 1 - quantile
        assert np.abs(np.array(rates) - nominal).max() < 0.08
    estimate = near_copies(held_out[:200], held_out[200:], array)
    assert estimate.value < 0.04
    assert estimate.stderr > 0


@pytest.mark.data
@needs_text
def test_real_text_is_no_copy_of_tinyshakespeare():
    train, test = shakespeare()
    windows = test[: test.size // 256 * 256].reshape(-1, 256)
    array = SuffixArray(train)
    assert near_copies(windows[1::2], windows[::2], array).value < 0.05
    assert near_copies([train[i : i + 256] for i in range(0, 900_000, 9000)], windows, array).value == 1


def test_copy_threshold():
    assert copy_threshold(np.arange(1, 101), 200) == 99
    assert copy_threshold(np.arange(1, 101), 200, 0.5) == 50
    # windows that are in the training text themselves: a whole copy still counts
    assert copy_threshold(np.full(10, 30), 30) == 29


def slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_edit_distance():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "") == 0
    assert edit_distance("", "né€") == edit_distance("né€", "") == 3
    assert edit_distance(np.array([1, 2, 3]), [2, 3, 4]) == 2
    for a, b in zip(some_samples(40, (0, 7), 3), some_samples(40, (0, 7), 3, seed=1)):
        assert edit_distance(a, b) == edit_distance(b, a) == slow_distance(tuple(a), tuple(b))


def test_exact_match():
    value, stderr = exact_match(["a", "b ", "", "né"], ["a", "b", "", "né"])
    assert value == 0.75 and 0 < stderr < 0.5


# Mistakes


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NGram.fit([0, 1], 0, 2), "`order` must be positive. Received: order=0"),
        (lambda: NGram.fit([0, 1], 1, 0), "`vocabulary` must be positive. Received: vocabulary=0"),
        (lambda: NGram.fit([0, 1], 1, 2, "none"), "`smoothing` must be one of .* Received: smoothing='none'"),
        (lambda: NGram.fit([0, 1], 3, 2), "`tokens` must hold at least `order` tokens. Received: 2 and order=3"),
        (lambda: NGram.fit([], 1, 2), "`tokens` must hold at least one token. Received: 0 tokens"),
        (lambda: NGram.fit([0, 2], 1, 2), r"`tokens` must lie in 0..1. Received: 0..2"),
        (lambda: NGram.fit([0, -1], 1, 2), r"`tokens` must lie in 0..1. Received: -1..0"),
        (lambda: NGram.fit([0.5], 1, 2), r"`tokens` must be \(n,\) integers. Received: shape=\(1,\), dtype=float64"),
        (lambda: NGram.fit([[0, 1]], 1, 2), r"`tokens` must be \(n,\) integers. Received: shape=\(1, 2\)"),
        (lambda: NGram.fit([0, 1], 1, 2).nats([2]), r"`tokens` must lie in 0..1. Received: 2..2"),
        (lambda: NGram.fit([0, 1], 1, 2).nats([]), "`tokens` must hold at least one token"),
        (lambda: NGram.fit([0, 1], 2, 2).probabilities([5]), r"`context` must lie in 0..1. Received: 5..5"),
        (lambda: to_tokens("abc", "text"), r"`text` must be \(n,\) integers. Received: shape=\(\)"),
        (lambda: distinct_n([], 1), "`samples` must hold at least one sample. Received: 0 samples"),
        (lambda: distinct_n([np.arange(3)], 0), "`n` must be positive. Received: n=0"),
        (lambda: distinct_n([np.arange(3)], 4), "`samples` must hold one of at least n tokens. .* than n=4"),
        (lambda: repetition([np.arange(3)], 4), "`samples` must hold one of at least n tokens. .* than n=4"),
        (lambda: repetition([np.arange(3)], -1), "`n` must be positive. Received: n=-1"),
        (lambda: repetition(["abc"], 1), r"`samples\[0\]` must be \(n,\) integers. Received: shape=\(\)"),
        (lambda: distinct_n([[1], [0.5]], 1), r"`samples\[1\]` must be \(n,\) integers. .*dtype=float64"),
        (lambda: self_bleu([]), "`samples` must hold at least one sample. Received: 0 samples"),
        (lambda: self_bleu([np.arange(3)]), "`samples` must be at least 2 samples. Received: 1 sample"),
        (lambda: self_bleu([[1], [1]], max_samples=1), "`max_samples` must be at least 2. Received: max_samples=1"),
        (lambda: self_bleu([[1], [1]], n=0), "`n` must be positive. Received: n=0"),
        (lambda: SuffixArray([]), "`tokens` must hold at least one token. Received: 0 tokens"),
        (lambda: SuffixArray([0.5]), r"`tokens` must be \(n,\) integers. Received: shape=\(1,\), dtype=float64"),
        (lambda: SuffixArray([1]).longest_match([[1]]), r"`sample` must be \(n,\) integers. Received: shape=\(1, 1\)"),
        (lambda: near_copies([], [[1, 2]], [1]), "must hold at least one each. Received: 0 and 1"),
        (lambda: near_copies([[1, 2]], [], [1]), "must hold at least one each. Received: 1 and 0"),
        (lambda: near_copies([[1, 2]], [[1, 2, 3]], [1]), r"samples\[0\] of 2, held_out_samples\[0\] of 3"),
        (lambda: near_copies([[]], [[]], [1]), r"the same number of tokens, at least 1. Received: .* of 0"),
        (lambda: near_copies([[1, 2]], ["text"], [1]), r"`held_out_samples\[0\]` must be \(n,\) integers"),
        (lambda: near_copies([[1]], [[1]], [1], 1.0), "`quantile` must lie between 0 and 1. Received: quantile=1.0"),
        (lambda: copy_threshold([], 4), "`held_out_lengths` must hold at least one length. Received: 0 lengths"),
        (lambda: copy_threshold([1], 0), "`window` must be positive. Received: window=0"),
        (lambda: exact_match(["a"], ["a", "b"]), "must be as many, and at least one. Received: 1 and 2"),
        (lambda: exact_match([], []), "must be as many, and at least one. Received: 0 and 0"),
        (lambda: exact_match(["a"], [b"a"]), "`target` must be a list of str. Received: bytes"),
        (lambda: exact_match("ab", ["a", "b"]), "`predicted` must be a list of str. Received: one str"),
        (lambda: edit_distance("ab", [1, 2]), "must both be str or arrays. Received: str, list"),
        (lambda: edit_distance([1], [0.5]), r"`b` must be \(n,\) integers"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
