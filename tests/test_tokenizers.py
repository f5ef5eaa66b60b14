"""Tokenizers: laws over all kinds, the same tokens in Python and in a served graph, training, bad content."""

import json
import re
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from gentf.data import bpe
from gentf.data.tokenizers import BOUNDARY, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, train
from gentf.errors import UserError

TEXT = (
    "It isn't the year 2019, nor 12345678: it's  “naïve” — ça va?\n\n\tdef f(x):\r\n        return x**2  # 東京へ。\n"
    "aaaa aaaaa aaaaaaa banana bananas ananas 😀😀👍🏽 don’t 'tis rock'n'roll ''quoted'' ... ======= \x00\x7f \ufeffend"
)
LONG = "=" * 70 + "a" * 100 + " " + "b'" * 40 + "c" + " " * 40 + "é" * 65 + "1" * 10 + "\n" * 40
CHAR = train("char", [TEXT, LONG])
BYTE = ByteTokenizer()
BPE = train("bpe", [TEXT * 3, LONG], size=420)
ALL = [CHAR, BYTE, BPE]
NAMES = [tokenizer.kind for tokenizer in ALL]
# Characters at the edges of every kind, and what a random draw seldom puts side by side.
EDGES = "".join(chr(c + d) for c, _ in bpe._KINDS for d in (-1, 0) if c + d >= 0) + "'’ \n\tab1.éß東😀\U0010ffff"
texts = st.one_of(st.text(), st.text(EDGES), st.text("ab' \n", max_size=80), st.text("a", max_size=70), st.just(LONG))


def tensors(tokenizer):
    encode = tf.function(tokenizer.encode_tensor, input_signature=[tf.TensorSpec([None], tf.string)])
    specs = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]
    return encode, tf.function(tokenizer.decode_tensor, input_signature=specs)


GRAPHS = {tokenizer.kind: tensors(tokenizer) for tokenizer in ALL}


def encode_all(tokenizer, rows):
    tokens, lengths = GRAPHS[tokenizer.kind][0](tf.constant(rows, tf.string))
    return tokens.numpy(), lengths.numpy()


def decode_all(tokenizer, tokens, lengths):
    return GRAPHS[tokenizer.kind][1](np.array(tokens, np.int32), np.array(lengths, np.int32)).numpy().tolist()


