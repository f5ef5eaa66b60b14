"""The encoder-decoder: its buckets, its cache, its padding, and span corruption, each against a slow oracle."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf import config as configs
from gentf import schema
from gentf.data import load
from gentf.data.tokenizers import train as train_tokenizer
from gentf.errors import UserError
from gentf.kernels import random
from gentf.models import EncoderDecoder, build
from gentf.models.encoder_decoder import corrupt_spans, span_sizes
from gentf.nn.encoder_decoder import RelativeBias
from gentf.sampling.regex import regex
from gentf.training.steps import Steps

VOCABULARY = 12
TOKENIZER = train_tokenizer("char", ["abcdefghijk"]).to_dict()
SOURCES = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]]
TARGETS = [[7, 2, 8], [], [1, 8, 2, 8, 4]]


def tiny(**options) -> EncoderDecoder:
    """Not at its initial weights, so that each part has a say."""
    given = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "buckets": 8, "max_distance": 12, "seed": 3}
    model = EncoderDecoder(VOCABULARY, **{"tokenizer": TOKENIZER, **given, **options})
    noise = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(weight + 0.3 * noise.standard_normal(weight.shape).astype("float32"))
    model.compile()
    return model


def padded(rows, extra=0) -> np.ndarray:
    array = np.zeros((len(rows), max(map(len, rows)) + extra), np.int32)
    for place, row in zip(array, rows):
        place[: len(row)] = row
    return array


def batch_of(sources=SOURCES, targets=TARGETS, extra=0) -> dict[str, tf.Tensor]:
    ended = [[*target, 0] for target in targets]
    return {
        "source": tf.constant(padded(sources, extra)),
        "target": tf.constant(padded(ended, extra)),
        "target_length": tf.constant([len(row) for row in ended]),
    }


def forced_logits(model, batch) -> np.ndarray:
    """Logits (B, T, V) of known targets, from the whole network at once."""
    kernel, _, transpose = model.output_layer()
    return tf.matmul(model._hidden_of(model.prepare(batch), None), kernel, transpose_b=transpose).numpy()


@pytest.fixture(scope="module")
def model():
    return tiny()


# --- relative positions


def paper_bucket(relative: int, both: bool, buckets: int, most: int) -> int:
    """Raffel et al. (2020), section 2.1, in whole numbers: a logarithm is compared by its powers."""
    first = 0
    if both:
        buckets //= 2
        first = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    wide = buckets - exact  # bucket exact + j begins where (distance / exact)^wide >= (most / exact)^j
    reached = [j for j in range(wide) if distance**wide * exact**j >= most**j * exact**wide]
    return first + exact + max(reached)


@pytest.mark.parametrize(
    "both,buckets,most", [(True, 32, 128), (False, 32, 128), (True, 8, 20), (False, 6, 7), (True, 4, 3)]
)
def test_buckets_are_those_of_the_paper(both, buckets, most):
    layer = RelativeBias(2, buckets, most, both, 1.0, 0)
    relative = np.arange(-3 * most, 3 * most)
    expected = [paper_bucket(int(r), both, buckets, most) for r in relative]
    np.testing.assert_array_equal(layer.bucket(tf.constant(relative, tf.int32)), expected)
    assert layer.table.shape[0] == buckets == max(expected) + 1
    table = np.asarray(layer.table)
    bias = layer.biases(layer.table.value, tf.constant([5, 0]), tf.range(9)).numpy()
    assert bias.shape == (2, 2, 9)
    for head, (row, query), key in itertools.product(range(2), enumerate([5, 0]), range(9)):
        assert bias[head, row, key] == table[paper_bucket(key - query, both, buckets, most), head]


# --- the network against one in NumPy


def numpy_logits(model, source: list[int], inputs: list[int]) -> np.ndarray:
    """One pair through the network, head by head, from the paper's description: (T, V)."""
    half = model.width // model.heads

    def get(variable):
        return variable.numpy().astype(np.float64)

    def norm(x, layer):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * get(layer.gain)

    def attention(layer, queries, keys, bias):
        q = queries @ get(layer.query.kernel)
        k, v = np.split(keys @ get(layer.key_value.kernel), 2, axis=-1)
        heads = []
        for head in range(model.heads):
            part = slice(head * half, (head + 1) * half)
            scores = q[:, part] @ k[:, part].T + bias[head]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        return np.concatenate(heads, axis=-1) @ get(layer.out.kernel)

    def network(block, x):
        return np.maximum(norm(x, block.network_norm) @ get(block.up.kernel), 0) @ get(block.down.kernel)

    def biases(layer, length, both):
        table, known = get(layer.table), (both, model.buckets, model.max_distance)
        rows = [[[table[paper_bucket(k - q, *known), h] if both or k <= q else -np.inf for k in range(length)]
                 for q in range(length)] for h in range(model.heads)]  # fmt: skip
        return np.array(rows)

    x, bias = get(model.embedding)[source], biases(model.encoder_bias, len(source), True)
    for block in model.encoder_blocks:
        y = norm(x, block.attention_norm)
        x = x + attention(block.attention, y, y, bias)
        x = x + network(block, x)
    encoded = norm(x, model.encoder_last)
    x, bias = get(model.embedding)[inputs], biases(model.decoder_bias, len(inputs), False)
    for block in model.decoder_blocks:
        y = norm(x, block.attention_norm)
        x = x + attention(block.attention, y, y, bias)
        x = x + attention(block.cross, norm(x, block.cross_norm), encoded, np.zeros(model.heads))
        x = x + network(block, x)
    return norm(x, model.decoder_last) * model.width**-0.5 @ get(model.embedding).T


