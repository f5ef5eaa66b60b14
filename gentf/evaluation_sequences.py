"""What is measured of models of sequences: likelihood beside n-gram models, variety, copies, and right answers.

Baselines are fitted on the train split and measured on the very symbols that the model is measured on. Of a likelihood
the floor is the best baseline and the ceiling the simplest one: what lies below the floor has learned more than counts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.data import DataSource, Split, harmony, midi
from gentf.data.tokenizers import Tokenizer
from gentf.errors import UserError
from gentf.kernels import random
from gentf.metrics import diversity, frames, overlap
from gentf.metrics.estimate import Estimate, mean_of, ratio_of, share_of
from gentf.metrics.ngram import NGram
from gentf.metrics.table import Meaning, Metrics, entry
from gentf.models import load_data
from gentf.schema import Config

Tell = Callable[[str, int, int], None]

MAX_SAMPLES = 200  # texts or pieces
MAX_PAIRS = 2000
LENGTH = 256  # tokens of a sample
FRAMES = 64  # of a sample that is made of frames
BLOCKS = 100  # of a stream, from which a standard error is told
MAX_TRAIN = 2**24  # tokens of train that baselines and the search for copies read: 1.4 GB while they are sorted
MAX_WINDOWS = 1000  # of held-out text, that set the bound of a near copy
WHOLE = 4096  # frames that pieces are read in, for the baselines
REPEATED = 4  # tokens of what `repetition` counts
BATCH = 100

REAL = "held-out text"
METRICS = {
    "nats_per_token": Meaning("minus log-likelihood of a held-out token", "n-gram model", "unigram model", ""),
    "perplexity": Meaning("its exponential", "n-gram model", "unigram model", ""),
    "bits_per_character": Meaning("minus log2-likelihood of a held-out character", "n-gram model", "unigram model", ""),
    "bits_per_byte": Meaning("the same for a byte of its UTF-8", "n-gram model", "unigram model", ""),
    "nats_per_frame": Meaning(
        "minus log-likelihood of frames after the first",
        "the frame before, or 5-grams",
        "notes by themselves",
        "",
    ),
    "nats_per_frame_with_first": Meaning(
        "the same with first frames", "the frame before, or 5-grams", "notes by themselves", ""
    ),
    **{
        f"distinct_{n}": Meaning(f"different {n}-grams, as a share of all", "one token repeated", REAL, "ceiling")
        for n in range(1, 5)
    },
    "self_bleu": Meaning("likeness of samples to one another", REAL, "all the same", "floor"),
    "repetition": Meaning(f"share of {REPEATED}-grams that a sample had before", REAL, "one token repeated", "floor"),
    "near_copies": Meaning("share of near copies of training set", "held-out real data", "copies", "floor"),
    "in_key": Meaning("share of frames in their piece's key", "notes by themselves", "held-out pieces", "ceiling"),
    "polyphony": Meaning("notes that sound in a frame", "silence", "held-out pieces", "ceiling"),
    "exact_match": Meaning("share of answers that are right", "none", "the right answers", "ceiling"),
    "edit_distance": Meaning("changes that make an answer right", "the right answers", "no answer", "floor"),
}


def measure(
    config: Config,
    source: DataSource,
    held_out: Split,
    model: Any,
    samples: int,
    importance_samples: int,
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """What `gentf.evaluation.evaluate` measures of a model of sequences.

    Args:
        config: of the run.
        source: its data.
        held_out: the split to measure on, not empty.
        model: as trained.
        samples: to draw, >= 1; lowered to `MAX_SAMPLES` or `MAX_PAIRS`, and to what the held-out data have as much of.
        importance_samples: latents a window, of a model whose likelihood is estimated from them.
        seed: of the samples.
        tell: called with (label, done, total) now and then.
    Returns:
        {"samples", "metrics", "baselines", "references"}, and of a bound "importance" as of
        `gentf.evaluation_likelihood.measure`. Baselines: nats a token of text, a frame of music, a token of a pair's
        target; of music as tokens those with names that begin with "token_" are nats a token.
    Raises:
        UserError: an encoder-decoder and text, of which it tells only what was cut out.
    """
    if source.spec.modality == "pairs":
        return _pairs(source, held_out, model, samples, seed, tell)
    score, about = model.nats_of_stream, {}
    if not getattr(model, "exact_likelihood", True):
        score = functools.partial(model.nats_of_stream, samples=importance_samples)
        window = f"a window of {model.context} symbols"
        about = {"importance": {"samples": importance_samples, "of": window, "stderr": None}}
    if source.spec.modality == "text":
        if config.model.family == "encoder_decoder":
            raise UserError("text is measured of models that tell the next token. Received: an encoder-decoder")
        return about | _text(source, held_out, model, score, samples, seed, tell)
    return about | _music(config, source, held_out, model, score, samples, seed, tell)


# Text


def _text(source, held_out, model, score, samples, seed, tell) -> dict[str, Any]:
    spec = source.spec
    train = source.train.contents()["stream"][:MAX_TRAIN]
    stream = held_out.contents()["stream"]
    tell("likelihood", 0, len(stream))
    nats = score(stream).astype(np.float64)
    tell("likelihood", len(stream), len(stream))
    baselines = token_baselines(train, stream, spec.vocabulary, 3 if spec.tokenizer["kind"] == "bpe" else 5)
    metrics = stream_metrics(nats, stream, Tokenizer.from_dict(spec.tokenizer).pieces, baselines)
    length = min(_longest(model, LENGTH), len(stream) // 2)
    num = min(samples, MAX_SAMPLES, MAX_SAMPLES if spec.boundary else len(stream) // length)
    tell("sampling", 0, num)
    found = model.generate([None] * num, seeds=random.spread(seed, num).numpy(), max_length=length)
    tell("sampling", num, num)
    num = int((np.cumsum(found.lengths) <= len(stream)).sum())  # for which held-out text is at hand
    tokens = [row[:size] for row, size in zip(found.symbols[:num], found.lengths) if size]
    references = {
        "train_tokens": len(train),
        "held_out_tokens": len(stream),
        "sample_tokens": length,
    }
    if tokens:
        metrics |= variety_metrics(tokens, _stretches(stream, [len(row) for row in tokens]))
        tell("near copies", 0, num)
        window = int(np.median([len(row) for row in tokens]))
        full = [row[:window] for row in tokens if len(row) >= window]
        metrics["near_copies"], bound = copy_entry(
            full, _stretches(stream, [window] * min(MAX_WINDOWS, len(stream) // window)), train
        )
        references["near_copy_tokens"] = bound
    return {"samples": num, "metrics": metrics, "baselines": baselines, "references": references}


def token_baselines(train: np.ndarray, stream: np.ndarray, vocabulary: int, order: int) -> dict[str, float]:
    """Nats a token of n-gram models (Kneser-Ney), over all tokens of a stream but the first, which is only seen.

    Args:
        train: (m,) tokens to count; stream: (n,) tokens to tell, n >= 2.
        vocabulary: number of tokens.
        order: tokens of the longest n-gram; less where `train` is shorter.
    Returns:
        {"unigram", "markov", "<order>-gram"}.
    """
    names = {"unigram": 1, "markov": 2, f"{order}-gram": order}
    return {
        name: float(NGram.fit(train, min(n, len(train)), vocabulary).nats(stream)[1:].mean())
        for name, n in names.items()
    }


def stream_metrics(
    nats: np.ndarray, stream: np.ndarray, pieces: Sequence[bytes], baselines: dict[str, float]
) -> Metrics:
    """Likelihood of a text, for each token, character and byte.

    The likelihood of boundaries between documents counts, though they are no characters. The standard error is that of
    the mean over `BLOCKS` contiguous blocks, which are taken to be independent: other text of this kind is meant, not
    another model.

    Args:
        nats: (n - 1,) of each token after the first.
        stream: (n,) tokens.
        pieces: the bytes of each token.
        baselines: nats a token, "unigram" among them.
    """
    blocks = np.array_split(nats, min(BLOCKS, len(nats)))
    mean = ratio_of([block.sum() for block in blocks], [len(block) for block in blocks])
    ceiling, floor = baselines["unigram"], min(baselines.values())

    def times(factor: float) -> dict[str, float | None]:
        return entry(Estimate(mean.value * factor, mean.stderr * factor), floor * factor, ceiling * factor)

    counts = np.bincount(stream[1:], minlength=len(pieces))
    size = int(counts @ [len(piece) for piece in pieces])
    characters = int(counts @ [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces])
    perplexity = Estimate(math.exp(mean.value), math.exp(mean.value) * mean.stderr)
    metrics = {
        "nats_per_token": times(1.0),
        "perplexity": entry(perplexity, math.exp(floor), math.exp(ceiling)),
    }
    for name, number in (("bits_per_character", characters), ("bits_per_byte", size)):
        if number:
            metrics[name] = times(len(nats) / (number * math.log(2)))
    return metrics


def variety_metrics(samples: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> Metrics:
    """Variety between samples and within them, beside as many held-out texts of the same lengths.

    Args:
        samples, real: token arrays, none empty.
    Returns:
        what the lengths allow of "distinct_1" .. "distinct_4", "self_bleu" and "repetition". The share of different
        n-grams has no standard error.
    """
    metrics: Metrics = {}
    for n in range(1, 5):
        grams = sum(max(0, len(sample) - n + 1) for sample in samples)
        if grams:
            share = Estimate(diversity.distinct_n(samples, n), math.nan)
            metrics[f"distinct_{n}"] = entry(share, 1 / grams, diversity.distinct_n(real, n))
    if len(samples) > 1:
        metrics["self_bleu"] = entry(diversity.self_bleu(samples), diversity.self_bleu(real).value, 1.0)
    sizes = [len(sample) - REPEATED + 1 for sample in samples if len(sample) >= REPEATED]
    if sizes:
        most = 1 - float(np.mean([1 / size for size in sizes]))
        real_share = diversity.repetition(real, REPEATED).value
        metrics["repetition"] = entry(diversity.repetition(samples, REPEATED), real_share, most)
    return metrics


def copy_entry(
    samples: Sequence[np.ndarray], windows: Sequence[np.ndarray], train: np.ndarray
) -> tuple[dict[str, float | None], int]:
    """Share of samples that are near copies of the training text; see `gentf.metrics.overlap.near_copies`.

    Args:
        samples: of T tokens each, at least one; windows: held-out text, of T tokens each, at least two.
        train: (n,) tokens.
    Returns:
        the row of the table, and the bound: longest match in tokens above which a sample is a near copy.
    """
    text = overlap.SuffixArray(train)
    of_samples, of_real = (text.longest_matches(arrays)[0] for arrays in (samples, windows))
    length = len(samples[0])
    bound = overlap.copy_threshold(of_real, length)
    # Half of the real windows sets the bound, the other is held to it, and the other way round.
    halves = of_real[::2], of_real[1::2]
    shares = [share_of(b > overlap.copy_threshold(a, length)).value for a, b in (halves, halves[::-1])]
    return entry(share_of(of_samples > bound), sum(shares) / 2, 1.0), bound


def _stretches(stream: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Stretches of these lengths, in order, evenly spread over the stream, none over another."""
    sizes = np.asarray(lengths)
    gaps = np.linspace(0, len(stream) - sizes.sum(), len(sizes)).astype(np.int64)
    starts = np.cumsum(sizes) - sizes + gaps
    return [stream[start : start + size] for start, size in zip(starts, sizes)]


