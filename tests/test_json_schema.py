"""JSON schemas as constraints: what is written parses and satisfies the schema, and nothing that may not be is."""

import datetime
import json
import random
import re
import time
import uuid
from fractions import Fraction

import pytest
from automata import BYTES, PRINTABLE, accepts, texts, walk

from gentf.errors import UserError
from gentf.sampling.json_schema import json_schema


def satisfies(value, schema, root):
    """Whether the value is of the schema, from the words of the specification."""
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        return satisfies(value, target, root)
    if "const" in schema:
        return value == schema["const"]
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema or "oneOf" in schema:
        return any(satisfies(value, part, root) for part in schema.get("anyOf", schema.get("oneOf")))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(_is_a(value, kind, schema, root) for kind in kinds)


def _is_a(value, kind, schema, root):
    if kind == "null" or kind == "boolean":
        return value is None if kind == "null" else isinstance(value, bool)
    if kind == "string":
        form = {"date": datetime.date.fromisoformat, "date-time": datetime.datetime.fromisoformat, "uuid": uuid.UUID}
        if isinstance(value, str) and "format" in schema:
            form[schema["format"]](value)  # raises
        return (
            isinstance(value, str)
            and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
            and re.search(schema.get("pattern", ""), value, re.ASCII) is not None
        )
    if kind in ("integer", "number"):
        number = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
        return (
            number
            and schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value > schema.get("exclusiveMinimum", value - 1)
            and value < schema.get("exclusiveMaximum", value + 1)
        )
    if kind == "array":
        long = isinstance(value, list) and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        return long and all(satisfies(item, schema["items"], root) for item in value)
    order = list(schema["properties"])
    return (
        isinstance(value, dict)
        and set(schema.get("required", ())) <= set(value) <= set(order)
        and list(value) == sorted(value, key=order.index)
        and all(satisfies(value[name], schema["properties"][name], root) for name in value)
    )


PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "score": {"type": "number", "minimum": -0.25, "exclusiveMaximum": 1},
        "tags": {"type": "array", "items": {"enum": ["red", "green", 3, None]}, "minItems": 1, "maxItems": 5},
        "born": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "id": {"type": "string", "format": "uuid"},
        "mail": {"type": "string", "pattern": r"^[a-z.]+@[a-z]+\.(com|org)$", "maxLength": 20},
        "other": {"anyOf": [{"type": ["boolean", "null"]}, {"const": {"a": [1, 2.5, 'x"\n']}}]},
    },
    "required": ["name", "age"],
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": -12, "maximum": 130},
                "left": {"$ref": "#/$defs/node"},
                "right": {"$ref": "#/$defs/node"},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = {
    "person": PERSON,
    "tree": TREE,
    "list": {"oneOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
    "string": {"type": "string"},
    "search": {"type": "string", "pattern": r"a\d|^z", "minLength": 2, "maxLength": 6},
    "numbers": {"type": "array", "items": {"type": "number"}},
    "integers": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    "kinds": {"type": ["integer", "number", "string", "null"], "exclusiveMinimum": -1.5, "maxLength": 2},
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("reluctant", [False, True])
def test_documents_parse_and_satisfy_the_schema(name, reluctant):
    schema = SCHEMAS[name]
    constraint = json_schema(schema, PRINTABLE, max_depth=3)
    limit = int(constraint.distance[constraint.start]) + 60
    written = texts(walk(constraint, 1000, limit, reluctant=reluctant), PRINTABLE)
    for text in written:
        value = json.loads(text)
        assert satisfies(value, schema, schema), text
        if not re.search(r"\.\d*0\b", text):  # trailing zeros are the one liberty
            assert "." in text or json.dumps(value, ensure_ascii=False) == text
    assert len(set(written)) > (20 if name == "list" else 200)


@pytest.mark.parametrize(
    "schema, right, wrong",
    [
        (
            PERSON,
            [
                {"name": "Ä\t\x01😀", "age": 0},
                {"name": "x", "age": 150, "tags": ["red", 3], "born": "2024-02-29", "other": None},
                {"name": "x", "age": 1, "mail": "a.b@c.org", "other": {"a": [1, 2.5, 'x"\n']}},
                {"name": '"\\/', "age": 7, "score": -0.25, "id": "00000000-0000-4000-8000-0123456789ab"},
                {"name": "x", "age": 1, "at": "2000-02-29T23:59:59.123Z", "other": False},
            ],
            [
                {"name": "", "age": 0}, {"name": "x" * 21, "age": 0}, {"name": "x"}, {"age": 1},
                {"age": 1, "name": "x"}, {"name": "x", "age": 151}, {"name": "x", "age": -1},
                {"name": "x", "age": 1, "tags": []}, {"name": "x", "age": 1, "tags": ["red"] * 6},
                {"name": "x", "age": 1, "score": 1}, [], {"name": "x", "age": 1, "born": "1900-02-29"},
                {"name": "x", "age": 1, "born": "2023-04-31"},
                {"name": "x", "age": 1, "born": "0000-01-01"}, {"name": "x", "age": 1, "at": "2000-02-29T24:00:00Z"},
                {"name": "x", "age": 1, "mail": "aaaaaaaaaaaaaaaaa@b.com"}, {"name": "x", "age": 1, "more": 1},
                {"name": "x", "age": 1, "other": {"a": [1, 2.5, "x"]}},
            ],
        ),
        (
            TREE,
            [{"value": 1, "right": {"value": -12}}, {"value": 0, "left": {"value": 1}, "right": {"value": 130}}],
            [{}, {"value": 1, "left": {}}, {"value": 1, "left": {"value": 131}}],
        ),
        ({"type": "string", "pattern": "b+"}, ["abba", "b", "\nb"], ["", "aca"]),
        ({"type": "string", "pattern": "^b"}, ["b", "ba"], ["", "ab"]),
        ({"type": "string", "pattern": r"^[^\d]\\$"}, ["\t\\", "\x1f\\", '"\\', "é\\"], ["1\\", "a", "ab\\"]),
        ({"type": "string", "pattern": "^[a-c]*$", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "aaaa", "dd"]),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, [[]], [[None]]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2}, [[None] * 2, [None] * 5], [[], [None]]),
        ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
        ({"type": "integer", "enum": [1, "a", None, 2.5, True]}, [1], ["a", None, 2.5, True]),
        ({"enum": [1e30, {"k": []}, "\u2028"]}, [1e30, {"k": []}, "\u2028"], [1, {}]),
        ({"type": "number"}, [0, 3, -2.5, 0.0001, 123456789.25, 10**14], [10**15, 1e-7, 1e22]),
        ({"type": "integer", "minimum": 10**20}, [10**20, 10**25], [10**20 - 1]),
        ({"type": "integer", "exclusiveMaximum": -5e-1, "minimum": -3.5}, [-1, -2, -3], [0, -4]),
    ],
)  # fmt: skip
def test_values_that_a_schema_allows(schema, right, wrong):
    constraint = json_schema(schema, BYTES)
    for value in right:
        assert accepts(constraint, json.dumps(value, ensure_ascii=False), BYTES), value
    for value in wrong:
        assert not accepts(constraint, json.dumps(value, ensure_ascii=False), BYTES), value