def test_logits_are_those_of_the_paper_and_padding_changes_nothing(model):
    for extra in (0, 5):
        logits = forced_logits(model, batch_of(extra=extra))
        for row, (source, target) in enumerate(zip(SOURCES, TARGETS)):
            expected = numpy_logits(model, source, [0, *target])
            np.testing.assert_allclose(logits[row, : len(target) + 1], expected, rtol=1e-4, atol=1e-4)


def test_cached_logits_equal_teacher_forced_ones(model):
    batch = batch_of()
    expected, length = forced_logits(model, batch), batch["target"].shape[1]
    lengths = tf.constant([len(source) for source in SOURCES])

    for jit in (False, True):
        decoder = model.decoder()
        step = tf.function(decoder.step, jit_compile=jit)
        logits, state = decoder.prefill(batch["source"], lengths, decoder.init_state(3, 16))
        found = [logits]
        for place in range(length - 1):
            logits, state = step(batch["target"][:, place], lengths + place, state)
            found.append(logits)
        np.testing.assert_allclose(tf.stack(found, axis=1), expected, atol=1e-4)
        again, _ = decoder.extend(batch["target"][:, :3], lengths, state)  # taken back to the start, and on from there
        np.testing.assert_allclose(again, expected[:, 1:4], atol=1e-4)


# --- likelihood


def test_loss_is_the_mean_of_nats_and_log_prob_their_sum(model):
    logits = forced_logits(model, batch_of()).astype(np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, padded(TARGETS, 1)[..., None], -1)[..., 0]
    counted = np.arange(nats.shape[1]) < np.array([[4], [1], [6]])
    sums = (nats * counted).sum(1)
    for training in (True, False):
        losses = model.losses_on(model.prepare(batch_of(extra=3)), training)
        np.testing.assert_allclose(losses["loss"], sums.sum() / counted.sum(), rtol=1e-5)
    assert model.weigh(model.prepare(batch_of())) == counted.sum()
    np.testing.assert_allclose(model.log_prob(TARGETS, SOURCES), -sums, rtol=1e-5)
    texts = ["".join(" abcdefghijk"[token] for token in row) for row in TARGETS]
    sources = ["".join(" abcdefghijk"[token] for token in row) for row in SOURCES]
    np.testing.assert_allclose(model.log_prob(texts, sources), -sums, rtol=1e-5)
    with pytest.raises(ValueError, match="equally many"):
        model.log_prob(texts, sources[:2])