def message(function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(text):
    """A drawn text as the tokenizer of characters can take it."""
    return "".join(character for character in text if character in set(CHAR.characters))


# Laws of all kinds


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
@settings(deadline=None, max_examples=120)
@given(rows=st.lists(texts, max_size=4))
def test_python_and_tensorflow_agree_and_come_back(tokenizer, rows):
    rows = list(map(whole, rows)) if tokenizer is CHAR else rows
    tokens, lengths = encode_all(tokenizer, rows)
    assert tokens.dtype == lengths.dtype == np.int32
    assert tokens.shape == (len(rows), max(lengths, default=0))
    for row, length, text in zip(tokens, lengths, rows):
        expected = tokenizer.encode(text)
        assert expected.dtype == np.int32 and expected.ndim == 1
        np.testing.assert_array_equal(row[:length], expected)
        assert (row[:length] > 0).all() and (row[length:] == BOUNDARY).all()
        assert tokenizer.decode(expected) == text
    assert decode_all(tokenizer, tokens, lengths) == [text.encode() for text in rows]


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_tokens_decode_to_the_same_text_in_both(tokenizer, data):
    token = st.one_of(st.integers(0, tokenizer.size - 1), st.integers(0, min(tokenizer.size, 257) - 1))
    rows = data.draw(st.lists(st.lists(token, min_size=6, max_size=6), min_size=1, max_size=5))
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=len(rows), max_size=len(rows)))
    expected = [tokenizer.decode(row[:length]) for row, length in zip(rows, lengths)]
    assert [text.decode() for text in decode_all(tokenizer, rows, lengths)] == expected


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_rows_do_not_depend_on_each_other(tokenizer):
    rows = [whole(row) for row in ("it's", "", TEXT, LONG, "a", "aaaa", "'", "' a")]
    together, lengths = encode_all(tokenizer, rows)
    for number, text in enumerate(rows):
        alone, (length,) = encode_all(tokenizer, [text])
        assert length == lengths[number]
        np.testing.assert_array_equal(alone[0], together[number, :length])


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_nothing_at_all(tokenizer):
    assert encode_all(tokenizer, [])[0].shape == (0, 0)
    tokens, lengths = encode_all(tokenizer, ["", ""])
    assert tokens.shape == (2, 0) and lengths.tolist() == [0, 0]
    assert decode_all(tokenizer, tokens, lengths) == [b"", b""]
    assert decode_all(tokenizer, np.zeros((0, 3)), []) == []
    assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == np.int32
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_boundaries_are_left_out_and_end_nothing(tokenizer):
    tokens = [0, *tokenizer.encode("a").tolist(), 0, 0, *tokenizer.encode("b").tolist(), 0]
    assert tokenizer.decode(tokens) == "ab"
    assert decode_all(tokenizer, [tokens, tokens], [len(tokens), 2]) == [b"ab", b"a"]
    # lengths beyond the row, or negative, and tokens outside the vocabulary
    assert decode_all(tokenizer, [tokens, tokens], [99, -1]) == [b"ab", b""]
    assert decode_all(tokenizer, [[tokens[1], tokenizer.size, -1, tokens[1]]], [4]) == [b"aa"]


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_pieces_and_dictionaries(tokenizer):
    assert tokenizer.BOUNDARY == 0 and tokenizer.pieces[0] == b"" and len(tokenizer.pieces) == tokenizer.size
    assert len(set(tokenizer.pieces)) == tokenizer.size
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert type(again) is type(tokenizer) and again.pieces == tokenizer.pieces
    assert again.to_dict() == tokenizer.to_dict()
    np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
    joined = b"".join(tokenizer.pieces[token] for token in tokenizer.encode(TEXT))
    assert joined == TEXT.encode()


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_served_from_a_saved_model(tokenizer, tmp_path):
    module = tf.Module()
    encode, decode = tensors(tokenizer)
    module.encode = tf.function(
        lambda text: dict(zip(("tokens", "lengths"), encode(text))), input_signature=encode.input_signature
    )
    module.decode = tf.function(
        lambda tokens, lengths: {"text": decode(tokens, lengths)},
        input_signature=[tf.TensorSpec([None, None], tf.int32, "tokens"), tf.TensorSpec([None], tf.int32, "lengths")],
    )
    tf.saved_model.save(module, tmp_path, signatures={"encode": module.encode, "decode": module.decode})
    loaded = tf.saved_model.load(tmp_path)
    rows = [TEXT, "", LONG[:90], "it's"]
    served = loaded.signatures["encode"](tf.constant(rows))
    for row, length, text in zip(served["tokens"].numpy(), served["lengths"].numpy(), rows):
        np.testing.assert_array_equal(row[:length], tokenizer.encode(text))
    shown = loaded.signatures["decode"](**served)["text"].numpy()
    assert [text.decode() for text in shown] == rows

    saved = saved_model_pb2.SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    ops = {node.op for node in nodes}
    assert {"UnicodeTranscode", "ReduceJoin"} <= ops  # the functions' own operations have been looked at
    assert not [op for op in ops if re.search("^Py|^EagerPy|Xla|HashTable|LookupTable|Sentencepiece", op)]
    assert not any(node.attr["_XlaMustCompile"].b for node in nodes)


# Characters


def test_characters_by_hand():
    tokenizer = CharTokenizer("abé")
    assert tokenizer.size == 4 and tokenizer.pieces == (b"", b"a", b"b", "é".encode())
    assert tokenizer.encode("béa").tolist() == [2, 3, 1]
    tokens, lengths = tokenizer.encode_tensor(tf.constant(["béa", "xbyé😀", "zz", b"a\xffb"]))
    assert tokens.numpy().tolist() == [[2, 3, 1], [2, 3, 0], [0, 0, 0], [1, 2, 0]]  # the unknown are left out
    assert lengths.numpy().tolist() == [3, 2, 0, 2]


def test_unknown_characters_are_named():
    tokenizer = CharTokenizer("ab")
    assert message(tokenizer.encode, "a\té") == (
        "`text` must hold no characters outside the alphabet. Received: '\\t' (U+0009), 'é' (U+00E9)"
    )
    assert message(tokenizer.encode, "axxyyzw😀").endswith("'x' (U+0078), 'y' (U+0079), 'z' (U+007A) and 2 more")
    assert "'\\ud800' (U+D800)" in message(tokenizer.encode, "a\ud800")


