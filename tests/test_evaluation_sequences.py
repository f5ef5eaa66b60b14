"""Likelihood of streams, and `evaluate` on models of text, music and pairs whose numbers are known."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from gentf import evaluation_sequences as sequences
from gentf.cli.evaluate import lines_of
from gentf.cli.main import run as gentf
from gentf.config import resolve
from gentf.data import from_arrays, midi
from gentf.errors import UserError
from gentf.evaluation import METRICS, evaluate
from gentf.metrics import frames
from gentf.metrics.ngram import NGram
from gentf.models import RNN, Transformer, build, load_data
from gentf.sampling.generate import Generated
from gentf.training.run import Run

RULES = (  # a language of few words, of which an n-gram model learns most
    "the cat sat on the mat. ",
    "a dog ran to the cat. ",
    "the mat is on a dog. ",
)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(RULES[i] for i in random.integers(0, 3, 400)) + "é")
    return path


def text_config(path, *overrides):
    # "é" is in the test split alone: characters and bytes differ
    plain = [f"data.name={path}", "data.modality=text", "text.block=32", *overrides]
    return resolve("lstm-shakespeare", ["data.test_share=0.1", "model.layers=1", "model.units=16", *plain])


def run_of(config, tmp_path, model, source=None):
    source = source or load_data(config)
    return SimpleNamespace(
        path=tmp_path,
        name="fake",
        spec=source.spec,
        config=config,
        load_data=lambda progress=None: source,
        load_model=lambda which="last", warn=None: model,
    )


# The likelihood of a stream


def step_by_step(model, stream):
    """The oracle: the decoder, one symbol after the other from the first on."""
    decoder = model.decoder()
    symbols = tf.constant(stream[None])
    state = decoder.init_state(1, len(stream), None)
    logits, state = decoder.prefill(symbols[:, :1], tf.ones(1, tf.int32), state)
    found = []
    for place in range(1, len(stream)):
        if place > 1:
            logits, state = decoder.step(symbols[:, place - 1], tf.constant([place - 1]), state)
        found.append(-tf.nn.log_softmax(logits)[0, int(stream[place])].numpy())
    return np.array(found)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_recurrent_model_carries_its_state_through_the_stream(cell, monkeypatch):
    monkeypatch.setattr("gentf.models.rnn.PART", 7)  # parts that do not divide the stream
    model = RNN(11, cell=cell, layers=2, units=8, seed=1)
    stream = np.random.default_rng(0).integers(0, 11, 24).astype(np.int32)
    nats = model.nats_of_stream(stream)
    assert nats.shape == (23,)
    assert nats.dtype == np.float32
    np.testing.assert_allclose(nats, step_by_step(model, stream), atol=1e-4)
    whole = model.nats_of_stream(np.append(0, stream))  # `log_prob` begins with the start token
    assert whole.sum() == pytest.approx(-model.log_prob([stream])[0], rel=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_stream_within_the_context_is_told_in_one_piece(positions):
    model = Transformer(11, context=24, layers=2, width=16, heads=2, positions=positions, seed=1)
    stream = np.random.default_rng(0).integers(0, 11, 24).astype(np.int32)
    np.testing.assert_allclose(model.nats_of_stream(stream), step_by_step(model, stream), atol=1e-4)


def test_one_layer_with_rotary_positions_sees_its_whole_context_at_every_place(monkeypatch):
    # one layer looks back `context` keys and no further, so windows change nothing
    monkeypatch.setattr("gentf.models.transformer.SCORED", 32)
    model = Transformer(11, context=8, layers=1, width=16, heads=2, seed=1)
    stream = np.random.default_rng(0).integers(0, 11, 45).astype(np.int32)
    np.testing.assert_allclose(model.nats_of_stream(stream), step_by_step(model, stream), atol=1e-4)


def test_learned_positions_count_what_has_half_a_context_before_it():
    context = 8
    model = Transformer(11, context=context, layers=2, width=16, heads=2, positions="learned", seed=1)
    stream = np.random.default_rng(0).integers(0, 11, 31).astype(np.int32)
    nats = model.nats_of_stream(stream)
    starts = [0] * 8 + [4 * (place // 4) - 4 for place in range(8, 26)] + [22] * 4  # of the window that counts
    told = {start: step_by_step(model, stream[start : start + context + 1]) for start in set(starts)}
    expected = [told[start][place - start] for place, start in enumerate(starts)]
    np.testing.assert_allclose(nats, expected, atol=1e-4)


@pytest.mark.parametrize("kind", [RNN, Transformer])
def test_frames_are_told_from_silence_on(kind, monkeypatch):
    monkeypatch.setattr("gentf.models.rnn.PART", 5)
    sizes = {"layers": 1, "units": 8} if kind is RNN else {"context": 16, "layers": 1, "width": 16, "heads": 2}
    model = kind(0, tokenizer={"kind": "frames"}, **sizes)
    roll = (np.random.default_rng(0).random((13, 88)) < 0.1).astype(np.uint8)
    nats = model.nats_of_stream(roll)
    assert nats.shape == (13,)
    assert nats.sum() == pytest.approx(-model.log_prob([roll])[0], rel=1e-5)


@pytest.mark.parametrize(
    "stream, message",
    [
        ([1], "n >= 2"),
        ([[1, 2]], r"\(n,\) integers"),
        ([0.0, 1.0], "integers"),
        ([0, 11], r"0..10. Received: 0..11"),
        ([0, -1], "Received: -1"),
    ],
)
def test_streams_that_cannot_be_told(stream, message):
    model = RNN(11, layers=1, units=4)
    with pytest.raises(ValueError, match=message):
        model.nats_of_stream(np.array(stream))
    with pytest.raises(ValueError, match="frames"):
        RNN(0, layers=1, units=4).nats_of_stream(np.zeros((3, 87)))
    with pytest.raises(ValueError, match="num_classes"):
        RNN(11, layers=1, units=4, num_classes=3).nats_of_stream(np.zeros(3, np.int32))


# Text


class NGramModel:
    """An n-gram model as a sequence model: what it samples are stretches of `text`."""

    context, num_classes = None, 0

    def __init__(self, ngram, text):
        self.ngram, self.text = ngram, text

    def nats_of_stream(self, stream):
        return self.ngram.nats(stream)[1:].astype(np.float32)

    def generate(self, prompts, *, seeds, max_length):
        assert prompts == [None] * len(seeds)
        starts = [np.random.default_rng(seed).integers(0, len(self.text) - max_length) for seed in seeds]
        rows = np.stack([self.text[start : start + max_length] for start in starts])
        lengths = np.full(len(rows), max_length, np.int32)
        return Generated(rows, lengths, np.zeros(len(rows)), np.zeros(len(rows)))


@pytest.fixture(scope="module")
def words(text_file):
    config = text_config(text_file)
    source = load_data(config)
    train, test = (split.contents()["stream"] for split in (source.train, source.test))
    return SimpleNamespace(config=config, source=source, train=train, test=test, size=source.spec.vocabulary)


@pytest.fixture(scope="module")
def of_words(words, tmp_path_factory):
    """The result for a model that is the 5-gram, and copies its training text."""
    model = NGramModel(NGram.fit(words.train, 5, words.size), words.train)
    path = tmp_path_factory.mktemp("words")
    result = evaluate(run_of(words.config, path, model, words.source))
    return SimpleNamespace(result=result, path=path)


def test_a_model_that_is_an_n_gram_scores_what_the_n_gram_scores(of_words, words):
    result, metrics = of_words.result, of_words.result["metrics"]
    nats = NGram.fit(words.train, 5, words.size).nats(words.test)[1:]
    assert metrics["nats_per_token"]["value"] == pytest.approx(nats.mean(), rel=1e-6)
    assert metrics["nats_per_token"]["floor"] == pytest.approx(nats.mean(), rel=1e-6)
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(nats.mean()), rel=1e-6)
    held_out = Path(words.config.data.name).read_text(encoding="utf-8")[-len(words.test) + 1 :]
    bits = nats.sum() / math.log(2)
    assert metrics["bits_per_character"]["value"] == pytest.approx(bits / len(held_out), rel=1e-6)
    assert metrics["bits_per_byte"]["value"] == pytest.approx(bits / len(held_out.encode()), rel=1e-6)
    assert metrics["bits_per_byte"]["value"] < metrics["bits_per_character"]["value"]
    blocks = [block.mean() for block in np.array_split(nats, 100)]
    stderr = np.std(blocks, ddof=1) / 10
    assert metrics["nats_per_token"]["stderr"] == pytest.approx(stderr, rel=0.15)
    assert result["references"]["held_out_tokens"] == len(words.test)


def test_baselines_are_those_of_the_metric(of_words, words):
    baselines = of_words.result["baselines"]
    for name, order in (("unigram", 1), ("markov", 2), ("5-gram", 5)):
        expected = NGram.fit(words.train, order, words.size).nats(words.test)[1:].mean()
        assert baselines[name] == pytest.approx(expected, rel=1e-9)
    assert list(baselines) == ["unigram", "markov", "5-gram"]
    entry = of_words.result["metrics"]["nats_per_token"]
    assert (entry["floor"], entry["ceiling"]) == (baselines["5-gram"], baselines["unigram"])


def test_the_result_is_the_file_and_has_no_nan(of_words):
    text = (of_words.path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == json.loads(json.dumps(of_words.result, allow_nan=False))
    assert list(of_words.result)[:6] == ["run", "model", "data", "split", "samples", "seed"]
    for name, entry in of_words.result["metrics"].items():
        assert list(entry) == ["value", "stderr", "floor", "ceiling"]
        assert entry["value"] is not None and name in METRICS
    shown = lines_of(of_words.result, METRICS)
    assert "3 texts of NGramModel" in shown
    assert f"beside {of_words.result['references']['held_out_tokens']} test tokens" in shown
    assert "5-gram" in shown
    assert max(map(len, shown.splitlines())) <= 120 + len(of_words.result["data"])


def test_copies_of_the_training_text_are_seen():
    random = np.random.default_rng(0)
    train, held_out = random.integers(1, 60, 5000), random.integers(1, 60, 2000)
    windows = sequences._stretches(held_out, [40] * 50)
    copies = [train[start : start + 40] for start in range(0, 400, 40)]
    entry, bound = sequences.copy_entry(copies, windows, train)
    assert entry["value"] == 1
    assert entry["floor"] < 0.1
    assert bound < 10
    assert sequences.copy_entry([random.integers(1, 60, 40) for _ in range(10)], windows, train)[0]["value"] < 0.3


def test_one_token_repeated_is_at_the_degenerate_end():
    random = np.random.default_rng(0)
    real = [random.integers(1, 60, 40) for _ in range(10)]
    metrics = sequences.variety_metrics([np.ones(40, np.int64)] * 10, real)
    assert metrics["distinct_2"]["value"] == metrics["distinct_2"]["floor"]
    assert metrics["repetition"]["value"] == pytest.approx(metrics["repetition"]["ceiling"])
    assert metrics["self_bleu"]["value"] == metrics["self_bleu"]["ceiling"] == 1
    again = sequences.variety_metrics(real, real)
    assert all(entry["value"] == entry[METRICS[name].real] for name, entry in again.items())


def test_stretches_of_held_out_text_do_not_overlap():
    for size, lengths in ((100, [10] * 10), (101, [10] * 7), (64, [1, 30, 2]), (20, [20])):
        found = sequences._stretches(np.arange(size), lengths)
        assert [len(stretch) for stretch in found] == lengths
        assert all(b[0] > a[-1] for a, b in zip(found, found[1:]))
        assert len(lengths) == 1 or found[-1][-1] == size - 1


def test_ratio_of_groups_against_a_simulation():
    random = np.random.default_rng(0)

    def draw():
        sizes = random.integers(1, 20, 50)
        return [random.normal(3, 1) * size for size in sizes], sizes

    values, errors = zip(*(sequences.ratio_of(*draw()) for _ in range(2000)))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    assert math.isnan(sequences.ratio_of([4.0], [2]).stderr)
    assert sequences.ratio_of([4.0, 2.0], [2, 1]) == (2, 0)


def test_an_untrained_model_of_documents(tmp_path):
    path = tmp_path / "lines.txt"
    random = np.random.default_rng(0)
    path.write_text("\n".join("".join(random.choice(list("abc"), 12)) for _ in range(200)))
    config = text_config(path, "text.documents=line", "text.tokenizer=bpe", "text.vocabulary=262", "text.block=8")
    source = load_data(config)
    model = build(config, source.spec)
    result = evaluate(run_of(config, tmp_path, model, source), samples=2, split="validation")
    assert result["samples"] == 2
    assert result["metrics"]["nats_per_token"]["value"] == pytest.approx(math.log(262), abs=0.5)
    assert "3-gram" in result["baselines"]
    assert evaluate(run_of(config, tmp_path, model, source), samples=2, split="validation") == result


# Music


def pieces_of(path, num=12):
    """Pieces of four notes that move by steps; the last two are test."""
    random = np.random.default_rng(3)
    rolls = []
    for _ in range(num):
        roll = np.zeros((int(random.integers(6, 14)), 88), np.uint8)
        for row in roll:
            row[random.choice([39, 43, 46, 51, 53], 3, replace=False)] = 1
        rolls.append(roll)
    split = {"train": rolls[:-4], "valid": rolls[-4:-2], "test": rolls[-2:]}
    path.write_text(json.dumps({key: [[(np.flatnonzero(f) + 21).tolist() for f in roll] for roll in some]
                                for key, some in split.items()}))  # fmt: skip
    return rolls[:-4], rolls[-2:]


@pytest.fixture
def music(tmp_path):
    train, test = pieces_of(tmp_path / "steps.json")

    def config(tokens):
        given = [f"data.name={tmp_path / 'steps.json'}", "data.modality=music", f"music.tokens={tokens}"]
        small = ["music.block=4", "music.transpose=2", "model.layers=1", "model.units=8"]
        return resolve("lstm-shakespeare", [*given, *small])

    return SimpleNamespace(train=train, test=test, config=config, path=tmp_path)


def test_frames_are_told_whole_and_with_the_published_baselines(music):
    config = music.config("frames")
    source = load_data(config)
    model = build(config, source.spec)
    result = evaluate(run_of(config, music.path, model, source), samples=3)
    metrics, baselines = result["metrics"], result["baselines"]
    nats = [model.nats(model.prepare({"frames": piece[None]}))[0].numpy() for piece in music.test]
    total = sum(len(piece) for piece in music.test)
    with_first = sum(n.sum() for n in nats) / total
    without = sum(n[1:].sum() for n in nats) / (total - 2)
    assert metrics["nats_per_frame_with_first"]["value"] == pytest.approx(with_first, rel=1e-5)
    assert metrics["nats_per_frame"]["value"] == pytest.approx(without, rel=1e-5)
    # of whole, untransposed pieces, though the model learned from parts in several keys
    assert baselines["markov"] == pytest.approx(frames.markov_nats(music.train, music.test).value)
    assert metrics["nats_per_frame"]["floor"] == min(baselines.values())
    after = [piece[1:] for piece in music.test]
    assert metrics["nats_per_frame"]["ceiling"] == pytest.approx(frames.bernoulli_nats(music.train, after).value)
    assert metrics["polyphony"]["ceiling"] == 3
    assert metrics["in_key"]["ceiling"] == 1
    assert result["references"]["held_out_pieces"] == 2


def test_chords_are_told_in_nats_a_frame_too(music):
    config = music.config("chords")
    source = load_data(config)
    model = build(config, source.spec)
    result = evaluate(run_of(config, music.path, model, source), samples=2)
    streams = [split.contents()["stream"] for split in (source.train, source.test)]
    ngram = NGram.fit(streams[0], 5, 90)
    later, everything, counted = 0.0, 0.0, 0.0
    for piece in music.test:  # each piece by itself: the decoder's own likelihood of its tokens
        tokens = np.concatenate([[0], midi.to_chords(piece)]).astype(np.int32)
        nats = step_by_step(model, tokens)
        first = int(np.flatnonzero(tokens == 89)[0])
        later += nats[first:].sum()
        everything += nats.sum()
        counted += ngram.nats(tokens)[first + 1 :].sum()
    total = sum(map(len, music.test))
    metrics = result["metrics"]
    assert metrics["nats_per_frame"]["value"] == pytest.approx(later / (total - 2), rel=1e-4)
    assert metrics["nats_per_frame_with_first"]["value"] == pytest.approx(everything / total, rel=1e-4)
    baselines = result["baselines"]
    assert baselines["markov"] == pytest.approx(frames.markov_nats(music.train, music.test).value)
    assert baselines["5-gram"] == pytest.approx(counted / (total - 2))
    assert metrics["nats_per_frame"]["floor"] == min(baselines["markov"], baselines["5-gram"])
    expected = ngram.nats(streams[1])[1:].mean()
    assert baselines["token_5-gram"] == pytest.approx(expected)
    assert "nats a frame" in lines_of(result, METRICS)


def test_events_are_told_over_all_frames(music):
    config = music.config("events")
    source = load_data(config)
    model = build(config, source.spec)
    result = evaluate(run_of(config, music.path, model, source), samples=2)
    assert "nats_per_frame" not in result["metrics"]
    nats = sum(step_by_step(model, np.concatenate([[0], midi.to_events(p)]).astype(np.int32)).sum() for p in music.test)
    value = nats / sum(map(len, music.test))
    assert result["metrics"]["nats_per_frame_with_first"]["value"] == pytest.approx(value, rel=1e-4)
    assert result["baselines"]["markov"] == pytest.approx(frames.markov_nats(music.train, music.test, first=True).value)


def test_keys_and_notes_of_pieces():
    scale = np.zeros((8, 88), np.uint8)
    scale[np.arange(8), np.array([60, 62, 64, 65, 67, 69, 71, 72]) - 21] = 1
    assert sequences.in_key([scale, np.zeros((3, 88))]).tolist() == [1.0]
    wrong = scale.copy()
    wrong[1] = np.roll(wrong[1], 1)  # C sharp
    assert sequences.in_key([wrong]).tolist() == [7 / 8]
    metrics = sequences.music_metrics([scale], [scale], [scale], 0)
    assert metrics["polyphony"]["value"] == metrics["polyphony"]["ceiling"] == 1
    silent = sequences.music_metrics([np.zeros((4, 88), np.uint8)], [scale], [scale], 0)
    assert "in_key" not in silent
    assert silent["polyphony"]["value"] == silent["polyphony"]["floor"] == 0


# Pairs


class Answers:
    """A model of pairs that answers right but for every fourth, and gives each token of a target one nat."""

    num_classes = 0

    def __init__(self, right):
        self.right, self.asked = right, []

    def prepare(self, data):
        steps = tf.range(tf.shape(data["target"])[1])
        weights = tf.cast(steps < tf.cast(data["target_length"], tf.int32)[:, None], tf.float32)
        return {"targets": data["target"], "weights": weights}

    def nats(self, batch):
        return tf.ones_like(batch["targets"], tf.float32)

    def sample(self, num, *, prompt, seed, max_length, temperature):
        assert temperature == 0 and len(prompt) == num
        self.asked += prompt
        return [self.right[source] if number % 4 else "0" + self.right[source] for number, source in enumerate(prompt)]


def test_answers_are_counted(tmp_path):
    lines = [f"{n}\t{n % 7}{n % 5}" for n in range(100, 400)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    right = dict(line.split("\t") for line in lines)
    config = resolve("lstm-shakespeare", [f"data.name={tmp_path / 'pairs.tsv'}", "data.modality=pairs",
                                          "data.test_share=0.1"])  # fmt: skip
    model = Answers(right)
    source = load_data(config)
    result = evaluate(run_of(config, tmp_path, model, source), samples=20)
    metrics = result["metrics"]
    assert metrics["exact_match"]["value"] == 0.75
    assert metrics["edit_distance"]["value"] == 0.25
    assert metrics["edit_distance"]["ceiling"] == 2
    assert metrics["nats_per_token"]["value"] == pytest.approx(1)
    assert len(set(model.asked) & set(right)) == result["samples"] == 20
    content, learned = source.test.contents(), source.train.contents()
    streams = [sequences.target_stream(part["target"], part["target_length"]) for part in (learned, content)]
    assert streams[1].tolist() == [0, *(t for row in content["target"] for t in (*row[row > 0], 0))]
    expected = NGram.fit(streams[0], 1, source.spec.vocabulary).nats(streams[1])[1:].mean()
    assert result["baselines"]["unigram"] == pytest.approx(expected)
    assert "20 answers of Answers" in lines_of(result, METRICS)


# Images with a likelihood


def test_images_with_a_likelihood(tmp_path):
    random = np.random.default_rng(0)
    shares = random.random((4, 4, 1))
    images = np.where(random.random((600, 4, 4, 1)) < shares, 255, 0).astype(np.uint8)
    source = from_arrays(images)
    learned = (source.train.arrays()[0] > 0).mean(axis=0)

    class Known:
        exact_likelihood, levels, num_classes = True, 2, 0

        def log_prob(self, images, labels=None):
            assert labels is None
            p = np.where(images > 0, learned, 1 - learned)
            return np.log(p).sum(axis=(1, 2, 3))

        def sample(self, num, *, condition=None, seed=None):
            return np.where(np.random.default_rng(seed).random((num, 4, 4, 1)) < learned, 1.0, -1.0)

    result = evaluate(run_of(None, tmp_path, Known(), source), samples=50, extractors=0)
    entry = result["metrics"]["nats_per_image"]
    # the model is the baseline but for the half that is added to counts
    assert entry["value"] == pytest.approx(entry["ceiling"], rel=5e-3)
    assert entry["ceiling"] == result["baselines"]["unigram"]
    bits = result["metrics"]["bits_per_dimension"]
    assert bits["value"] == pytest.approx(entry["value"] / 16 / math.log(2))
    assert 0 < entry["stderr"] < 0.3
    assert "nats an image" in lines_of(result, METRICS)


# Bad input, and the command


def test_an_empty_split(words, tmp_path):
    config = dataclasses.replace(words.config, data=dataclasses.replace(words.config.data, test_share=0.0))
    with pytest.raises(UserError, match="the test split must hold at least one example"):
        evaluate(run_of(config, tmp_path, None))


def test_data_with_another_tokenizer(words, tmp_path):
    spec = dataclasses.replace(words.source.spec, tokenizer={"kind": "char", "characters": "another"})
    run = run_of(words.config, tmp_path, None, words.source)
    run.spec = spec
    with pytest.raises(UserError, match="same tokenizer"):
        evaluate(run)


def test_the_command_prints_a_table_for_text(text_file, tmp_path, capsys):
    config = text_config(text_file)
    spec = load_data(config).spec
    run = Run.create(tmp_path / "run", config, spec)
    run.checkpoints.save(build(config, spec), {"step": 3}, best=True)
    assert gentf(["evaluate", str(run.path), "-n", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("nats_per_token", "bits_per_byte", "distinct_4", "near_copies"):
        assert f"\n{name} " in out
    assert "run: 2 texts of RNN, checkpoint last" in out
    assert gentf(["evaluate", str(run.path), "-n", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run.path / "evaluation.json").read_text())