def test_all_targets_together_have_probability_one():
    model = EncoderDecoder(3, layers=1, width=8, heads=2, seed=1)
    short = [list(row) for length in range(3) for row in itertools.product([1, 2], repeat=length)]
    whole = np.exp(model.log_prob(short, [[2, 1]] * len(short))).sum()
    # what is longer begins with one of the longest, and goes on
    begun = [
        np.exp(-model.nats(model.prepare({"source": [[2, 1]], "target": [row], "target_length": [2]})).numpy().sum())
        for row in short
        if len(row) == 2
    ]
    ended = np.exp(model.log_prob([row for row in short if len(row) == 2], [[2, 1]] * 4)).sum()
    np.testing.assert_allclose(whole - ended + sum(begun), 1.0, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_a_gradient(tied):
    model = tiny(tied=tied, dropout=0.1)
    with tf.GradientTape() as tape:
        loss = model.losses_on(model.prepare(batch_of()), True)["loss"]
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert gradient is not None and np.any(tf.convert_to_tensor(gradient)), variable.path


def test_losses_are_the_same_compiled():
    model = tiny(layers=1, dropout=0.2)
    batch = batch_of(extra=2)
    run = tf.function(lambda: model.losses_on(model.prepare(batch), True)["loss"], jit_compile=True)
    plain = float(run.python_function())
    np.testing.assert_allclose(run(), plain, rtol=1e-5)
    model.step.assign_add(1)
    assert abs(float(run()) - plain) > 1e-4  # other units are left out


def test_gradients_on_corrupted_text_are_the_same_compiled():
    model = tiny(layers=1, sentinels=4)
    tokens = tf.constant(np.random.default_rng(1).integers(1, VOCABULARY, (6, 20)), tf.int32)

    @tf.function(jit_compile=True)
    def run():
        with tf.GradientTape() as tape:
            loss = model.losses_on(model.prepare({"tokens": tokens}), True)["loss"]
        return loss, *map(tf.convert_to_tensor, tape.gradient(loss, [v.value for v in model.trainable_variables]))

    for found, expected in zip(run(), run.python_function()):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


# --- generation


def test_ragged_batch_equals_singles(model):
    together = model.sample(3, prompt=SOURCES, seed=5, max_length=9)
    seeds = random.spread(5, 3).numpy()
    for row, source in enumerate(SOURCES):
        alone = model.generate([source], seeds=seeds[row : row + 1], max_length=9)
        length = int(alone.lengths[0])
        assert model._codec().decode(alone.symbols[0, :length]) == together[row]
        if length < 9:  # it ended by itself: the model's likelihood of it is what was counted
            np.testing.assert_allclose(alone.nats, -model.log_prob([alone.symbols[0, :length]], [source]), rtol=1e-4)


def test_the_loop_is_the_same_compiled():
    model = tiny(layers=1)
    plain, compiled = (model.sample(3, prompt=SOURCES, seed=5, max_length=9, jit=jit) for jit in (False, True))
    assert compiled == plain


def test_prompt_is_the_source_alone(model):
    codec = model._codec()
    np.testing.assert_array_equal(codec.encode("abc"), [1, 2, 3])
    np.testing.assert_array_equal(codec.encode(None), [0])
    assert model._rules(codec, (), None).end == 0


def test_it_learns_and_answers():
    pairs = [("abc", "cba"), ("de", "ed"), ("fgab", "bagf"), ("h", "h")]
    codec = train_tokenizer("char", ["abcdefghijk"])
    model = EncoderDecoder(VOCABULARY, 1, 32, 2, tokenizer=TOKENIZER, seed=0)
    model.compile(keras.optimizers.Adam(3e-3))
    batch = batch_of(*([codec.encode(text).tolist() for text in texts] for texts in zip(*pairs)))
    steps = Steps(model, tf.distribute.get_strategy(), 150, False)
    losses = steps.run([batch] * 150)["loss"][:, 0]
    assert losses[0] > 1.5 and losses[-1] < 0.05
    assert model.sample(4, prompt=[source for source, _ in pairs], temperature=0, seed=0) == [t for _, t in pairs]


def test_keras_file_gives_the_same_model(tmp_path):
    model = tiny(layers=1, sentinels=3, tied=False, dropout=0.1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(again.log_prob(TARGETS, SOURCES), model.log_prob(TARGETS, SOURCES))
    assert again.sample(3, prompt=SOURCES, seed=2) == model.sample(3, prompt=SOURCES, seed=2)


def test_mixed_precision_is_near(model):
    low = tiny(dtype="mixed_bfloat16")
    nats = [one.nats(one.prepare(batch_of())) for one in (low, model)]
    np.testing.assert_allclose(*nats, rtol=0.1, atol=0.1)
    assert low.losses_on(low.prepare(batch_of()), True)["loss"].dtype == tf.float32
    assert len(low.sample(2, prompt="abc", seed=0, max_length=4)) == 2


# --- span corruption


def restored(source: list[int], target: list[int], vocabulary: int) -> list[int]:
    """The tokens, from the two sides of a corruption, by hand."""
    assert target[-1] == 0
    pieces: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= vocabulary:
            current = pieces.setdefault(token, [])
            assert not current
        else:
            current.append(token)
    assert list(pieces) == list(range(vocabulary, vocabulary + len(pieces)))
    assert [token for token in source if token >= vocabulary] == list(pieces)
    assert all(pieces.values())
    return [part for token in source for part in pieces.get(token, [token])]


@pytest.mark.parametrize(
    "length,share,span", [(40, 0.15, 3.0), (41, 0.5, 3.0), (9, 0.15, 3.0), (2, 0.9, 1.0), (30, 0.8, 1.5), (25, 0.5, 1)]
)
@pytest.mark.parametrize("jit", [False, True])
def test_source_and_target_restore_the_tokens(length, share, span, jit):
    noise, spans = span_sizes(length, share, span)
    tokens = np.random.default_rng(0).integers(0, 50, (64, length), np.int32)
    corrupt = tf.function(corrupt_spans, jit_compile=jit)
    source, target = corrupt(tf.constant(tokens), random.spread(3, 64), noise, spans, 50)
    assert source.shape == (64, length - noise + spans) and target.shape == (64, noise + spans + 1)
    for row in range(64):
        assert restored(source[row].numpy().tolist(), target[row].numpy().tolist(), 50) == tokens[row].tolist()
    alone = corrupt_spans(tf.constant(tokens[7:8]), random.spread(3, 64)[7:8], noise, spans, 50)
    np.testing.assert_array_equal(alone[0][0], source[7])
    np.testing.assert_array_equal(alone[1][0], target[7])


def test_spans_are_of_the_paper_sizes_and_evenly_partitioned():
    assert span_sizes(512, 0.15, 3.0) == (77, 26)
    assert span_sizes(114, 0.15, 3.0) == (17, 6)
    # 5 cut tokens in 3 pieces: 6 partitions, each 1 in 6
    tokens = tf.tile(tf.range(12)[None], (12_000, 1))
    _, target = corrupt_spans(tokens, random.spread(0, 12_000), 5, 3, 100)
    places = np.nonzero(target.numpy() >= 100)[1].reshape(-1, 3)
    sizes, counts = np.unique(np.diff(places, axis=1) - 1, axis=0, return_counts=True)
    assert sizes.tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [3, 1]]
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000 * 5 / 6)


