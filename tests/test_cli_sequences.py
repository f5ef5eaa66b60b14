"""The command line with models of text, pairs and music: what is drawn, where it goes, and what is refused."""

import itertools
import json
import re

import numpy as np
import pytest

from gentf.cli.export import constraints
from gentf.cli.main import run
from gentf.cli.sequences import musical_key, whole_characters
from gentf.config import resolve
from gentf.data import harmony, midi, music, tokenizers
from gentf.data.loading import modality_of
from gentf.export import saved_model
from gentf.kernels import random
from gentf.models import RNN, EncoderDecoder, Transformer
from gentf.models.saved import load_model
from gentf.training import train
from gentf.training.run import Run

VERSE = "Ein Bär — schwer, sehr schwer.\n42 + 17 = 59\n"


def command(capsys, *arguments) -> tuple[str, str]:
    """What a command that succeeds prints on stdout and stderr."""
    status = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def error(capsys, *arguments) -> str:
    """The one line of a command that fails."""
    status = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status in (1, 2) and out == "" and err.startswith("Error: ") and err.count("\n") == 1, (status, out, err)
    return err.removeprefix("Error: ").strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sequences")


@pytest.fixture(scope="module")
def text_run(folder):
    (folder / "verse.txt").write_text(VERSE * 20)
    overrides = ["model.units=16", "model.layers=1", "train.steps=3", "train.jit=false", "text.block=16",
                 "train.batch_size=8", "train.steps_per_call=1", f"data.name={folder / 'verse.txt'}"]  # fmt: skip
    return train(resolve("lstm-shakespeare", overrides), folder / "text").path


def saved(folder, name: str, model):
    path = folder / f"{name}.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def bytes_model(folder):
    """An untrained model of bytes: most of what it makes is no UTF-8."""
    codec = tokenizers.train("byte", [VERSE])
    return saved(folder, "bytes", RNN(codec.size, units=16, layers=1, tokenizer=codec.to_dict(), start=(1,)))


@pytest.fixture(scope="module")
def music_models(folder):
    options = {"units": 16, "layers": 1}
    chords = RNN(len(midi.CHORDS), tokenizer={"kind": "chords"}, start=(0,), boundary=True, **options)
    events = RNN(len(midi.EVENTS), tokenizer={"kind": "events"}, start=(0,), boundary=True, **options)
    frames = RNN(0, tokenizer={"kind": "frames"}, **options)
    models = {"chords": chords, "events": events, "frames": frames}
    return {name: saved(folder, name, model) for name, model in models.items()}


# Text


def test_texts_are_those_of_python_whatever_they_are_written_to(text_run, tmp_path, capsys):
    model = Run(text_run).load_model()
    texts = model.sample(3, prompt="Bär ", seed=5, max_length=30, temperature=0.7, top_k=9)
    options = ("-n", 3, "--prompt", "Bär ", "--seed", 5, "--max-length", 30, "--temperature", 0.7, "--top-k", 9)
    printed, _ = command(capsys, "sample", text_run, *options)
    assert printed == "\n----\n".join(texts) + "\n"
    for name in ("a.txt", "a.jsonl", "a"):
        assert command(capsys, "sample", text_run, *options, "--out", tmp_path / name)[0].startswith("3 samples: ")
    assert (tmp_path / "a.txt").read_text() == printed
    assert [(tmp_path / f"a/{number:06d}.txt").read_text() for number in range(3)] == texts
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().split("\n")[:-1]]
    assert [row["text"] for row in rows] == texts and {row["prompt"] for row in rows} == {"Bär "}
    found = model.generate(["Bär "] * 3, seeds=random.spread(5, 3).numpy(), max_length=30, temperature=0.7, top_k=9)
    np.testing.assert_allclose([row["nats"] for row in rows], found.nats, atol=1e-3)


def test_without_options_one_text_is_printed(text_run, capsys):
    out, err = command(capsys, "sample", text_run)
    assert 200 < len(out) <= 257 and err == ""  # 256 tokens, of which 0 has no text
    assert command(capsys, "sample", text_run / "model.keras")[0] == out


