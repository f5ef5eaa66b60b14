r"""Regular expressions as constraints: a parser, its syntax tree, and automata over the bytes of UTF-8.

The syntax is that of Python's `re` as far as it is regular, and a text is matched as a whole:

- literals; `.`, any character but a newline; `\d` `\w` `\s` `\D` `\W` `\S` of ASCII; `\n` `\t` `\r` `\f` `\v` `\a`
  `\0` `\xHH` `\uHHHH` `\UHHHHHHHH`; a backslash before anything but a letter or digit takes it literally;
- classes `[a-z_]` and `[^a-z_]` over all Unicode characters;
- groups `(...)`, `(?:...)`, `(?P<name>...)`; alternatives `a|b`;
- `*` `+` `?` `{m}` `{m,}` `{,n}` `{m,n}`, also lazy (`*?`), which changes nothing where the whole text must match;
- `^` `\A` and `$` `\Z` at the ends of the pattern or of one of its alternatives, where they change nothing.

Backreferences, lookaround, `\b`, possessive quantifiers, atomic groups and flags are refused.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

import numpy as np

from gentf.errors import UserError
from gentf.sampling.constraints import MAX_STATES, Constraint, check_max_states, check_pieces, lift, minimise

Ranges = tuple[tuple[int, int], ...]  # of code points: ascending, apart, both ends included

_LAST = 0x10FFFF
_MAX_DEPTH = 50  # of groups: the tree is walked recursively
_SUBSET_STATES = 200  # a state, on average, at most: bounds time and memory of the subset construction


@dataclass(frozen=True, eq=False)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True, eq=False)
class Seq:
    """One after the other; of no items, the empty text."""

    items: tuple["Node", ...]


@dataclass(frozen=True, eq=False)
class Alt:
    """One of them; of no items, nothing at all."""

    items: tuple["Node", ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """From `low` to `high` times; without bound where `high` is None."""

    item: "Node"
    low: int
    high: int | None


@dataclass(frozen=True, eq=False)
class Automaton:
    """The texts of an automaton over bytes: (S, 256) int32 table, -1 for none; (S,) bool. State 0 is the start."""

    delta: np.ndarray
    accepting: np.ndarray


Node = Chars | Seq | Alt | Repeat | Automaton


def regex(pattern: str, pieces: Sequence[bytes], *, stop: int = 0, max_states: int = MAX_STATES) -> Constraint:
    """The token sequences whose text matches the pattern as a whole.

    Args:
        pattern: in the syntax above.
        pieces: the bytes that each token writes, in UTF-8 when joined; a piece may hold a part of a character. A token
            of no bytes is never allowed, but for `stop`.
        stop: the token that ends a sequence; its piece is b"".
        max_states: bound on the states of the automaton at each stage of its construction.
    Raises:
        ValueError: `pieces`, `stop` or `max_states` outside these ranges.
        UserError: what is not a pattern, is not supported, takes more states, or matches no text of these pieces.
    """
    check_pieces(pieces, stop)
    check_max_states(max_states)
    return constrain(parse(pattern), pieces, stop, max_states, f"pattern={shorten(pattern)}")


def constrain(node: Node, pieces: Sequence[bytes], stop: int, max_states: int, received: str) -> Constraint:
    """The token sequences whose text `node` describes; `received` is "name=value", for messages."""
    name = received.partition("=")[0]
    found = automaton(node, max_states - 1, received, frozenset(b"".join(pieces)))
    constraint = None if found is None else lift(found.delta, found.accepting, pieces, stop)
    if constraint is None:
        raise UserError(f"`{name}` must match a text that the {len(pieces)} tokens can write. Received: {received}")
    return constraint


def shorten(value: object) -> str:
    """The value for a message: 200 characters at most."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:190]}... ({len(text)} characters)"


def union(*sets: Ranges) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in sets for pair in ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def complement(ranges: Ranges) -> Ranges:
    """All other code points."""
    begins = [0, *(high + 1 for _, high in ranges)]
    ends = [*(low - 1 for low, _ in ranges), _LAST]
    return tuple((low, high) for low, high in zip(begins, ends) if low <= high)


ANY = Chars(((0, _LAST),))
DIGIT = Chars(((48, 57),))
_SETS = {"d": DIGIT.ranges, "w": ((48, 57), (65, 90), (95, 95), (97, 122)), "s": ((9, 13), (32, 32))}
_SETS |= {name.upper(): complement(ranges) for name, ranges in _SETS.items()}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}
_HEX = {"x": 2, "u": 4, "U": 8}
_SIGNS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_QUANTIFIER = re.compile(r"([*+?])|\{([0-9]*)(,?)([0-9]*)\}")
_GROUPS = {"(?=": "lookahead", "(?!": "lookahead", "(?<=": "lookbehind", "(?<!": "lookbehind"}
_GROUPS |= {"(?P=": "a backreference", "(?>": "an atomic group", "(?(": "a conditional group", "(?#": "a comment"}