def test_plain_text_is_corrupted_anew_in_each_step_and_may_hold_boundaries():
    model = tiny(sentinels=3, corrupt_share=0.3, corrupt_span=2.0)
    tokens = np.tile(np.random.default_rng(0).integers(0, VOCABULARY, 18), (5, 1))
    tokens[:, [0, -1]] = 0
    first = model.prepare({"tokens": tokens})
    assert len({row.tobytes() for row in first["source"].numpy()}) > 2  # each row in its own way
    np.testing.assert_array_equal(first["source"], model.prepare(tokens)["source"])
    model.step.assign_add(1)
    assert np.any(first["source"] != model.prepare(tokens)["source"])
    for row in range(5):
        assert restored(*(first[key].numpy()[row].tolist() for key in ("source", "targets")), VOCABULARY) == (
            tokens[row].tolist()
        )
    np.testing.assert_array_equal(first["inputs"][:, 1:], first["targets"][:, :-1])
    assert np.all(first["weights"] == 1)


def test_sentinels_are_written_and_read_in_text():
    model = tiny(layers=1, sentinels=3)
    codec = model._codec()
    tokens = codec.encode("ab<extra_id_0>c<extra_id_2>")
    np.testing.assert_array_equal(tokens, [1, 2, VOCABULARY, 3, VOCABULARY + 2])
    assert codec.decode(tokens) == "ab<extra_id_0>c<extra_id_2>"
    assert codec.decode(codec.encode("<extra_id_1>a")) == "<extra_id_1>a"
    with pytest.raises(UserError, match="extra_id_2"):
        codec.encode("<extra_id_3>")
    rule = regex("[abc]{2}", codec.text.pieces)
    found = model.sample(20, prompt="ab", seed=0, constraint=rule, max_length=5)
    assert all(len(text) == 2 and set(text) <= set("abc") for text in found)
    stopped = model.sample(20, prompt="ab", seed=0, stop=["a", "bc"], max_length=20)
    assert all("a" not in text and "bc" not in text for text in stopped)


