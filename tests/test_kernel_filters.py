"""Filters of logits beside NumPy rules that sort everything, over random rows and awkward ones."""

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import filters, reference

NEVER = -np.inf
WIDE = 700  # more than are sorted at first, so that both ways of ranking are run


def rows(width: int) -> np.ndarray:
    """Random logits, and rows with ties, excluded tokens, a single token, and flat ones."""
    generator = np.random.default_rng(0)
    z = generator.normal(0.0, 3.0, (8, width)).astype(np.float32)
    z[1] = np.round(z[1])  # ties everywhere
    z[2, 1::2] = NEVER
    z[3] = NEVER
    z[3, width // 2] = 1.0
    z[4] = 0.0
    z[5] = np.where(np.arange(width) % 3, -0.0, 0.0)
    z[6] *= 20.0
    return z


def ranked(row: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(len(row)), -row))


def kept(row: np.ndarray, places: np.ndarray) -> np.ndarray:
    out = np.full_like(row, NEVER)
    out[places] = row[places]
    return out


def top_k(row, k):
    return row if k <= 0 or k >= len(row) else kept(row, ranked(row)[:k])


def top_p(row, p):
    if p >= 1:
        return row
    order = ranked(row)
    mass = np.exp(row.astype(np.float64) - row.max())
    total = np.cumsum(mass[order]) / mass.sum()
    return kept(row, order[: 1 + int(np.searchsorted(total, p))])


def min_p(row, p):
    with np.errstate(divide="ignore"):
        return np.where(row - row.max() >= np.log(np.float32(np.clip(p, 0, 1))), row, NEVER)


