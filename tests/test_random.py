"""The counter-based generator: published vectors, row independence, statistics, compilation."""

import math

import numpy as np
import pytest
import tensorflow as tf

from gentf.kernels import random

# Threefry-2x32, 20 rounds: the known-answer vectors published with Random123 (counter, key, result).
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
SEEDS = random.spread(5, 64)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("block", "key", "expected"), VECTORS)
def test_threefry_gives_the_published_vectors(block, key, expected, jit):
    def encrypt():
        words = [tf.constant(value, tf.uint32) for value in (*key, *block)]
        return random.threefry((words[0], words[1]), (words[2], words[3]))

    assert tuple(int(word) for word in tf.function(encrypt, jit_compile=jit)()) == expected


@pytest.mark.parametrize("draw", [random.bits, random.uniform, random.normal])
def test_a_row_depends_on_its_own_seed_alone(draw):
    whole = draw(SEEDS, (3, 5)).numpy()
    parts = np.concatenate([draw(SEEDS[:1], (3, 5)), draw(SEEDS[1:40], (3, 5)), draw(SEEDS[40:], (3, 5))])
    np.testing.assert_array_equal(whole, parts)
    assert len({row.tobytes() for row in whole}) == 64


@pytest.mark.parametrize("draw", [random.bits, random.uniform, random.normal])
def test_streams_differ_and_repeat(draw):
    first, again, other = draw(SEEDS, (8,), 1), draw(SEEDS, (8,), 1), draw(SEEDS, (8,), 2)
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.all(first.numpy() == other.numpy(), axis=1))


@pytest.mark.parametrize("counter", [3, 2**31 + 7])
def test_counter_may_be_a_number_a_tensor_or_one_a_row(counter):
    plain = random.bits(SEEDS, (4,), counter).numpy()
    np.testing.assert_array_equal(plain, random.bits(SEEDS, (4,), tf.constant(counter, tf.int64)))
    np.testing.assert_array_equal(plain, random.bits(SEEDS, (4,), tf.fill((64,), tf.constant(counter, tf.int64))))


def test_bits_are_balanced_and_uncorrelated():
    words = random.bits(random.spread(0, 256), (256,)).numpy()
    each_bit = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    tolerance = 5 / math.sqrt(words.size)
    np.testing.assert_allclose(each_bit.mean(axis=(0, 1)), 0.5, atol=tolerance)
    neighbours = [(each_bit[:, 1:] == each_bit[:, :-1]), (each_bit[1:] == each_bit[:-1])]
    for equal in neighbours:
        np.testing.assert_allclose(equal.mean(axis=(0, 1)), 0.5, atol=tolerance)


def test_one_bit_of_the_seed_changes_half_of_the_bits():
    base = random.bits(SEEDS, (32,)).numpy()
    for word in (0, 1):
        for bit in (0, 7, 30):
            flipped = SEEDS.numpy()
            flipped[:, word] ^= 1 << bit
            changed = np.bitwise_count(base ^ random.bits(tf.constant(flipped), (32,)).numpy())
            assert abs(changed.mean() / 32 - 0.5) < 0.01


def test_uniform_is_uniform():
    values = random.uniform(random.spread(1, 500), (400,)).numpy().ravel()
    assert values.min() >= 0.0 and values.max() < 1.0
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    chi2 = np.sum((counts - values.size / 100) ** 2 / (values.size / 100))
    assert 50 < chi2 < 160  # 99 degrees of freedom: beyond 5 standard deviations on either side


def test_normal_is_standard_normal():
    values = np.sort(random.normal(random.spread(2, 500), (401,)).numpy().ravel().astype(np.float64))
    exact = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in values[::50]])
    empirical = (np.arange(values.size)[::50] + 0.5) / values.size
    assert np.abs(exact - empirical).max() < 1.95 / math.sqrt(values.size)  # Kolmogorov-Smirnov at 0.1 %
    assert abs(np.mean(values**4) - 3.0) < 0.1


def test_normal_halves_are_uncorrelated():
    z = random.normal(random.spread(3, 2000), (20,)).numpy()
    correlation = np.corrcoef(z.T) - np.eye(20)
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)


def test_categorical_follows_the_probabilities():
    probabilities = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    with np.errstate(divide="ignore"):
        logits = tf.constant(np.tile(np.log(probabilities), (20000, 1)), tf.float32)
    drawn = random.categorical(random.spread(4, 20000), logits).numpy()
    shares = np.bincount(drawn, minlength=5) / 20000
    np.testing.assert_allclose(shares, probabilities, atol=0.015)
    assert shares[4] == 0


def test_fold_in_gives_fresh_seeds():
    folded = [random.fold_in(SEEDS, data).numpy() for data in (0, 1, 2)]
    rows = np.concatenate([SEEDS.numpy(), *folded])
    assert len({row.tobytes() for row in rows}) == len(rows)
    np.testing.assert_array_equal(folded[1], random.fold_in(SEEDS, tf.constant(1)))


def test_spread_is_the_documented_rule():
    np.testing.assert_array_equal(random.spread(7, 3), [[7, 0], [7, 1], [7, 2]])
    np.testing.assert_array_equal(random.spread(7, 2, start=5), [[7, 5], [7, 6]])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_odd_sizes_and_dynamic_batches(size):
    function = tf.function(
        lambda seed: random.normal(seed, (size,)), input_signature=[tf.TensorSpec((None, 2), tf.int32)]
    )
    for rows in (1, 3):
        np.testing.assert_allclose(function(SEEDS[:rows]), random.normal(SEEDS, (size,))[:rows], rtol=1e-6)


def test_compiled_draws_equal_plain_ones():
    plain, compiled = (tf.function(lambda s: random.normal(s, (100,), 9), jit_compile=jit)(SEEDS) for jit in (0, 1))
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-6)
    same = [tf.function(lambda s: random.bits(s, (100,), 9), jit_compile=bool(jit))(SEEDS) for jit in (0, 1)]
    np.testing.assert_array_equal(*same)


def test_plain_graph_holds_no_xla_operation():
    graph = (
        tf.function(lambda s: random.normal(s, (4,))).get_concrete_function(tf.TensorSpec((None, 2), tf.int32)).graph
    )
    assert not [op.type for op in graph.get_operations() if "xla" in op.type.lower() or "Stateless" in op.type]


def test_categorical_survives_the_largest_uniform(monkeypatch):
    """The largest uniform number under an excluded index: its logarithms stay finite, and the index stays out."""
    monkeypatch.setattr(random, "uniform", lambda *_: tf.constant([[1.0 - 2.0**-24, 0.0]]))
    assert int(random.categorical(SEEDS[:1], tf.constant([[-math.inf, 0.0]]))[0]) == 1
