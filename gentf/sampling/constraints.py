"""Constraints on what may be generated: automata over tokens, as dense tables that a decode loop gathers from.

A rule is compiled once, on the host. While decoding, a row's state selects the tokens that are allowed next, and the
token drawn selects the next state: two gathers, that run under XLA and in an exported model, so that no text breaks
the rule. Each state also knows the fewest tokens in which the sequence can end, so that a limit of length never cuts
one short.

`regex` and `json_schema` compile text rules; `tokens` and `from_transitions` make rules on the tokens themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gentf.errors import UserError

MAX_STATES = 20_000
_MAX_ENTRIES = 2**28  # of a table: 1 GiB, half of what a SavedModel's graph can hold
_BLOCK_ENTRIES = 2**22  # worked on at once


@dataclass(frozen=True, eq=False)
class Constraint:
    """Which token sequences are allowed: those that lead from `start` to the final state.

    Attributes:
        next_state: (S, V) int32, the state after each token; -1 where the token is forbidden.
        distance: (S,) int32, the fewest further tokens, `stop` included, after which the sequence is whole; 0 for the
            final state alone.
        start: the state of an empty sequence.
        stop: the token that ends a sequence. It is allowed where the sequence so far is whole, and leads to the final
            state, in which nothing but `stop` is allowed.
    Raises:
        ValueError: arrays of another shape, type or range, or distances that are not those of `next_state`. What
            passes can always go on and end: a state without a way to the end has no distance.
    """

    next_state: np.ndarray
    distance: np.ndarray
    start: int
    stop: int = 0

    def __post_init__(self) -> None:
        table, distance = self.next_state, self.distance
        _check_table(table, self.start, self.stop, "int32")
        if distance.dtype != np.int32 or distance.shape != table.shape[:1]:
            raise ValueError(
                f"`distance` must be ({len(table)},) int32. Received: {distance.dtype} of shape {distance.shape}"
            )
        final = np.flatnonzero(distance == 0)
        if len(final) != 1 or distance.min() < 0:
            raise ValueError(
                f"`distance` must be 0 for one state and above for the others. Received: 0 for {len(final)} states"
            )
        stops = table[:, self.stop]
        ends = stops == final
        if not (ends | (stops == -1)).all() or ends.sum() != (table == final).sum() or (table[final] != -1).sum() != 1:
            raise ValueError(
                f"`next_state` must lead by the stop token alone to the final state {final[0]}, and from there nowhere "
                f"else. Received: stop={self.stop}"
            )
        # A distance one above the least of the next states, all the way down to 0, is the true one: so each state
        # has a way to the end. The appended entry is that of -1.
        known = np.append(distance.astype(np.int64), 2**40)
        for rows in _blocks(len(table), table.shape[1]):
            wrong = 1 + known[table[rows]].min(axis=1) != known[:-1][rows]
            wrong &= distance[rows] > 0
            if wrong.any():
                state = rows.start + int(wrong.argmax())
                raise ValueError(
                    "`distance` must be one more than the least distance of the next states. "
                    f"Received: distance={distance[state]} of state {state}"
                )

    @property
    def states(self) -> int:
        return len(self.next_state)

    @property
    def vocabulary(self) -> int:
        return self.next_state.shape[1]

    def accepts(self, tokens: Sequence[int] | np.ndarray) -> bool:
        """Whether the sequence, without its stop token, is allowed as a whole; a token out of range is not."""
        state = self.start
        for token in (*tokens, self.stop):
            state = int(self.next_state[state, token]) if 0 <= token < self.vocabulary else -1
            if state < 0:
                return False
        return not self.distance[state]

    def tables(self) -> "Tables":
        """The arrays as constants, for `allowed` and `advance`."""
        return Tables(tf.constant(self.next_state), tf.constant(self.distance), tf.constant(self.start, tf.int32))


class Tables(NamedTuple):
    """A constraint in TensorFlow: `next_state` int32 (S, V), `distance` int32 (S,), `start` int32 ()."""

    next_state: tf.Tensor
    distance: tf.Tensor
    start: tf.Tensor


def initial(tables: Tables, batch: int | tf.Tensor) -> tf.Tensor:
    """The states of `batch` empty sequences: int32 (B,)."""
    return tf.fill([batch], tables.start)


def allowed(tables: Tables, state: tf.Tensor, remaining: tf.Tensor) -> tf.Tensor:
    """The tokens after which each sequence obeys the rule and can still end in time.

    Args:
        tables: of the constraint.
        state: (B,) int32.
        remaining: (B,) int32, tokens that may still be written, the stop token among them. Where that is too few to
            end at all, the tokens on the shortest way to the end are allowed.
    Returns:
        (B, V) bool, at least one token a row.
    """
    after = tf.gather(tables.next_state, state)
    possible = after >= 0
    distance = tf.where(possible, tf.gather(tables.distance, tf.maximum(after, 0)), tf.int32.max)
    limit = tf.maximum(tf.reduce_min(distance, axis=1), tf.cast(remaining, tf.int32) - 1)
    return possible & (distance <= limit[:, None])


def advance(tables: Tables, state: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
    """The states after one more token each; a forbidden token leaves the state where it is.

    Args:
        tables: of the constraint.
        state, token: (B,) int32, tokens in 0..V-1.
    Returns:
        (B,) int32.
    """
    after = tf.gather_nd(tables.next_state, tf.stack([state, tf.cast(token, tf.int32)], axis=1))
    return tf.where(after >= 0, after, state)


def from_transitions(next_state: np.ndarray, accepting: np.ndarray, *, start: int = 0, stop: int = 0) -> Constraint:
    """A constraint from an automaton over tokens: states without use are dropped, the final state is added.

    Args:
        next_state: (S, V) integers, the state after each token, or -1 where the token is forbidden; the column of
            `stop` is all -1.
        accepting: (S,) bool, the states in which a sequence may end.
        start, stop: as of `Constraint`.
    Raises:
        ValueError: arrays of another shape, type or range, or no way from `start` to an accepting state.
    """
    table, accepting = np.asarray(next_state), np.asarray(accepting)
    _check_table(table, start, stop, "integers")
    if accepting.dtype != bool or accepting.shape != table.shape[:1]:
        raise ValueError(
            f"`accepting` must be ({len(table)},) bool. Received: {accepting.dtype} of shape {accepting.shape}"
        )
    if (table[:, stop] != -1).any():
        raise ValueError(f"`next_state` must be -1 for the stop token in every state. Received: stop={stop}")
    constraint = _finish(table.astype(np.int32, copy=False), accepting, start, stop)
    if constraint is None:
        raise ValueError(f"`accepting` must hold a state that can be reached from the start. Received: start={start}")
    return constraint


def tokens(allowed: Sequence[int] | np.ndarray, vocabulary: int, *, stop: int = 0, min_length: int = 0) -> Constraint:
    """Sequences of `min_length` or more of the tokens `allowed`, in any order.

    Args:
        allowed: integers in 0..vocabulary-1, one other than `stop` at least; `stop` among them changes nothing.
        vocabulary: V, the number of tokens.
        stop: the token that ends a sequence.
        min_length: tokens before the stop token, 0..20,000.
    Raises:
        ValueError: an argument outside these ranges.
        UserError: a table of more than 2**28 entries.
    """
    if vocabulary < 1:
        raise ValueError(f"`vocabulary` must be positive. Received: vocabulary={vocabulary}")
    _check_stop(stop, vocabulary)
    chosen = np.asarray(allowed)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not (chosen != stop).any():
        raise ValueError(
            f"`allowed` must be integers, one that is not stop={stop} at least. Received: {allowed!r:.200}"
        )
    if chosen.min() < 0 or chosen.max() >= vocabulary:
        raise ValueError(f"`allowed` must be in 0..{vocabulary - 1}. Received: {chosen.min()}..{chosen.max()}")
    if not 0 <= min_length <= MAX_STATES:
        raise ValueError(f"`min_length` must be in 0..{MAX_STATES}. Received: min_length={min_length}")
    _check_entries(min_length + 2, vocabulary)
    table = np.full((min_length + 1, vocabulary), -1, np.int32)
    table[:, chosen] = np.minimum(np.arange(1, min_length + 2), min_length)[:, None]
    table[:, stop] = -1
    return from_transitions(table, np.arange(min_length + 1) == min_length, stop=stop)


def intersect(a: Constraint, b: Constraint, *, max_states: int = MAX_STATES) -> Constraint:
    """The sequences that both constraints allow.

    Args:
        a, b: of one vocabulary and one stop token.
        max_states: bound on the pairs of states that are reached.
    Raises:
        ValueError: another vocabulary or stop token.
        UserError: no sequence in common, or more states than `max_states`.
    """
    if (a.vocabulary, a.stop) != (b.vocabulary, b.stop):
        raise ValueError(
            "`a` and `b` must have one vocabulary and stop token. Received: "
            f"vocabularies {a.vocabulary} and {b.vocabulary}, stop tokens {a.stop} and {b.stop}"
        )
    check_max_states(max_states)
    # Tokens that do the same in both are followed once: a large vocabulary has few kinds of them.
    first, kind = _kinds(np.concatenate([a.next_state, b.next_state]))
    left, right = a.next_state[:, first].astype(np.int64), b.next_state[:, first].astype(np.int64)
    left[:, kind[a.stop]] = -1
    pair = _product(left, right, a.start * b.states + b.start, max_states - 1)
    if pair is None:
        raise UserError(f"`a` and `b` must take at most max_states={max_states} states together. Received: more")
    codes, table = pair
    stops = [x.next_state[state, x.stop] >= 0 for x, state in zip((a, b), divmod(codes, b.states))]
    smallest, constraint = minimise(table, stops[0] & stops[1]), None
    if smallest is not None:
        _check_entries(len(smallest[0]) + 1, a.vocabulary)
        constraint = _finish(smallest[0][:, kind], smallest[1], 0, a.stop)
    if constraint is None:
        raise UserError("`a` and `b` must have a sequence in common. Received: none")
    return constraint


def intersect_automata(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], max_states: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The automaton of what two accept, each a table (S, C) of start 0 and its accepting states (S,).

    Returns None for more than `max_states`.
    """
    pair = _product(a[0].astype(np.int64), b[0].astype(np.int64), 0, max_states)
    if pair is None:
        return None
    left, right = divmod(pair[0], len(b[0]))
    return pair[1], a[1][left] & b[1][right]


