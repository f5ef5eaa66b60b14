"""Constraints: languages against `re`, walks that always end, XLA, export, sizes, wrong input."""

import itertools
import random
import re
import time

import numpy as np
import pytest
import tensorflow as tf
from automata import BYTES, PRINTABLE, accepts, pieces_of, texts, walk

from gentf.errors import UserError
from gentf.sampling import constraints
from gentf.sampling.constraints import Constraint, advance, allowed, from_transitions, intersect, tokens
from gentf.sampling.json_schema import json_schema
from gentf.sampling.regex import regex

# Regular expressions


def random_pattern(rng, depth, nested=True):
    """A pattern over a, b, 0 and newline; no quantifier of a quantifier, for which `re` takes exponential time."""
    kind = rng.random()
    if depth == 0 or kind < 0.25:
        return rng.choice(["a", "b", "0", ".", "[ab]", "[^a]", r"\d", r"\w", r"\s", r"\D", r"[^\w]", r"\n", r"[a-b\n]"])
    if kind < 0.55:
        return random_pattern(rng, depth - 1, nested) + random_pattern(rng, depth - 1, nested)
    if kind < 0.75 or not nested:
        empty = rng.choice(["", "", "|"])
        return f"({random_pattern(rng, depth - 1, nested)}|{random_pattern(rng, depth - 1, nested)}{empty})"
    low = rng.randint(0, 2)
    high = low + rng.randint(0, 2)
    quantifiers = ["*", "+", "?", "*?", f"{{{low}}}", f"{{{low},}}", f"{{,{high}}}", f"{{{low},{high}}}"]
    return f"(?:{random_pattern(rng, depth - 1, False)}){rng.choice(quantifiers)}"


def test_random_patterns_accept_what_fullmatch_accepts():
    alphabet, rng, hits = "ab0\n", random.Random(0), 0
    pieces = pieces_of(alphabet)
    short = ["".join(letters) for length in range(5) for letters in itertools.product(alphabet, repeat=length)]
    for number in range(250):
        pattern = random_pattern(rng, 4)
        expected, constraint = re.compile(pattern, re.ASCII), regex(pattern, pieces)
        long = texts(walk(constraint, 8, 12, number, reluctant=True), pieces) if constraint.states > 2 else []
        # a text of the language, and the same with one letter changed, which may or may not be
        long += [text[:5] + rng.choice(alphabet) + text[6:] for text in long]
        for text in short + long:
            matches = expected.fullmatch(text) is not None
            hits += matches
            assert accepts(constraint, text, pieces) == matches, (pattern, text)
    assert hits > 5000


@pytest.mark.parametrize("pattern", [
    "^(ab|ba)$", "^ab|ba$", r"\Aa\Z", "a$$", "^^a", "", "a|", "()", "a{2}b{,2}", "a{", "a{}", "{", "a{,}", "a{x}",
    "a{1,2", "]", "}", "[]a]", "[^]a]", "[a-]", "[-a]", r"[\]a\-]", "[a^]", r"\.\*\\", r"\x61\u0062", r"\U00000061",
    r"[\x61-\u0062]", r"\t\n\r\f\v\a\0", r"[\b]", "(?P<name>a)b", "a*?b+?", "(a|b)*a(a|b){2}", r"\w\W\d\D\s\S",
    "a(?:b)?", "(a*)*b", r"[^\d\s]+", ".", "[.]",
])  # fmt: skip
def test_syntax_is_that_of_re(pattern):
    """On all strings of up to three characters among those that the patterns name."""
    alphabet = "ab{}[]x,1-^.*\\\t\n\x08 "
    constraint, expected = regex(pattern, BYTES), re.compile(pattern, re.ASCII)
    candidates = ["".join(letters) for size in range(4) for letters in itertools.product(alphabet, repeat=size)]
    candidates += ["\t\n\r\f\v\a\0", "aaab", "abab", "aabb", "a-1a b", "a" * 9 + "b"]
    wrong = [t for t in candidates if accepts(constraint, t, BYTES) != (expected.fullmatch(t) is not None)]
    assert not wrong


