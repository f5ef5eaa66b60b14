"""Beam search: the likeliest sequences, not a draw.

At each step the `width` likeliest ways to go on from all hypotheses of a row are kept. Those that end are set aside,
ranked by score; the others go on. With as many hypotheses as there are sequences the search is exact; with one it is
greedy decoding. References: Graves (2012), "Sequence transduction with recurrent neural networks", section 2.5;
Sutskever, Vinyals & Le (2014), section 3.2; the score, Wu et al. (2016), equation 14 without its coverage term.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gentf.kernels.tracing import size
from gentf.sampling import constraints, decode
from gentf.sampling.decode import Decoder, Rules
from gentf.sampling.generate import SHORTEST, Generator, bucket, fill, padded

HYPOTHESES = 64  # searched together at most: bounds the memory of the states


class Beams(NamedTuple):
    """Hypotheses of each row, best first.

    Where a constraint has fewer than W sequences, the last ones have a score of -inf and no tokens.

    Attributes:
        tokens: (B, W, T) int32, zeros after a hypothesis' end.
        lengths: (B, W) int32, tokens of each, without `Rules.end`.
        scores: (B, W) float32, the log-likelihood divided by `length_norm` of its tokens, `Rules.end` included.
        nats: (B, W) float32, minus the log-likelihood by the model itself, `Rules.end` included.
    """

    tokens: Any
    lengths: Any
    scores: Any
    nats: Any


def length_norm(length: Any, penalty: Any) -> tf.Tensor:
    """((5 + length) / 6) ** penalty, float32: what a log-likelihood of `length` tokens is divided by.

    Reference: Wu et al. (2016), equation 14.
    """
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** tf.cast(penalty, tf.float32)


def beam(
    decoder: Decoder,
    prompt: tf.Tensor,
    lengths: tf.Tensor,
    capacity: int | tf.Tensor,
    width: int,
    steps: int | tf.Tensor,
    rules: Rules = decode.FREE,
    length_penalty: float | tf.Tensor = 0.0,
    *,
    label: tf.Tensor | None = None,
) -> Beams:
    """The best sequences that go on from each prompt.

    Args:
        decoder: a model of tokens.
        prompt: (B, P) int32, padded to the right.
        lengths: (B,) int32, tokens of each prompt, at least 1.
        capacity: tokens that a row can come to, its prompt included.
        width: hypotheses a row, at least 1.
        steps: tokens that a hypothesis may have, its end token included. One that has as many has ended.
        rules: of the rows. Only sequences that a constraint allows are searched.
        length_penalty: exponent of `length_norm`, >= 0; 0 ranks by likelihood, more prefers longer sequences.
        label: (B,) int32 classes of a conditional model.
    Raises:
        ValueError: a model of frames, a width below 1, or a negative penalty.
    """
    if decoder.width:
        raise ValueError(f"`decoder` must be of tokens. Received: width={decoder.width}")
    _check(width, length_penalty)
    begun = decode.begin(decoder, prompt, lengths, capacity, rules, label=label)
    rows, vocabulary = size(prompt, 0), begun.logits.shape[1]
    firsts = tf.range(rows)[:, None] * width
    # every hypothesis starts from its row's prompt, and all but one of each row are dead
    copies = tf.range(rows * width) // width
    logits, state = tf.nest.map_structure(lambda x: tf.gather(x, copies), (begun.logits, begun.state))
    position, rule, stop = (tf.gather(x, copies) for x in (begun.position, begun.rule, begun.stop))
    alive = tf.tile(tf.where(tf.range(width) == 0, 0.0, -float("inf"))[None], [rows, 1])
    tokens = tf.zeros((rows, width, steps), tf.int32)
    none = tf.fill([rows, width], -float("inf"))
    ended = Beams(tokens, tf.zeros((rows, width), tf.int32), none, none)

    def open_(at, alive, ended):
        # a log-likelihood only falls, and no length has a larger norm than the last
        best = tf.reduce_max(alive, axis=1) / length_norm(steps, length_penalty)
        return (at < steps) & tf.reduce_any(best > tf.reduce_min(ended.scores, axis=1))

    def body(at, logits, state, rule, stop, tokens, alive, ended):
        likely = tf.nn.log_softmax(logits)
        if rules.tables is not None:
            likely = tf.where(
                constraints.allowed(rules.tables, rule, tf.fill([rows * width], steps - at)), likely, -float("inf")
            )
        total = alive[:, :, None] + tf.reshape(likely, (rows, width, vocabulary))
        alive, index = tf.math.top_k(tf.reshape(total, (rows, width * vocabulary)), width)
        token, parent = index % vocabulary, index // vocabulary
        place = tf.reshape(firsts + parent, (-1,))
        flat = tf.reshape(token, (-1,))
        tokens = tf.gather(tokens, parent, batch_dims=1)
        tokens = tf.where(tf.range(steps) == at, token[:, :, None], tokens)
        over = tf.zeros_like(flat, tf.bool) if rules.end is None else flat == rules.end
        count = at + 1 - tf.cast(tf.reshape(over, (rows, width)), tf.int32)
        rule, stop = tf.gather(rule, place), tf.gather(stop, place)
        if rules.tables is not None:
            rule = constraints.advance(rules.tables, rule, flat)
        if rules.stops is not None:
            stop = tf.gather_nd(rules.stops, tf.stack([stop, flat], axis=1))
            over |= stop == size(rules.stops, 0) - 1
        over = tf.reshape(over, (rows, width))
        ended = _merge(ended, tokens, count, tf.where(over, alive, -float("inf")), at + 1, length_penalty)
        alive = tf.where(over, -float("inf"), alive)
        state = tf.nest.map_structure(lambda x: tf.gather(x, place), state)
        logits, state = decoder.step(flat, position + at, state)
        return at + 1, logits, state, rule, stop, tokens, alive, ended

    at, *_, tokens, alive, ended = tf.while_loop(
        lambda at, logits, state, rule, stop, tokens, alive, ended: open_(at, alive, ended),
        body,
        (tf.constant(0), logits, state, rule, stop, tokens, alive, ended),
        parallel_iterations=1,
    )
    ended = _merge(ended, tokens, tf.fill([rows, width], at), alive, at, length_penalty)
    found = ended.scores > -float("inf")
    return Beams(
        tf.where(found[:, :, None], ended.tokens, 0),
        tf.where(found, ended.lengths, 0),
        ended.scores,
        tf.where(found, -ended.nats, float("inf")),
    )


def _merge(ended, tokens, lengths, likely, count, penalty):
    """The best of those that ended before and those that do now, with `likely` (B, W), -inf for none. Among the
    ended, `nats` holds the log-likelihood itself."""
    width = likely.shape[1]
    new = Beams(tokens, lengths, likely / length_norm(count, penalty), likely)
    both = Beams(*(tf.concat(pair, axis=1) for pair in zip(ended, new)))
    scores, order = tf.math.top_k(both.scores, width)
    picked = Beams(*(tf.gather(x, order, batch_dims=1) for x in both))
    return picked._replace(scores=scores)


def search(
    generator: Generator,
    prompts: Sequence[np.ndarray],
    width: int,
    steps: int,
    rules: Rules = decode.FREE,
    length_penalty: float = 0.0,
    labels: np.ndarray | None = None,
) -> Beams:
    """`beam` from Python, by a generator's functions. Compiled ones are filled up to buckets, as it fills them.

    Args:
        generator: of a model of tokens.
        prompts: n arrays (P_i,) int32, of one token at least.
        width, steps, rules, length_penalty: as of `beam`.
        labels: (n,) int32, or None.
    Returns:
        Arrays, for n rows and T = `steps`.
    """
    _check(width, length_penalty)
    if steps < 1:
        raise ValueError(f"`steps` must be positive. Received: steps={steps}")
    jit, together = generator.jit, max(1, HYPOTHESES // width)
    parts = []
    for start in range(0, len(prompts), together):
        chosen = prompts[start : start + together]
        rows, longest = len(chosen), max(map(len, chosen))
        filled = bucket(rows) if jit else rows
        length = bucket(longest, SHORTEST) if jit else longest
        prompt, lengths = padded(chosen, filled, length)
        label = None if labels is None else fill(labels[start : start + together], filled)

        # not a bucket of steps: a hypothesis ends at the last, so that the number is a part of what is asked
        def function(prompt, lengths, count, rules, label, penalty, static):
            steps, end, width = static
            steps = count if steps is None else steps
            capacity = size(prompt, 1) + steps
            return beam(
                generator.make(), prompt, lengths, capacity, width, steps, rules._replace(end=end), penalty, label=label
            )

        static = (steps if jit else None, rules.end, width)
        count = None if jit else tf.constant(steps)
        arguments = (prompt, lengths, count, rules._replace(end=None), label, tf.constant(length_penalty, tf.float32))
        found = generator.run(function, "beam", arguments, static)[0]
        parts.append([x.numpy()[:rows] for x in found])
    return Beams(*(np.concatenate(values) for values in zip(*parts)))


def _check(width: Any, length_penalty: Any) -> None:
    if width < 1:
        raise ValueError(f"`width` must be positive. Received: width={width}")
    if isinstance(length_penalty, (int, float)) and not length_penalty >= 0.0:
        raise ValueError(f"`length_penalty` must be at least 0. Received: length_penalty={length_penalty}")