def test_temperature_0_is_greedy_and_the_prompt_may_be_a_file(text_run, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("Bär\n")
    greedy = {
        command(capsys, "sample", text_run, "--prompt-file", tmp_path / "prompt.txt", "--max-length", 20, *options)[0]
        for options in (("--temperature", 0), ("--temperature", 0, "--seed", 9), ("--top-k", 1, "--jit"))
    }
    assert len(greedy) == 1


def test_a_text_ends_before_a_stop_string(text_run, capsys):
    whole, _ = command(capsys, "sample", text_run, "--max-length", 200)
    stops = (whole[40:42], whole[60:63])
    cut, _ = command(capsys, "sample", text_run, "--max-length", 200, "--stop", stops[0], "--stop", stops[1])
    assert cut[:-1] == whole[: min(whole.find(stop) for stop in stops)]


def test_a_stream_is_the_same_text_in_whole_characters(bytes_model, text_run, capsys):
    options = ("--max-length", 70, "--seed", 1)
    for model in (bytes_model, text_run):
        whole, _ = command(capsys, "sample", model, *options)
        assert command(capsys, "sample", model, *options, "--stream")[0] == whole
    stop = ("--stop", whole[50:53])
    stopped, _ = command(capsys, "sample", text_run, *options, *stop)
    assert whole.startswith(stopped[:-1]) and len(stopped) < len(whole)
    assert command(capsys, "sample", text_run, *options, *stop, "--stream")[0] == stopped


def test_pieces_of_utf_8_are_printed_when_they_are_whole():
    content = "é—𝄞 und".encode()
    shown = list(whole_characters(content[i : i + 1] for i in range(len(content))))
    assert "".join(shown) == content.decode() and "\ufffd" not in "".join(shown)
    assert all(part == "" for part in itertools.compress(shown, [1, 0, 1, 1, 0]))
    # a stop string that may yet come is held back, and printed when it does not
    assert list(whole_characters(iter([b"a\n", b"\nb"]), ("\n\nc",)))[:2] == ["a", "\n\nb"]
    generator = np.random.default_rng(0)
    for _ in range(300):
        content = generator.choice(np.frombuffer("aé𝄞\xff\n".encode() + b"\xe2\xff", np.uint8), 12).tobytes()
        cuts = sorted(generator.integers(0, 13, 3))
        pieces = [content[a:b] for a, b in itertools.pairwise([0, *cuts, 12])]
        text = content.decode("utf-8", "replace")
        assert "".join(whole_characters(iter(pieces))) == text
        stops = ("a\n", "é")
        expected = re.split("a\n|é", text, maxsplit=1)[0]
        assert "".join(whole_characters(iter(pieces), stops)) == expected


def test_rules_hold_and_their_cost_is_told(text_run, tmp_path, capsys):
    out, err = command(capsys, "sample", text_run, "-n", 20, "--regex", "[A-Z][a-z]{2,5}", "--max-length", 10)
    assert all(re.fullmatch("[A-Z][a-z]{2,5}", text) for text in out[:-1].split("\n----\n"))
    told = re.fullmatch(r"the rule cost ([\d.]+) nats of likelihood a sample \(mean of 20, [\d.]+ to [\d.]+\)\n", err)
    assert told and float(told[1]) > 5
    streamed = command(capsys, "sample", text_run, "--regex", "[A-Z][a-z]{2,5}", "--max-length", 10, "--stream")
    assert streamed[0] == out.split("\n")[0] + "\n" and streamed[1].startswith("the rule cost ")
    (tmp_path / "schema.json").write_text('{"type": "array", "items": {"enum": [4, 17]}, "minItems": 1, "maxItems": 3}')
    message = error(capsys, "sample", text_run, "--json-schema", tmp_path / "schema.json")
    assert message.startswith("`schema` must match a text that the")  # there is no bracket in the verse


def test_json_by_a_schema_is_json(bytes_model, tmp_path, capsys):
    (tmp_path / "schema.json").write_text(
        '{"type": "array", "items": {"enum": [4, "é"]}, "minItems": 1, "maxItems": 3}'
    )
    options = ("--json-schema", tmp_path / "schema.json", "--out", tmp_path / "a.jsonl")
    _, err = command(capsys, "sample", bytes_model, "-n", 20, *options)
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        value = json.loads(json.loads(line)["text"])
        assert 1 <= len(value) <= 3 and set(value) <= {4, "é"}
    assert err.startswith("the rule cost ")


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_prompt_beyond_the_context_is_warned_of_in_one_line(folder, capsys):
    codec = tokenizers.train("char", [VERSE])
    options = {"layers": 1, "width": 8, "heads": 1, "context": 16, "tokenizer": codec.to_dict(), "start": (1,)}
    path = saved(folder, "short", Transformer(codec.size, **options))
    _, err = command(capsys, "sample", path, "--prompt", VERSE, "--max-length", 4)
    assert re.fullmatch(
        r"Warning: a prompt of 44 symbols is longer than the context: only its last \d+ are read\n", err
    )


def test_pairs_need_a_source(folder, capsys):
    codec = tokenizers.train("char", ["0123456789-+ "])
    model = EncoderDecoder(
        codec.size, layers=1, width=16, heads=2, tokenizer=codec.to_dict(), start=(0,), boundary=True
    )
    path = saved(folder, "pairs", model)
    out, _ = command(capsys, "sample", path, "--prompt", "12+30", "--temperature", 0, "--max-length", 8)
    assert out[:-1] == model.sample(1, prompt="12+30", temperature=0, max_length=8)[0]
    assert "`--prompt` must be given for a model of pairs" in error(capsys, "sample", path)


# Music


def test_chorales_obey_key_range_voices_and_leap(music_models, tmp_path, capsys):
    rule = ("--key", "F# minor", "--range", "48-72", "--voices", "2-4", "--max-leap", 5)
    out, err = command(capsys, "sample", music_models["chords"], "-n", 4, *rule, "--out", tmp_path / "a.mid")
    paths = sorted(tmp_path.glob("a-*.mid"))
    assert [path.name for path in paths] == [f"a-{number:06d}.mid" for number in range(4)]
    assert re.match(r"4 pieces, \d+ frames: ", out) and err.startswith("the rule cost ")
    allowed = harmony.pitches_in_key(6, "minor", 48, 72)
    for path in paths:
        roll = midi.read_midi(path)
        assert not roll[:, ~allowed].any() and set(roll.sum(axis=1)) <= {2, 3, 4}
        assert np.abs(np.diff(roll.argmax(axis=1))).max(initial=0) <= 5
    command(capsys, "sample", music_models["chords"], "-n", 4, *rule, "--leap-of", "top", "--out", tmp_path / "b.npz")
    for roll in music.read_rolls(tmp_path / "b.npz").train:
        assert np.abs(np.diff(roll[:, ::-1].argmax(axis=1))).max(initial=0) <= 5
    command(capsys, "sample", music_models["chords"], *rule, "--out", tmp_path / "one.mid", "--steps-per-quarter", 2)
    np.testing.assert_array_equal(midi.read_midi(tmp_path / "one.mid", 2), midi.read_midi(paths[0]))


@pytest.mark.parametrize("kind", ["frames", "events"])
def test_frames_and_events_obey_key_and_range(music_models, kind, tmp_path, capsys):
    rule = ("--key", "Bb major", "--range", "40-60", "--max-length", 60)
    command(capsys, "sample", music_models[kind], "-n", 3, *rule, "--out", tmp_path / "a.npz")
    _, err = command(capsys, "sample", music_models[kind], "-n", 3, *rule, "--out", tmp_path / "pieces")
    pieces = music.read_rolls(tmp_path / "a.npz").train
    assert sum(roll.sum() for roll in pieces) > 0 and "the rule cost " in err
    for roll in pieces:
        assert not roll[:, ~harmony.pitches_in_key(10, "major", 40, 60)].any()
    assert len(list((tmp_path / "pieces").glob("*.mid"))) == len(pieces)


def test_music_without_a_rule_goes_on_from_a_file_and_is_drawn_as_a_picture(music_models, tmp_path, capsys):
    chorale = harmony.chorales(1, seed=3)[0][:12]
    midi.write_midi(chorale, tmp_path / "start.mid")
    options = ("-n", 2, "--max-length", 50, "--seed", 4)
    _, err = command(capsys, "sample", music_models["frames"], *options, "--prompt-file", tmp_path / "start.mid",
                     "--out", tmp_path / "a.npz")  # fmt: skip
    expected = load_model(music_models["frames"]).sample(2, prompt=chorale, seed=4, max_length=50)
    np.testing.assert_array_equal(music.read_rolls(tmp_path / "a.npz").train, expected)
    assert err == ""
    command(capsys, "sample", music_models["frames"], *options, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_keys_are_read():
    assert [musical_key(text) for text in ("C major", "F# minor", "Bb major", "Cb minor", "B# major")] == [
        (0, "major"), (6, "minor"), (10, "major"), (11, "minor"), (0, "major")
    ]  # fmt: skip


# Exports


def test_an_export_draws_the_same_texts(text_run, tmp_path, capsys):
    model = Run(text_run).load_model()
    signatures = model.signatures()
    functions = {name: saved_model.trace(name, signatures[name]) for name in ("serving_default", "step")}
    saved_model.save(functions, tmp_path / "served" / "1")
    options = ("-n", 2, "--prompt", "Bär ", "--max-length", 20, "--temperature", 0.9, "--top-p", 0.8, "--seed", 6)
    texts, _ = command(capsys, "sample", tmp_path / "served", *options)
    assert texts == command(capsys, "sample", text_run, *options)[0]
    streamed, _ = command(capsys, "sample", tmp_path / "served", *options[2:], "--stream")
    assert streamed[:-1] == texts.split("\n----\n")[0]
    command(capsys, "sample", tmp_path / "served", *options, "--out", tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert "\n----\n".join(row["text"] for row in rows) == texts[:-1]
    for wrong, message in (
        (("--top-k", 3), "`--top-k` must be left out for an export"),
        (("--temperature", -1), "`temperature` must be at least 0"),
        (("--regex", "a"), "`--regex` must be left out for an export"),
        (("--label", "1"), "`condition` must be None for an unconditional model"),
    ):
        assert message in error(capsys, "sample", tmp_path / "served", *wrong)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", -1), "`temperature` must be at least 0"),
        (("--temperature", "nan"), "`temperature` must be at least 0"),
        (("--top-p", 0), "`top_p` must be in (0, 1]"),
        (("--top-p", 1.5), "`top_p` must be in (0, 1]"),
        (("--min-p", -0.1), "`min_p` must be in [0, 1]"),
        (("--repetition", 0), "`repetition` must be positive"),
        (("--max-length", 0), "Invalid value for '--max-length'"),
        (("--prompt", "☃"), "☃"),
        (("--prompt", "a", "--prompt-file", "b"), "`--prompt` and `--prompt-file` must not both be given"),
        (("--prompt-file", "nowhere.txt"), "cannot read nowhere.txt"),
        (("--regex", "[a"), "`pattern` must be a supported regular expression"),
        (("--regex", "a", "--json-schema", "b"), "`--regex` and `--json-schema` must not both be given"),
        (("--stop", ""), "`stop` must be strings"),
        (("--stream", "-n", 2), "`--stream` prints one sample, on stdout. Received: -n 2"),
        (("--stream", "--out", "a.txt"), "`--stream` prints one sample, on stdout. Received: --out a.txt"),
        (("--out", "a.png"), "`--out` must end in .txt or .jsonl, or name a folder"),
        (("--key", "C major"), "`--key` must be left out for a model of text"),
        (("--label", "3"), "`condition` must be None for an unconditional model"),
    ],
)
def test_mistakes_with_text_are_one_line(text_run, arguments, message, capsys):
    assert message in error(capsys, "sample", text_run, *arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("chords", ("--prompt", "a"), "`--prompt` must be left out for a model of music as chords"),
        ("chords", ("--key", "H major"), '`--key` must be a note and major or minor, as "F# minor"'),
        ("chords", ("--range", "81-48"), "`--range` must be LOW-HIGH, MIDI pitches from 21 to 108"),
        ("chords", ("--range", "61-61", "--key", "C major"), "`--range` must hold a note of the key"),
        ("chords", ("--voices", "4-2"), "`--voices` must be N or LEAST-MOST"),
        ("chords", ("--voices", "0"), "`--voices` must be N or LEAST-MOST"),
        ("chords", ("--voices", "3", "--range", "60-61"), "`voices` must be at most the 2 keys"),
        ("chords", ("--leap-of", "top"), "`--leap-of` needs --max-leap"),
        ("chords", ("--out", "a.txt"), "`--out` must end in .mid, .png or .npz, or name a folder"),
        ("chords", ("--prompt-file", "nowhere.mid"), "cannot read nowhere.mid"),
        ("chords", ("--steps-per-quarter", 2, "--out", "a.png"), "`--steps-per-quarter` is of MIDI files"),
        ("frames", ("--voices", 4), "`--voices` must be left out for a model of music as frames"),
        ("frames", ("--top-k", 0), "`--top-k` must be left out for a model of music as frames"),
        ("events", ("--max-leap", 0), "`--max-leap` must be left out for a model of music as events"),
    ],
)
def test_mistakes_with_music_are_one_line(music_models, kind, arguments, message, capsys):
    assert message in error(capsys, "sample", music_models[kind], *arguments)


