"""The decode loop: what is generated is what the model says, row by row, under controls, ends and constraints."""

import functools
import json
import re
import threading

import numpy as np
import pytest
import tensorflow as tf
from decoders import hash_of, hashed, log_softmax, random_table

from gentf.data import tokenizers
from gentf.errors import UserError
from gentf.kernels import random
from gentf.models.rnn import RNN
from gentf.models.transformer import Transformer
from gentf.sampling import constraints, generate
from gentf.sampling.decode import Controls, Rules, advance, begin
from gentf.sampling.json_schema import json_schema
from gentf.sampling.regex import regex

V = 11


@functools.cache
def model_of(kind, vocabulary=V, **options):
    """An untrained model whose predictions differ from one another."""
    if kind in ("rnn", "lstm", "gru"):
        model = RNN(vocabulary, cell=kind, layers=2, units=8, seed=2, **options)
        model.head.assign(model.head * 3.0)
        return model
    sizes = {"context": 64, "layers": 1, "width": 16, "heads": 2, "tied": False, "seed": 2} | options
    sizes |= {
        "rotary": {"layers": 2},
        "learned": {"positions": "learned"},
        "grouped": {"heads": 4, "groups": 2, "context": 6},
    }[kind]
    model = Transformer(vocabulary, **sizes)
    model.head.kernel.assign(model.head.kernel * 40.0)
    for block in model.blocks:
        block.qkv.kernel.assign(block.qkv.kernel * 20.0)
        block.out.kernel.assign(block.out.kernel * 40.0)
    return model


KINDS = ("rnn", "lstm", "gru", "rotary", "learned", "grouped")
PROMPTS = [np.array(p, np.int32) for p in ([1, 2, 3, 4, 5], [6], [7, 8, 9])]


def seeds_of(num, seed=5):
    return random.spread(seed, num).numpy()


# The model


