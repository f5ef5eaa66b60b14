"""Documents from files, folders, builders and the manual; splits; streams of tokens; pairs of sequences."""

import datetime
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gentf.data.pairs import DATE_FORMATS, arithmetic, dates, pad_pairs, read_pairs
from gentf.data.text import Documents, pack, read_documents, read_text, split_documents, windows
from gentf.data.tokenizers import ByteTokenizer, CharTokenizer, train
from gentf.errors import UserError

tfds.disable_progress_bar()
PREPARED = Path(os.environ.get("TFDS_DATA_DIR", "nowhere"))
SHAKESPEARE = Path(os.environ.get("GENTF_TEST_DATA", "nowhere")) / "text/tinyshakespeare/input.txt"


def message(function, *arguments, error=UserError, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert caught.type is error and "\n" not in str(caught.value)
    return str(caught.value)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Files and folders


def test_a_file_is_one_document_byte_for_byte(tmp_path):
    text = "First\n\n  “Second”\r third\t\n\n\n"
    path = write(tmp_path / "play.txt", text)
    assert read_documents(path) == Documents([text], name=str(path))
    assert read_documents(str(path)).train == [text]
    assert read_text(path) == text
    assert read_documents(write(tmp_path / "odd.name", "x")).train == ["x"]  # whatever it is called


def test_marks_and_carriage_returns(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\r\r\n\xef\xbb\xbf")
    assert read_documents(path).train == ["one\ntwo\rthree\r\n\ufeff"]


@pytest.mark.parametrize(
    "documents, expected",
    [
        ("file", ["\n\none\ntwo\n\n \t\n  three\n\n\n"]),
        ("blank_line", ["one\ntwo", "  three"]),
        ("line", ["one", "two", " \t", "  three"]),
    ],
)
def test_a_file_is_cut_into_documents(tmp_path, documents, expected):
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n\n \t\n  three\n\n\n")
    assert read_documents(path, documents=documents).train == expected


def test_a_folder_is_a_document_a_file(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.PY", "c.rst", ".hidden.txt", ".git/d.txt", "image.png", "README"):
        write(tmp_path / name, name)
    write(tmp_path / "a/__init__.py", "")
    os.symlink(tmp_path / "a", tmp_path / "a/b/loop")
    calls = []
    found = read_documents(tmp_path, lambda *call: calls.append(call))
    assert found.train == ["a/b/c.PY", "a/z.md", "b.txt", "c.rst"] and found.validation is None and found.test is None
    assert calls[-1] == ("reading files", 5, 5)
    write(tmp_path / "b.txt", "one\n\ntwo\n")
    assert read_documents(tmp_path, documents="blank_line").train == ["a/b/c.PY", "a/z.md", "one", "two", "c.rst"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "{path} is empty"),
        (b"\xef\xbb\xbf", "{path} is empty"),
        (b"abc\xffdef", "{path} must be UTF-8 text. Received: byte 0xff at offset 3"),
        (b"\xef\xbb\xbfab\xe9", "{path} must be UTF-8 text. Received: byte 0xe9 at offset 5"),
        ("ab".encode("utf-16"), "{path} must be UTF-8 text. Received: byte 0xff at offset 0"),
        (b"\x7fELF\x02\x00", "{path} must be text. Received: byte 0x00 at offset 5"),
    ],
)
def test_files_that_are_not_text(tmp_path, content, expected):
    path = write(tmp_path / "a.txt", content)
    assert message(read_documents, path) == expected.format(path=path)
    write(tmp_path / "b.txt", "good")
    if "empty" in expected:
        assert read_documents(tmp_path).train == ["good"]
    else:
        assert message(read_documents, tmp_path) == expected.format(path=path)


def test_what_is_not_there(tmp_path):
    assert message(read_documents, tmp_path / "no.txt") == f"cannot read {tmp_path}/no.txt: No such file or directory"
    assert message(read_text, tmp_path).startswith(f"cannot read {tmp_path}: Is a directory")
    assert message(read_documents, tmp_path).startswith(f"{tmp_path} holds no text files: no file in it ends in .txt,")
    write(tmp_path / "a.txt", "")
    assert message(read_documents, tmp_path) == f"{tmp_path} holds no text"
    path = write(tmp_path / "blank.txt", " \n\n")
    assert message(read_documents, path, documents="blank_line") == f"{path} holds no text"
    assert message(read_documents, path, documents="word", error=ValueError) == (
        "`documents` must be one of file, blank_line, line. Received: documents='word'"
    )


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert "did you mean tiny_shakespeare" in message(read_documents, "tiny_shakespear")
    assert "did you mean python-docs" in message(read_documents, "python_docs")
    assert message(read_documents, "qqqqqqqq").startswith("no text, folder or file is called 'qqqqqqqq'")
    assert message(read_documents, "").startswith("no text, folder or file is called ''")


def test_a_name_is_a_name_before_it_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "python-docs/a.txt", "mine")
    write(tmp_path / "notes", "words")
    assert len(read_documents("python-docs").train) > 50
    assert read_documents("./python-docs").train == ["mine"]
    assert read_documents("python-docs/a.txt").train == ["mine"]
    assert read_documents("notes").train == ["words"]