def _longest(model: Any, wanted: int) -> int:
    """Symbols that a model can generate after one: learned positions end with the context."""
    learned = getattr(model, "positions_kind", None) == "learned"
    return min(wanted, max(1, model.context - 1)) if learned else wanted


# Music


def _music(config, source, held_out, model, score, samples, seed, tell) -> dict[str, Any]:
    kind = source.spec.tokenizer["kind"]
    read = dataclasses.replace(config.music, tokens="frames", block=WHOLE, transpose=0)
    whole = load_data(dataclasses.replace(config, music=read))
    train, test = (rolls_of(split) for split in (whole.train, whole.splits[held_out.name]))
    tell("likelihood", 0, len(test))
    metrics: Metrics = {}
    of_tokens: dict[str, float] = {}
    references = {
        "train_pieces": len(train),
        "held_out_pieces": len(test),
        "held_out_frames": sum(map(len, test)),
    }
    per_frame, by_ngram = [], []
    if kind == "frames":
        for number, piece in enumerate(test):
            per_frame.append(score(piece).astype(np.float64))
            tell("likelihood", number + 1, len(test))
    else:
        learned, stream = (split.contents()["stream"] for split in (source.train, held_out))
        learned, vocabulary = learned[:MAX_TRAIN], source.spec.vocabulary
        ngram, sums, sizes = NGram.fit(learned, min(5, len(learned)), vocabulary), [], []
        for number, piece in enumerate(test):
            # Each piece by itself, between its boundaries.
            tokens = np.pad((midi.to_chords if kind == "chords" else midi.to_events)(piece), 1)
            nats = score(tokens).astype(np.float64)
            per_frame.append(nats_by_frame(nats, tokens, kind))
            by_ngram.append(nats_by_frame(ngram.nats(tokens)[1:], tokens, kind))
            sums.append(nats.sum())
            sizes.append(len(nats))
            tell("likelihood", number + 1, len(test))
        known = token_baselines(learned, stream, vocabulary, 5)
        metrics["nats_per_token"] = entry(ratio_of(sums, sizes), min(known.values()), known["unigram"])
        of_tokens = {f"token_{name}": value for name, value in known.items()}
        references["held_out_tokens"] = len(stream)
    # Event tokens tell no frame apart, nor does a bound, so the first cannot be left out.
    told_apart = kind != "events" and getattr(model, "exact_likelihood", True)
    after_first = [piece[1:] for piece in test if len(piece) > 1 and told_apart]
    everything = frame_baselines(train, test, by_ngram, [len(piece) for piece in test], True)
    mean = ratio_of([nats.sum() for nats in per_frame], [len(piece) for piece in test])
    rows = {"nats_per_frame_with_first": entry(mean, min(everything.values()), everything["unigram"])}
    baselines = everything
    if after_first:
        sizes = [len(piece) - 1 for piece in test]
        baselines = frame_baselines(train, test, [nats[1:] for nats in by_ngram], sizes, False)
        baselines["unigram"] = frames.bernoulli_nats(train, after_first).value
        mean = ratio_of([nats[1:].sum() for nats in per_frame], sizes)
        rows = {"nats_per_frame": entry(mean, min(baselines.values()), baselines["unigram"])} | rows
    metrics, baselines = rows | metrics, baselines | of_tokens
    num = min(samples, MAX_SAMPLES, max(2, len(test)))
    tell("sampling", 0, num)
    length = _longest(model, FRAMES if kind == "frames" else LENGTH)
    rolls = [roll for roll in model.sample(num, seed=seed, max_length=length) if len(roll)]
    tell("sampling", num, num)
    if rolls:
        size = max(1, round(float(np.mean([len(roll) for roll in rolls]))))
        metrics |= music_metrics(rolls, [piece[:size] for piece in test], train, seed)
    return {"samples": num, "metrics": metrics, "baselines": baselines, "references": references}