def lift(delta: np.ndarray, accepting: np.ndarray, pieces: Sequence[bytes], stop: int) -> Constraint | None:
    """From an automaton over bytes to one over tokens.

    Args:
        delta: (S, 256) int32, the state after each byte, or -1; state 0 is the start.
        accepting: (S,) bool.
        pieces: the bytes that each token writes; checked by `check_pieces`.
        stop: the token that ends a sequence.
    Returns:
        The constraint; None where no sequence of tokens leads to an accepting state.
    Raises:
        UserError: a table of more than 2**28 entries.
    """
    states = len(delta)
    _check_entries(states + 1, len(pieces))
    # Byte by row, so that a trie node gathers from one row; the last column is the state from which nothing follows.
    dead = np.full((256, states + 1), states, np.int32)
    dead[:, :-1] = np.where(delta < 0, states, delta).T
    flat = dead.ravel()
    levels = _trie(pieces)
    widest = max((len(parents) for parents, *_ in levels), default=1)
    table = np.full((states, len(pieces)), -1, np.int32)
    for rows in _blocks(states, widest):
        current = np.arange(states, dtype=np.int32)[None, rows]
        for parents, offsets, ended, nodes in levels:
            current = flat.take(current.take(parents, axis=0) + offsets * (states + 1))
            table[rows, ended] = current[nodes].T
    table[table == states] = -1
    return _finish(table, accepting, 0, stop)


