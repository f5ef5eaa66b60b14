"""The decode loop: one symbol after the other from any model that has a step.

A model is a `Decoder`: functions over a state that is a tuple with one entry a layer. Here are the controls of what is
drawn, the ends of a row, and constraints; everything is a function of a row's own seed and prompt, so that rows of one
batch may have prompts, lengths and settings of their own. The same graph runs compiled, plain, and in an export.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from gentf.kernels import filters, random
from gentf.kernels.tracing import size
from gentf.sampling import constraints

State = tuple[Any, ...]


class Decoder(NamedTuple):
    """A model of sequences, one position at a time.

    Symbols are tokens, (B,) int32 with logits (B, V), or frames, (B, K) float32 of zeros and ones with logits (B, K).

    Attributes:
        init_state: (rows, capacity, label or None) -> state before the first symbol, with room for `capacity` symbols.
        prefill: (symbols (B, P), lengths (B,), state) -> logits after each row's last symbol, state.
        step: (symbol, position (B,), state) -> logits, state; `position` is how many symbols came before this one.
        extend: (tokens (B, T), position (B,), state) -> logits (B, T, V) after each, state; None if a state cannot be
            taken back by a smaller `position`.
        width: numbers of a symbol: 0 for tokens, K for frames or pixels.
        draw: (logits, seed, count, controls, rules) -> symbol (B, K) float32, nats (B,), cost (B,), where a symbol is
            more than one token; see `draw_frame`.
    """

    init_state: Callable[..., State]
    prefill: Callable[[tf.Tensor, tf.Tensor, State], tuple[tf.Tensor, State]]
    step: Callable[[tf.Tensor, tf.Tensor, State], tuple[tf.Tensor, State]]
    extend: Callable[[tf.Tensor, tf.Tensor, State], tuple[tf.Tensor, State]] | None = None
    width: int = 0
    draw: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]] | None = None


class Controls(NamedTuple):
    """What may be drawn: (B,) tensors, see `gentf.kernels.filters`; None leaves a control out of the graph.

    Frames know `temperature` alone.
    """

    temperature: tf.Tensor | None = None
    top_k: tf.Tensor | None = None
    top_p: tf.Tensor | None = None
    min_p: tf.Tensor | None = None
    repetition: tf.Tensor | None = None


class Rules(NamedTuple):
    """What ends a row, and what it must obey.

    Attributes:
        end: a token after which a row has ended; None: only its limit ends it. Not a part of what was generated.
        tables: of a constraint (`gentf.sampling.constraints`), whose stop token is `end`; None for no rule.
        stops: (S, V) int32, the state of each row's search for a stop string after each token; S - 1 is "found", which
            ends the row. See `gentf.sampling.stops`.
        keys: (K,) bool, the keys that a frame may hold; None for all.
    """

    end: int | None = None
    tables: constraints.Tables | None = None
    stops: tf.Tensor | None = None
    keys: tf.Tensor | None = None


#: Everything as the model has it, and no rule.
PLAIN, FREE = Controls(), Rules()


class Decoding(NamedTuple):
    """Where a batch of rows stands.

    Attributes:
        logits: (B, V) of the next symbol.
        position: (B,) int32, symbols in the state.
        count: () int32, symbols generated in the rows that go on.
        done: (B,) bool.
        lengths: (B,) int32, symbols generated, without `Rules.end`.
        nats: (B,) float32, minus the log-likelihood of what was generated, `end` included, by the model itself.
        cost: (B,) float32, nats of probability that the constraint or keys took away, summed over the steps.
        rule, stop: (B,) int32, states of the automata.
        history: (B, H) int32, prompt and generated tokens, for `repetition`; H is 0 without it.
        state: the model's.
    """

    logits: tf.Tensor
    position: tf.Tensor
    count: tf.Tensor
    done: tf.Tensor
    lengths: tf.Tensor
    nats: tf.Tensor
    cost: tf.Tensor
    rule: tf.Tensor
    stop: tf.Tensor
    history: tf.Tensor
    state: State


def begin(
    decoder: Decoder,
    prompt: tf.Tensor,
    lengths: tf.Tensor,
    capacity: int | tf.Tensor,
    rules: Rules = FREE,
    *,
    label: tf.Tensor | None = None,
    remember: bool = False,
) -> Decoding:
    """Read the prompts.

    Args:
        decoder: the model.
        prompt: (B, P) int32 or (B, P, K) float32, padded to the right.
        lengths: (B,) int32, symbols of each prompt; at least 1 for tokens.
        capacity: symbols that a row can come to, its prompt included.
        rules: of the rows.
        label: (B,) int32 classes of a conditional model.
        remember: keep the tokens, for `Controls.repetition`.
    """
    rows = size(prompt, 0)
    logits, state = decoder.prefill(prompt, lengths, decoder.init_state(rows, capacity, label))
    zeros = tf.zeros((rows,), tf.int32)
    history = tf.zeros((rows, 0), tf.int32)
    if remember:
        history = tf.pad(prompt, [[0, 0], [0, capacity - size(prompt, 1)]])
    return Decoding(
        logits=logits,
        position=tf.cast(lengths, tf.int32),
        count=tf.constant(0),
        done=tf.zeros((rows,), tf.bool),
        lengths=zeros,
        nats=tf.zeros((rows,)),
        cost=tf.zeros((rows,)),
        rule=zeros if rules.tables is None else constraints.initial(rules.tables, rows),
        stop=zeros,
        history=history,
        state=state,
    )


def advance(
    decoder: Decoder,
    decoding: Decoding,
    seed: tf.Tensor,
    limit: tf.Tensor,
    steps: int | tf.Tensor,
    controls: Controls = PLAIN,
    rules: Rules = FREE,
) -> tuple[tf.Tensor, Decoding]:
    """Generate up to `steps` more symbols in each row.

    Args:
        decoder, rules: as given to `begin`.
        decoding: where the rows stand.
        seed: (B, 2) int32; symbol i of a row is drawn with the numbers of stream i of its seed.
        limit: (B,) int32, symbols in all that a row may generate.
        steps: at most so many now.
        controls: of the rows.
    Returns:
        (B, steps) int32 or (B, steps, K) float32, zeros after a row's end; and where the rows stand then.
    """
    rows = size(decoding.logits, 0)
    limit = tf.cast(limit, tf.int32)
    start = decoding._replace(done=decoding.done | (decoding.lengths >= limit))
    shape = (decoder.width,) if decoder.width else ()
    symbols = tf.zeros((steps, rows, *shape), tf.float32 if decoder.width else tf.int32)

    def body(at, now, symbols):
        symbol, after = (_symbol if decoder.width else _token)(decoder, now, seed, limit, controls, rules)
        symbols = tf.tensor_scatter_nd_update(symbols, [[at]], symbol[None])
        logits, state = decoder.step(symbol, now.position, now.state)
        position = now.position + tf.cast(~now.done, tf.int32)
        return at + 1, after._replace(logits=logits, state=state, position=position), symbols

    _, end, symbols = tf.while_loop(
        lambda at, now, _: (at < steps) & ~tf.reduce_all(now.done),
        body,
        (tf.constant(0), start, symbols),
        parallel_iterations=1,
    )
    return tf.transpose(symbols, (1, 0, *range(2, symbols.shape.rank))), end


def filtered(logits: tf.Tensor, controls: Controls, history: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Logits (B, V) under the controls, in the order: repetition, temperature, top_k, top_p, min_p."""
    if controls.repetition is not None:
        logits = filters.repetition(logits, history, position, controls.repetition)
    if controls.temperature is not None:
        logits = filters.temperature(logits, controls.temperature)
    if controls.top_k is not None:
        logits = filters.top_k(logits, controls.top_k)
    if controls.top_p is not None:
        logits = filters.top_p(logits, controls.top_p)
    return logits if controls.min_p is None else filters.min_p(logits, controls.min_p)