def rolls_of(split: Split) -> list[np.ndarray]:
    """The pieces of a split of frames: uint8 (T_i, 88) each."""
    content = split.contents()
    return [roll[:length] for roll, length in zip(content["frames"], content["length"])]


def frame_baselines(
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    by_ngram: Sequence[np.ndarray],
    sizes: list[int],
    first: bool,
) -> dict[str, float]:
    """Nats a frame: "unigram" and "markov" of `gentf.metrics.frames`, and "5-gram" of tokens where there are any.

    Args:
        train, test: pieces, (T, 88) each.
        by_ngram: what the n-gram model gives each frame that counts, a list a piece; or empty.
        sizes: frames of each piece that count.
        first: whether the first frame of each counts.
    """
    found = {
        "unigram": frames.bernoulli_nats(train, test).value,
        "markov": frames.markov_nats(train, test, first=first).value,
    }
    return found | ({"5-gram": ratio_of([nats.sum() for nats in by_ngram], sizes).value} if by_ngram else {})


def nats_by_frame(nats: np.ndarray, tokens: np.ndarray, kind: str) -> np.ndarray:
    """Nats of each frame, which are those of its tokens; without that of the boundary at the end.

    Chord tokens say of each frame which notes it has, so each has its own. Event tokens say it of all frames of a shift
    together: they are all put in one sum.

    Args:
        nats: (n + 1,) of n tokens of a piece and the boundary after them.
        tokens: (n + 2,) the same, with the boundary before them.
        kind: "chords" or "events".
    Returns:
        (T,) for chords, (1,) for events.
    """
    if kind == "events":
        return nats[:-1].sum(keepdims=True)
    ends = tokens[1:-1] == len(midi.CHORDS) - 1
    frame = np.cumsum(ends) - ends
    return np.bincount(frame, nats[:-1], int(ends.sum()))