def _trie(pieces: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pieces as a trie, level by level: (parents (n,), bytes (n, 1), tokens that end here, their nodes)."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    buffer = np.frombuffer(b"".join(pieces), np.uint8).astype(np.int64)
    begins = np.cumsum(lengths) - lengths
    active, nodes = np.flatnonzero(lengths), np.zeros(int((lengths > 0).sum()), np.int64)
    levels, depth = [], 0
    while active.size:
        codes, nodes = np.unique(nodes * 256 + buffer[begins[active] + depth], return_inverse=True)
        depth += 1
        ends = lengths[active] == depth
        levels.append((codes // 256, (codes % 256)[:, None], active[ends], nodes[ends]))
        active, nodes = active[~ends], nodes[~ends]
    return levels


def minimise(table: np.ndarray, accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The smallest automaton of the same language.

    Blocks of states are split until the states of each lead, by every symbol, to the same blocks. Of the parts of a
    block the largest keeps its number, and only states that lead to a renumbered one are looked at again: each state
    is looked at O(log S) times a predecessor, as in Hopcroft (1971), and all states of a round at once.

    Args:
        table: (S, C) int32, the state after each symbol, or -1; state 0 is the start.
        accepting: (S,) bool.
    Returns:
        Table and accepting states, numbered in the order of the old ones; None where nothing is accepted.
    """
    keep, _ = _useful(table, accepting, 0)
    if not keep.size:
        return None
    table, accepting = _renumber(table[keep], keep, len(table)), accepting[keep]
    first, kind = _kinds(table)
    columns = table[:, first]
    source, target = _edges(columns)
    order = np.argsort(target, kind="stable")
    source, bounds = source[order], np.searchsorted(target[order], np.arange(len(table) + 1))
    block: np.ndarray = accepting.astype(np.int32)
    block -= block.min()
    count, changed = int(block.max()) + 1, np.arange(len(table))
    while (looked := np.unique(source[_spans(bounds, changed)])).size:
        # The last entry is the block of -1.
        signature = np.append(block, np.int32(-1))[np.append(looked[:, None], columns[looked], axis=1)]
        signature = signature.view(np.dtype((np.void, signature.itemsize * signature.shape[1]))).ravel()
        _, chosen, part, size = np.unique(signature, return_index=True, return_inverse=True, return_counts=True)
        owner = block[looked[chosen]]
        # A state not looked at leads where it led before, one looked at somewhere new: they part.
        rest = np.bincount(block, minlength=count) - np.bincount(owner, size, count).astype(np.int64)
        name, order = np.full(len(owner), -1, np.int32), np.lexsort((size, owner))
        renamed = []
        for group in order[np.append(owner[order][1:] != owner[order][:-1], True)]:  # the largest part looked at
            whole = owner[group]
            if size[group] >= rest[whole]:
                name[group] = whole
                if rest[whole]:
                    renamed.append(np.setdiff1d(np.flatnonzero(block == whole), looked))
        fresh = np.flatnonzero(name < 0)
        name[fresh] = np.arange(count, count + len(fresh))
        count += len(fresh)
        changed = np.concatenate([looked[name[part] != block[looked]], *renamed])
        block[looked] = name[part]
        for states in renamed:
            block[states] = count
            count += 1
    _, first, block = np.unique(block, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    first = np.sort(first)
    mapped = np.append(rank[block], -1).astype(np.int32)[columns[first]]
    return np.ascontiguousarray(mapped[:, kind]), accepting[first]


def _finish(table: np.ndarray, accepting: np.ndarray, start: int, stop: int) -> Constraint | None:
    """Drop states without use, add the final state; None where no way leads from `start` to an accepting state."""
    keep, distance = _useful(table, accepting, start)
    if not keep.size:
        return None
    _check_entries(len(keep) + 1, table.shape[1])
    final = len(keep)
    result = np.full((final + 1, table.shape[1]), -1, np.int32)
    for rows in _blocks(final, table.shape[1]):
        result[rows] = _renumber(table[keep[rows]], keep, len(table))
    result[:-1, stop] = np.where(accepting[keep], final, -1)
    result[final, stop] = final
    distance = np.append(distance + 1, 0).astype(np.int32)
    return Constraint(result, distance, int(np.searchsorted(keep, start)), stop)


def _useful(table: np.ndarray, accepting: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The states on some way from `start` to an accepting one, in order, and the fewest steps from each to one."""
    source, target = _edges(table)
    steps = _levels(target, source, len(table), np.flatnonzero(accepting))
    reached = _levels(source, target, len(table), np.array([start]))
    keep = np.flatnonzero((steps >= 0) & (reached >= 0))
    return keep, steps[keep]


def _renumber(rows: np.ndarray, keep: np.ndarray, states: int) -> np.ndarray:
    """The states in `rows` by their place in `keep`; -1 for others."""
    place = np.full(states + 1, -1, np.int32)
    place[keep] = np.arange(len(keep))
    return place[rows]


def _edges(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of a state and one that follows it, once: two (E,) arrays, in the order of the first."""
    follows = np.zeros(len(table) + 1, bool)
    targets = []
    for row in table:
        follows[row] = True  # -1 is the last entry
        targets.append(np.flatnonzero(follows[:-1]))
        follows[targets[-1]] = False
    return np.repeat(np.arange(len(table)), [len(row) for row in targets]), np.concatenate(targets)


def _levels(source: np.ndarray, target: np.ndarray, states: int, first: np.ndarray) -> np.ndarray:
    """Fewest edges from one of the states `first` to each state: (states,), -1 where there is no way."""
    order = np.argsort(source, kind="stable")
    target, bounds = target[order], np.searchsorted(source[order], np.arange(states + 1))
    level, depth = np.full(states, -1, np.int64), 0
    while first.size:
        level[first] = depth
        depth += 1
        first = np.unique(target[_spans(bounds, first)])
        first = first[level[first] < 0]
    return level


def _spans(bounds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The positions bounds[r]..bounds[r + 1] - 1 of each row r, one after the other."""
    begins, sizes = bounds[rows], bounds[rows + 1] - bounds[rows]
    ends = np.cumsum(sizes)
    return np.arange(sizes.sum()) + np.repeat(begins - (ends - sizes), sizes)


def _product(left: np.ndarray, right: np.ndarray, start: int, max_states: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The pairs of states reached together from pair `start`, a pair coded as left * len(right) + right.

    Returns:
        Codes (P,) of which the start is the first, and the table (P, C) of places among them; None for more than
        `max_states` pairs.
    """

    def follow(codes: np.ndarray) -> Iterator[np.ndarray]:
        for rows in _blocks(len(codes), left.shape[1]):
            i, j = divmod(codes[rows], len(right))
            yield np.where((left[i] >= 0) & (right[j] >= 0), left[i] * len(right) + right[j], -1)

    rounds = [np.array([start])]
    known = rounds[0]
    while rounds[-1].size:
        fresh = np.empty(0, np.int64)
        for after in follow(rounds[-1]):
            fresh = np.union1d(fresh, np.setdiff1d(after[after >= 0], known))
            if len(known) + len(fresh) > max_states:
                return None
        known = np.union1d(known, fresh)
        rounds.append(fresh)
    codes = np.concatenate(rounds)
    _check_entries(len(codes), left.shape[1])
    place = np.argsort(codes).astype(np.int32)
    table = [np.where(after < 0, -1, place[np.searchsorted(known, after)]) for after in follow(codes)]
    return codes, np.concatenate(table).astype(np.int32)


def _kinds(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal columns: the place of the first of each kind, and the kind of each column."""
    weights = np.random.default_rng(0).integers(-(2**62), 2**62, len(table))
    sums = np.zeros(table.shape[1], np.int64)
    for rows in _blocks(*table.shape):
        sums += weights[rows] @ table[rows].astype(np.int64)  # modulo 2**64
    _, first, kind = np.unique(sums, return_index=True, return_inverse=True)
    if all((table[rows][:, first][:, kind] == table[rows]).all() for rows in _blocks(*table.shape)):
        return first, kind
    return np.arange(table.shape[1]), np.arange(table.shape[1])  # equal sums of unequal columns: each is its own kind


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of `width` entries that are worked on at once."""
    step = max(1, _BLOCK_ENTRIES // max(1, width))
    return (slice(begin, min(begin + step, count)) for begin in range(0, count, step))


def check_pieces(pieces: Sequence[bytes], stop: int) -> None:
    """Raise ValueError unless `pieces` are bytes, one of each token, and the stop token writes nothing."""
    wrong = [index for index, piece in enumerate(pieces) if not isinstance(piece, bytes)]
    if wrong or not len(pieces):
        received = f"{pieces[wrong[0]]!r:.50} at {wrong[0]}" if wrong else "none"
        raise ValueError(f"`pieces` must be bytes, one of each token. Received: {received}")
    _check_stop(stop, len(pieces))
    if pieces[stop]:
        raise ValueError(f'`pieces` must be b"" for the stop token. Received: {pieces[stop]!r:.50} at {stop}')


def check_max_states(max_states: int) -> None:
    if max_states < 2:
        raise ValueError(f"`max_states` must be 2 or more. Received: max_states={max_states}")


def _check_table(table: np.ndarray, start: int, stop: int, kind: str) -> None:
    right = table.dtype == np.int32 if kind == "int32" else table.dtype.kind in "iu"
    if not right or table.ndim != 2 or not table.size:
        raise ValueError(f"`next_state` must be (S, V) {kind}. Received: {table.dtype} of shape {table.shape}")
    if not 0 <= start < len(table):
        raise ValueError(f"`start` must be in 0..{len(table) - 1}. Received: start={start}")
    _check_stop(stop, table.shape[1])
    if table.min() < -1 or table.max() >= len(table):
        raise ValueError(f"`next_state` must be in -1..{len(table) - 1}. Received: {table.min()}..{table.max()}")


def _check_stop(stop: int, vocabulary: int) -> None:
    if not 0 <= stop < vocabulary:
        raise ValueError(f"`stop` must be in 0..{vocabulary - 1}. Received: stop={stop}")


def _check_entries(states: int, vocabulary: int) -> None:
    if states * vocabulary > _MAX_ENTRIES:
        raise UserError(
            f"a constraint must have at most {_MAX_ENTRIES} entries (states times tokens). "
            f"Received: {states} states, {vocabulary} tokens"
        )