def draw_frame(
    logits: tf.Tensor, seed: tf.Tensor, count: tf.Tensor, controls: Controls, rules: Rules
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Each key of a frame by itself, with probability sigmoid(logit / temperature), 0 outside of `rules.keys`.

    Returns:
        (B, K) float32 of zeros and ones; (B,) nats of it by the model itself; (B,) nats that `rules.keys` cost: minus
        the log-probability of no note outside.
    """
    scaled = logits
    if controls.temperature is not None:
        t = tf.cast(controls.temperature, tf.float32)[:, None]
        sharp = tf.where(logits > 0.0, float("inf"), -float("inf"))  # the likelier of both
        scaled = tf.where(t <= filters.GREEDY, sharp, logits / tf.where(t <= filters.GREEDY, 1.0, t))
    allowed = tf.ones_like(logits, tf.bool) if rules.keys is None else tf.broadcast_to(rules.keys, tf.shape(logits))
    on = random.uniform(seed, (logits.shape[1],), count) < tf.sigmoid(scaled)
    frame = tf.cast(on & allowed, tf.float32)
    nats = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=frame, logits=logits), axis=1)
    return frame, nats, tf.reduce_sum(tf.where(allowed, 0.0, tf.nn.softplus(logits)), axis=1)


def _symbol(decoder, now, seed, limit, controls, rules):
    """The next symbol of more than one number, and where the rows stand with it."""
    symbol, nats, cost = (decoder.draw or draw_frame)(now.logits, seed, now.count, controls, rules)
    going = ~now.done
    counted = tf.cast(going, tf.float32)
    lengths = now.lengths + tf.cast(going, tf.int32)
    after = now._replace(
        count=now.count + 1,
        done=now.done | (lengths >= limit),
        lengths=lengths,
        nats=now.nats + counted * nats,
        cost=now.cost + counted * cost,
    )
    return symbol * counted[:, None], after


def _token(decoder, now, seed, limit, controls, rules):
    """The next token, and where the rows stand with it."""
    going, logits, cost = ~now.done, now.logits, 0.0
    total = tf.reduce_logsumexp(logits, axis=1)
    if rules.tables is not None:
        open_ = constraints.allowed(rules.tables, now.rule, limit - now.lengths)
        logits = tf.where(open_, logits, -float("inf"))
        cost = total - tf.reduce_logsumexp(logits, axis=1)
    token = random.categorical(seed, filtered(logits, controls, now.history, now.position), now.count)
    token = tf.where(going, token, 0)
    nats = total - tf.gather(now.logits, token, batch_dims=1)
    ended = tf.zeros_like(going) if rules.end is None else token == rules.end
    lengths = now.lengths + tf.cast(going & ~ended, tf.int32)
    done = now.done | ended | (lengths >= limit)
    rule, stop, history = now.rule, now.stop, now.history
    if rules.tables is not None:
        rule = tf.where(going, constraints.advance(rules.tables, rule, token), rule)
    if rules.stops is not None:
        found = tf.gather_nd(rules.stops, tf.stack([stop, token], axis=1))
        stop = tf.where(going, found, stop)
        done |= stop == size(rules.stops, 0) - 1
    if controls.repetition is not None:
        rows = tf.range(size(token, 0))
        place = tf.minimum(now.position, size(history, 1) - 1)
        history = tf.tensor_scatter_nd_update(history, tf.stack([rows, place], axis=1), token)
    counted = tf.cast(going, tf.float32)
    after = now._replace(
        count=now.count + 1,
        done=done,
        lengths=lengths,
        nats=now.nats + counted * nats,
        cost=now.cost + counted * cost,
        rule=rule,
        stop=stop,
        history=history,
    )
    return token, after