# gentf data


def test_what_a_set_of_text_holds(folder, text_run, capsys):
    out, _ = command(capsys, "data", folder / "verse.txt", "text.block=16", "data.test_share=0.2")
    assert "train:       616 characters, 616 tokens, 1 document\n" in out
    assert f"char, a vocabulary of {1 + len(set(VERSE))} with the boundary, in windows of 16\n" in out
    out, _ = command(capsys, "data", folder / "verse.txt", "text.tokenizer=byte", "text.documents=line",
                     "text.block=16")  # fmt: skip
    assert re.search(r"train: +\d+ characters, \d+ tokens, 32 documents\n", out) and "licence:     not stated" in out
    counts = [int(n) for n in re.findall(r"(\d+) tokens", out)]
    assert sum(counts) == 20 * (len(VERSE.encode()) - 2)  # line breaks are cuts


def test_what_sets_of_music_and_of_pairs_hold(capsys, tmp_path):
    pieces = [piece[:20] for piece in harmony.chorales(8, seed=2)]
    music.write_rolls(music.Rolls(pieces[:5], pieces[5:6], pieces[6:], "eight"), tmp_path / "eight.npz")
    frames, _ = command(capsys, "data", tmp_path / "eight.npz", "music.block=8")
    assert "train:       15 parts, 100 frames\nvalidation:  1 pieces, 20 frames\ntest:        2 pieces" in frames
    for tokens in ("chords", "events"):
        out, _ = command(capsys, "data", tmp_path / "eight.npz", f"music.tokens={tokens}", "music.block=8")
        assert "train:       5 pieces, 100 frames, " in out and "test:        2 pieces, 40 frames" in out
    (tmp_path / "sums.tsv").write_text("".join(f"{n}+1\t{n + 1}\n" for n in range(40)))
    out, _ = command(capsys, "data", tmp_path / "sums.tsv")
    assert "train:       32 pairs\nvalidation:  4 pairs\ntest:        4 pairs\n" in out
    given, wanted = re.search(r"examples: +'(\d+)\+1' -> '(\d+)'\n", out).groups()
    assert int(wanted) == int(given) + 1