@pytest.mark.parametrize("low, high", [(0, 9), (-7, 12), (95, 1023), (-1010, -98), (100, 100), (-3, None), (None, 8)])
def test_integers_of_a_range(low, high):
    bounds = {key: value for key, value in (("minimum", low), ("maximum", high)) if value is not None}
    constraint = json_schema({"type": "integer", **bounds}, PRINTABLE)
    for value in range(-1200, 1200):
        inside = (low is None or low <= value) and (high is None or value <= high)
        assert accepts(constraint, str(value), PRINTABLE) == inside, value
    for text in ("", "-", "-0", "007", "1.0", "1e1", "+1", "0x1"):
        assert not accepts(constraint, text, PRINTABLE)


@pytest.mark.parametrize(
    "low, high", [("0", "1"), ("-0.25", "0.5"), ("1.375", "1.5"), ("-12.5", "-1.25"), ("-3", "101.101")]
)
@pytest.mark.parametrize("exclusive", [False, True])
def test_numbers_of_a_range(low, high, exclusive):
    names = ("exclusiveMinimum", "exclusiveMaximum") if exclusive else ("minimum", "maximum")
    constraint = json_schema({"type": "number", names[0]: float(low), names[1]: float(high)}, PRINTABLE)
    rng = random.Random(0)
    candidates = [f"{rng.uniform(-15, 15):.{rng.randint(0, 6)}f}" for _ in range(500)]
    candidates += [f"{rng.uniform(-0.5, 1.6):.{rng.randint(0, 6)}f}" for _ in range(500)]
    ends = [float(end) + step for end in (low, high) for step in (-1e-6, 0, 1e-6)]
    candidates += [f"{end:.6f}" for end in ends] + [low, high, "0.0", "0", "1.000", "100", "101.1", "101.102"]
    for text in candidates:
        value = Fraction(text)
        inside = Fraction(low) < value < Fraction(high) if exclusive else Fraction(low) <= value <= Fraction(high)
        signed_zero = value == 0 and text.startswith("-")
        assert accepts(constraint, text, PRINTABLE) == (inside and not signed_zero), text
    for text in ("", ".5", "1.", "-0", "-0.0", "00.5", "0.1234567", "1e-1", "NaN", "Infinity"):
        assert not accepts(constraint, text, PRINTABLE)


def test_what_refers_to_itself_stands_within_itself_max_depth_times():
    for depth in (1, 2, 5):
        constraint = json_schema(TREE, PRINTABLE, max_depth=depth)
        for nested in range(1, 8):
            text = '{"value": 0, "left": ' * (nested - 1) + '{"value": 0}' + "}" * (nested - 1)
            assert accepts(constraint, text, PRINTABLE) == (nested <= depth)