@pytest.mark.parametrize("pattern", [
    ".", r"\D", r"\W", r"\s", "[^a-z]", "[à-ÿ]", "[Ѐ-ӿ]", "[^Ѐ-ӿ]", "é|ü", r"[\u07fe-\u0801]", r"[\ud7ff-\U00010001]",
    r"[^\x00-\uffff]", r"[\x7f-\x80]", r"[\U0001F600-\U0001F64F]", "[äöü-]", "[一-鿿]", r"[\u1234-\U0010fffe]",
])  # fmt: skip
def test_classes_hold_over_unicode(pattern):
    edges = [
        0x7F,
        0x7FF,
        0x800,
        0xD7FF,
        0xE000,
        0xFFFF,
        0x10000,
        0x10FFFF,
        *map(ord, "azàÿЀӿéüä-一鿿\n \t"),
        0x1F600,
        0x1F64F,
    ]
    codes = {code + step for code in edges for step in (-1, 0, 1)} | set(random.Random(0).sample(range(0x110000), 1000))
    constraint, expected = regex(pattern, BYTES), re.compile(pattern, re.ASCII)
    for code in sorted(codes):
        if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000:
            matches = expected.fullmatch(chr(code)) is not None
            assert accepts(constraint, chr(code), BYTES) == matches, hex(code)


def test_only_utf8_is_written():
    constraint = regex("(.|\n)*", BYTES)
    for wrong in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3", b"\x80", b"\xe0\x80\x80"):
        assert not constraint.accepts([byte + 1 for byte in wrong])
    for text in texts(walk(constraint, 500, 20, reluctant=True), BYTES):  # decodes, or raises
        assert len(text.encode()) <= 19


def test_no_text_breaks_the_rule_and_all_end_in_time():
    pattern = r"[A-Z][a-z]{2,8}( (of|and|the) [a-z]+)*(, \d{1,3}(\.\d+)?)?[.!]"
    constraint = regex(pattern, PRINTABLE)
    for limit, reluctant in ((14, True), (40, False)):
        drawn = walk(constraint, 5000, limit, reluctant=reluctant)
        assert all(re.fullmatch(pattern, text) for text in texts(drawn, PRINTABLE))
    assert len(set(texts(drawn, PRINTABLE))) > 1000


def test_a_limit_that_is_just_enough_leads_to_the_shortest_text():
    pieces = pieces_of("abcdefg")
    constraint = regex("abc(d|ef)*g{3}", pieces)
    assert constraint.distance[constraint.start] == 7  # abcggg and the stop token
    assert set(texts(walk(constraint, 50, 7), pieces)) == {"abcggg"}
    assert set(texts(walk(constraint, 50, 8, reluctant=True), pieces)) == {"abcggg", "abcdggg"}


def test_where_nothing_fits_the_shortest_way_is_taken():
    constraint = regex("a(bbbb|c)d*", pieces_of("abcd"))
    tables, state = constraint.tables(), constraint.start
    for token in (1, 3, 0, 0):
        mask = allowed(tables, tf.constant([state]), tf.constant([0])).numpy()[0]
        assert np.flatnonzero(mask).tolist() == [token]
        state = int(constraint.next_state[state, token])


def test_a_forbidden_token_leaves_the_state():
    constraint = regex("ab", pieces_of("ab"))
    state = tf.constant([constraint.start] * 3)
    after = advance(constraint.tables(), state, tf.constant([0, 1, 2])).numpy()
    assert after[0] == after[2] == constraint.start != after[1]


def test_automata_are_the_smallest():
    """Sizes known from theory: with the final state of the stop token."""
    ab = pieces_of("ab")
    assert regex("(a|b)*a(a|b){6}", ab).states == 2**7 + 1
    assert regex("(a|b)*", ab).states == regex("(a*b*)*", ab).states == 2
    assert regex("a{3}|a{5}", ab).states == regex("aaa(aa)?", ab).states == 7
    assert regex("(a|b){0,40}", ab).states == 42
    assert regex("(aab|bab)(a|b)|(aa|ba)bb", ab).states == 6


