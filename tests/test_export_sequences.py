"""Exports of sequence models: that servers give Python's texts and music, token for token."""

import re

import numpy as np
import pytest
import tensorflow as tf
from consumers import ask

from gentf.data import tokenizers
from gentf.errors import UserError
from gentf.export import export, graph, load
from gentf.export import saved_model as writer
from gentf.models import RNN, Transformer
from gentf.models.serving import _Served
from gentf.sampling.regex import regex

TEXT = "On 2019-03-05, 7 quick brown foxes; née Über 日本語. " * 4
CHAR, BYTE, BPE = (
    tokenizers.train(kind, [TEXT], size) for kind, size in (("char", None), ("byte", None), ("bpe", 300))
)
PROMPTS = ["", "quick", "née 2019 日本語 brown foxes", "O"]
SIZES = (1, 2)
DATE = r"[0-9]{4}-[0-9]{2}"


def text_of(codec, **kwargs):
    return {"vocabulary": codec.size, "tokenizer": codec.to_dict(), **kwargs}


def sharp(model, factor=4.0):
    """The model with larger weights: what it draws depends on what it has read, as after training."""
    for weight in model.trainable_variables:
        if len(weight.shape) == 2:
            weight.assign(factor * weight)
    return model


@pytest.fixture(scope="module")
def models():
    return {
        "lstm": sharp(RNN(layers=2, units=12, seed=1, **text_of(CHAR, boundary=True))),
        "rotary": sharp(Transformer(context=8, layers=2, width=16, heads=2, seed=2, **text_of(BPE, start=(1,))), 8.0),
        "frames": RNN(cell="gru", layers=1, units=8, tokenizer={"kind": "frames"}, seed=3),
    }


@pytest.fixture(scope="module")
def date():
    return regex(DATE, CHAR.pieces)


@pytest.fixture(scope="module")
def exported(models, date, tmp_path_factory):
    """Each model, written, and checked in a process that has XLA switched off."""
    base = tmp_path_factory.mktemp("exports")
    constraints = {"lstm": {"date": date}}
    return {
        name: export(model, base / name, batch_sizes=SIZES, constraints=constraints.get(name))
        for name, model in models.items()
    }


@pytest.fixture(scope="module")
def served(exported):
    return {name: load(result.path) for name, result in exported.items()}


_TRACED: dict = {}


def call(model, name, rows, **inputs):
    """The answer of a signature of a model that was not exported; what is left out is plain."""
    if (id(model), name) not in _TRACED:
        signature = model.signatures(max_length=20)[name]
        _TRACED[id(model), name] = (model, signature.inputs, writer.trace(name, signature))
    plain = {"temperature": np.ones(rows), "top_p": np.ones(rows), "max_length": np.full(rows, 20)}
    plain |= {"seed": seeds(rows)}
    _, specs, function = _TRACED[id(model), name]
    given = {}
    for key, spec in specs.items():
        value = inputs.get(key, plain.get(key))
        if spec.dtype == tf.string:
            value = [text.encode() for text in value]
        given[key] = np.asarray(value, spec.dtype.as_numpy_dtype)
    return writer.call(function, given)


def seeds(rows, seed=5):
    return np.stack([np.full(rows, seed), np.arange(rows)], axis=1).astype(np.int32)


def texts(answer):
    return [text.decode() for text in answer["text"]]


# What servers answer


def test_check_found_every_signature_equal_and_warm_up_replays(exported):
    text = {"serving_default", "generate", "step", "score"}
    wanted = {"lstm": text | {"generate_date"}, "rotary": text, "frames": {"serving_default", "generate"}}
    for name, result in exported.items():
        assert {entry.name for entry in result.signatures} == wanted[name]
        assert all(entry.rows == 6 and entry.max_difference < 1e-5 for entry in result.signatures)
        assert result.warmup == len(wanted[name]) * len(SIZES)  # as many as the check has run