@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_are_the_uncached_ones(kind):
    model, total = model_of(kind), 12
    tokens = np.random.default_rng(0).integers(0, V, (3, total)).astype(np.int32)
    lengths = np.array([1, 4, 3], np.int32)
    expected = model.nats(model.prepare(tokens)).numpy()  # of token 1 and later

    @tf.function
    def first(tokens):
        start = begin(model.decoder(), tokens[:, :4], tf.constant(lengths), total)
        return start.logits, start.state, start.position

    @tf.function
    def following(position, state):
        logits, state = model.decoder().step(tf.gather(tokens, position, batch_dims=1), position, state)
        return logits, state, position + 1

    logits, state, position = first(tf.constant(tokens))
    found = []
    for _ in range(8):
        token = tf.gather(tokens, position, batch_dims=1)
        found.append(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=token, logits=logits))
        logits, state, position = following(position, state)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(tf.stack(found, axis=1)[row], expected[row, length - 1 : length + 7], atol=1e-4)
    decoder = model.decoder()
    assert (decoder.extend is None) == (kind in ("rnn", "lstm", "gru"))
    if decoder.extend is not None:  # taken back by five tokens, and those read again at once
        again = tf.gather(tokens, position[:, None] + tf.range(-5, 0), batch_dims=1)
        extended = tf.function(decoder.extend)(again, position - 5, state)[0]
        np.testing.assert_allclose(extended[:, -1], logits, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_prompts_are_singles_and_blocks_the_whole(kind):
    model, seeds = model_of(kind), seeds_of(3)
    controls = {"temperature": np.array([1.0, 0.7, 1.3]), "top_k": np.array([0, 4, 9]), "repetition": 1.2}
    together = model.generate(PROMPTS, seeds=seeds, max_length=10, **controls)
    for row in range(3):
        own = {k: v[row : row + 1] if isinstance(v, np.ndarray) else v for k, v in controls.items()}
        alone = model.generate(PROMPTS[row : row + 1], seeds=seeds[row : row + 1], max_length=10, **own)
        np.testing.assert_array_equal(alone.symbols[0], together.symbols[row])
        np.testing.assert_allclose(alone.nats[0], together.nats[row], atol=1e-4)
        whole = np.concatenate([PROMPTS[row], together.symbols[row]])
        nats = model.nats(model.prepare(whole[None]))[0, len(PROMPTS[row]) - 1 :]
        np.testing.assert_allclose(together.nats[row], np.sum(nats), atol=1e-3)
    blocks = list(model.generate(PROMPTS, seeds=seeds, max_length=10, block=4, **controls))
    assert [block.symbols.shape[1] for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([block.symbols for block in blocks], axis=1), together.symbols)
    np.testing.assert_allclose(blocks[-1].nats, together.nats, atol=1e-4)
    assert blocks[-1].lengths.tolist() == [10, 10, 10]


@pytest.mark.parametrize("kind", ["lstm", "learned"])
def test_parts_side_by_side_are_the_rows_alone_by_the_same_programs(kind, monkeypatch):
    monkeypatch.setattr(generate, "cores", lambda: 2)
    model, seeds = model_of(kind, boundary=True), seeds_of(5)
    prompts = [np.arange(1, 2 + n, dtype=np.int32) for n in (0, 1, 2, 3, 8)]
    temperature = np.array([0.5, 1.0, 0.0, 2.0, 1.0], np.float32)
    parts = []
    monkeypatch.setattr(generate.Generator, "begin", lambda *a, begin=generate.Generator.begin: parts.append(
        (threading.get_ident(), a[1].shape)) or begin(*a))  # fmt: skip
    ask = functools.partial(model.generate, max_length=40, jit=True)
    together = ask(prompts, seeds=seeds, temperature=temperature)
    assert len({thread for thread, _ in parts}) == 2 and [shape for _, shape in parts] == [(4, 16)] * 2
    assert model.generator(True).compilations == 2
    blocks = list(ask(prompts, seeds=seeds, temperature=temperature, block=8))
    whole = np.concatenate([block.symbols for block in blocks], axis=1)
    np.testing.assert_array_equal(whole, together.symbols[:, : whole.shape[1]])
    np.testing.assert_array_equal(blocks[-1].lengths, together.lengths)
    assert len(set(together.lengths.tolist())) > 2
    for row in range(5):
        alone = ask(prompts[row : row + 1], seeds=seeds[row : row + 1], temperature=temperature[row : row + 1])
        np.testing.assert_array_equal(alone.symbols[0], together.symbols[row])
        np.testing.assert_allclose(alone.nats[0], together.nats[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind, jit", [("lstm", False), ("lstm", True), ("grouped", True)])
def test_no_program_is_made_after_the_first_ones(kind, jit):
    model = model_of(kind)
    tokens = np.random.default_rng(1).integers(1, V, 32).astype(np.int32)
    ask = functools.partial(model.generate, seeds=seeds_of(1), max_length=8, jit=jit, top_p=0.9)
    for length in (5, 32) if kind == "lstm" else (5,):  # buckets of 16 and 32; the context of the other one is 6
        ask([tokens[:length]])
    programs = model.generator(jit).compilations
    longest = 20 if kind == "lstm" else 6
    made = [ask([tokens[: 1 + n % longest]]).symbols for n in range(20)]
    assert model.generator(jit).compilations == programs
    if jit:
        plain = [ask([tokens[: 1 + n % longest]], jit=False).symbols for n in range(20)]
        np.testing.assert_array_equal(np.stack(made), np.stack(plain))


# The loop, against a slow one

STATES, TOKENS = 97, 6
TABLE = random_table(STATES, TOKENS, seed=8)
# 1, then 2 or 3 any times, then 4; or 5 alone
LANGUAGE = constraints.from_transitions(
    np.array([[-1, 1, -1, -1, -1, 2], [-1, -1, 1, 1, 2, -1], [-1] * 6]), np.array([False, False, True])
)


def slow(prompt, seed, limit, end=None, rule=None, controls=None):
    """The rows' definition, token by token from whole contexts: tokens with the end token, nats, cost."""
    controls = {"repetition": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | (controls or {})
    noise = random.to_gumbel(random.uniform(tf.repeat([seed], limit, axis=0), (TOKENS,), tf.range(limit))).numpy()
    drawn, nats, cost, state = [], 0.0, 0.0, rule.start if rule else 0
    for step in range(limit):
        context = [*prompt, *drawn]
        logits = TABLE[hash_of(context, STATES)].astype(np.float64)
        likely, z = log_softmax(logits), logits.copy()
        if rule:
            after = rule.next_state[state]
            far = np.where(after >= 0, rule.distance[after], 10**6)
            z[far > max(far.min(), limit - len(drawn) - 1)] = -np.inf
            cost -= np.log(np.exp(likely)[np.isfinite(z)].sum())
        seen = np.isin(np.arange(TOKENS), context)
        penalised = np.where(z > 0, z / controls["repetition"], z * controls["repetition"])
        z = np.where(seen, penalised, z)
        order = np.argsort(-z, kind="stable")
        if controls["temperature"] == 0.0:
            z[order[1:]] = -np.inf
        else:
            z = z / controls["temperature"]
        if controls["top_k"]:
            z[order[controls["top_k"] :]] = -np.inf
        shares = np.exp(log_softmax(z))[order]
        if controls["top_p"] < 1.0:
            z[order[1:][np.cumsum(shares)[:-1] >= controls["top_p"]]] = -np.inf
        if controls["min_p"] > 0.0:
            z[np.exp(z - z.max()) < controls["min_p"]] = -np.inf
        token = int(np.argmax(z + noise[step]))
        nats -= likely[token]
        drawn.append(token)
        state = rule.next_state[state, token] if rule else 0
        if token == end:
            break
    return drawn, nats, cost


@functools.cache
def loop(end, rule, names, steps):
    decoder = hashed(TABLE)

    def function(prompts, lengths, seeds, limit, values):
        rules = Rules(end=end, tables=rule.tables() if rule else None)
        controls = Controls(**dict(zip(names, values)))
        start = begin(decoder, prompts, lengths, 4 + steps, rules, remember="repetition" in names)
        tokens, last = advance(decoder, start, seeds, limit, steps, controls, rules)
        return tokens, last.lengths, last.nats, last.cost

    return tf.function(function, reduce_retracing=True, autograph=False)


def check(end=None, rule=None, controls=None, rows=24, steps=9, limit=None):
    generator = np.random.default_rng(4)
    prompts, lengths = generator.integers(0, TOKENS, (rows, 4)), generator.integers(1, 5, rows)
    limit, seeds, controls = np.full(rows, steps) if limit is None else limit, seeds_of(rows), controls or {}
    values = [tf.constant(value) for value in controls.values()]
    arguments = (tf.constant(x, tf.int32) for x in (prompts, lengths, seeds, limit))
    tokens, found, nats, cost = loop(end, rule, tuple(controls), steps)(*arguments, values)
    for row in range(rows):
        own = {name: value[row].item() for name, value in controls.items()}
        prompt = prompts[row, : lengths[row]].tolist()
        drawn, *expected = slow(prompt, seeds[row], int(limit[row]), end, rule, own)
        assert tokens[row].numpy().tolist() == drawn + [0] * (steps - len(drawn)), row
        assert found[row] == len(drawn) - (drawn[-1:] == [end])
        np.testing.assert_allclose([nats[row], cost[row]], expected, atol=1e-4)
    return tokens.numpy(), found.numpy()


def test_limits_and_end_token():
    check()
    limit = np.arange(24) % 10
    tokens, lengths = check(limit=limit)
    np.testing.assert_array_equal(lengths, limit)
    assert not tokens[limit == 0].any()
    _, lengths = check(end=3, limit=limit)
    assert (lengths < limit).sum() > 5


def test_controls_of_each_row():
    rows = 24
    some = np.random.default_rng(6)
    settings = {
        "temperature": np.where(np.arange(rows) % 4 == 0, 0.0, some.uniform(0.3, 2.0, rows)).astype(np.float32),
        "top_k": some.integers(0, 6, rows).astype(np.int32),
        "top_p": some.uniform(0.3, 1.0, rows).astype(np.float32),
        "min_p": some.uniform(0.0, 0.4, rows).astype(np.float32),
        "repetition": some.uniform(0.5, 2.5, rows).astype(np.float32),
    }
    for name, values in settings.items():
        changed = check(controls={name: values})[0]
        assert (changed != check()[0]).any(), name
    check(controls=settings, end=2)
    greedy, _ = check(controls={"temperature": np.zeros(rows, np.float32)})
    first, _ = check(controls={"top_k": np.ones(rows, np.int32)})
    np.testing.assert_array_equal(greedy, first)


def test_cost_is_the_mass_that_was_taken_away():
    for steps in (5, 9):
        tokens, lengths = check(end=LANGUAGE.stop, rule=LANGUAGE, steps=steps)
        for row, length in zip(tokens, lengths):
            assert LANGUAGE.accepts(row[:length])
    check(end=LANGUAGE.stop, rule=LANGUAGE, controls={"repetition": np.full(24, 1.7, np.float32)})


# Text


def text_model(tokenizer, kind="lstm", likely=None, **options):
    model = model_of.__wrapped__(kind, tokenizer.size, tokenizer=tokenizer.to_dict(), start=(1,), **options)
    if likely is not None:
        pieces = [bool(piece) and all(chr(byte) in likely for byte in piece) for piece in tokenizer.pieces]
        model.head_bias.assign(np.where(pieces, 0.0, -30.0))
    return model


LETTERS = tokenizers.CharTokenizer("abcd")
WORDS = tokenizers.train("bpe", "ab abc bcd abcd dab cab bab " * 20, 270)


@pytest.mark.parametrize("tokenizer", [LETTERS, WORDS], ids=["char", "bpe"])
def test_stop_strings_against_find(tokenizer):
    model = text_model(tokenizer, likely="abcd ")
    free = model.generate([None] * 12, seeds=random.spread(9, 12).numpy(), max_length=40)
    pieces = [[tokenizer.pieces[token].decode() for token in row] for row in free.symbols]
    if tokenizer is WORDS:
        assert max(len(piece) for row in pieces for piece in row) > 2
    ended = 0
    for stop in (["abcd", "bc", "cd"], ["aab", "ab", "ba", "ddd"]):
        found = model.sample(12, seed=9, max_length=40, stop=stop)
        for row, text in zip(pieces, found):
            expected = "".join(row)
            for number in range(1, len(row) + 1):
                written = "".join(row[:number])
                places = [place for one in stop if (place := written.find(one)) >= 0]
                if places:
                    expected, ended = written[: min(places)], ended + 1
                    break
            assert text == expected, stop
    assert ended > 15


def test_boundary_ends_a_text():
    model = text_model(LETTERS, boundary=True)
    assert model.boundary
    found = model.generate([""] * 40, seeds=seeds_of(40), max_length=12)
    texts = model.sample(40, seed=5, max_length=12)
    assert (found.lengths < 12).sum() > 5 and len(set(found.lengths)) > 4
    for row, length, text, nats in zip(found.symbols, found.lengths, texts, found.nats):
        assert row[:length].all() and not row[length:].any() and text == LETTERS.decode(row[:length])
        if 0 < length < 12:
            np.testing.assert_allclose(nats, -model.log_prob([text])[0], atol=1e-3)


def test_constraint_never_breaks():
    """10,000 texts by a regular expression, from an untrained model."""
    pattern = r"(?:[A-Z][a-z]{1,6} ){0,2}(?:[1-9]\d{0,2}\.\d{2}|[aeiou]+!?)|#[0-9a-f]{6}"
    tokenizer = tokenizers.CharTokenizer("".join(map(chr, range(32, 127))))
    model, rule, rows = text_model(tokenizer), regex(pattern, tokenizer.pieces), 2500
    rules = Rules(end=rule.stop, tables=rule.tables())

    @tf.function
    def draw(seeds, limit):
        decoder = model.decoder()
        start = begin(decoder, tf.ones((rows, 1), tf.int32), tf.ones((rows,), tf.int32), 25, rules)
        tokens, last = advance(decoder, start, seeds, limit, 24, Controls(), rules)
        return tokens, last.lengths

    limits = np.random.default_rng(0).integers(8, 25, (4, rows)).astype(np.int32)
    seen = set()
    for part in range(4):
        tokens, lengths = draw(random.spread(part, rows), tf.constant(limits[part]))
        for row, length in zip(tokens.numpy(), lengths.numpy()):
            text = tokenizer.decode(row[:length])
            assert re.fullmatch(pattern, text), text
            seen.add(text)
        assert (lengths.numpy() < limits[part]).all()
    assert len(seen) > 8000


def test_json_schema_gives_valid_documents():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "blue", None]}, "maxItems": 3},
            "ratio": {"type": "number", "minimum": -1, "maximum": 1},
            "alive": {"type": "boolean"},
        },
        "required": ["name", "age", "alive"],
    }
    tokenizer = tokenizers.CharTokenizer("".join(map(chr, range(32, 127))))
    model, rule = text_model(tokenizer), json_schema(schema, tokenizer.pieces)
    texts = model.sample(1000, seed=1, max_length=110, constraint=rule)
    for text in texts:
        value = json.loads(text)
        assert set(value) <= set(schema["properties"]) and set(schema["required"]) <= set(value)
        assert isinstance(value["name"], str) and 1 <= len(value["name"]) <= 6
        assert type(value["age"]) is int and 0 <= value["age"] <= 120
        assert type(value["alive"]) is bool
        assert all(tag in ("red", "blue", None) for tag in value.get("tags", [])) and len(value.get("tags", [])) <= 3
        assert type(value.get("ratio", 0)) in (int, float) and -1 <= value.get("ratio", 0) <= 1
    assert len(texts) == 1000 and len(set(texts)) > 900


