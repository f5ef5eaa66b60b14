"""Speculative sampling: a small model proposes some tokens, the large one scores them all in one pass.

A proposed token x is kept with probability min(1, p(x) / q(x)), p of the large model and q of the small one; the first
that is not kept is drawn anew, from max(0, p - q) made to sum to one. What comes out has the distribution of the large
model, whatever the small one proposes: a poor one only costs time.

References: Leviathan, Kalman & Matias (2023), algorithm 1 and appendix A.1; Chen et al. (2023), algorithm 2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.kernels.tracing import size
from gentf.sampling import constraints, decode
from gentf.sampling.decode import Controls, Decoder, Rules, filtered
from gentf.sampling.generate import ROWS, SHORTEST, Generator, bucket, fill, padded

#: What is folded into a row's seed, for draws that must be independent of each other. In each, token i of a row takes
#: stream i. A token that is proposed again after a rejection before it meets the same numbers, and may: whether it was
#: thrown away hung on the streams of earlier tokens alone.
DRAFT, ACCEPT, REPLACE = 1, 2, 3


class Speculated(NamedTuple):
    """What came of some prompts.

    Attributes:
        symbols: (B, T) int32, zeros after a row's end.
        lengths: (B,) int32, tokens of each row, without `Rules.end`.
        nats: (B,) float32, minus the log-likelihood by the large model itself, `Rules.end` included.
        cost: (B,) float32, nats of the large model's probability that the constraint took away.
        accepted: (B,) float32, share of the proposed tokens that came to be judged and were kept: an estimate of the
            acceptance rate of Leviathan et al. (2023), definition 3.1. 0 where none was judged.
        passes: (B,) int32, passes of the large model after the prompt, from which the first token is drawn.
    """

    symbols: Any
    lengths: Any
    nats: Any
    cost: Any
    accepted: Any
    passes: Any


class _Rows(NamedTuple):
    """Where the rows stand. `known` (B,) counts prompt and drawn tokens; the states hold all but the `last` one."""

    known: tf.Tensor
    last: tf.Tensor
    count: tf.Tensor  # (B,) drawn tokens
    done: tf.Tensor
    lengths: tf.Tensor
    nats: tf.Tensor
    cost: tf.Tensor
    kept: tf.Tensor
    judged: tf.Tensor
    passes: tf.Tensor
    rule: tf.Tensor
    stop: tf.Tensor
    history: tf.Tensor
    symbols: tf.Tensor
    target: decode.State
    draft: decode.State


def speculate(
    target: Decoder,
    draft: Decoder,
    prompt: tf.Tensor,
    lengths: tf.Tensor,
    seed: tf.Tensor,
    limit: tf.Tensor,
    steps: int | tf.Tensor,
    ahead: int = 4,
    controls: Controls = decode.PLAIN,
    rules: Rules = decode.FREE,
    *,
    label: tf.Tensor | None = None,
) -> Speculated:
    """Draw from `target`, with the help of `draft`.

    A row is a function of its own prompt, seed and settings. It is not the row that `decode.advance` draws, but one of
    the same distribution; at temperature 0 it is the same.

    Args:
        target: the large model; its state can be taken back by a smaller position, which `extend` says.
        draft: the small one, of the same tokens. Where it has no `extend`, the states of a round are kept, and each
            row goes on from its own.
        prompt: (B, P) int32, padded to the right.
        lengths: (B,) int32, tokens of each prompt, at least 1.
        seed: (B, 2) int32.
        limit: (B,) int32, tokens that a row may generate.
        steps: the most of them, T. States are made with room for P + T + `ahead` tokens.
        ahead: tokens proposed a round, at least 1.
        controls: of the rows, of both models.
        rules: of the rows, of both models.
        label: (B,) int32 classes of conditional models.
    Raises:
        ValueError: a model of frames, a target that cannot be taken back, a draft of another number of tokens, or
            `ahead` below 1.
    """
    for name, one in (("target", target), ("draft", draft)):
        if one.width:
            raise ValueError(f"`{name}` must be of tokens. Received: width={one.width}")
    if target.extend is None:
        raise ValueError(
            "`target` must be a model whose state can be taken back, as a Transformer. Received: no extend"
        )
    if ahead < 1:
        raise ValueError(f"`ahead` must be positive. Received: ahead={ahead}")
    limit = tf.minimum(tf.cast(limit, tf.int32), steps)
    lengths = tf.cast(lengths, tf.int32)
    rows, vocabulary = _start(target, draft, prompt, lengths, seed, limit, steps, ahead, controls, rules, label)
    settings = (vocabulary, seed, limit, ahead, controls, rules)
    (end,) = tf.while_loop(
        lambda now: ~tf.reduce_all(now.done),
        lambda now: (_round(target, draft, now, *settings),),
        (rows,),
        parallel_iterations=1,
    )
    symbols = tf.where(tf.range(steps)[None, :] < end.count[:, None], end.symbols[:, :steps], 0)
    accepted = tf.math.divide_no_nan(tf.cast(end.kept, tf.float32), tf.cast(end.judged, tf.float32))
    return Speculated(symbols, end.lengths, end.nats, end.cost, accepted, end.passes)


def accept(u: tf.Tensor, p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
    """Whether a token of probabilities `p` and `q` is kept, by a uniform number: with probability min(1, p / q)."""
    return u * q < p


def residual(p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
    """max(0, p - q) of (B, V) distributions, not made to sum to one; `p` where rounding leaves nothing of it."""
    rest = tf.maximum(p - q, 0.0)
    return tf.where(tf.reduce_any(rest > 0.0, axis=1, keepdims=True), rest, p)


def _start(target, draft, prompt, lengths, seed, limit, steps, ahead, controls, rules, label) -> tuple[_Rows, int]:
    """Read the prompts, and draw the first token of each row from the large model alone; and the vocabulary's size."""
    rows, room = size(prompt, 0), size(prompt, 1) + steps + ahead
    (logits, target_state), (others, draft_state) = (
        model.prefill(prompt, lengths, model.init_state(rows, room, label)) for model in (target, draft)
    )
    if others.shape[1] != logits.shape[1]:
        raise ValueError(
            f"`draft` must be of {logits.shape[1]} tokens, as `target`. Received: {others.shape[1]} tokens"
        )
    zeros, history = tf.zeros((rows,), tf.int32), tf.zeros((rows, 0), tf.int32)
    if controls.repetition is not None:
        history = tf.pad(prompt, [[0, 0], [0, room + 1 - size(prompt, 1)]])  # the unused token too
    rule = zeros if rules.tables is None else constraints.initial(rules.tables, rows)
    chosen, cost = _restricted(logits, rule, limit, rules)
    token = random.categorical(random.fold_in(seed, REPLACE), filtered(chosen, controls, history, lengths), 0)
    going = limit > 0
    counted, drawn = tf.cast(going, tf.float32), tf.cast(going, tf.int32)
    ended = tf.zeros_like(going) if rules.end is None else token == rules.end
    done, stop = ended | (limit <= 1), zeros
    if rules.tables is not None:
        rule = constraints.advance(rules.tables, rule, token)
    if rules.stops is not None:
        stop = tf.gather(rules.stops[0], token)
        done |= stop == size(rules.stops, 0) - 1
    if controls.repetition is not None:
        history = _written(history, lengths, token)
    start = _Rows(
        known=lengths + 1,
        last=token,
        count=drawn,
        done=done,
        lengths=tf.where(ended, 0, drawn),
        nats=counted * (tf.reduce_logsumexp(logits, axis=1) - tf.gather(logits, token, batch_dims=1)),
        cost=counted * cost,
        kept=zeros,
        judged=zeros,
        passes=zeros,
        rule=rule,
        stop=stop,
        history=history,
        symbols=tf.pad(token[:, None], [[0, 0], [0, steps + ahead]]),
        target=target_state,
        draft=draft_state,
    )
    return start, logits.shape[1]


