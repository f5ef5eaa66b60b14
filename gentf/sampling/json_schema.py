r"""JSON Schema as a constraint: documents that are parsed, and satisfy the schema, whatever the model prefers.

Each value has one spelling, that of `json.dumps(value, ensure_ascii=False)` in Python, with what is said of numbers:

- `", "` and `": "` separate; objects have their properties in the order of the schema, and no others;
- characters are written as they are, but for `\"`, `\\`, `\b \f \n \r \t`, and `\u00XX` for other control characters;
- integers are written without fraction or exponent, with up to 15 digits, or up to 30 where the bounds ask for more;
- numbers are such integers, or have up to 9 digits before the point and 1 to 6 after it; zero has no sign.

Supported are `type` (a name or a list of names), `enum`, `const`, `anyOf`, `oneOf` (taken as `anyOf`: that only one
holds is not checked), `$ref` to `#` or to `$defs` and `definitions`; of objects `properties`, `required`, and
`additionalProperties`, which must be, and without it is taken to be, false; of arrays `items`, `minItems`,
`maxItems`; of strings `minLength`, `maxLength`, `pattern` (in the syntax of `gentf.sampling.regex`, found anywhere in
the string unless anchored) and `format` (`date` of the years 1 to 9999, `date-time`, `uuid`); of numbers `minimum`,
`maximum`, `exclusiveMinimum`, `exclusiveMaximum`. Words that only describe are skipped, all others are refused.

Reference: JSON Schema, draft 2020-12; RFC 8259 (JSON), RFC 3339 (dates), RFC 9562 (UUID).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

from gentf.errors import UserError
from gentf.sampling import regex as rx
from gentf.sampling.constraints import (
    MAX_STATES,
    Constraint,
    check_max_states,
    check_pieces,
    intersect_automata,
    minimise,
)
from gentf.sampling.regex import DIGIT, Alt, Automaton, Chars, Node, Ranges, Repeat, Seq

_MAX_DEPTH = 32  # of schemas in each other: the tree is walked recursively
_DIGITS, _MOST_DIGITS = 15, 30  # 15 decimal digits survive a double
_WHOLE, _PLACES = 9, 6  # digits before and after the point
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_KEYWORDS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": set(),
    "null": set(),
}
_DESCRIBING = {
    *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly"),
}
_CHOICES = ("$ref", "enum", "const", "anyOf", "oneOf")
_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))
# 29 February where the year is a multiple of 4, and of 400 if of 100.
_DATE = (
    r"(?:(?:\d{3}[1-9]|\d{2}[1-9]\d|\d[1-9]\d{2}|[1-9]\d{3})-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:\d{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d"
_FORMATS = {
    "date": _DATE,
    "date-time": rf"{_DATE}T{_CLOCK}:[0-5]\d(?:\.\d{{1,6}})?(?:Z|[+-]{_CLOCK})",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}


def json_schema(
    schema: Mapping[str, Any],
    pieces: Sequence[bytes],
    *,
    stop: int = 0,
    max_states: int = MAX_STATES,
    max_depth: int = 5,
) -> Constraint:
    """The token sequences whose text is a JSON document that satisfies the schema, spelled as said above.

    Args:
        schema: of the keywords above.
        pieces, stop, max_states: as of `regex`.
        max_depth: how often a definition that refers to itself may stand within itself, 1 or more; deeper in, what
            refers to it is left out.
    Raises:
        ValueError: `pieces`, `stop`, `max_states` or `max_depth` outside these ranges.
        UserError: a schema that is wrong or not supported (the message names the place in it), takes more states, or
            allows no value that the pieces can write.
    """
    check_pieces(pieces, stop)
    check_max_states(max_states)
    if max_depth < 1:
        raise ValueError(f"`max_depth` must be positive. Received: max_depth={max_depth}")
    received = f"schema={rx.shorten(schema)}"
    node = _Builder(schema, max_states, max_depth, received, frozenset(b"".join(pieces))).node(schema, "#", {"#": 1})
    if node is None:
        raise UserError(f"`schema` must allow a value at max_depth={max_depth} or less. Received: {received}")
    return rx.constrain(node, pieces, stop, max_states, received)


class _Builder:
    """Syntax trees of schemas; None stands for a schema that no value satisfies."""

    def __init__(
        self, root: Mapping[str, Any], max_states: int, max_depth: int, received: str, alphabet: frozenset[int]
    ) -> None:
        self.root, self.max_states, self.max_depth = root, max_states, max_depth
        self.received, self.alphabet = received, alphabet
        self.visited, self.depth = 0, 0
        self.referred: dict[tuple, Node | None] = {}
        self.characters: dict[Ranges, Node] = {}

    def node(self, schema: Any, place: str, open_: dict[str, int]) -> Node | None:
        """The tree of `schema`, which stands at `place`, within the references counted in `open_`."""
        if not isinstance(schema, Mapping) or not all(isinstance(key, str) for key in schema):
            raise UserError(f"`schema` must be an object at {place}. Received: {rx.shorten(schema)}")
        self.visited += 1
        if self.visited > self.max_states:
            self.too_large()
        if self.depth >= _MAX_DEPTH:
            raise UserError(
                f"`schema` must not be nested more than {_MAX_DEPTH} deep, with its definitions put in. "
                f"Received: {self.received}"
            )
        self.depth += 1
        found = self.checked(schema, place, open_)
        self.depth -= 1
        return found

    def checked(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        keys = set(schema) - _DESCRIBING
        unknown = keys - set().union(*_KEYWORDS.values()) - {"type", *_CHOICES}
        if unknown:
            self.fail("hold supported keywords only", place, ", ".join(map(repr, sorted(unknown))))
        for choice in _CHOICES:
            if choice in keys:
                others = keys - {choice} - ({"type"} if choice in ("enum", "const") else set())
                if others:
                    self.fail(f"hold nothing else beside `{choice}`", place, ", ".join(map(repr, sorted(others))))
                return self.choice(choice, schema, place, open_)
        types = self.types(schema, place)
        if not types:
            self.fail("hold a `type`, or one of " + ", ".join(_CHOICES), place, rx.shorten(schema))
        useless = keys - {"type"} - set().union(*(_KEYWORDS[name] for name in types))
        if useless:
            self.fail(f"hold keywords of type {', '.join(types)} only", place, ", ".join(map(repr, sorted(useless))))
        found = {name: getattr(self, name)(schema, place, open_) for name in types}
        if "number" in found:
            found.pop("integer", None)
        return _either(list(found.values()))

    def too_large(self) -> NoReturn:
        raise UserError(f"`schema` must take at most max_states={self.max_states} states. Received: {self.received}")

    def fail(self, must: str, place: str, received: str) -> NoReturn:
        raise UserError(f"`schema` must {must} at {place}. Received: {received}")

    def value(self, schema: Mapping[str, Any], place: str, key: str, must: str, valid: Any, default: Any = None) -> Any:
        """schema[key], checked by `valid`; the default if there is none."""
        if key not in schema:
            return default
        if not valid(schema[key]):
            raise UserError(f"`{key}` must be {must} at {place}. Received: {key}={rx.shorten(schema[key])}")
        return schema[key]

    def types(self, schema: Mapping[str, Any], place: str) -> list[str]:
        def valid(names: Any) -> bool:
            names = names if isinstance(names, list) else [names]
            return bool(names) and all(isinstance(name, str) and name in _KEYWORDS for name in names)

        names = self.value(schema, place, "type", f"of {', '.join(_KEYWORDS)}", valid, [])
        return names if isinstance(names, list) else [names]

    def choice(self, key: str, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        if key == "$ref":
            return self.reference(schema, place, open_)
        if key in ("anyOf", "oneOf"):
            parts = self.value(schema, place, key, "a list of schemas, not empty", _is_list)
            return _either([self.node(part, f"{place}/{key}/{n}", open_) for n, part in enumerate(parts)])
        values = [schema["const"]] if key == "const" else self.value(schema, place, key, "a list, not empty", _is_list)
        types = self.types(schema, place)
        values = [value for value in values if not types or any(_is_of(value, name) for name in types)]
        return _either([self.literal(value, place) for value in values])

    def literal(self, value: Any, place: str) -> Node:
        try:
            written = json.dumps(value, ensure_ascii=False, allow_nan=False)
            written.encode()
        except (TypeError, ValueError, RecursionError):
            self.fail("hold values that JSON can write", place, rx.shorten(value))
        return _text(written)

    def reference(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        target: Any = self.root
        reference = self.value(schema, place, "$ref", "a string", lambda x: isinstance(x, str))
        parts = [part.replace("~1", "/").replace("~0", "~") for part in reference.split("/")]
        if reference != "#":
            for part in parts[1:]:
                target = target.get(part) if isinstance(target, Mapping) else None
            if len(parts) != 3 or parts[0] != "#" or parts[1] not in ("$defs", "definitions") or target is None:
                self.fail("refer to # or to a definition in #/$defs", place, f"$ref={rx.shorten(reference)}")
        open_ = {**open_, reference: open_.get(reference, 0) + 1}
        if open_[reference] > self.max_depth:
            return None
        key = (reference, tuple(sorted(open_.items())))
        if key not in self.referred:
            self.referred[key] = self.node(target, reference, open_)
        return self.referred[key]

    def object(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        properties = self.value(schema, place, "properties", "an object", lambda x: isinstance(x, Mapping))
        if properties is None:
            self.fail("hold `properties` where it is an object", place, rx.shorten(schema))
        required = self.value(
            schema,
            place,
            "required",
            "a list of names in `properties`",
            lambda x: isinstance(x, list | tuple) and all(isinstance(name, str) and name in properties for name in x),
            [],
        )
        self.value(schema, place, "additionalProperties", "false", lambda x: x is False)
        pairs: list[tuple[Node, bool]] = []
        for name, part in properties.items():
            value = self.node(part, f"{place}/properties/{name}", open_)
            if value is not None:
                pairs.append((Seq((self.literal(name, place), _text(": "), value)), name in required))
            elif name in required:
                return None
        # One alternative for each property that may come first. The ends are the same objects in all of them.
        later = [
            part if needed else Repeat(part, 0, 1)
            for part, needed in ((Seq((_text(", "), pair)), needed) for pair, needed in pairs)
        ]
        bodies: list[Node] = []
        for first, (pair, needed) in enumerate(pairs):
            bodies.append(Seq((pair, *later[first + 1 :])))
            if needed:
                break
        else:
            bodies.append(Seq(()))
        return Seq((_text("{"), Alt(tuple(bodies)), _text("}")))

    def array(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        low, high = self.lengths(schema, place, "minItems", "maxItems")
        if "items" not in schema:
            self.fail("hold `items` where it is an array", place, rx.shorten(schema))
        item = self.node(schema["items"], f"{place}/items", open_)
        empty = _text("[]") if low == 0 else None
        if item is None or high == 0:
            return empty
        more = Repeat(Seq((_text(", "), item)), max(low - 1, 0), None if high is None else high - 1)
        return _either([empty, Seq((_text("["), item, more, _text("]")))])

    def lengths(self, schema: Mapping[str, Any], place: str, least: str, most: str) -> tuple[int, int | None]:
        must = "an integer, 0 or more,"
        low = self.value(schema, place, least, must, _is_count, 0)
        high = self.value(schema, place, most, must, _is_count)
        if high is not None and low > high:
            raise UserError(f"`{least}` must not be above `{most}` at {place}. Received: {least}={low}, {most}={high}")
        return low, high

    def string(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        rules: list[Node] = []
        if "pattern" in schema:
            try:
                rules.append(self.escaped(rx.parse(schema["pattern"], search=True)))
            except UserError as error:
                raise UserError(f"at {place} of the schema, {error}") from error
        name = self.value(schema, place, "format", f"of {', '.join(_FORMATS)}", lambda x: x in list(_FORMATS))
        if name is not None:
            rules.append(rx.parse(_FORMATS[name]))
        if not rules or "minLength" in schema or "maxLength" in schema:
            low, high = self.lengths(schema, place, "minLength", "maxLength")
            rules.append(Repeat(self.escaped(rx.ANY), low, high))
        found = rules[0] if len(rules) == 1 else self.all_of(rules)
        return None if found is None else Seq((_text('"'), found, _text('"')))

    def all_of(self, rules: list[Node]) -> Automaton | None:
        """What satisfies all of them: automata have an intersection, trees have not."""
        found: Automaton | None = None
        for rule in rules:
            part = rx.automaton(rule, self.max_states - 1, self.received, self.alphabet)
            if part is not None and found is not None:
                product = intersect_automata(
                    (found.delta, found.accepting), (part.delta, part.accepting), self.max_states - 1
                )
                if product is None:
                    self.too_large()
                smallest = minimise(*product)
                part = None if smallest is None else Automaton(*smallest)
            if part is None:
                return None
            found = part
        return found

    def escaped(self, node: Node) -> Node:
        """The tree of the same strings as they are written between quotes."""
        if isinstance(node, Repeat):
            return Repeat(self.escaped(node.item), node.low, node.high)
        if isinstance(node, Seq | Alt):
            return type(node)(tuple(self.escaped(item) for item in node.items))
        if isinstance(node, Chars):
            if node.ranges not in self.characters:
                self.characters[node.ranges] = _escaped(node.ranges)
            return self.characters[node.ranges]
        return node

    def boolean(self, *_: Any) -> Node:
        return Alt((_text("true"), _text("false")))

    def null(self, *_: Any) -> Node:
        return _text("null")

    def integer(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        return _signed(*self.range(schema, place, 1), _naturals)

    def number(self, schema: Mapping[str, Any], place: str, open_: dict[str, int]) -> Node | None:
        unit = 10**_PLACES
        low, high = self.range(schema, place, unit)
        most = 10 ** (_WHOLE + _PLACES) - 1
        whole, parts = self.integer(schema, place, open_), _signed(max(low, -most), min(high, most), _decimals)
        return _either([whole, parts])

    def range(self, schema: Mapping[str, Any], place: str, unit: int) -> tuple[int, int]:
        """The least and the greatest multiple of 1 / unit that the bounds allow, in these units."""
        lows, highs = [], []
        for key in sorted(_BOUNDS & set(schema)):
            bound = self.value(schema, place, key, "a finite number", _is_number)
            exact = Fraction(repr(bound)) * unit if isinstance(bound, float) else Fraction(bound) * unit
            if key.endswith("inimum"):
                lows.append(math.floor(exact) + 1 if key.startswith("ex") else math.ceil(exact))
            else:
                highs.append(math.ceil(exact) - 1 if key.startswith("ex") else math.floor(exact))
        most, usual = 10**_MOST_DIGITS * unit - 1, 10**_DIGITS * unit - 1
        low, high = max(lows, default=-usual), min(highs, default=usual)
        if not lows and high < low:
            low = -most
        if not highs and low > high:
            high = most
        return max(low, -most), min(high, most)


def _escaped(ranges: Ranges) -> Node:
    """One character of the set, as it is written between quotes."""
    held = [c for c in map(chr, (*range(0x20), 0x22, 0x5C)) if any(low <= ord(c) <= high for low, high in ranges)]
    codes = [f"{ord(c):02x}" for c in held if c not in _SHORT]
    coded = [Seq((_text(first), _one_of([c[1] for c in codes if c[0] == first]))) for first in "01"]
    after = Alt((_one_of([_SHORT[c] for c in held if c in _SHORT]), Seq((_text("u00"), Alt(tuple(coded))))))
    plain = rx.complement(rx.union(rx.complement(ranges), rx.complement(_PLAIN)))
    return Alt((Chars(plain), Seq((_text("\\"), after))))


def _text(characters: str) -> Node:
    return Seq(tuple(_one_of(c) for c in characters))


def _one_of(characters: Sequence[str]) -> Chars:
    return Chars(rx.union(tuple((ord(c), ord(c)) for c in characters)))


def _either(parts: Sequence[Node | None]) -> Node | None:
    found = tuple(part for part in parts if part is not None)
    return found[0] if len(found) == 1 else Alt(found) if found else None


def _signed(low: int, high: int, build: Callable[[int, int], Node]) -> Node | None:
    """The numbers low..high, by the trees that `build` makes of those from 0; zero has no sign."""
    positive = build(max(low, 0), high) if high >= max(low, 0) else None
    low, high = max(1, -high), -low
    return _either([positive, Seq((_text("-"), build(low, high))) if low <= high else None])


def _naturals(low: int, high: int) -> Node:
    """The integers low..high, from 0, without leading zeros."""
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        parts.append(_digits(first, last, length, short=False))
    return Alt(tuple(parts))


def _decimals(low: int, high: int) -> Node:
    """The multiples low..high of 10**-6, from 0, with a point and 1 to 6 digits after it."""
    unit = 10**_PLACES
    return Alt(
        tuple(
            Seq((_naturals(a, b), _text("."), _digits(c, d, _PLACES, short=True, some=True)))
            for a, b, c, d in _split(low, high, unit)
        )
    )


def _split(low: int, high: int, unit: int) -> list[tuple[int, int, int, int]]:
    """The integers low..high as products (a..b) * unit + (c..d): at most three (a, b, c, d)."""
    (first, least), (last, greatest) = divmod(low, unit), divmod(high, unit)
    if first == last:
        return [(first, last, least, greatest)]
    middle = [(first + 1, last - 1, 0, unit - 1)] if last - first > 1 else []
    return [(first, first, least, unit - 1), *middle, (last, last, 0, greatest)]


def _digits(low: int, high: int, length: int, *, short: bool, some: bool = False) -> Node:
    """Strings of `length` digits between low and high; if `short`, zeros at the end may be missing.

    With `some`, one digit stands there at least.
    """
    if low == 0 and high == 10**length - 1:
        return Repeat(DIGIT, int(some) if short else length, length)
    unit = 10 ** (length - 1)
    parts: list[Node] = [Seq(())] if short and low == 0 and not some else []
    for a, b, c, d in _split(low, high, unit):
        parts.append(Seq((Chars(((48 + a, 48 + b),)), _digits(c, d, length - 1, short=short))))
    return Alt(tuple(parts))


def _is_of(value: Any, name: str) -> bool:
    """Whether the value is of the JSON type."""
    if name in ("integer", "number"):
        return _is_number(value) and (name == "number" or value == int(value))
    kinds = {"object": Mapping, "array": list | tuple, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0