@pytest.mark.parametrize(
    "schema, message",
    [
        ([], "`schema` must be an object at #. Received: []"),
        ({}, "must hold a `type`, or one of $ref, enum, const, anyOf, oneOf at #"),
        ({"type": "decimal"}, "`type` must be of object, array, string, integer, number, boolean, null at #"),
        ({"type": []}, "`type` must be of object"),
        ({"type": "integer", "multipleOf": 2}, "must hold supported keywords only at #. Received: 'multipleOf'"),
        ({"allOf": [{"type": "null"}], "not": {}}, "must hold supported keywords only at #. Received: 'allOf', 'not'"),
        ({"type": "array", "items": {"type": "string", "maxItems": 1}}, "hold keywords of type string only at #/items"),
        ({"type": "null", "enum": [None], "minimum": 1}, "nothing else beside `enum` at #. Received: 'minimum'"),
        ({"anyOf": [{"type": "null"}], "const": 1}, "must hold nothing else beside `const` at #. Received: 'anyOf'"),
        ({"anyOf": []}, "`anyOf` must be a list of schemas, not empty at #"),
        ({"anyOf": [True]}, "`schema` must be an object at #/anyOf/0. Received: True"),
        ({"enum": "abc"}, "`enum` must be a list, not empty at #. Received: enum='abc'"),
        ({"const": float("nan")}, "must hold values that JSON can write at #. Received: nan"),
        ({"const": "\ud800"}, "must hold values that JSON can write at #"),
        ({"const": {1, 2}}, "must hold values that JSON can write at #"),
        ({"type": "object"}, "must hold `properties` where it is an object at #"),
        ({"type": "object", "properties": {"a": 1}}, "`schema` must be an object at #/properties/a. Received: 1"),
        ({"type": "object", "properties": []}, "`properties` must be an object at #. Received: properties=[]"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "`required` must be a list of names in `properties`"),
        ({"type": "object", "properties": {}, "additionalProperties": {}}, "`additionalProperties` must be false at #"),
        ({"type": "array"}, "must hold `items` where it is an array at #"),
        ({"type": "array", "items": {"type": "null"}, "minItems": -1}, "`minItems` must be an integer, 0 or more, at"),
        ({"type": "string", "maxLength": 1.5}, "must be an integer, 0 or more, at #. Received: maxLength=1.5"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "`minLength` must not be above `maxLength` at #"),
        ({"type": "string", "format": "email"}, "must be of date, date-time, uuid at #. Received: format='email'"),
        ({"type": "string", "pattern": "(?=a)"}, "at # of the schema, `pattern` must be a supported regular"),
        ({"type": "string", "pattern": 3}, "at # of the schema, `pattern` must be a string"),
        ({"type": "number", "minimum": "3"}, "`minimum` must be a finite number at #. Received: minimum='3'"),
        ({"type": "number", "exclusiveMaximum": True}, "`exclusiveMaximum` must be a finite number at #"),
        ({"type": "number", "maximum": float("inf")}, "`maximum` must be a finite number at #"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "`schema` must allow a value at max_depth=5 or less"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "`schema` must allow a value at max_depth=5 or less"),
        ({"type": "integer", "enum": ["a"]}, "`schema` must allow a value at max_depth=5 or less"),
        ({"$ref": "#/$defs/x"}, "must refer to # or to a definition in #/$defs at #. Received: $ref='#/$defs/x'"),
        ({"$ref": "http://x/y", "$defs": {}}, "must refer to # or to a definition in #/$defs at #"),
        ({"$ref": 3}, "`$ref` must be a string at #. Received: $ref=3"),
        ({"$ref": "#"}, "`schema` must allow a value at max_depth=5 or less"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "allow a value at max_depth=5"),
        ({"type": "string", "minLength": 30_000}, "`schema` must take at most max_states=20000 states"),
        ({"const": "é"}, "`schema` must match a text that the 96 tokens can write"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        json_schema(schema, PRINTABLE)
    assert "\n" not in str(caught.value)


def test_schemas_that_go_too_deep_or_too_wide_are_refused():
    nested = {"type": "null"}
    for _ in range(40):
        nested = {"type": "array", "items": nested}
    with pytest.raises(UserError, match="must not be nested more than 32 deep"):
        json_schema(nested, PRINTABLE)
    names = [f"d{n}" for n in range(12)]  # each refers to all: about 12! ways to nest
    every = {"type": "object", "properties": {n: {"$ref": f"#/$defs/{n}"} for n in names}}
    with pytest.raises(UserError, match="at most max_states=20000 states"):
        json_schema({"$ref": "#/$defs/d0", "$defs": dict.fromkeys(names, every)}, PRINTABLE, max_depth=1)
    with pytest.raises(ValueError, match="`max_depth` must be positive. Received: max_depth=0"):
        json_schema(TREE, PRINTABLE, max_depth=0)


def test_a_typical_schema_compiles_at_once():
    begin = time.perf_counter()
    constraint = json_schema(PERSON, PRINTABLE)
    assert time.perf_counter() - begin < 2
    assert constraint.states < 1000
