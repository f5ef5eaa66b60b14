"""Training of models of sequences: data, the course of the step size, stopping and going on, what a run leaves."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf import config as configs
from gentf.data import load
from gentf.data.sequences import Windows
from gentf.errors import UserError
from gentf.models import RNN, Transformer, build, load_data, optimizers
from gentf.training import checkpoint, devices, train, validation
from gentf.training.loop import total_steps
from gentf.training.run import Run

TEXT = "the cat sat on the mat, and the dog lay on the log.\n" * 40
SMALL = ["text.block=16", "model.units=12", "train.batch_size=8", "optimizer.warmup_steps=2", "optimizer.decay_steps=8",
         "train.log_every=1", "train.steps_per_call=2"]  # fmt: skip


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def config(path, *overrides):
    return configs.resolve("lstm-python-docs", [f"data.name={path}", *SMALL, *overrides])


def test_windows_hold_every_token_once_an_epoch_and_move():
    stream = np.arange(1, 102, dtype=np.int32)
    store = Windows(stream, 10, moving=True)
    assert store.size == 9
    seen = []
    for epoch in range(6):
        starts = store.place(np.arange(store.size), np.array([3, epoch])).numpy()
        tokens = store.gather(starts)["tokens"].numpy()
        np.testing.assert_array_equal(tokens, stream[starts[:, None] + np.arange(11)])
        assert len(set(tokens[:, 1:].ravel().tolist())) == 90  # each is predicted once
        seen.append(int(starts[0]))
    assert len(set(seen)) > 1 and max(seen) <= 10
    still = Windows(stream, 10, moving=False)
    assert still.size == 10
    np.testing.assert_array_equal(still.place(np.arange(10)), np.arange(10) * 10)


def test_batches_in_memory_are_those_of_the_stream(book):
    source = load(book, modality="text", block=16)
    streamed = next(iter(source.train.stream(4, seed=5, start_step=3)))["tokens"]
    rows = source.train.rows(4, 5)(np.int64(3), np.int64(1))[0]
    np.testing.assert_array_equal(source.train.select(source.train.resident(), rows)["tokens"], streamed)


def test_one_document_is_cut_in_place_and_its_alphabet_is_of_all_splits(book):
    source = load(book, modality="text", block=16, validation_share=0.1, test_share=0.0)
    streams = [split.contents()["stream"] if len(split) else [] for split in source.splits.values()]
    assert [len(s) for s in streams] == [int(0.9 * len(TEXT)), len(TEXT) - int(0.9 * len(TEXT)), 0]
    assert source.spec.vocabulary == 1 + len(set(TEXT)) and source.spec.start == (1,) and not source.spec.boundary


def test_pieces_are_transposed_within_the_keyboard():
    plain, moved = (load("chorales", modality="music", tokens="chords", transpose=n) for n in (0, 3))
    one, seven = (split.train.contents()["stream"] for split in (plain, moved))
    assert 6.5 < (seven == 0).sum() / (one == 0).sum() < 7.1
    np.testing.assert_array_equal(plain.test.contents()["stream"], moved.test.contents()["stream"])


def test_bad_data_is_told_of_in_one_line(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("abc" * 40)
    with pytest.raises(UserError, match="must be less than the number of tokens"):
        load(short, modality="text", block=128)
    short.write_text("abc")
    with pytest.raises(UserError, match="too little text to split"):
        load(short, modality="text", block=2)
    with pytest.raises(UserError, match="`modality` must be one of"):
        load(short, modality="smell")
    with pytest.raises(UserError, match="`size` is no option of modality text"):
        load(short, modality="text", size=(2, 2))
    with pytest.raises(UserError, match="`model.family` must be one for data of modality image"):
        build(configs.resolve("gan-digits", ["model.family=rnn"]), load("digits").spec)


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_the_step_size_rises_and_falls_by_the_step_alone(name, book):
    made = optimizers(
        config(book, f"optimizer.name={name}", "optimizer.learning_rate=0.5", "optimizer.final_share=0.1")
    )
    rates = []
    for step in range(14):
        made["optimizer"]._iterations.assign(step)
        rates.append(float(made["optimizer"].learning_rate))
    assert rates[0] == 0.0 and rates[2] == pytest.approx(0.5) and rates[1] == pytest.approx(0.25)
    assert rates[6] == pytest.approx(0.5 * (0.1 + 0.9 * 0.5), rel=1e-5)
    assert rates[10] == rates[13] == pytest.approx(0.05)


def test_weight_decay_leaves_biases_and_tables_alone(book):
    source = load_data(config(book))
    model = build(config(book, "optimizer.name=adamw", "optimizer.weight_decay=0.1"), source.spec)
    decayed = {v.name for v in model.trainable_variables if model.optimizer._use_weight_decay(v)}
    assert decayed == {"kernel_0", "kernel_1", "recurrent_kernel_0", "recurrent_kernel_1", "head"}


def test_accumulated_batches_make_one_update(book):
    source = load_data(config(book))
    model = build(config(book, "optimizer.accumulate=3", "optimizer.warmup_steps=0"), source.spec)
    batches = iter(source.train.stream(8, seed=0))
    before = [v.numpy() for v in model.trainable_variables]
    changed = []
    for _ in range(6):
        model.update(next(batches))
        now = [v.numpy() for v in model.trainable_variables]
        changed.append(any(np.any(a != b) for a, b in zip(before, now)))
        before = now
    assert changed == [False, False, True, False, False, True]


def test_accumulation_is_of_one_device(book, tmp_path, two_devices):
    with pytest.raises(UserError, match="`optimizer.accumulate` must be 1 on several devices"):
        train(config(book, "optimizer.accumulate=2", "train.devices=2"), tmp_path / "run")


def test_a_run_that_stopped_goes_on_bit_for_bit(book, tmp_path):
    """`train.steps` ends a run inside an epoch; a longer one goes on from there as if it had never stopped."""
    total = 30
    whole = train(config(book, f"train.steps={total}", "train.epochs=4"), tmp_path / "whole")
    part = train(config(book, "train.steps=5", "train.epochs=4"), tmp_path / "part")
    assert part.step == 5 and whole.step == total == total_steps(whole.config, 13)
    part = train(config(book, f"train.steps={total}", "train.epochs=4"), tmp_path / "part", resume=True)
    for a, b in zip(*(checkpoint.load(run.checkpoints.path(total))[0].values() for run in (whole, part)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_keeps_its_shards_on_whatever_cores_it_goes_on(book, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 2)
    run = train(config(book, "train.steps=2", "train.epochs=4"), tmp_path / "run")
    assert run.config.train.shards == 2
    monkeypatch.setattr(devices, "cores", lambda: 1)
    again = train(config(book, "train.steps=4", "train.epochs=4"), tmp_path / "run", resume=True)
    assert again.config.train.shards == Run(run.path).config.train.shards == 2
    assert train(config(book, "train.steps=1"), tmp_path / "other").config.train.shards == 1
    with pytest.raises(UserError, match="train.shards differ"):
        train(config(book, "train.steps=5", "train.epochs=4", "train.shards=1"), tmp_path / "run", resume=True)


def test_a_run_from_before_there_were_shards_goes_on_without(book, tmp_path):
    run = train(config(book, "train.steps=2", "train.epochs=4", "train.shards=1"), tmp_path / "run")
    told = run.path / "config.yaml"
    told.write_text(re.sub(r"[ ,]*shards: 1", "", told.read_text()))
    assert Run(run.path).config.train.shards is None
    assert train(Run(run.path).config, run.path, resume=True).config.train.shards == 1


@pytest.mark.parametrize("override", ["train.shards=3", "train.shards=16"])
def test_shards_must_divide_the_batch(book, tmp_path, override):
    with pytest.raises(UserError, match="`train.shards` must divide `train.batch_size`"):
        train(config(book, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_are_refused_where_a_loss_is_of_the_whole_batch(tmp_path, two_devices, book):
    with pytest.raises(UserError, match="`train.shards` must be 1 for GAN"):
        train(configs.resolve("gan-digits", ["train.shards=2"]), tmp_path / "run")
    with pytest.raises(UserError, match="and be 1 on several devices"):
        train(config(book, "train.shards=2", "train.devices=2"), tmp_path / "run")
    model = Transformer(9, 8, 1, 8, 2)
    model.compile()
    model.shards = 2
    with pytest.raises(ValueError, match="a batch must be a multiple of 2 shards. Received: 3 rows"):
        model.update({"tokens": tf.zeros((3, 5), tf.int32)})


def test_keras_fit_in_shards_is_fit(book):
    """Ragged lengths too: a part counts by what is in it."""
    generator = np.random.default_rng(0)
    frames = (generator.random((8, 6, 88)) < 0.1).astype(np.uint8)
    data = {"frames": frames, "length": np.array([6, 6, 6, 6, 2, 3, 1, 2], np.int32)}
    weights = []
    for shards in (1, 4):
        model = RNN(0, "gru", layers=1, units=8)
        model.compile(keras.optimizers.SGD(1.0), jit_compile=True)
        model.shards = shards
        model.fit(data, batch_size=8, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_validation_in_shards_is_that_of_whole_batches(book):
    """Batches of any number of rows, the last one of a single row."""
    options = config(book, "train.batch_size=11")
    source = load_data(options)
    model, split = build(options, source.spec), source.validation
    assert len(split) == 12
    whole = validation.Validator(model, options).measure(split)
    model.shards = 2
    assert validation.Validator(model, options).measure(split) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "cores", "threads"),
    [("gpt-shakespeare", 2, 1), ("gpt-shakespeare", 4, None), ("gpt-shakespeare", 1, None),
     ("lstm-shakespeare", 2, None), ("gan-mnist", 2, None)],
)  # fmt: skip
def test_an_operation_has_one_thread_where_there_is_a_shard_for_every_core(preset, cores, threads, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", asked.append)
    devices.use_one_thread_an_operation(configs.resolve(preset))
    assert asked == [threads] * (threads is not None)


def test_a_run_leaves_texts_and_its_best_by_validation(book, tmp_path):
    run = train(config(book, "train.epochs=2"), tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "val_loss" in line]
    assert len(measured) == 2
    for line in measured:
        assert line["val_bits"] == pytest.approx(line["val_loss"] / np.log(2), rel=1e-5)
    best = run.checkpoints.best()
    assert best["values"]["val_loss"] == min(line["val_loss"] for line in measured)
    texts = sorted((run.path / "samples").glob("*.txt"))
    assert texts and texts[-1].read_text().count("\n----\n") == 3
    again = Run(run.path).load_model("best")
    assert again.sample(1, prompt="the ", seed=3, max_length=9) == run.load_model("best").sample(
        1, prompt="the ", seed=3, max_length=9
    )


def test_gpt2_small_has_the_published_shape():
    """124,439,808 weights: Radford et al. (2019), table 2, as the released checkpoint counts them."""
    model_config = configs.resolve("gpt2-small").model
    d, layers, vocabulary, context = model_config.width, model_config.layers, 50257, model_config.context
    assert (d, layers, context, model_config.bias, model_config.positions) == (768, 12, 1024, True, "learned")
    small = configs.resolve("gpt2-small", ["model.layers=1"])
    spec = load("python-docs", modality="text", tokenizer="byte", block=16).spec
    model = build(small, spec)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    block = 12 * d * d + 13 * d
    assert count == spec.vocabulary * d + context * d + block + 2 * d
    assert count + (layers - 1) * block + (vocabulary - spec.vocabulary) * d == 124_439_808