def test_pieces_of_many_bytes_write_the_same_texts():
    """A vocabulary like that of byte pair encoding, with pieces that begin and end within a character."""
    rng = random.Random(1)
    pattern = r"(é|[a-c€]{2}){1,3}x?"
    alphabet = "abcé€x"
    merged = {"".join(rng.choices(alphabet, k=rng.randint(1, 3))).encode() for _ in range(60)}
    merged |= {piece[1:] for piece in merged} | {piece[:-1] for piece in merged} | {b"\xa9a", b"\x82"}
    pieces = [b"", b"", *sorted(merged - {b""}), *(bytes([byte]) for byte in sorted(set(alphabet.encode())))]
    fine, coarse = regex(pattern, BYTES), regex(pattern, pieces)
    assert (coarse.next_state[:, 1] == -1).all()  # writes nothing, and is not the stop token
    found = 0
    for _ in range(3000):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 7))).encode()
        place, sequence = 0, []
        while place < len(text):
            fits = [index for index, piece in enumerate(pieces) if piece and text.startswith(piece, place)]
            sequence.append(rng.choice(fits))
            place += len(pieces[sequence[-1]])
        matches = fine.accepts([byte + 1 for byte in text])
        found += matches
        assert coarse.accepts(sequence) == matches
    assert found > 200
    assert all(re.fullmatch(pattern, text) for text in texts(walk(coarse, 1000, 12), pieces))


def test_distances_count_tokens():
    pieces = [b"", b"a", b"aaa", b"b"]
    constraint = regex("a{7}b", pieces)
    assert constraint.distance[constraint.start] == 5  # aaa, aaa, a, b, stop
    assert not constraint.accepts([2, 2, 2]) and constraint.accepts([1, 2, 2, 3])