# Frames


@pytest.mark.parametrize("kind", ["gru", "rotary"])
def test_frames_nats_are_their_log_likelihood(kind):
    model = _frames(kind)
    keys = np.zeros(88, bool)
    keys[20:60:2] = True
    free = model.generate([None] * 4, seeds=seeds_of(4), max_length=7)
    np.testing.assert_allclose(free.nats, -model.log_prob(list(free.symbols.astype(np.uint8))), rtol=1e-4)
    assert free.symbols[:, :, ~keys].any() and (free.cost == 0.0).all()
    held = model.generate([None] * 4, seeds=seeds_of(4), max_length=7, constraint=keys)
    assert not held.symbols[:, :, ~keys].any() and held.symbols[:, :, keys].any()
    np.testing.assert_allclose(held.nats, -model.log_prob(list(held.symbols.astype(np.uint8))), rtol=1e-4)
    # what the keys cost: the outside ones are silent anyway with probability prod(1 - sigmoid)
    batch = model.prepare({"frames": held.symbols})
    hidden, (kernel, bias, _) = model.hidden(batch["inputs"], None, None), model.output_layer()
    hidden = tf.transpose(hidden, (1, 0, 2)) if model.time_major else hidden
    logits = (hidden @ kernel + bias).numpy().astype(np.float64)
    np.testing.assert_allclose(held.cost, np.log1p(np.exp(logits[:, :, ~keys])).sum(axis=(1, 2)), rtol=1e-4)