def test_a_megabyte_of_characters_is_fast():
    text = whole(TEXT) * (1_000_000 // len(whole(TEXT)) + 1)
    best = min(_seconds(lambda: CHAR.encode(text)) for _ in range(3))
    assert best < 0.1


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# Bytes


def test_bytes_by_hand():
    assert BYTE.size == 257 and BYTE.encode("aé").tolist() == [98, 0xC3 + 1, 0xA9 + 1]
    tokens, lengths = BYTE.encode_tensor(tf.constant([b"\x00\xff"]))  # kept, though it is not UTF-8
    assert tokens.numpy().tolist() == [[1, 256]] and lengths.numpy().tolist() == [2]


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_a_character_cut_off_becomes_the_replacement_character(tokenizer):
    cut = [1 + value for value in "a😀".encode()[:-1]]
    assert tokenizer.decode(cut) == "a\ufffd"
    assert decode_all(tokenizer, [cut], [len(cut)]) == ["a\ufffd".encode()]


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_half_a_surrogate_pair_is_named(tokenizer):
    assert message(tokenizer.encode, "ab\ud83d") == (
        "`text` must be Unicode text. Received: '\\ud83d', half of a surrogate pair, at character 2"
    )


def test_bpe_takes_invalid_bytes_as_the_replacement_character():
    tokens, lengths = encode_all(BPE, [b"a\xff b", "a\ufffd b"])
    np.testing.assert_array_equal(tokens[0], tokens[1])
    np.testing.assert_array_equal(tokens[1, : lengths[1]], BPE.encode("a\ufffd b"))


# Words and merges


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("Hello, world!", ["Hello", ",", " world", "!"]),
        ("a  b   c", ["a", " ", " b", "  ", " c"]),
        ("it's 'tis o''er don’t '", ["it's", " '", "tis", " o", "''", "er", " don’t", " '"]),
        ("in 2019 and 123456", ["in", " ", "201", "9", " and", " ", "123", "456"]),
        ("x = f(1)\n    y\t\r\n", ["x", " =", " f", "(", "1", ")", "\n", "   ", " y", "\t\r\n"]),
        ("naïve—“東京”。", ["naïve", "—“", "東京", "”。"]),
        ("é" * 40, ["é" * 32, "é" * 8]),
        (" " + "é" * 40, [" " + "é" * 31, "é" * 9]),
        (" " * 70 + "a", [" " * 32, " " * 32, " " * 5, " a"]),
        ("a" * 32 + "'a", ["a" * 32, "'a"]),
    ],
)
def test_words_by_hand(text, expected):
    assert bpe.words(text) == expected
    codes = tf.constant([ord(character) for character in text], tf.int32)
    starts = bpe.word_starts(codes, tf.zeros_like(codes)).numpy()
    assert np.flatnonzero(starts).tolist() == np.cumsum([0, *map(len, expected[:-1])])[: len(expected)].tolist()


def test_every_character_is_in_a_word_of_the_same_kind_in_both():
    text = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    found = bpe.words(text)
    assert "".join(found) == text
    codes = tf.constant(np.frombuffer(text.encode("utf-32-le"), "<i4"))
    starts = np.flatnonzero(bpe.word_starts(codes, tf.zeros_like(codes)))
    np.testing.assert_array_equal(starts, np.cumsum([0, *map(len, found[:-1])]))


def test_merges_by_hand():
    a, b = ord("a") + 1, ord("b") + 1
    tokenizer = BPETokenizer([(a, a), (257, b), (b, 257), (257, 257)])  # aa, aab, baa, aaaa
    assert tokenizer.pieces[257:] == (b"aa", b"aab", b"baa", b"aaaa")
    for text, expected in {
        "aaa": [257, a],  # from the left
        "aaaaa": [260, a],
        "aab": [258],
        "baab": [b, 258],  # aab was learned before baa
        "baaa": [259, a],
        "aaaaaaaab": [260, 257, 258],
    }.items():
        assert tokenizer.encode(text).tolist() == expected, text
        assert tokenizer.encode_tensor(tf.constant([text]))[0].numpy().tolist() == [expected], text


def test_two_merges_may_make_one_token():
    a, b, c = (ord(x) + 1 for x in "abc")
    tokenizer = BPETokenizer([(a, b), (257, c), (b, c), (a, 259)])  # ab, abc, bc, abc again
    assert tokenizer.size == 260 and tokenizer.pieces[258] == b"abc"
    assert tokenizer.encode("abc").tolist() == [258]
    assert Tokenizer.from_dict(tokenizer.to_dict()).pieces == tokenizer.pieces


def test_no_merges_are_bytes():
    tokenizer = BPETokenizer([])
    np.testing.assert_array_equal(tokenizer.encode(TEXT), BYTE.encode(TEXT))
    np.testing.assert_array_equal(tokenizer.encode_tensor(tf.constant([TEXT]))[0][0], BYTE.encode(TEXT))


# Training


def test_the_most_frequent_pair_is_learned_first():
    tokenizer = train("bpe", ["abab abab xyxz", "ab"], size=1000)
    assert tokenizer.pieces[257:] == (b"ab", b"abab")  # no other pair occurs twice within words