def test_graphs_hold_tensorflow_operations_without_state(exported):
    for result in exported.values():
        definition = graph.read(result.path).graph_def
        nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
        found = {node.op for node in nodes}
        assert not [op for op in found if re.search(r"Xla|PyFunc|Table|Cudnn|Random", op)]
        assert found & {"While", "StatelessWhile"}


@pytest.mark.filterwarnings("ignore:a prompt of")
def test_a_session_gives_pythons_texts_in_batches_and_one_by_one(models, exported, tmp_path):
    temperature, top_p = np.array([1.0, 0.8, 1.0, 0.0], np.float32), np.array([1.0, 0.9, 0.5, 1.0], np.float32)
    requests, expected = [], []
    for name in ("lstm", "rotary"):
        inputs = {
            "prompt": np.array([prompt.encode() for prompt in PROMPTS]),
            "seed": seeds(4),
            "temperature": temperature,
            "top_p": top_p,
            "max_length": np.full(4, 12, np.int32),
        }
        requests.append((exported[name].path, "serving_default", inputs))
        requests += [
            (exported[name].path, "generate", {key: value[row : row + 1] for key, value in inputs.items()})
            for row in range(4)
        ]
        found = models[name].sample(4, prompt=PROMPTS, seed=5, temperature=temperature, top_p=top_p, max_length=12)
        expected.append([text.encode() for text in found])
    answers = ask("session", requests, tmp_path / "session")
    for number, wanted in enumerate(expected):
        batch, *singles = answers[5 * number : 5 * number + 5]
        assert batch["text"] == wanted
        assert [one["text"][0] for one in singles] == wanted
        np.testing.assert_allclose(np.concatenate([one["nats"] for one in singles]), batch["nats"], rtol=1e-4)


# An export, loaded again


def test_served_texts_scores_and_streams_are_the_models(models, served):
    for name in ("lstm", "rotary"):
        model, loaded = models[name], served[name]
        settings = {"prompt": "quick", "seed": 3, "temperature": 0.9, "top_p": 0.95, "max_length": 30}
        found = loaded.sample(70, **settings)  # more than a request holds
        assert found == model.sample(70, **settings)
        assert len(set(found)) > 60
        parts = list(loaded.stream(**settings, block=4))
        assert "".join(parts) == found[0]
        lines = ["quick", "née 2019", TEXT[:40]]
        np.testing.assert_allclose(loaded.score(lines), -model.log_prob(lines), rtol=1e-4)
    assert (served["lstm"].modality, served["lstm"].max_length) == ("text", 1024)


def test_served_rolls_are_the_models(models, served):
    found = served["frames"].sample(3, seed=2, temperature=0.7, max_length=9)
    expected = models["frames"].sample(3, seed=2, temperature=0.7, max_length=9)
    assert served["frames"].modality == "music"
    for roll, wanted in zip(found, expected, strict=True):
        assert roll.dtype == np.uint8
        np.testing.assert_array_equal(roll, wanted)


def test_a_constraint_is_obeyed_and_costs_no_equality(models, served, date):
    rows = 40
    inputs = {"prompt": [b""] * rows, "seed": seeds(rows), "max_length": np.full(rows, 20)}
    answer = served["lstm"].call("generate_date", temperature=np.ones(rows), top_p=np.ones(rows), **inputs)
    assert all(re.fullmatch(DATE, text) for text in texts(answer))
    assert texts(answer) == models["lstm"].sample(rows, seed=5, max_length=20, constraint=date)


def test_unknown_characters_are_left_out(served):
    lstm = served["lstm"]
    assert lstm.sample(2, prompt="q☃uick☃", max_length=8) == lstm.sample(2, prompt="quick", max_length=8)
    assert lstm.sample(2, prompt="☃", max_length=8) == lstm.sample(2, max_length=8)
    assert lstm.sample(2, prompt="quick", max_length=8) != lstm.sample(2, max_length=8)