def _frames(kind):
    if kind == "gru":
        return RNN(0, cell="gru", layers=1, units=8, tokenizer={"kind": "frames"}, seed=3)
    return Transformer(0, context=16, layers=1, width=16, heads=2, tokenizer={"kind": "frames"}, seed=3)


def test_silent_frames_at_temperature_zero():
    model = _frames("gru")
    model.head_bias.assign(np.where(np.arange(88) < 3, 6.0, -6.0))
    found = model.generate([None], seeds=seeds_of(1), max_length=5, temperature=0.0)
    assert (found.symbols == (np.arange(88) < 3)).all()


# Searches of the model


def test_beam_and_speculate_of_a_model():
    model = text_model(LETTERS, "rotary")
    best = model.beam(["abc", "d"], width=3, max_length=6, constraint=regex("[ab]*d", LETTERS.pieces))
    for row, prompt in zip(best, ("abc", "d")):
        assert len(row) == 3 and all(re.fullmatch("[ab]*d", text) for text, _ in row)
        assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)
        for text, score in row:
            tokens = np.append(LETTERS.encode(prompt + text), 0)  # that it ends counts too
            nats = model.nats(model.prepare(tokens[None]))[0, len(prompt) - 1 :]
            np.testing.assert_allclose(score, -np.sum(nats), atol=1e-3)
    draft = text_model(LETTERS, "gru")
    cold = model.speculate(["abc", "d"], draft, seeds=seeds_of(2), max_length=9, ahead=3, temperature=0.0)
    np.testing.assert_array_equal(
        cold.symbols, model.generate(["abc", "d"], seeds=seeds_of(2), max_length=9, temperature=0.0).symbols
    )
    with pytest.raises(ValueError, match="`target` must be a model whose state can be taken back"):
        draft.speculate(["a"], model, seeds=seeds_of(1), max_length=3)
    with pytest.raises(ValueError, match="`draft` must have the tokenizer"):
        model.speculate(["a"], text_model(WORDS), seeds=seeds_of(1), max_length=3)
    with pytest.raises(ValueError, match="`beam` needs a model of tokens"):
        _frames("gru").beam([None])