def _propose(draft, now, vocabulary, seed, limit, ahead, controls, rules):
    """`ahead` tokens of the draft model, one after the other, and one step more, which reads the last of them.

    Returns:
        tokens (B, ahead + 1), the last of which is not used; their distributions q (B, ahead + 1, V), zeros for the
        last; the rule's states before each (B, ahead + 1); the history with them; and the draft's state: after the
        last one, or, of a draft that cannot be taken back, those after each, (B, ahead + 1, ...).
    """
    rows, turns = size(now.last, 0), ahead + 1
    stacked = draft.extend is None
    mine = random.fold_in(seed, DRAFT)

    def turn(at, token, state, rule, history, tokens, q, path, kept):
        logits, state = draft.step(token, now.known - 1 + at, state)
        if stacked:
            kept = tf.nest.map_structure(lambda b, x: tf.tensor_scatter_nd_update(b, [[at]], x[None]), kept, state)
        chosen, _ = _restricted(logits, rule, limit - now.count - at, rules)
        chosen = filtered(chosen, controls, history, now.known + at)
        token = random.categorical(mine, chosen, now.count + at)
        path = tf.tensor_scatter_nd_update(path, [[at]], rule[None])
        tokens = tf.tensor_scatter_nd_update(tokens, [[at]], token[None])
        q = tf.tensor_scatter_nd_update(q, [[at]], tf.where(at < ahead, tf.nn.softmax(chosen), 0.0)[None])
        if rules.tables is not None:
            rule = constraints.advance(rules.tables, rule, token)
        if controls.repetition is not None:
            history = _written(history, now.known + at, token)
        return at + 1, token, state, rule, history, tokens, q, path, kept

    def buffer(x):
        return tf.zeros(tf.concat([[turns], tf.shape(x)], 0), x.dtype)

    def by_rows(x):
        return tf.transpose(x, (1, 0, *range(2, x.shape.rank)))

    empty = tf.zeros((turns, rows), tf.int32)
    buffers = (empty, tf.zeros((turns, rows, vocabulary)), empty)
    kept = tf.nest.map_structure(buffer, now.draft) if stacked else ()
    start = (tf.constant(0), now.last, now.draft, now.rule, now.history, *buffers, kept)
    found = tf.while_loop(lambda at, *_: at < turns, turn, start, parallel_iterations=1)
    _, _, state, _, history, tokens, q, path, kept = found
    state = tf.nest.map_structure(by_rows, kept) if stacked else state
    return by_rows(tokens), by_rows(q), by_rows(path), history, state