# --- config and bad input


def test_config_builds_the_preset_and_its_data():
    config = configs.resolve("t5-dates", ["pairs.examples=100", "model.width=16"])
    assert config.model.family == "encoder_decoder"
    source = load("dates", modality="pairs", examples=100)
    model = build(config, source.spec)
    batch = next(iter(source.train.batches(8)))
    assert 2.0 < float(model.losses_on(model.prepare(batch), False)["loss"]) < 6.0
    other = dataclasses.replace(config, model=schema.RNNConfig())
    with pytest.raises(UserError, match=r"model.family.*encoder_decoder for pairs"):
        build(other, source.spec)


def test_bad_arguments_are_named():
    for options, name in [
        ({"width": 9}, "width"), ({"buckets": 5}, "buckets"), ({"buckets": 2}, "buckets"),
        ({"max_distance": 4}, "max_distance"), ({"dropout": 1.0}, "dropout"), ({"layers": 0}, "layers"),
        ({"sentinels": -1}, "sentinels"), ({"corrupt_share": 1.0}, "corrupt_share"),
        ({"corrupt_span": 0.5}, "corrupt_span"), ({"num_classes": 2}, "num_classes"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}`"):
            tiny(**options)
    with pytest.raises(ValueError, match="`vocabulary`"):
        EncoderDecoder(0)


def test_bad_batches_are_named(model):
    with pytest.raises(ValueError, match="`target`"):
        model.prepare({"source": [[1]], "target_length": [1]})
    with pytest.raises(ValueError, match=r"`source` must be \(B, T\)"):
        model.prepare({"source": [1], "target": [[1]], "target_length": [1]})
    with pytest.raises(UserError, match="`sentinels` must be at least 1"):
        model.prepare({"tokens": [[1, 2, 3, 4]]})
    with pytest.raises(UserError, match="at least 2"):
        tiny(sentinels=3).prepare({"tokens": [[1]]})
