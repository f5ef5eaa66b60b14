"""Text: read from files, folders, TFDS builders or Python's own manual; split, and packed into one stream of tokens."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gentf.data.builders import damaged, licence_of, open_builder, own_splits
from gentf.data.listing import printable, walk
from gentf.data.names import find
from gentf.data.order import fixed_order, held_out_sizes
from gentf.data.source import SPLITS, Progress, Settings
from gentf.data.tokenizers import BOUNDARY, Tokenizer
from gentf.errors import UserError

EMBEDDED = {"python-docs": "the language reference of the running Python, one document a topic (pydoc_data)"}
DOCUMENTS = ("file", "blank_line", "line")
_ENDINGS = (
    "txt text md markdown rst tex csv tsv json jsonl yaml yml toml ini cfg xml html htm css abc "
    "py pyi ipynb js ts c h cc cpp hpp cu java go rs rb php pl r jl lua sh sql"
)
SUFFIXES = tuple(f".{ending}" for ending in _ENDINGS.split())
_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Documents:
    """Texts of a set, each whole.

    Args:
        train: at least one document, none empty.
        validation: the same, or None where the set has none.
        test: the same.
        licence: as far as it is known.
        name: of the set: an embedded name, a builder's name, or a path.
    """

    train: list[str]
    validation: list[str] | None = None
    test: list[str] | None = None
    licence: str = "not stated"
    name: str = "documents"


def read_documents(
    name_or_path: str | os.PathLike, progress: Progress | None = None, *, documents: str = "file"
) -> Documents:
    """Read the texts of a set, with the splits that it has of its own.

    A file is one document, and is all of train. A folder gives one document for each file in it, at any depth, whose
    name ends in one of `SUFFIXES`, in the order of their paths; names that begin with a dot and empty files are passed
    over, links are followed. A TFDS builder needs a text feature: "text", or its only one.

    Text is UTF-8. A byte order mark is dropped, and a carriage return before a line feed; all else is kept.

    Args:
        name_or_path: an embedded set (`EMBEDDED`), a TFDS builder ("tiny_shakespeare", "name/config:version"), a text
            file or a folder of them. A single word is a name before it is a path.
        progress: called with (label, done, total) now and then.
        documents: "file" keeps documents as they are; "blank_line" cuts them where lines hold nothing but spaces and
            tabs; "line" cuts them into lines. Line breaks at the cuts go, and so do documents without a character.
    Raises:
        UserError: no such set, a file that is not UTF-8 text (the message gives the byte), nothing in it.
    """
    if documents not in DOCUMENTS:
        raise ValueError(f"`documents` must be one of {', '.join(DOCUMENTS)}. Received: documents={documents!r}")
    found = _find(name_or_path, progress)
    train = _cut(found.train, documents)
    validation, test = (texts and _cut(texts, documents) for texts in (found.validation, found.test))
    for part, texts in zip(SPLITS, (train, validation, test)):
        if texts == []:
            raise UserError(f"{printable(found.name)} holds no text{'' if part == 'train' else f' in its {part}'}")
    return replace(found, train=train, validation=validation, test=test)


def read_text(path: str | os.PathLike) -> str:
    """The text of one file, as `read_documents` reads it.

    Raises:
        UserError: no such file, bytes that are not UTF-8 or not text, no character.
    """
    text = _read(Path(path))
    if not text:
        raise UserError(f"{printable(os.fspath(path))} is empty")
    return text


def split_documents(documents: Documents, validation_share: float = 0.1, test_share: float = 0.1) -> Documents:
    """Cut the splits that a set lacks from its train; those of its own are kept.

    Several documents are dealt out whole: of a fixed shuffle the first `round(n * test_share)` are test, the next
    `round(n * validation_share)` validation, at least one where a share is above 0; within a split they keep their
    order. One document of n characters is cut in two places: train is its first `int(n * (1 - validation_share -
    test_share))` characters, validation runs on to `int(n * (1 - test_share))`, and test is the end.

    Args:
        documents: as read.
        validation_share: part of train, in [0, 1); it has no effect where the set has its own split.
        test_share: the same. A share of 0 leaves the split None.
    Raises:
        UserError: too little text to give every split some.
    """
    Settings(validation_share=validation_share, test_share=test_share)  # which checks them
    validation_share = validation_share if documents.validation is None else 0
    test_share = test_share if documents.test is None else 0
    parts = _deal(documents.train, validation_share, test_share)
    kept = [part for part, share in zip(parts, (1, validation_share, test_share)) if share]
    if not all(text for part in kept for text in part) or not all(kept):
        one = len(documents.train) == 1
        size = f"{len(documents.train[0])} characters" if one else f"{len(documents.train)} documents"
        raise UserError(
            f"{printable(documents.name)} has too little text to split: {size}, of which validation_share="
            f"{validation_share} and test_share={test_share} leave a split with none"
        )
    train, validation, test = parts
    return replace(
        documents,
        train=train,
        validation=validation if validation_share else documents.validation,
        test=test if test_share else documents.test,
    )


def pack(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """All documents as one stream of tokens.

    Returns:
        (n,) int32. One document is its tokens alone; several have a boundary before each, and one at the end.
    Raises:
        UserError: no document, or text that the tokenizer cannot encode.
    """
    if isinstance(documents, str) or not len(documents):
        received = repr(documents)[:60]
        raise UserError(f"`documents` must be a sequence of one or more strings. Received: documents={received}")
    if len(documents) == 1:
        return tokenizer.encode(documents[0])
    boundary = np.full(1, BOUNDARY, np.int32)
    return np.concatenate([part for text in documents for part in (boundary, tokenizer.encode(text))] + [boundary])


def windows(length: int, block: int) -> int:
    """How many windows of `block` tokens, each with the token after it to predict, a stream holds without overlap.

    Args:
        length: tokens in the stream.
        block: tokens in a window, > 0.
    Returns:
        (length - 1) // block, at least 1.
    Raises:
        UserError: the stream is shorter than one window and a token.
    """
    if isinstance(block, bool) or not isinstance(block, (int, np.integer)) or block < 1:
        raise UserError(f"`block` must be a positive integer. Received: block={block!r}")
    if length < block + 1:
        raise UserError(
            f"`block` must be less than the number of tokens in the text, {length}. Received: block={block}"
        )
    return (int(length) - 1) // int(block)


def _find(name_or_path: str | os.PathLike, progress: Progress | None) -> Documents:
    name, path = find(name_or_path, EMBEDDED, SUFFIXES, "text")
    if path is not None:
        return _from_path(path, progress)
    return _python_docs() if name in EMBEDDED else _from_builder(name)


def _python_docs() -> Documents:
    from pydoc_data.topics import topics

    return Documents([topics[name] for name in sorted(topics)], licence="PSF-2.0", name="python-docs")


def _from_path(path: Path, progress: Progress | None) -> Documents:
    if not path.is_dir():
        return Documents([read_text(path)], name=str(path))
    files = sorted(walk(path, SUFFIXES))
    if not files:
        raise UserError(f"{printable(str(path))} holds no text files: no file in it ends in {', '.join(SUFFIXES)}")
    texts = []
    for done, name in enumerate(files):
        texts.append(_read(path / name))
        if progress is not None:
            progress("reading files", done + 1, len(files))
    return Documents(texts, name=str(path))


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {printable(str(path))}: {error.strerror or error}") from error
    return _decode(data, printable(str(path)))


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} must be UTF-8 text. Received: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from error
    if b"\x00" in data:
        raise UserError(f"{name} must be text. Received: byte 0x00 at offset {data.index(0)}")
    return (text[1:] if data.startswith(_BOM) else text).replace("\r\n", "\n")


def _from_builder(name: str) -> Documents:
    builder = open_builder(name)
    info = builder.info
    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if "text" not in texts and len(texts) != 1:
        listed = ", ".join(sorted(features)) or type(info.features).__name__
        raise UserError(f"`{name}` has no feature `text`, and no other one that alone is text. It has: {listed}")
    key = "text" if "text" in texts else texts[0]
    parts: dict[str, list[str]] = {}
    try:
        for part, own in own_splits(name, info.splits).items():
            decoders = tfds.decode.PartialDecoding({key: features[key]})
            rows = builder.as_dataset(split=own.name, decoders=decoders).as_numpy_iterator()
            parts[part] = [
                _decode(row[key], f"document {number} in {part} of `{name}`") for number, row in enumerate(rows)
            ]
    except (tf.errors.OpError, OSError) as error:
        raise damaged(name, builder) from error
    return Documents(**parts, licence=licence_of(builder), name=name)


def _cut(texts: list[str], documents: str) -> list[str]:
    if documents == "line":
        texts = [line for text in texts for line in text.split("\n")]
    elif documents == "blank_line":
        texts = [part.strip("\n") for text in texts for part in _BLANK.split("\n" + text + "\n")]
    return [text for text in texts if text]


def _deal(texts: list[str], validation_share: float, test_share: float) -> tuple[list[str], list[str], list[str]]:
    """Train, validation and test."""
    if len(texts) == 1:
        # Shares are decimals, and what is left of them too: 1 - 0.1 - 0.2 is not 0.7 but for this rounding.
        shares = (round(1 - validation_share - test_share, 12), round(1 - test_share, 12))
        first, second = (int(len(texts[0]) * share) for share in shares)
        return [texts[0][:first]], [texts[0][first:second]], [texts[0][second:]]
    sizes = held_out_sizes(len(texts), validation_share, test_share)
    test, validation, train = np.split(fixed_order(len(texts)), np.cumsum(sizes))
    kept, held, tested = ([texts[row] for row in np.sort(rows)] for rows in (train, validation, test))
    return kept, held, tested