def music_metrics(
    rolls: Sequence[np.ndarray], real: Sequence[np.ndarray], train: Sequence[np.ndarray], seed: int
) -> Metrics:
    """Keys and notes of samples beside those of held-out pieces of about the same length.

    Args:
        rolls: samples, (T, 88) each, T >= 1; real: held-out pieces; train: training pieces.
        seed: of the degenerate generator: each note by itself, on as often as in train.
    """
    share = np.concatenate(list(train)).mean(axis=0)
    generator = np.random.default_rng(seed)
    apart = [(generator.random(roll.shape) < share).astype(np.uint8) for roll in rolls]
    metrics: Metrics = {}
    keys = [in_key(some) for some in (rolls, apart, real)]
    if all(len(values) for values in keys):
        metrics["in_key"] = entry(mean_of(keys[0]), float(keys[1].mean()), float(keys[2].mean()))
    notes, real_notes = (np.array([roll.sum() / len(roll) for roll in some]) for some in (rolls, real))
    metrics["polyphony"] = entry(mean_of(notes), 0.0, float(real_notes.mean()))
    return metrics


def in_key(rolls: Sequence[np.ndarray]) -> np.ndarray:
    """Of each piece that is not silent, the share of its sounding frames that have no note outside of its key.

    The key is estimated from the piece itself: `gentf.data.harmony.key_of`.

    Returns:
        (n,) float64 in [0, 1].
    """
    found = []
    for roll in rolls:
        if np.any(roll):
            sounding = roll[np.flatnonzero(roll.sum(axis=1))]
            outside = sounding[:, ~harmony.pitches_in_key(*harmony.key_of(roll))].sum(axis=1)
            found.append(float((outside == 0).mean()))
    return np.array(found)