REFUSED = {
    "backreference \\1 at position 3": r"(a)\1", "a backreference at position 8": "(?P<x>a)(?P=x)",
    "lookahead at position 1": "a(?=b)", "lookahead at position 2": "aa(?!b)", "lookbehind at position 0": "(?<=b)a",
    "lookbehind at position 1": "b(?<!b)a", "a possessive quantifier at position 2": "a*+b",
    "an atomic group at position 0": "(?>a)", "a flag or an unknown group at position 0": "(?i)a",
    "a comment at position 0": "(?#x)a", "a conditional group at position 3": "(a)(?(1)b)",
    "word boundary \\b at position 1": r"a\b", "word boundary \\B at position 0": r"\Ba",
    "anchor ^ inside the pattern at position 1": "a^b", "anchor $ inside the pattern at position 2": "a$b",
    "anchor ^ inside the pattern at position 2": "a(^a)", "a quantifier of a quantifier at position 2": "a**",
    "a quantifier of a quantifier at position 4": "a{2}{3}", "a quantifier of nothing at position 0": "*a",
    "a quantifier of nothing at position 2": "a|?", "a quantifier of nothing at position 1": "^*",
    "a repeat whose minimum is above its maximum at position 1": "a{3,2}", "unclosed ( at position 0": "(a",
    "a repeat count of more than 9 digits at position 1": "a{9999999999}", "unopened ) at position 1": "a)",
    "unclosed [ at position 1": "a[bc", "unclosed [ at position 0": "[]",
    "a range that goes backwards at position 2": "[b-a]",
    "a range that does not go from a character to a character at position 2": r"[a-\d]",
    "a range that does not go from a character to a character at position 3": r"[\w-z]",
    "unknown escape \\p at position 0": r"\p{L}", "\\x without 2 hexadecimal digits at position 0": r"\x1",
    "\\u without 4 hexadecimal digits at position 0": r"\u12g4", "an octal escape at position 0": r"\012",
    "character U+D800, which UTF-8 cannot write, at position 0": r"\ud800",
    "character U+110000, which UTF-8 cannot write, at position 0": r"\U00110000",
    "a group name that is none at position 0": "(?P<1>a)", "a backslash that nothing follows at position 1": "a\\",
    "more than 50 groups in each other at position 50": "(" * 60 + "a" + ")" * 60, "must be a string": 7,
    "at most max_states=20000 states. Received: pattern='a{100000}'": "a{100000}",
    "at most max_states=20000 states. Received: pattern='(a{": "(a{1000}){1000}",
    "at most max_states=20000 states. Received: pattern='(a|)": "(a|){100000000}",
    "at most max_states=20000 states. Received: pattern='(a|b)": "(a|b)*a(a|b){20}",
    "match a text that the 3 tokens can write. Received: pattern='z'": "z",
    "match a text that the 3 tokens can write. Received: pattern='a(": r"a(?:b|[^\d\D])z",
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_patterns_that_are_refused(message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        regex(REFUSED[message], [b"", b"a", b"b"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and "pattern=" in str(caught.value)


@pytest.mark.parametrize(
    "pieces, options, message",
    [
        ([], {}, "`pieces` must be bytes, one of each token. Received: none"),
        ([b"", "a"], {}, "`pieces` must be bytes, one of each token. Received: 'a' at 1"),
        ([b"", b"a"], {"stop": 2}, "`stop` must be in 0..1. Received: stop=2"),
        ([b"", b"a"], {"stop": 1}, "must be b\"\" for the stop token. Received: b'a' at 1"),
        ([b"", b"a"], {"max_states": 1}, "`max_states` must be 2 or more. Received: max_states=1"),
        ([b"", b"a", b""], {"max_states": 3}, "at most max_states=3 states"),
    ],
)
def test_arguments_that_are_refused(pieces, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        regex("aaaa", pieces, **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        json_schema({"const": "aaaaaa"}, pieces, **options)


def test_max_states_bounds_the_result():
    pieces = pieces_of("ab")
    for bound in range(2, 30):
        try:
            assert regex("(a|b)*a(a|b){3}", pieces, max_states=bound).states <= bound
        except UserError:
            assert bound < 30
    assert regex("(a|b)*a(a|b){3}", pieces, max_states=30).states == 17


# Rules on tokens


def test_tokens_of_a_range():
    constraint = tokens([2, 3, 0], 5, min_length=2)
    assert constraint.distance[constraint.start] == 3
    for length in range(5):
        for sequence in itertools.product(range(1, 5), repeat=length):
            assert constraint.accepts(sequence) == (length >= 2 and set(sequence) <= {2, 3})
    assert tokens(np.arange(5), 5, stop=4).accepts([])
    assert not tokens(np.arange(5), 5, stop=4).accepts([1, 4, 1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1], 0), "`vocabulary` must be positive"),
        (([1], 3, 3), "`stop` must be in 0..2. Received: stop=3"),
        (([], 3), "`allowed` must be integers, one that is not stop=0 at least"),
        (([0], 3), "`allowed` must be integers, one that is not stop=0 at least"),
        (([1.5], 3), "`allowed` must be integers"),
        (([1, 3], 3), "`allowed` must be in 0..2. Received: 1..3"),
        (([1, -1], 3), "`allowed` must be in 0..2. Received: -1..1"),
        (([1], 3, 0, -1), "`min_length` must be in 0..20000. Received: min_length=-1"),
        (([1], 10**6, 0, 20_000), "must have at most 268435456 entries"),
    ],
)
def test_token_ranges_that_are_refused(arguments, message):
    positional, options = arguments[:2], dict(zip(("stop", "min_length"), arguments[2:]))
    with pytest.raises(ValueError, match=message):
        tokens(*positional, **options)


def test_states_without_use_are_dropped():
    # 0 -1-> 1 -2-> 2 (accepting); 1 -1-> 3, from which nothing ends; 4 is never reached
    table = np.full((5, 3), -1)
    table[0, 1], table[1, 2], table[1, 1], table[3, 1], table[4, 1] = 1, 2, 3, 3, 2
    constraint = from_transitions(table, np.arange(5) == 2)
    assert constraint.next_state.tolist() == [[-1, 1, -1], [-1, -1, 2], [3, -1, -1], [3, -1, -1]]
    assert constraint.distance.tolist() == [3, 2, 1, 0]
    moved = from_transitions(table, np.arange(5) == 2, start=1)
    assert (moved.states, moved.start, moved.accepts([2])) == (3, 0, True)


@pytest.mark.parametrize(
    "table, accepting, options, message",
    [
        (np.zeros(3, int), np.ones(3, bool), {}, "`next_state` must be (S, V) integers. Received: int64 of shape (3,)"),
        (np.zeros((2, 2)), np.ones(2, bool), {}, "must be (S, V) integers. Received: float64 of shape (2, 2)"),
        (np.zeros((0, 2), int), np.ones(0, bool), {}, "Received: int64 of shape (0, 2)"),
        ([[-1, 2]], [True], {}, "`next_state` must be in -1..0. Received: -1..2"),
        ([[-1, -2]], [True], {}, "`next_state` must be in -1..0. Received: -2..-1"),
        ([[-1, 0]], [1], {}, "`accepting` must be (1,) bool. Received: int64 of shape (1,)"),
        ([[-1, 0]], [True, True], {}, "`accepting` must be (1,) bool"),
        ([[0, 0]], [True], {}, "must be -1 for the stop token in every state. Received: stop=0"),
        ([[-1, 0]], [True], {"start": 1}, "`start` must be in 0..0. Received: start=1"),
        ([[-1, 0]], [True], {"stop": 2}, "`stop` must be in 0..1. Received: stop=2"),
        ([[-1, 0]], [False], {}, "`accepting` must hold a state that can be reached from the start"),
    ],
)
def test_transitions_that_are_refused(table, accepting, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_transitions(table, np.asarray(accepting), **options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"next_state": np.zeros((3, 2))}, "`next_state` must be (S, V) int32. Received: float64"),
        ({"next_state": np.full((3, 2), 9, np.int32)}, "`next_state` must be in -1..2. Received: 9..9"),
        ({"distance": np.array([2, 1], np.int32)}, "`distance` must be (3,) int32. Received: int32 of shape (2,)"),
        ({"distance": np.array([2.0, 1.0, 0.0])}, "`distance` must be (3,) int32. Received: float64"),
        ({"distance": np.array([2, 0, 0], np.int32)}, "Received: 0 for 2 states"),
        ({"distance": np.array([2, 1, -1], np.int32)}, "`distance` must be 0 for one state"),
        ({"distance": np.array([3, 1, 0], np.int32)}, "Received: distance=3 of state 0"),
        ({"next_state": np.array([[-1, -1], [2, 1], [2, -1]], np.int32)}, "Received: distance=2 of state 0"),
        ({"next_state": np.array([[-1, 1], [2, 2], [2, -1]], np.int32)}, "lead by the stop token alone to the final"),
        ({"next_state": np.array([[-1, 1], [2, 1], [2, 1]], np.int32)}, "lead by the stop token alone to the final"),
        ({"next_state": np.array([[1, 1], [2, 1], [2, -1]], np.int32)}, "lead by the stop token alone to the final"),
        ({"start": 3}, "`start` must be in 0..2. Received: start=3"),
        ({"stop": -1}, "`stop` must be in 0..1. Received: stop=-1"),
    ],
)
def test_invariants_are_checked(change, message):
    good = {
        "next_state": np.array([[-1, 1], [2, 1], [2, -1]], np.int32),  # one or more of token 1
        "distance": np.array([2, 1, 0], np.int32),
        "start": 0,
    }
    assert Constraint(**good).accepts([1, 1])
    with pytest.raises(ValueError, match=re.escape(message)):
        Constraint(**{**good, **change})


def test_intersection_allows_what_both_allow():
    pieces, rng = pieces_of("ab0\n"), random.Random(3)
    strings = [s for length in range(5) for s in itertools.product(range(1, 5), repeat=length)]
    common = 0
    for _ in range(60):
        a, b = (regex(random_pattern(rng, 3), pieces) for _ in range(2))
        expected = [a.accepts(s) and b.accepts(s) for s in strings]
        try:
            both = intersect(a, b)
        except UserError as error:
            assert "must have a sequence in common" in str(error) and not any(expected)
            continue
        assert [both.accepts(s) for s in strings] == expected
        common += any(expected)
    assert common > 20
    vowels, short = regex("[^xyz]*e", PRINTABLE), tokens(range(34, 90), 96, min_length=3)
    drawn = walk(intersect(vowels, short), 200, 9)
    assert all(re.fullmatch("[^xyz]{2,}e", text) for text in texts(drawn, PRINTABLE))


def test_intersections_that_are_refused():
    a = regex("(a|b)*a(a|b){6}", pieces_of("ab"))
    with pytest.raises(ValueError, match="one vocabulary and stop token. Received: vocabularies 3 and 4"):
        intersect(a, tokens([1], 4))
    with pytest.raises(ValueError, match="stop tokens 0 and 2"):
        intersect(a, tokens([1], 3, stop=2))
    with pytest.raises(UserError, match="at most max_states=100 states together"):
        intersect(a, a, max_states=100)
    with pytest.raises(UserError, match="must have a sequence in common"):
        intersect(regex("a+", pieces_of("ab")), regex("b+", pieces_of("ab")))


# TensorFlow


def test_xla_and_eager_agree_in_every_state():
    constraint = regex("(ab|c{2,5})*d|é", [b"", b"a", b"b", b"c", b"cc", b"d", "é".encode(), b"\xc3", b"\xa9"])
    tables = constraint.tables()
    state, remaining, token = (
        tf.constant(np.ravel(grid), tf.int32)
        for grid in np.meshgrid(np.arange(constraint.states), np.arange(-1, 8), np.arange(constraint.vocabulary))
    )
    compiled_mask = tf.function(lambda s, r: allowed(tables, s, r), jit_compile=True)
    compiled_step = tf.function(lambda s, t: advance(tables, s, t), jit_compile=True)
    mask = allowed(tables, state, remaining).numpy()
    np.testing.assert_array_equal(compiled_mask(state, remaining), mask)
    np.testing.assert_array_equal(compiled_step(state, token), advance(tables, state, token))
    for s, r, row in zip(state.numpy(), remaining.numpy(), mask):  # by the definition, token by token
        after = constraint.next_state[s]
        fits = [a >= 0 and constraint.distance[a] <= r - 1 for a in after]
        least = min(constraint.distance[a] for a in after if a >= 0)
        assert row.tolist() == (fits if any(fits) else [a >= 0 and constraint.distance[a] == least for a in after])


def test_a_saved_model_holds_the_rule(tmp_path):
    tables = regex("a{3}b?", pieces_of("ab")).tables()

    class Rule(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)] * 3)
        def step(self, state, remaining, token):
            return {"allowed": allowed(tables, state, remaining), "state": advance(tables, state, token)}

    rule = Rule()
    tf.saved_model.save(rule, str(tmp_path), signatures={"step": rule.step})
    loaded = tf.saved_model.load(str(tmp_path)).signatures["step"]
    arguments = {"state": tf.constant([0, 3]), "remaining": tf.constant([9, 9]), "token": tf.constant([1, 2])}
    for name, value in rule.step(**arguments).items():
        np.testing.assert_array_equal(loaded(**arguments)[name], value)


# Size


def test_a_large_vocabulary_compiles_in_seconds():
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b' etaoinshrdlucmfwyp0123456789,.:{}[]"', np.uint8)
    words = {bytes(rng.choice(letters, rng.integers(2, 12)).tolist()) for _ in range(55_000)}
    pieces = [*BYTES, *sorted(words)][:50_000]
    begin = time.perf_counter()
    constraint = regex(r"([a-z]+ ){0,20}\d{1,60}(é|[^0-9]){1,10}", pieces)
    assert time.perf_counter() - begin < 10
    assert constraint.states > 100 and constraint.vocabulary == 50_000
    # tokens of many characters, at random places, against the same rule read byte by byte
    fine = regex(r"([a-z]+ ){0,20}\d{1,60}(é|[^0-9]){1,10}", BYTES)
    for row in walk(constraint, 20, 12):
        text = b"".join(pieces[token] for token in row)
        assert fine.accepts([byte + 1 for byte in text])


def test_a_table_that_is_too_large_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(constraints, "_MAX_ENTRIES", 1000)
    with pytest.raises(
        UserError, match=r"at most 1000 entries \(states times tokens\). Received: 31 states, 96 tokens"
    ):
        regex("a{29}", PRINTABLE)