def test_the_manual():
    from pydoc_data.topics import topics

    found = read_documents("python-docs")
    assert found.train == [topics[name] for name in sorted(topics)]
    assert sum(map(len, found.train)) > 300_000 and "lambda" in "".join(found.train)
    assert (found.name, found.licence, found.validation, found.test) == ("python-docs", "PSF-2.0", None, None)


# Builders


class Verses(tfds.core.GeneratorBasedBuilder):
    """Verses in the splits train and dev, beside their numbers."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: dict = {"verse": tfds.features.Text(), "number": np.int64}

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features, license="CC0")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(5)), "dev": self._generate_examples(range(5, 7))}

    def _generate_examples(self, numbers):
        for number in numbers:
            example = {"verse": f"vërse {number}\r\nend", "number": number}
            yield number, {key: example.get(key, "a title") for key in self.FEATURES}


class TwoTexts(Verses):
    """Two texts, none of them called so."""

    FEATURES = {"verse": tfds.features.Text(), "title": tfds.features.Text()}


class Titled(Verses):
    """Two texts, one of them called so."""

    FEATURES = {"text": tfds.features.Text(), "title": tfds.features.Text()}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(builder):
        builder(data_dir=tmp_path).download_and_prepare()
        return tmp_path

    return prepare


def test_a_builder_keeps_its_own_splits(prepared):
    folder = prepared(Verses)
    found = read_documents("verses")
    assert sorted(found.train) == [f"vërse {n}\nend" for n in range(5)] and found == read_documents("verses")
    assert sorted(found.validation) == ["vërse 5\nend", "vërse 6\nend"] and found.test is None
    assert (found.name, found.licence) == ("verses", "CC0")
    assert len(read_documents("verses", documents="line").validation) == 4
    shard = next((folder / "verses/1.0.0").glob("*train*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    assert message(read_documents, "verses").startswith("the prepared data of `verses` are damaged: remove")


def test_which_feature_of_a_builder_is_its_text(prepared):
    prepared(TwoTexts)
    prepared(Titled)
    assert message(read_documents, "two_texts") == (
        "`two_texts` has no feature `text`, and no other one that alone is text. It has: title, verse"
    )
    assert read_documents("titled").train == ["a title"] * 5


# Splits


def test_one_document_is_cut_in_two_places():
    text = "".join(chr(97 + n % 26) for n in range(1001))
    split = split_documents(Documents([text]), 0.1, 0.2)
    assert (split.train, split.validation, split.test) == ([text[:700]], [text[700:800]], [text[800:]])
    split = split_documents(Documents([text]), 0.1, 0)
    assert split.train == [text[: int(0.9 * 1001)]] and split.validation == [text[900:]] and split.test is None
    split = split_documents(Documents([text]), 0, 0.1)
    assert split.train == [text[:900]] and split.validation is None and split.test == [text[900:]]
    assert split_documents(Documents([text]), 0, 0) == Documents([text])
    for share in np.arange(1, 100) / 100:  # no share of a decimal number loses a character to rounding
        split = split_documents(Documents(["x" * 1000]), float(share), 0)
        assert len(split.validation[0]) == round(1000 * share)


def test_several_documents_are_dealt_out_whole():
    texts = [f"document {number}" for number in range(50)]
    split = split_documents(Documents(texts, name="mine"), 0.1, 0.2)
    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [35, 5, 10] and split.name == "mine"
    assert sorted(sum(parts, [])) == sorted(texts)
    assert all(sorted(part, key=texts.index) == part for part in parts)
    assert split == split_documents(Documents(texts, name="mine"), 0.1, 0.2)
    assert split.test != texts[:10] and split.test != texts[-10:]
    assert len(split_documents(Documents(texts[:3]), 0.01, 0.01).train) == 1


def test_own_splits_stay():
    own = Documents(["abcdefghij"], ["own"])
    split = split_documents(own, 0.5, 0.2)
    assert (split.train, split.validation, split.test) == (["abcdefgh"], ["own"], ["ij"])
    whole = Documents(["a"], ["b"], ["c"])
    assert split_documents(whole, 0.5, 0.4) == whole


@pytest.mark.parametrize(
    "texts, shares, expected",
    [
        (["abc"], (0.1, 0.9), "`validation_share` and `test_share` must leave something to train on"),
        (["abc"], (1.0, 0), "`validation_share` must be in [0, 1). Received: validation_share=1.0"),
        (["abc"], (0.1, -0.1), "`test_share` must be in [0, 1). Received: test_share=-0.1"),
        (["abc"], (True, 0.1), "`validation_share` must be in [0, 1). Received: validation_share=True"),
        (["abc"], (0.1, 0.1), "documents has too little text to split: 3 characters, of which"),
        (["abc", "def"], (0.1, 0.1), "documents has too little text to split: 2 documents, of which"),
    ],
)
def test_splits_that_cannot_be_made(texts, shares, expected):
    assert expected in message(split_documents, Documents(texts), *shares)


# Streams


def test_documents_become_one_stream():
    tokenizer = CharTokenizer("ab")
    stream = pack(tokenizer, ["ab", "b"])
    assert stream.dtype == np.int32 and stream.tolist() == [0, 1, 2, 0, 2, 0]
    alone = pack(tokenizer, ["abb"])
    assert alone.dtype == np.int32 and alone.tolist() == [1, 2, 2]
    for bad in ([], "ab"):
        assert message(pack, tokenizer, bad).startswith("`documents` must be a sequence of one or more strings.")
    assert "Received: 'c' (U+0063)" in message(pack, tokenizer, ["ab", "c"])


def test_windows():
    assert [windows(length, 4) for length in (5, 8, 9, 100)] == [1, 1, 2, 24]
    assert message(windows, 4, 4) == (
        "`block` must be less than the number of tokens in the text, 4. Received: block=4"
    )
    for bad in (0, 2.0, True):
        assert message(windows, 10, bad) == f"`block` must be a positive integer. Received: block={bad!r}"


# Pairs


def test_every_date_format_reads_back():
    sources, targets = dates(3000, seed=5)
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    roman = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"]
    for source, target in zip(sources, targets):
        lowered = source.lower()
        words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=\d)(st|nd|rd|th)", "", lowered))
        numbers = [word for word in words if word.isdigit()]
        year, rest = next((n[:4], n[4:]) for n in numbers if len(n) in (4, 8))
        numbers = [n for n in numbers if len(n) < 4] or [rest[:2], rest[2:]]
        named = [months.index(w[:3]) + 1 for w in words if w[:3] in months and w.isalpha()]
        named += [roman.index(w) + 1 for w in words if w in roman]
        month, day = (named[0], numbers[0]) if named else numbers
        date = datetime.date(int(year), int(month), int(day))
        assert date.isoformat() == target, source
        weekday = re.match("(mon|tue|wed|thu|fri|sat|sun)[a-z]*", lowered)
        assert weekday is None or date.strftime("%a").lower() == weekday[1], source
        ending = re.search(r"(\d+)(st|nd|rd|th)", lowered)
        if ending:
            ordinal = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}.get(date.day, "th")
            assert (int(ending[1]), ending[2]) == (date.day, ordinal), source
    assert len(DATE_FORMATS) >= 15


def test_there_are_many_formats_and_in_numbers_alone_the_year_comes_first():
    sources, _ = dates(3000, seed=1)
    shapes = {re.sub("[a-z]+", "a", re.sub("[A-Z]+", "A", re.sub(r"\d+", "0", source))) for source in sources}
    assert len(shapes) >= 20 and {"0-0-0", "Aa, Aa 0a 0"} <= shapes
    numeric = [source for source in sources if not re.search("[A-Za-z]", source)]
    assert numeric and all(re.match(r"(19|20)\d\d", source) for source in numeric)  # the year first


@pytest.mark.parametrize("make", [dates, arithmetic])
def test_pairs_are_a_matter_of_the_seed_alone(make):
    first = make(300, seed=1)
    assert first == make(300, seed=1) == make(300, seed=1 + 2**32) and first != make(300, seed=2)
    assert [part[:100] for part in first] == list(make(100, seed=1))
    assert len(set(first[0])) == 300 and len(first[1]) == 300


def test_these_pairs_stay_what_they_are():
    assert [pair[0] for pair in dates(1, seed=0)] == ["Mon Jun 13 2039", "2039-06-13"]
    assert [pair[:2] for pair in arithmetic(2, seed=0)] == [["3-6785=", "48+1="], ["-6782", "49"]]


def test_a_date_belongs_to_one_split_in_every_format():
    most = {"train": 58_439 * 24, "validation": 7_305 * 24, "test": 7_305 * 24}
    seen = {split: set(dates(most[split] // 6, seed, split)[1]) for seed, split in enumerate(most)}
    assert not seen["train"] & seen["validation"] and not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert len(seen["test"]) > 7_000
    assert min(map(min, seen.values())) >= "1900-01-01" and max(map(max, seen.values())) <= "2099-12-31"
    with pytest.raises(ValueError, match="1402536"):
        dates(most["train"] + 1, 0)


def test_all_dates_of_a_split_can_be_asked_for():
    sources, _ = dates(7_305 * 24, 0, "test")
    assert len(set(sources)) == 7_305 * 24


def test_sums_are_right_and_two_numbers_belong_to_one_split():
    pairs = {}
    for seed, split in enumerate(("train", "validation", "test")):
        sources, targets = arithmetic(4000, seed, split)
        for source, target in zip(sources, targets):
            left, sign, right = re.fullmatch(r"(\d{1,4})([+-])(\d{1,4})=", source).groups()
            assert str(int(left)) == left and str(int(right)) == right
            assert int(target) == int(left) + (int(right) if sign == "+" else -int(right))
            assert str(int(target)) == target
            pairs.setdefault(frozenset((left, right)), set()).add(split)
        lengths = np.bincount([len(source.split("+")[0].split("-")[0]) for source in sources], minlength=5)
        assert (lengths[1:] > 500).all()
    assert all(len(found) == 1 for found in pairs.values())


@pytest.mark.parametrize("make", [dates, arithmetic])
def test_pairs_that_cannot_be_made(make):
    assert (
        message(make, 5, 0, "dev", error=ValueError)
        == "`split` must be one of train, validation, test. Received: split='dev'"
    )
    assert message(make, 5, 0.5, error=ValueError) == "`seed` must be an integer. Received: seed=0.5"
    for bad in (0, 2.0, True, 10**8):
        assert message(make, bad, 0, error=ValueError).endswith(f"Received: num={bad!r}")


def test_pairs_from_a_file(tmp_path):
    path = write(tmp_path / "pairs.tsv", "a b\tc\r\né\tf g\n")
    assert read_pairs(path) == (["a b", "é"], ["c", "f g"])


@pytest.mark.parametrize(
    "content, expected",
    [
        ("a\tb\nab\n", "line 2 of {path} must be a source, one tab and a target. Received: 'ab'"),
        ("a\tb\tc\n", "line 1 of {path} must be a source, one tab and a target. Received: 'a\\tb\\tc'"),
        ("a\tb\n\nc\td\n", "line 2 of {path} must be a source, one tab and a target. Received: ''"),
        ("a\tb\nc\t\n", "line 2 of {path} must be a source, one tab and a target. Received: 'c\\t'"),
        ("\tb\n", "line 1 of {path} must be a source, one tab and a target. Received: '\\tb'"),
        ("", "{path} is empty"),
        (b"a\t\xff\n", "{path} must be UTF-8 text. Received: byte 0xff at offset 2"),
    ],
)
def test_bad_lines_are_numbered(tmp_path, content, expected):
    path = write(tmp_path / "pairs.tsv", content)
    assert message(read_pairs, path) == expected.format(path=path)


def test_pairs_become_tokens():
    padded = pad_pairs(CharTokenizer("ab"), ["ab", "b", "aaa"], ["", "ba", "b"])
    assert padded["source"].tolist() == [[1, 2, 0], [2, 0, 0], [1, 1, 1]]
    assert padded["target"].tolist() == [[0, 0, 0], [2, 1, 0], [2, 0, 0]]
    assert padded["target_length"].tolist() == [1, 3, 2]
    assert {value.dtype.name for value in padded.values()} == {"int32"}
    sources, targets = dates(50, 0)
    for tokenizer in (train("char", sources + targets), ByteTokenizer(), train("bpe", sources + targets, 300)):
        padded = pad_pairs(tokenizer, sources, targets)
        assert [tokenizer.decode(row) for row in padded["source"]] == sources
        assert [tokenizer.decode(row) for row in padded["target"]] == targets
        ends = padded["target"][np.arange(50), padded["target_length"] - 1]
        assert (ends == 0).all() and (padded["target"] > 0).sum() == padded["target_length"].sum() - 50


@pytest.mark.parametrize(
    "sources, targets, received",
    [
        ([], [], "Received: 0 and 0"),
        (["a"], ["b", "a"], "Received: 1 and 2"),
        ("ab", ["a", "b"], "Received: 'ab' and 2"),
        (["a", ""], ["b", "a"], "`sources` must hold no empty string. Received: sources[1]=''"),
        (["a", "c"], ["b", "a"], "Received: 'c' (U+0063)"),
    ],
)
def test_pairs_that_cannot_be_padded(sources, targets, received):
    assert received in message(pad_pairs, CharTokenizer("ab"), sources, targets)


# Real text


@pytest.mark.data
@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs text/tinyshakespeare in GENTF_TEST_DATA")
def test_tinyshakespeare_is_split_as_in_the_literature():
    text = SHAKESPEARE.read_text()
    split = split_documents(read_documents(SHAKESPEARE), validation_share=0.1, test_share=0.0)
    place = int(0.9 * len(text))
    assert split.train == [text[:place]] and split.validation == [text[place:]] and split.test is None
    tokenizer = train("char", [text])
    assert tokenizer.size == 66
    assert (len(pack(tokenizer, split.train)), len(pack(tokenizer, split.validation))) == (1_003_854, 111_540)
    learned = train("bpe", split.train, size=1024)
    tokens = pack(learned, split.validation)
    assert learned.decode(tokens) == split.validation[0] and len(tokens) < 0.45 * 111_540
    served, lengths = learned.encode_tensor([split.validation[0]])
    assert lengths.numpy().tolist() == [len(tokens)]
    np.testing.assert_array_equal(served[0], tokens)


@pytest.mark.data
@pytest.mark.skipif(not (PREPARED / "tiny_shakespeare").is_dir(), reason="needs tiny_shakespeare in TFDS_DATA_DIR")
def test_tiny_shakespeare_of_tfds():
    found = read_documents("tiny_shakespeare")
    assert [[len(text) for text in part] for part in (found.train, found.validation, found.test)] == [
        [1_003_854],
        [55_770],
        [55_770],
    ]
    assert found.train[0].startswith("First Citizen:\nBefore we proceed any further")
    assert split_documents(found) == found