def _round(target, draft, now: _Rows, vocabulary, seed, limit, ahead, controls, rules) -> _Rows:
    """Propose, score, keep: each row that goes on gets 1 to `ahead` + 1 tokens."""
    turns, offsets = ahead + 1, tf.range(ahead + 1)
    proposed, q, rule_path, history, draft_state = _propose(draft, now, vocabulary, seed, limit, ahead, controls, rules)
    tokens = tf.concat([now.last[:, None], proposed[:, :ahead]], axis=1)
    logits, target_state = target.extend(tokens, now.known - 1, now.target)

    # all places at once, as rows of their own
    def flat(x):
        return tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))

    def spread(x):
        return None if x is None else tf.repeat(x, turns, axis=0)

    remaining = flat(limit[:, None] - now.count[:, None] - offsets)
    whole = tf.reshape(logits, (-1, vocabulary))
    chosen, cost = _restricted(whole, flat(rule_path), remaining, rules)
    many = Controls(*(spread(value) for value in controls))
    past = spread(history) if controls.repetition is not None else tf.zeros((size(whole, 0), 0), tf.int32)
    p = tf.nn.softmax(filtered(chosen, many, past, flat(now.known[:, None] + offsets)))
    p, cost = tf.reshape(p, (-1, turns, vocabulary)), tf.reshape(cost, (-1, turns))

    places = flat(now.count[:, None] + offsets[:ahead])
    u = random.uniform(tf.repeat(random.fold_in(seed, ACCEPT), ahead, axis=0), (), places)
    of = proposed[:, :ahead]
    kept = accept(
        tf.reshape(u, (-1, ahead)),
        tf.gather(p[:, :ahead], of, batch_dims=2),
        tf.gather(q[:, :ahead], of, batch_dims=2),
    )
    run = tf.reduce_sum(tf.math.cumprod(tf.cast(kept, tf.int32), axis=1), axis=1)  # kept before the first that is not
    # where all were kept q is zero, so that one token more is drawn from p itself
    rest = residual(tf.gather(p, run, batch_dims=1), tf.gather(q, run, batch_dims=1))
    other = random.categorical(random.fold_in(seed, REPLACE), tf.math.log(rest), now.count + run)
    drawn = tf.where(offsets < run[:, None], proposed, other[:, None])  # (B, turns), what counts up to place `run`

    ended = tf.zeros_like(drawn, tf.bool) if rules.end is None else drawn == rules.end
    over = ended | (now.count[:, None] + offsets + 1 >= limit[:, None])
    stop = now.stop
    if rules.stops is not None:
        path = [stop]
        for place in range(turns):
            path.append(tf.gather_nd(rules.stops, tf.stack([path[-1], drawn[:, place]], axis=1)))
        over |= tf.stack(path[1:], axis=1) == size(rules.stops, 0) - 1
        stop = tf.gather(tf.stack(path, axis=1), run + 1, batch_dims=1)
    over &= offsets <= run[:, None]
    first = tf.reduce_min(tf.where(over, offsets, turns), axis=1)
    going = ~now.done
    taken = tf.where(going, tf.minimum(run, first) + 1, 0)
    counted = tf.cast(offsets < taken[:, None], tf.float32)
    nats = tf.reduce_logsumexp(logits, axis=2) - tf.gather(logits, drawn, batch_dims=2)
    at = tf.maximum(taken - 1, 0)
    count = now.count + taken

    rule = now.rule
    if rules.tables is not None:
        before = tf.gather(rule_path, run, batch_dims=1)
        rule = tf.where(going, constraints.advance(rules.tables, before, other), rule)
    if draft.extend is None:
        draft_state = tf.nest.map_structure(lambda x: tf.gather(x, run, batch_dims=1), draft_state)
    if controls.repetition is not None:
        history = _written(history, now.known + run, other)
    index = tf.stack([tf.broadcast_to(tf.range(size(drawn, 0))[:, None], tf.shape(drawn)),
                      now.count[:, None] + offsets], axis=2)  # fmt: skip
    return _Rows(
        known=now.known + taken,
        last=tf.where(going, tf.gather(drawn, at, batch_dims=1), now.last),
        count=count,
        done=now.done | (first < turns),
        lengths=tf.where(going, count - tf.cast(tf.gather(ended, at, batch_dims=1), tf.int32), now.lengths),
        nats=now.nats + tf.reduce_sum(counted * nats, axis=1),
        cost=now.cost + tf.reduce_sum(counted * cost, axis=1),
        kept=now.kept + tf.minimum(run, taken),
        judged=now.judged + tf.minimum(tf.minimum(run + 1, ahead), taken),
        passes=now.passes + tf.cast(going, tf.int32),
        rule=rule,
        stop=tf.where(going, stop, now.stop),
        history=history,
        # the places after `taken` are written again in the next round, or cut off at the end
        symbols=tf.tensor_scatter_nd_update(now.symbols, index, drawn),
        target=target_state,
        draft=draft_state,
    )