def test_each_row_has_its_own_length(served):
    lengths = np.array([1, 7, 3, -4, 12])
    inputs = {"prompt": [b"quick"] * 5, "seed": np.tile(seeds(1), (5, 1))}
    answer = served["rotary"].call("generate", temperature=np.ones(5), top_p=np.ones(5), max_length=lengths, **inputs)
    np.testing.assert_array_equal(answer["length"], [1, 7, 3, 1, 12])
    longest = answer["text"][4]
    assert all(longest.startswith(text) for text in answer["text"])  # the same seed: the same text, cut


def test_served_bad_input_is_told(served):
    lstm = served["lstm"]
    for bad in (
        {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_length": 0}, {"max_length": 1025},
        {"temperature": [1.0, 1.0]}, {"prompt": ["a", "b"]}, {"prompt": 3},
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"`{next(iter(bad))}` must be"):
            lstm.sample(3, **bad)
    with pytest.raises(UserError, match="`top_p` must be None"):
        served["frames"].sample(1, top_p=0.5)
    with pytest.raises(UserError, match="`export` must have a signature `step`"):
        next(served["frames"].stream())
    with pytest.raises(UserError, match="`texts` must be a list"):
        lstm.score("one")


def test_card_and_metadata_tell_what_a_client_needs(exported):
    card = (exported["lstm"].path / "MODEL_CARD.md").read_text()
    for line in (
        '"prompt": "The "',
        "| `generate_date` | in: `prompt` | string | [B] |",
        "| `step` | out: `done` | bool | [B] |",
        "1 to 1024; what is outside is clipped",
    ):
        assert line in card
    assert "image" not in card


# The functions themselves


@pytest.fixture(scope="module")
def learned():
    """Ends texts, and cannot go beyond its context."""
    sizes = {"context": 24, "layers": 1, "width": 16, "heads": 2}
    return sharp(Transformer(positions="learned", seed=4, **sizes, **text_of(BYTE, boundary=True)), 8.0)


@pytest.mark.filterwarnings("ignore:a prompt of")
def test_learned_positions_bound_prompt_and_length_together(learned):
    assert learned.signatures()["generate"].max_length == 23
    lengths, prompts = [20, 3, 11, 20], [TEXT[:30], TEXT[:30], "né", ""]
    answer = call(learned, "generate", 4, prompt=prompts, max_length=lengths)
    for row, (prompt, length) in enumerate(zip(prompts, lengths)):
        alone = learned.generate([prompt], seeds=seeds(4)[row : row + 1], max_length=length)
        assert texts(answer)[row] == BYTE.decode(alone.symbols[0, : alone.lengths[0]])
    short, whole = call(learned, "score", 2, text=["né", TEXT[:30]]).values()
    np.testing.assert_allclose(short[0], -learned.log_prob(["né"])[0], rtol=1e-4)
    np.testing.assert_array_equal(whole, [4, 24])  # three bytes and the end; as many as the context holds


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_blocks_joined_are_the_whole(name, models, learned, request):
    model = learned if name == "learned" else models[name]
    rows = len(PROMPTS)
    settings = {"prompt": PROMPTS, "temperature": [1.0, 0.7, 1.0, 0.0], "max_length": [20, 13, 20, 5]}
    whole = call(model, "generate", rows, **settings)
    state = {"tokens": np.zeros((rows, 1)), "length": np.zeros(rows)}
    joined, done = [b""] * rows, np.zeros(rows, bool)
    for _ in range(20):
        answer = call(model, "step", rows, block=[3, 1, 2, 4], **state, **settings)
        joined = [text if over else text + new for text, new, over in zip(joined, answer["text"], done)]
        state, done = {key: answer[key] for key in state}, done | answer["done"]
    assert done.all()
    assert joined == list(whole["text"])
    np.testing.assert_array_equal(state["length"], whole["length"])


def test_blocks_hold_back_what_begins_a_character(learned):
    served = _Served(learned, 20)
    random = np.random.default_rng(0)
    cases = [TEXT.encode()[-30:], *(random.integers(0, 256, 30).astype(np.uint8).tobytes() for _ in range(30))]
    # bytes that begin characters of all lengths, whole and not
    cases += [bytes(random.choice([0x41, 0xC3, 0xA9, 0xE6, 0x97, 0xF0, 0x9F, 0x80], 30).tolist()) for _ in range(30)]
    tokens = np.array([list(case) for case in cases], np.int32) + 1
    ends = [len(case.decode("utf-8", "replace")) for case in cases]

    def told(count, ended):
        lengths = tf.fill([len(cases)], count)
        return served._complete((tf.constant(tokens), lengths), tf.fill([len(cases)], ended)).numpy()

    before = told(0, False)
    for count in range(1, 31):
        now = told(count, False)
        assert all(text.startswith(earlier) for text, earlier in zip(now, before))
        assert "\ufffd" not in now[0].decode()
        before = now
    last = told(30, True)
    assert all(text.startswith(earlier) for text, earlier in zip(last, before))
    assert [text.decode() for text in last] == [case.decode("utf-8", "replace") for case in cases]
    assert ends == [len(text.decode()) for text in last]


def test_labels_are_given_or_drawn_by_the_seed():
    model = sharp(RNN(cell="rnn", layers=1, units=8, num_classes=3, seed=6, **text_of(CHAR, start=(1,))))
    drawn = call(model, "generate", 6, prompt=["q"] * 6, label=[-1, -1, -1, 3, -2, -1])
    assert texts(drawn) == model.sample(6, prompt="q", seed=5, max_length=20)
    given = call(model, "generate", 6, prompt=["q"] * 6, label=[0, 1, 2, 0, 1, 2])
    assert texts(given) == model.sample(6, prompt="q", seed=5, max_length=20, condition=[0, 1, 2, 0, 1, 2])
    score = call(model, "score", 3, text=["quick"] * 3, label=[0, 1, 2])["nats"]
    np.testing.assert_allclose(score, -model.log_prob(["quick"] * 3, condition=[0, 1, 2]), rtol=1e-4)
    assert len(set(score.tolist())) == 3


def test_tokens_without_a_text_take_padded_prompts():
    model = sharp(Transformer(vocabulary=7, context=6, layers=1, width=8, heads=2, seed=7), 8.0)
    prompts = [np.array([1, 2, 3]), np.array([4]), np.array([], np.int32)]
    padded = np.array([[1, 2, 3], [4, 6, 6], [5, 5, 5]])
    answer = call(model, "generate", 3, prompt=padded, prompt_length=[3, 1, 0])
    for row, wanted in enumerate(model.sample(3, prompt=prompts, seed=5, max_length=20)):
        np.testing.assert_array_equal(answer["tokens"][row, : answer["length"][row]], wanted)
    np.testing.assert_allclose(answer["nats"], model.generate(prompts, seeds=seeds(3), max_length=20).nats, rtol=1e-4)


def test_odd_controls_mean_what_is_stated(models):
    plain, odd = (
        call(models["lstm"], "generate", 4, prompt=PROMPTS, temperature=temperature, top_p=top_p)
        for temperature, top_p in (
            ([1.0, 0.0, 0.0, 1.0], [1.0] * 4),
            ([np.nan, -1.0, 0.0, np.inf], [0.0, 1.5, 1.0, np.nan]),
        )
    )
    assert texts(plain) == texts(odd)


def test_bad_arguments_are_told(models, date):
    with pytest.raises(ValueError, match="`max_length` must be positive"):
        models["lstm"].signatures(max_length=0)
    with pytest.raises(ValueError, match="`constraints` must have names"):
        models["lstm"].signatures(constraints={"a b": date})
    with pytest.raises(ValueError, match="must be a Constraint over"):
        models["rotary"].signatures(constraints={"date": date})


def test_strings_are_not_compiled(models, tmp_path):
    with pytest.raises(ValueError, match="`xla` must be False for this model.*strings cannot be compiled$"):
        export(models["lstm"], tmp_path / "text", xla=True, batch_sizes=(1,), check=False)
    assert not list(tmp_path.rglob("saved_model.pb"))