# Bad input


@pytest.mark.parametrize(
    "controls, name",
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition": 0.0}, "repetition"),
        ({"temperature": np.ones(3)}, "temperature"),
        ({"max_length": 0}, "max_length"),
        ({"heat": 1.0}, "controls"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"constraint": np.ones(88, bool)}, "constraint"),
        ({"condition": 1}, "condition"),
        ({"prompt": ["a"]}, "prompt"),
    ],
)
def test_bad_requests(controls, name):
    model = letters()
    with pytest.raises((ValueError, UserError), match=f"`{name}` must be"):
        model.sample(2, **({"seed": 0, "max_length": 3} | controls))


@functools.cache
def letters():
    return text_model(LETTERS)


def test_bad_prompts():
    with pytest.raises(UserError, match="U\\+007A"):
        letters().sample(1, prompt="abz", max_length=3)
    with pytest.raises(ValueError, match="`num` must be"):
        letters().sample(0)
    model = text_model(LETTERS, "rotary", context=8)
    with pytest.warns(UserWarning, match="a prompt of 12 symbols is longer than the context: only its last 8 are read"):
        long = model.sample(1, prompt="abcdabcdaabb", seed=3, max_length=6)
    assert long == model.sample(1, prompt="abcdaabb", seed=3, max_length=6)
    learned = text_model(LETTERS, "learned", context=8)
    with pytest.raises(ValueError, match="`max_length` must be less than the context's 8"):
        learned.sample(1, max_length=8)
    with pytest.warns(UserWarning, match="only its last 5 are read"):
        learned.sample(1, prompt="abcdab", max_length=3)