# Pairs


def _pairs(source, held_out, model, samples, seed, tell) -> dict[str, Any]:
    content, codec = held_out.contents(), Tokenizer.from_dict(source.spec.tokenizer)
    if "source" not in content:
        raise UserError(f"the {held_out.name} split must hold pairs. Received: {', '.join(content)}")
    scorer = tf.function(lambda data: _pair_nats(model, data), reduce_retracing=True, autograph=False)
    sums: list[np.ndarray] = []
    done = 0
    for batch in held_out.batches(BATCH):
        sums.append(scorer(batch).numpy())
        done += len(sums[-1])
        tell("likelihood", done, len(held_out))
    train = source.train.contents()
    stream = target_stream(content["target"], content["target_length"])
    known = target_stream(train["target"], train["target_length"])[:MAX_TRAIN]
    baselines = token_baselines(known, stream, source.spec.vocabulary, 5)
    token = ratio_of(np.concatenate(sums).astype(np.float64), content["target_length"])
    metrics: Metrics = {"nats_per_token": entry(token, min(baselines.values()), baselines["unigram"])}
    num = min(samples, MAX_PAIRS, len(held_out))
    sources = [codec.decode(row) for row in content["source"][:num]]
    targets = [codec.decode(row) for row in content["target"][:num]]
    tell("answering", 0, num)
    longest = int(content["target_length"].max())
    answers = model.sample(num, prompt=sources, seed=seed, max_length=longest, temperature=0.0)
    tell("answering", num, num)
    metrics |= answer_metrics(answers, targets)
    references = {"train_pairs": len(source.train), "held_out_pairs": len(held_out), "answered_pairs": num}
    return {"samples": num, "metrics": metrics, "baselines": baselines, "references": references}


def _pair_nats(model: Any, data: Any) -> tf.Tensor:
    """(B,) nats of each target, its end included."""
    batch = model.prepare(data)
    return tf.reduce_sum(model.nats(batch) * batch["weights"], axis=1)


def target_stream(target: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Padded targets (n, T), each ended by 0 inside `length` (n,), as one stream that begins with 0."""
    return np.concatenate([np.zeros(1, target.dtype), *(row[:size] for row, size in zip(target, length))])


def answer_metrics(answers: Sequence[str], targets: Sequence[str]) -> Metrics:
    """Share of right answers, and how far the answers are from right on average, in characters."""
    distances = np.array([overlap.edit_distance(answer, target) for answer, target in zip(answers, targets)])
    nothing = float(np.mean([len(target) for target in targets]))
    return {
        "exact_match": entry(overlap.exact_match(list(answers), list(targets)), 0.0, 1.0),
        "edit_distance": entry(mean_of(distances), 0.0, nothing),
    }