def test_the_modality_is_guessed(tmp_path):
    expected = {"digits": "image", "python-docs": "text", "dates": "pairs", "arithmetic": "pairs", "chorales": "music",
                "mnist": "image", "novel.txt": "text", "a.mid": "music", "JSB.mat": "music", "jsb.json": "music",
                "lines.tsv": "pairs", "nothing": "image", "x.npz": "image"}  # fmt: skip
    assert {name: modality_of(name) for name in expected} == expected
    for name, modality in (("a.md", "text"), ("a.MID", "music"), ("a.png", "image")):
        (tmp_path / modality / "deep").mkdir(parents=True)
        (tmp_path / modality / "deep" / name).write_text("x")
        assert modality_of(tmp_path / modality) == modality
    features = {"featuresDict": {"features": {"verse": {"pythonClassName": "tensorflow_datasets.core.Text"}}}}
    prepared = tmp_path / "tfds/verses/1.0.0"
    prepared.mkdir(parents=True)
    for name, content in (("dataset_info.json", {}), ("features.json", features)):
        (prepared / name).write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
        assert (modality_of("verses"), modality_of("verses:1.0.0")) == ("text", "text")


def test_mistakes_with_data_are_one_line(capsys):
    assert "`KEY` must be one of data, image, pairs, text, music" in error(capsys, "data", "digits", "model.units=3")
    assert "for data of modality image. Received: text.block=3" in error(capsys, "data", "digits", "text.block=3")
    assert "must be one of image, text, music, pairs" in error(capsys, "data", "digits", "data.modality=film")
    assert "no text, folder or file is called 'nothing'" in error(capsys, "data", "nothing", "data.modality=text")