K = np.array([0, 1, 3, 5, 400, 600, 2, 10_000], np.int32)
P = np.array([0.0, 0.313, 0.8013, 0.9911, 0.5003, 0.9007, 1.0, 0.7707], np.float32)  # no boundary among equal tokens
TOKENS = tf.constant(np.random.default_rng(1).integers(-1, 8, (8, 6)), tf.int32)
LENGTHS = tf.constant([0, 1, 2, 3, 4, 5, 6, 6], tf.int32)
PENALTY = tf.constant([1.0, 1.5, 2.0, 0.5, 1.2, 3.0, 1.1, 1.3])
SMALL = tf.constant(rows(9))
EXPORTS = {
    "top_k": (filters.top_k, [tf.constant(rows(WIDE)), tf.constant(K)]),
    "top_p": (filters.top_p, [tf.constant(rows(WIDE)), tf.constant(P)]),
    "min_p": (filters.min_p, [SMALL, tf.constant(P)]),
    "temperature": (filters.temperature, [SMALL, tf.constant(P)]),
    "repetition": (filters.repetition, [SMALL, TOKENS, LENGTHS, PENALTY]),
    "occurrence": (filters.occurrence, [SMALL, TOKENS, LENGTHS, PENALTY, PENALTY]),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("width", [9, WIDE])
@pytest.mark.parametrize(
    ("ours", "theirs", "controls"), [(filters.top_k, top_k, K), (filters.top_p, top_p, P), (filters.min_p, min_p, P)]
)
def test_rule_of_sorting(ours, theirs, controls, width, jit):
    z = rows(width)
    compiled = tf.function(ours, jit_compile=jit)
    for turn in range(3):  # every row meets several controls
        control = np.roll(controls, turn)
        expected = np.stack([theirs(row, c) for row, c in zip(z, control)])
        np.testing.assert_array_equal(compiled(tf.constant(z), tf.constant(control)), expected)


@pytest.mark.parametrize("name", EXPORTS)
def test_a_row_is_what_it_is_alone_and_never_empty(name):
    function, inputs = EXPORTS[name]
    whole = function(*inputs).numpy()
    for i in range(8):
        alone = function(*(x[i : i + 1] for x in inputs)).numpy()
        np.testing.assert_array_equal(alone[0], whole[i])
    assert np.isfinite(whole).any(axis=1).all() and not np.isnan(whole).any()


def test_temperature_divides_and_zero_is_greedy():
    t = tf.constant([0.0, 1.0, 2.0, 0.5, 0.0, 0.0, 1e-9, 1.0])
    got = filters.temperature(SMALL, t).numpy()
    z = SMALL.numpy()
    for i, temperature in enumerate(t.numpy()):
        expected = kept(z[i], np.array([z[i].argmax()])) if temperature < 1e-6 else z[i] / temperature
        np.testing.assert_allclose(got[i], expected, rtol=1e-6)


def test_repetition_and_occurrence_count_the_tokens_before():
    z = SMALL.numpy()
    penalised = filters.repetition(SMALL, TOKENS, LENGTHS, PENALTY).numpy()
    counted = filters.occurrence(SMALL, TOKENS, LENGTHS, PENALTY, 2.0 * PENALTY).numpy()
    for i in range(8):
        seen = TOKENS[i, : int(LENGTHS[i])].numpy()
        for token in range(9):
            times, factor, value = int((seen == token).sum()), float(PENALTY[i]), z[i, token]
            expected = value if not times else value / factor if value > 0 else value * factor
            np.testing.assert_allclose(penalised[i, token], expected, rtol=1e-6)
            np.testing.assert_allclose(counted[i, token], value - factor * (times > 0) - 2 * factor * times, rtol=1e-5)


def test_gradient_reaches_the_logits_that_stay():
    z = SMALL[:1]
    with tf.GradientTape() as tape:
        tape.watch(z)
        stayed = filters.top_k(z, tf.constant([3]))
        total = tf.reduce_sum(tf.where(stayed > NEVER, stayed, 0.0))
    np.testing.assert_array_equal(tape.gradient(total, z)[0] > 0, stayed[0] > NEVER)


def test_bfloat16_keeps_its_dtype_and_bad_logits_are_refused():
    low = filters.top_p(tf.cast(SMALL, tf.bfloat16), tf.constant(P))
    assert low.dtype == tf.bfloat16
    with pytest.raises(ValueError, match="`logits` must be"):
        filters.top_k(tf.zeros((3,)), tf.constant([1]))


def stays(function, *controls):
    """Which tokens stay, and their logits: finite, so that tolerances mean something."""

    def run(z):
        logits = function(z, *controls)
        finite = tf.math.is_finite(logits)
        return tf.cast(finite, tf.int32), tf.where(finite, logits, 0.0)

    return run


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", EXPORTS)
def test_value_and_gradient_match_the_reference(name, jit):
    controls = EXPORTS[name][1][1:]
    z = tf.constant(rows(WIDE)) if name == "top_k" else SMALL
    assert_matches(
        stays(getattr(filters, name), *controls), stays(getattr(reference, name), *controls), [z], jit=jit, dynamic=(0,)
    )


@pytest.mark.parametrize("sorted_first", [256, 1])
def test_the_nucleus_is_the_smallest(monkeypatch, sorted_first):
    """It holds `p`, and would not without its least likely token; of equal tokens exact shares are counted exactly."""
    monkeypatch.setattr(filters, "SORTED", sorted_first)
    z = draw(4, 1000)
    z = tf.concat([8.0 * z, 0.1 * z, tf.round(2.0 * z), tf.where(z > 1.5, z, NEVER)], axis=0)
    p = np.tile(np.float32([0.05, 0.6, 0.9, 0.99]), 4)
    probabilities = tf.nn.softmax(tf.cast(z, tf.float64)).numpy()
    inside = np.isfinite(filters.top_p(z, tf.constant(p)))
    mass = (probabilities * inside).sum(axis=1)
    least = np.where(inside, probabilities, np.inf).min(axis=1)
    assert (mass >= p - 1e-6).all() and (mass - least < p + 1e-6).all()
    equal = np.isfinite(filters.top_p(tf.fill((3, 4), 1.25), tf.constant([0.5, 0.25, 0.75])))
    np.testing.assert_array_equal(equal, [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