def parse(pattern: str, *, search: bool = False) -> Node:
    """The syntax tree of a pattern.

    Args:
        pattern: in the syntax above.
        search: describe the texts in which the pattern is found, at the ends that `^` and `$` say.
    Raises:
        UserError: what is not a pattern or not supported, and its position.
    """
    if not isinstance(pattern, str):
        raise UserError(f"`pattern` must be a string. Received: pattern={shorten(pattern)}")
    return _Parser(pattern, search).whole()


class _Parser:
    def __init__(self, pattern: str, search: bool) -> None:
        self.pattern, self.search, self.position, self.depth = pattern, search, 0, 0

    def fail(self, what: str, position: int | None = None) -> NoReturn:
        raise UserError(
            f"`pattern` must be a supported regular expression: {what} at position "
            f"{self.position if position is None else position}. Received: pattern={shorten(self.pattern)}"
        )

    def take(self, *choices: str) -> str:
        """Whichever of the choices comes next, and go past it; "" if none does."""
        for choice in choices:
            if self.pattern.startswith(choice, self.position):
                self.position += len(choice)
                return choice
        return ""

    def whole(self) -> Node:
        node = self.alternatives()
        if self.position < len(self.pattern):
            self.fail("unopened )")
        return node

    def alternatives(self) -> Node:
        found = [self.sequence()]
        while self.take("|"):
            found.append(self.sequence())
        return found[0] if len(found) == 1 else Alt(tuple(found))

    def sequence(self) -> Node:
        items: list[Node] = []
        begins, ends = "", ""
        while self.position < len(self.pattern) and self.pattern[self.position] not in "|)":
            here = self.position
            anchor = self.take("^", r"\A", "$", r"\Z")
            if (ends and anchor not in ("$", r"\Z")) or (anchor and self.depth):
                self.fail(f"anchor {ends or anchor} inside the pattern", here)
            if anchor in ("^", r"\A"):
                if items:
                    self.fail(f"anchor {anchor} inside the pattern", here)
                begins = anchor
            elif anchor:
                ends = anchor
            else:
                items.append(self.repeated(self.item()))
        if self.search and not self.depth:
            around = Repeat(ANY, 0, None)
            items = [*(() if begins else (around,)), *items, *(() if ends else (around,))]
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def quantifier(self) -> tuple[int, int | None] | None:
        found = _QUANTIFIER.match(self.pattern, self.position)
        if found is None or found[0] == "{}":  # a literal brace, as in Python
            return None
        sign, low, comma, high = found.groups()
        if max(len(low or ""), len(high or "")) > 9:
            self.fail("a repeat count of more than 9 digits")
        bounds = int(low or 0), int(high) if high else None if comma else int(low or 0)
        if bounds[1] is not None and bounds[0] > bounds[1]:
            self.fail("a repeat whose minimum is above its maximum")
        self.position = found.end()
        return _SIGNS[sign] if sign else bounds

    def repeated(self, node: Node) -> Node:
        bounds = self.quantifier()
        if bounds is None:
            return node
        here = self.position
        if self.take("+"):
            self.fail("a possessive quantifier", here)
        self.take("?")
        here = self.position
        if self.quantifier() is not None:
            self.fail("a quantifier of a quantifier", here)
        return Repeat(node, *bounds)

    def item(self) -> Node:
        here = self.position
        if self.quantifier() is not None:
            self.fail("a quantifier of nothing", here)
        character = self.pattern[here]
        self.position += 1
        if character == "(":
            return self.group(here)
        if character == "[":
            return Chars(self.characters(here))
        if character == "\\":
            return Chars(self.escape(here))
        if character == ".":
            return Chars(complement(((10, 10),)))
        return Chars(self.literal(ord(character), here))

    def literal(self, code: int, position: int) -> Ranges:
        if code > _LAST or 0xD800 <= code <= 0xDFFF:
            self.fail(f"character U+{code:04X}, which UTF-8 cannot write,", position)
        return ((code, code),)

    def group(self, here: int) -> Node:
        self.position = here
        for opening, name in _GROUPS.items():
            if self.take(opening):
                self.fail(name, here)
        if self.take("(?P<"):
            end = self.pattern.find(">", self.position)
            if not self.pattern[self.position : max(end, 0)].isidentifier():
                self.fail("a group name that is none", here)
            self.position = end + 1
        elif self.take("(?:", "(?", "(") == "(?":
            self.fail("a flag or an unknown group", here)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail(f"more than {_MAX_DEPTH} groups in each other", here)
        node = self.alternatives()
        self.depth -= 1
        if not self.take(")"):
            self.fail("unclosed (", here)
        return node

    def characters(self, here: int) -> Ranges:
        """The class that opened at `here`."""
        found: list[Ranges] = []
        negated = self.take("^")
        while not found or not self.take("]"):
            low = self.member(here)
            after = self.pattern[self.position + 1 : self.position + 2]
            if self.pattern.startswith("-", self.position) and after not in ("]", ""):
                dash = self.position
                self.position += 1
                high = self.member(here)
                if not len(low) == len(high) == 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    self.fail("a range that does not go from a character to a character", dash)
                if low[0][0] > high[0][0]:
                    self.fail("a range that goes backwards", dash)
                low = ((low[0][0], high[0][0]),)
            found.append(low)
        ranges = union(*found)
        return complement(ranges) if negated else ranges

    def member(self, opened: int) -> Ranges:
        here = self.position
        if here >= len(self.pattern):
            self.fail("unclosed [", opened)
        self.position += 1
        if self.pattern[here] != "\\":
            return self.literal(ord(self.pattern[here]), here)
        if self.take("b"):  # within a class, backspace
            return ((8, 8),)
        return self.escape(here)

    def escape(self, here: int) -> Ranges:
        """The characters of the escape whose backslash, at `here`, was passed."""
        name = self.pattern[self.position : self.position + 1]
        self.position += 1
        if name in _SETS:
            return _SETS[name]
        if name in _CONTROLS:
            return ((_CONTROLS[name], _CONTROLS[name]),)
        if name in _HEX:
            digits = self.pattern[self.position : self.position + _HEX[name]]
            if len(digits) != _HEX[name] or not all(c in "0123456789abcdefABCDEF" for c in digits):
                self.fail(f"\\{name} without {_HEX[name]} hexadecimal digits", here)
            self.position += len(digits)
            return self.literal(int(digits, 16), here)
        if name == "":
            self.fail("a backslash that nothing follows", here)
        if name.isascii() and name.isdigit():
            if name == "0" and self.pattern[self.position : self.position + 1] not in tuple("0123456789"):
                return ((0, 0),)
            self.fail("an octal escape" if name == "0" else f"backreference \\{name}", here)
        if name in "bB":
            self.fail(f"word boundary \\{name}", here)
        if name.isascii() and name.isalpha():
            self.fail(f"unknown escape \\{name}", here)
        return self.literal(ord(name), here)