def test_embedded_sets_of_every_modality_are_listed(capsys):
    out, _ = command(capsys, "data")
    names = [line.split()[0] for line in out.split("made of")[0].splitlines()[1:]]
    assert names == ["digits", "sprites", "ring-8", "grid-25", "python-docs", "dates", "arithmetic", "chorales"]
    assert "\n  stacked-mnist  three digits" in out


# Export


def test_rules_of_an_export(text_run, tmp_path, capsys):
    (tmp_path / "s.json").write_text('{"enum": ["Bär", 42]}')
    found = constraints(Run(text_run), ("number=[0-9]{2}",), (f"word={tmp_path / 's.json'}",))
    codec = Run(text_run).load_model()._codec().text
    texts = ("42", "4", "Bär", '"Bär"')
    assert [found["number"].accepts(codec.encode(text)) for text in texts[:3]] == [True, False, False]
    assert [found["word"].accepts(codec.encode(text)) for text in texts[:3]] == [True, False, False]
    assert constraints(Run(text_run), (), ()) == {}
    for option, value, what in (
        ("--regex", "number", "`--regex` must be NAME=PATTERN, each name once. Received: --regex number"),
        ("--json-schema", "=x", "`--json-schema` must be NAME=FILE, each name once. Received: --json-schema =x"),
        ("--regex", "a=(", "`pattern` must be"),
        ("--json-schema", f"a={tmp_path / 'none.json'}", "cannot read"),
    ):
        assert error(capsys, "export", text_run, "--to", tmp_path / "x", option, value).startswith(what)
    assert not (tmp_path / "x").exists()