def test_training_reaches_the_size_is_deterministic_and_shortens_the_text():
    text = " ".join(f"w{n * n} {n % 7}x{n % 13}y" for n in range(3000))
    first, second = (train("bpe", iter([text, TEXT]), size=600) for _ in range(2))
    assert first.size == 600 and first.to_dict() == second.to_dict()
    assert len(first.encode(text)) < 0.8 * len(BYTE.encode(text))
    assert train("bpe", [text], size=257).size == 257


def test_a_string_is_one_document():
    assert train("char", "ba").characters == "ab"
    assert train("bpe", "abab abab", 258).pieces[257] == b"ab"


def test_training_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    train("bpe", ["ab ab"], 258)
    assert "TOKENIZERS_PARALLELISM" not in bpe.os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    train("bpe", ["ab ab"], 258)
    assert bpe.os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_without_the_library_training_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install tokenizers" in message(train, "bpe", ["abc"])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("word", ["a"]), "`kind` must be one of char, byte, bpe. Received: kind='word'"),
        (("char", ["a"], 30), "`size` must be None for kind 'char', which has its own. Received: size=30"),
        (("bpe", ["a"], 256), "`size` must be an integer in 257..1048576. Received: size=256"),
        (("bpe", ["a"], 300.0), "Received: size=300.0"),
        (("char", ["", ""]), "`text` must hold at least one character to learn from. Received: none"),
        (("bpe", []), "`text` must hold at least one character to learn from. Received: none"),
        (("char", [b"a"]), "`text` must be a string. Received: bytes"),
        (("bpe", ["a", None]), "`text` must be a string. Received: NoneType"),
        (("char", ["a\udfff"]), "half of a surrogate pair, at character 1"),
        (("bpe", ["a\udfff"]), "half of a surrogate pair, at character 1"),
    ],
)
def test_training_that_cannot_be_done(arguments, expected):
    assert expected in message(train, *arguments)


# Bad content


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "a tokenizer must be a mapping with `kind` one of char, byte, bpe. Received: NoneType"),
        ({}, "Received: kind=None"),
        ({"kind": "wordpiece"}, "Received: kind='wordpiece'"),
        ({"kind": ["bpe"]}, "Received: kind=['bpe']"),
        ({"kind": "byte", "size": 257}, "a tokenizer of kind byte must have the keys kind. Received: kind, size"),
        ({"kind": "char"}, "must have the keys characters, kind. Received: kind"),
        ({"kind": "char", "characters": ""}, "`characters` must be a string of one or more"),
        ({"kind": "char", "characters": ["a"]}, "`characters` must be a string of one or more"),
        ({"kind": "char", "characters": "ba"}, "Received: characters='ba'"),
        ({"kind": "char", "characters": "aab"}, "Received: characters='aab'"),
        ({"kind": "char", "characters": "a\ud800"}, "`characters` must be Unicode text"),
        ({"kind": "bpe", "merges": "ab"}, "`merges` must be pairs of tokens. Received: merges='ab'"),
        ({"kind": "bpe", "merges": 7}, "`merges` must be pairs of tokens. Received: merges=7"),
        ({"kind": "bpe", "merges": [[98, 98], [98, 98]]}, "each once. Received: merges[1]=[98, 98]"),
        ({"kind": "bpe", "merges": [[98, 257]]}, "Received: merges[0]=[98, 257]"),  # not made yet
        ({"kind": "bpe", "merges": [[0, 98]]}, "Received: merges[0]=[0, 98]"),
        ({"kind": "bpe", "merges": [[98]]}, "Received: merges[0]=[98]"),
        ({"kind": "bpe", "merges": [98]}, "Received: merges[0]=98"),
        ({"kind": "bpe", "merges": [[98, True]]}, "Received: merges[0]=[98, True]"),
        ({"kind": "bpe", "merges": [[98, "a"]]}, "Received: merges[0]=[98, 'a']"),
    ],
)
def test_bad_content(content, expected):
    with pytest.raises(UserError) as caught:
        Tokenizer.from_dict(content)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_wrong_arguments(tokenizer):
    assert message(tokenizer.encode, b"a") == "`text` must be a string. Received: bytes"
    high = tokenizer.size - 1
    assert message(tokenizer.decode, [1, high + 1]) == f"`tokens` must lie in 0..{high}. Received: 1..{high + 1}"
    assert message(tokenizer.decode, [-1]).endswith("Received: -1..-1")
    assert message(tokenizer.decode, [[1]]) == "`tokens` must be (n,) integers. Received: int64 of shape (1, 1)"
    assert "float64 of shape (1,)" in message(tokenizer.decode, [1.0])