def _restricted(logits, rule, remaining, rules):
    """Logits (N, V) of what the constraint allows, and the nats that it costs (N,)."""
    if rules.tables is None:
        return logits, tf.zeros_like(logits[:, 0])
    allowed = tf.where(constraints.allowed(rules.tables, rule, remaining), logits, -float("inf"))
    return allowed, tf.reduce_logsumexp(logits, axis=1) - tf.reduce_logsumexp(allowed, axis=1)


def _written(history, place, token):
    """`history` (B, H) with a token at `place` (B,)."""
    rows = tf.range(size(token, 0))
    return tf.tensor_scatter_nd_update(history, tf.stack([rows, place], axis=1), token)


def generate(
    generator: Generator,
    draft: Callable[[], Decoder],
    prompts: Sequence[np.ndarray],
    seeds: np.ndarray,
    max_length: int,
    ahead: int = 4,
    controls: Controls = decode.PLAIN,
    rules: Rules = decode.FREE,
    labels: np.ndarray | None = None,
) -> Speculated:
    """`speculate` from Python, by a generator's functions. Compiled ones are filled up to buckets, as it fills them.

    Args:
        generator: of the large model.
        draft: gives the small model's decoder; called inside each function that is traced.
        prompts: n arrays (P_i,) int32, of one token at least.
        seeds: (n, 2) int32.
        max_length: tokens a row at most, at least 1.
        ahead, rules: as of `speculate`.
        controls: of (n,) arrays.
        labels: (n,) int32, or None.
    Returns:
        Arrays, for n rows and T = `max_length`.
    """
    if max_length < 1:
        raise ValueError(f"`max_length` must be positive. Received: max_length={max_length}")
    jit, parts = generator.jit, []

    def function(prompt, lengths, count, rules, label, seed, limit, controls, static):
        steps, end, ahead, draft = static
        steps, rules = count if steps is None else steps, rules._replace(end=end)
        return speculate(
            generator.make(), draft(), prompt, lengths, seed, limit, steps, ahead, controls, rules, label=label
        )

    for start in range(0, len(prompts), ROWS):
        part = slice(start, start + ROWS)
        rows, longest = len(prompts[part]), max(map(len, prompts[part]))
        filled = bucket(rows) if jit else rows
        steps = bucket(max_length, SHORTEST) if jit else max_length
        prompt, lengths = padded(prompts[part], filled, bucket(longest, SHORTEST) if jit else longest)
        limit = np.zeros(filled, np.int32)
        limit[:rows] = max_length
        label = None if labels is None else fill(labels[part], filled)
        chosen = Controls(*(None if value is None else fill(value[part], filled) for value in controls))
        static = (steps if jit else None, rules.end, ahead, draft)
        count = None if jit else tf.constant(steps)
        arguments = (prompt, lengths, count, rules._replace(end=None), label, fill(seeds[part], filled), limit, chosen)
        found = generator.run(function, "speculate", arguments, static)[0]
        parts.append([found[0].numpy()[:rows, :max_length], *(x.numpy()[:rows] for x in found[1:])])
    return Speculated(*(np.concatenate(values) for values in zip(*parts)))