def automaton(node: Node, max_states: int, received: str, alphabet: frozenset[int]) -> Automaton | None:
    """The smallest automaton over bytes of the texts that `node` describes, of bytes in `alphabet`; None if none is.

    Raises:
        UserError: more states than `max_states`, with and without choice; `received` is "name=value" for the message.
    """
    graph = _Graph(max_states, received, alphabet)
    smallest = minimise(*graph.determined(graph.build(node, 0)))
    return None if smallest is None else Automaton(*smallest)


@lru_cache(2**12)
def _utf8(low: int, high: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The code points low..high in UTF-8, surrogates left out: sequences of ranges that each byte takes freely."""
    if low > high:
        return ()
    if low <= 0xDFFF and high >= 0xD800:
        return _utf8(low, 0xD7FF) + _utf8(0xE000, high)
    for last in (0x7F, 0x7FF, 0xFFFF):  # of one, two and three bytes
        if low <= last < high:
            return _utf8(low, last) + _utf8(last + 1, high)
    for bits in range(6, 6 * len(chr(low).encode()), 6):  # that the last one, two, three bytes hold
        unit = 1 << bits
        if low // unit != high // unit:
            if low % unit:
                return _utf8(low, low | unit - 1) + _utf8((low | unit - 1) + 1, high)
            if high % unit != unit - 1:
                return _utf8(low, high - high % unit - 1) + _utf8(high - high % unit, high)
    return (tuple(zip(chr(low).encode(), chr(high).encode())),)


class _Graph:
    """An automaton with choice, built from the end: `build(node, after)` is a state from which `node`, then `after`.

    A node before the same state is built once, so that parts of the tree that are shared, and what they share of
    their ends, cost nothing twice. State 0 is the accepting one.
    """

    def __init__(self, max_states: int, received: str, alphabet: frozenset[int]) -> None:
        self.max_states, self.received = max_states, received
        self.edges: list[list[tuple[int, int, int]]] = [[]]  # first byte, last byte, state
        self.jumps: list[list[int]] = [[]]  # states entered without a byte
        self.built: dict[tuple[object, int], int] = {}
        self.closures: dict[int, frozenset[int]] = {}
        self.held = 0
        self.present = np.cumsum([0, *(byte in alphabet for byte in range(256))]).tolist()

    def fail(self) -> NoReturn:
        name = self.received.partition("=")[0]
        raise UserError(
            f"`{name}` must take at most max_states={self.max_states + 1} states. Received: {self.received}"
        )

    def state(self) -> int:
        if len(self.edges) >= self.max_states:
            self.fail()
        self.edges.append([])
        self.jumps.append([])
        return len(self.edges) - 1

    def build(self, node: Node, after: int) -> int:
        key = (node.ranges if isinstance(node, Chars) else node, after)
        if key not in self.built:
            self.built[key] = self._build(node, after)
        return self.built[key]

    def _build(self, node: Node, after: int) -> int:
        if isinstance(node, Seq):
            for item in reversed(node.items):
                after = self.build(item, after)
            return after
        if isinstance(node, Repeat):
            return self._repeat(node, after)
        if isinstance(node, Automaton):
            return self._embed(node, after)
        start = self.state()
        if isinstance(node, Alt):
            self.jumps[start] = [self.build(item, after) for item in node.items]
            return start
        for low, high in node.ranges:
            for sequence in _utf8(low, high):
                if all(self.present[last + 1] > self.present[first] for first, last in sequence):
                    self.edges[start].append((*sequence[0], self._tail(sequence[1:], after)))
        return start

    def _tail(self, sequence: tuple[tuple[int, int], ...], after: int) -> int:
        for byte in reversed(sequence):
            if (byte, after) not in self.built:
                state = self.state()
                self.edges[state].append((*byte, after))
                self.built[byte, after] = state
            after = self.built[byte, after]
        return after

    def _repeat(self, node: Repeat, after: int) -> int:
        if node.high is None:
            loop = self.state()
            self.jumps[loop] = [self.build(node.item, loop), after]
            after = loop
        end = after
        for turn in range(node.low if node.high is None else node.high):
            first = self.build(node.item, after)
            if first == after:  # of the empty text: more of it is the same
                break
            if node.high is not None and turn < node.high - node.low:
                before = self.state()
                self.jumps[before] = [first, end]
                first = before
            after = first
        return after

    def _embed(self, node: Automaton, after: int) -> int:
        copies = [self.state() for _ in node.delta]
        for copy, row, accepting in zip(copies, node.delta, node.accepting):
            cuts = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), 256]
            self.edges[copy] = [(i, j - 1, copies[row[i]]) for i, j in zip(cuts, cuts[1:]) if row[i] >= 0]
            self.jumps[copy] = [after] if accepting else []
        return copies[0]

    def closure(self, state: int) -> frozenset[int]:
        """The states with edges, and the accepting one, that are entered with this one."""
        if state not in self.closures:
            seen, waiting = {state}, [state]
            while waiting:
                others = set(self.jumps[waiting.pop()]) - seen
                seen |= others
                waiting.extend(others)
            self.closures[state] = frozenset(one for one in seen if one == 0 or self.edges[one])
            self.count(len(seen))
        return self.closures[state]

    def count(self, states: int) -> None:
        """Keep account of the states held in sets: they bound the time and memory of `determined`."""
        self.held += states
        if self.held > _SUBSET_STATES * (self.max_states + 1):
            self.fail()

    def determined(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """The automaton without choice, of sets of states: (S, 256) int32 table and (S,) bool accepting ones."""
        subsets = [self.closure(start)]
        numbers = {subsets[0]: 0}
        rows = []
        for subset in subsets:  # grows meanwhile
            row = np.full(256, -1, np.int32)
            for first, last, states in _overlay([edge for state in subset for edge in self.edges[state]]):
                entered = frozenset().union(*map(self.closure, states))
                if entered not in numbers:
                    if len(subsets) >= self.max_states:
                        self.fail()
                    self.count(len(entered))
                    numbers[entered] = len(subsets)
                    subsets.append(entered)
                row[first : last + 1] = numbers[entered]
            rows.append(row)
        table = np.where(np.diff(self.present) > 0, np.stack(rows), np.int32(-1))
        return table, np.array([0 in subset for subset in subsets])


def _overlay(edges: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """The stretches of bytes that lead to the same states: first byte, last byte, the states."""
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for first, last, to in edges:
        begins.setdefault(first, []).append(to)
        ends.setdefault(last + 1, []).append(to)
    places, active = sorted(begins.keys() | ends.keys()), Counter[int]()
    for place, following in zip(places, places[1:]):
        active.subtract(ends.get(place, ()))
        active.update(begins.get(place, ()))
        states = frozenset(to for to, times in active.items() if times)
        if states:
            yield place, following - 1, states
