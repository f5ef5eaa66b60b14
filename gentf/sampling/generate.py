"""Generation from Python: prompts of any lengths in, symbols out, over compiled functions that are made once.

Compiled by XLA, shapes come from a few buckets (`bucket`): rows, prompt and length are filled up to powers of two, so
that requests of other sizes meet a program that is there. Filled-up rows end at once.

On a CPU compiled programs work on parts of the rows side by side, one a core: what a token needs is mostly the reading
of caches, which XLA leaves to one core.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gentf.machine import cores
from gentf.sampling import decode
from gentf.sampling.decode import Controls, Decoder, Decoding, Rules

ROWS = 64  # generated together at most: bounds the memory of the states
SHORTEST = 16  # bucket of prompts and lengths
AT_ONCE = 2  # parts of a request side by side, which is what was measured
FEWEST = 2  # rows of a part that is worth a core of its own


class Generated(NamedTuple):
    """What came of some prompts.

    Attributes:
        symbols: (n, T) int32 or (n, T, K) float32, zeros after a row's end.
        lengths: (n,) int32, symbols of each row.
        nats: (n,) float32, minus the log-likelihood by the model itself, an end token included.
        cost: (n,) float32, nats of probability that a constraint took away.
    """

    symbols: np.ndarray
    lengths: np.ndarray
    nats: np.ndarray
    cost: np.ndarray


def bucket(size: int, least: int = 1) -> int:
    """The power of two that `size` is filled up to, `least` at least."""
    return max(least, 1 << max(0, size - 1).bit_length())


class Generator:
    """Generates from a decoder.

    Args:
        make: gives the decoder; called inside each function that is traced.
        width: as of `Decoder`.
        jit: compile with XLA: faster by two to three on a CPU, after seconds of compiling for each bucket.
    """

    def __init__(self, make: Callable[[], Decoder], width: int, jit: bool = False):
        self.make, self.width, self.jit = make, width, jit
        self._functions: dict[Any, tuple[Any, Any]] = {}
        self._tracing = threading.Lock()

    @property
    def compilations(self) -> int:
        """How many programs were made so far."""
        return len(self._functions)

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        seeds: np.ndarray,
        max_length: int,
        controls: Controls = decode.PLAIN,
        rules: Rules = decode.FREE,
        labels: np.ndarray | None = None,
    ) -> Generated:
        """Generate a row for each prompt.

        Args:
            prompts: n arrays (P_i,) int32 or (P_i, K) float32; tokens at least one each.
            seeds: (n, 2) int32.
            max_length: symbols a row at most, >= 1.
            controls: of (n,) arrays.
            rules: for all rows.
            labels: (n,) int32, or None.
        """
        block = bucket(max_length, SHORTEST) if self.jit else max_length
        at_once, parts = self._parts(_Request(prompts, seeds, max_length, block, controls, rules, labels))
        with _side_by_side(at_once) as each:
            return _joined(each(lambda part: _Job(self, part).next(), parts))

    def stream(
        self,
        prompts: Sequence[np.ndarray],
        seeds: np.ndarray,
        max_length: int,
        block: int,
        controls: Controls = decode.PLAIN,
        rules: Rules = decode.FREE,
        labels: np.ndarray | None = None,
    ) -> Iterator[Generated]:
        """The same in blocks of `block` symbols, until all rows have ended.

        Each element holds the new symbols, and the lengths, nats and cost of all so far. Arguments as of `__call__`,
        of at most `ROWS` prompts.

        Raises:
            ValueError: no prompt, too many, or a block below 1.
        """
        if not 1 <= len(prompts) <= ROWS:
            raise ValueError(f"`prompts` must be 1 to {ROWS}. Received: {len(prompts)}")
        if block < 1:
            raise ValueError(f"`block` must be positive. Received: block={block}")
        at_once, parts = self._parts(_Request(prompts, seeds, max_length, block, controls, rules, labels))
        with _side_by_side(at_once) as each:
            jobs = list(each(lambda part: _Job(self, part), parts))
            while not all(job.ended for job in jobs):
                yield _joined(each(_Job.next, jobs))

    def _parts(self, request: "_Request") -> tuple[int, list["_Request"]]:
        """How many parts are worked on at once, and all of them, which meet the same programs."""
        count = len(request.prompts)
        alone = not self.jit or bool(tf.config.list_physical_devices("GPU")) or min(cores(), count // FEWEST) < AT_ONCE
        at_once = 1 if alone else AT_ONCE
        size = min(ROWS // at_once, -(-count // at_once))
        longest = max([1, *map(len, request.prompts)])
        rows, longest = (bucket(size), bucket(longest, SHORTEST)) if self.jit else (None, longest)
        request = request._replace(rows=rows, longest=longest)
        return at_once, [request.part(slice(start, start + size)) for start in range(0, count, size)]

    def begin(self, prompt, lengths, capacity: int, rules: Rules, label, remember: bool) -> tuple[Decoding, Any]:
        """`decode.begin` on arrays; and what of it is static, for `advance`."""

        def function(prompt, lengths, capacity, rules, label, static):
            given = capacity if static[0] is None else static[0]
            rules = rules._replace(end=static[1])
            return decode.begin(self.make(), prompt, lengths, given, rules, label=label, remember=static[2])

        static = (capacity if self.jit else None, rules.end, remember)
        size = tf.constant(capacity) if static[0] is None else None
        return self.run(function, "begin", (prompt, lengths, size, rules._replace(end=None), label), static)

    def advance(self, decoding, made, seed, limit, steps: int, controls: Controls, rules: Rules):
        """`decode.advance` on what `begin` gave."""

        def function(decoding, seed, limit, steps, controls, rules, static):
            given = steps if static[0] is None else static[0]
            rules = rules._replace(end=static[1])
            return decode.advance(self.make(), decoding, seed, limit, given, controls, rules)

        static = (steps if self.jit else None, rules.end)
        size = tf.constant(steps) if static[0] is None else None
        arguments = (decoding, seed, limit, size, controls, rules._replace(end=None))
        return self.run(function, "advance", arguments, static, made)[0]

    def run(self, function, name: str, arguments: tuple, static: tuple, made: Any = None) -> tuple[Any, Any]:
        """`function(*arguments, static)` by a graph that is made once: for these shapes where it is compiled, else for
        any, but for those in `made` (the first argument's, as an earlier graph gave them) and of rules, which are
        argument 3, or the last where `made` is given."""
        flat = tf.nest.flatten(arguments)
        present = [value is not None for value in flat]
        given = [tf.convert_to_tensor(value) for value in flat if value is not None]
        known = [] if made is None else [tf.TensorSpec(x.shape, x.dtype) for x in tf.nest.flatten(made)]
        tables = tf.nest.flatten(arguments[3 if made is None else -1])
        keep = {id(value) for value in tables if value is not None}
        fixed = [self.jit or id(value) in keep for value in flat if value is not None]
        shapes = tuple(tuple(x.shape) if f else x.shape.rank for x, f in zip(given, fixed))
        if made is not None:
            shapes = (*map(str, known), *shapes[len(known) :])
        key = (name, static, tuple(present), shapes)
        with self._tracing:
            if key not in self._functions:
                specs = [self._spec(x, f) for x, f in zip(given, fixed)]
                specs = specs if self.jit or made is None else known + specs[len(known) :]

                def traced(*tensors):
                    left = iter(tensors)
                    packed = tf.nest.pack_sequence_as(arguments, [next(left) if here else None for here in present])
                    return function(*packed, static)

                concrete = tf.function(traced, jit_compile=self.jit, autograph=False).get_concrete_function(*specs)
                self._functions[key] = (concrete, concrete.structured_outputs)
        concrete, outputs = self._functions[key]
        return concrete(*given), outputs

    @staticmethod
    def _spec(value: tf.Tensor, fixed: bool) -> tf.TensorSpec:
        if fixed or value.shape.rank == 0:
            return tf.TensorSpec(value.shape, value.dtype)
        return tf.TensorSpec([None, *([None] if value.shape.rank > 1 else []), *value.shape[2:]], value.dtype)


class _Request(NamedTuple):
    """What was asked of a generator, or a part of it.

    `rows`: what the rows are filled up to, where they are compiled; `longest`: what prompts are filled up to.
    """

    prompts: Sequence[np.ndarray]
    seeds: np.ndarray
    max_length: int
    block: int
    controls: Controls
    rules: Rules
    labels: np.ndarray | None
    longest: int = 1
    rows: int | None = None

    def part(self, rows: slice) -> "_Request":
        controls = Controls(*(None if value is None else value[rows] for value in self.controls))
        labels = None if self.labels is None else self.labels[rows]
        return self._replace(prompts=self.prompts[rows], seeds=self.seeds[rows], controls=controls, labels=labels)


class _Job:
    """Rows on their way."""

    def __init__(self, generator: Generator, request: _Request):
        prompts, rows = request.prompts, len(request.prompts)
        filled = rows if request.rows is None else request.rows
        room = bucket(request.max_length, SHORTEST) if generator.jit else request.max_length
        prompt, lengths = padded(prompts, filled, request.longest, generator.width)
        self.generator, self.rows, self.block = generator, rows, request.block
        self.seeds = fill(request.seeds, filled)
        self.controls = Controls(*(fill(value, filled) for value in request.controls))
        self.limit = np.zeros(filled, np.int32)
        self.limit[:rows] = request.max_length
        self.rules, self.max_length, self.done = request.rules, request.max_length, 0
        remember = self.controls.repetition is not None
        self.decoding, self.made = generator.begin(
            prompt, lengths, request.longest + room, self.rules, fill(request.labels, filled), remember
        )
        self.ended = False

    def next(self) -> Generated:
        """The next block."""
        arguments = (self.seeds, self.limit, self.block, self.controls, self.rules)
        symbols, self.decoding = self.generator.advance(self.decoding, self.made, *arguments)
        symbols = symbols.numpy()[: self.rows, : self.max_length - self.done]
        self.done += self.block
        lengths, nats, cost = (
            getattr(self.decoding, name).numpy()[: self.rows] for name in ("lengths", "nats", "cost")
        )
        self.ended = self.done >= self.max_length or bool(self.decoding.done.numpy()[: self.rows].all())
        return Generated(symbols, lengths, nats, cost)


@contextlib.contextmanager
def _side_by_side(at_once: int) -> Iterator[Callable[..., Iterable]]:
    """A `map` that is at `at_once` things at a time."""
    if at_once == 1:
        yield map
        return
    with ThreadPoolExecutor(at_once) as pool:
        yield pool.map


def _joined(parts: Iterable[Generated]) -> Generated:
    return Generated(*(np.concatenate(arrays) for arrays in zip(*parts)))


def padded(prompts: Sequence[np.ndarray], rows: int, length: int, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts in one array, (rows, length) int32 or (rows, length, width) float32, and their lengths, (rows,) int32.

    Rows that no prompt fills are zeros, of length 1.
    """
    whole = np.zeros((rows, length, width) if width else (rows, length), np.float32 if width else np.int32)
    lengths = np.ones(rows, np.int32)
    for number, prompt in enumerate(prompts):
        whole[number, : len(prompt)] = prompt
        lengths[number] = len(prompt)
    return whole, lengths


def fill(values: Any, rows: int) -> Any:
    """Rows repeated up to `rows`; None stays."""
    if values is None:
        return None
    values = np.asarray(values)
    return np.concatenate([values, np.repeat(values[:1], rows - len(values), axis=0)])
