"""Variational autoencoders of sequences: bounds, codes, what the decoder sees, and the whole way of texts and music."""

import numpy as np
import pytest
import tensorflow as tf

from gentf.data.tokenizers import train
from gentf.kernels import random
from gentf.models import SequenceVAE
from gentf.models.saved import load_model

KEYS = 88


def of_frames(**options):
    options = {"units": 12, "latent_dim": 4, "context": 8} | options
    model = SequenceVAE(tokenizer={"kind": "frames"}, **options)
    model.compile()
    return model


@pytest.fixture(scope="module")
def model():
    return of_frames()


def rolls(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(sum(lengths))
    return [(generator.random((length, KEYS)) < 0.05).astype(np.uint8) for length in lengths]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "`latent_dim` must be at least 1"),
        ({"prior": "vamp"}, "`prior` must be one of normal, mixture, flow"),
        ({"posterior": "cubic"}, "`posterior` must be one of"),
        ({"objective": "gan"}, "`objective` must be one of"),
        ({"num_classes": 3}, "`num_classes` must be 0"),
        ({"posterior": "iaf", "objective": "iwae"}, "`doubly` must be False"),
        ({"posterior": "full", "objective": "beta_tc"}, "`posterior` must be diagonal"),
        ({"input_dropout": 1.0}, "`input_dropout` must be in"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        of_frames(**options)


def test_bounds_rise_with_the_latents_and_hold_from_below():
    model = of_frames(units=8, latent_dim=2)
    model.posterior.project.bias.assign([1.5, -1.5, -0.5, -0.5])  # far from the prior: a loose bound
    pieces = rolls(*range(3, 15))
    bounds = [model.bound(pieces, samples).log_prob.mean() for samples in (1, 10, 200)]
    assert bounds[0] < bounds[1] < bounds[2]
    draws = tf.constant(random.spread(3, 3000).numpy())
    z = model.prior.draw((), draws).numpy()
    exact = [np.logaddexp.reduce(model.log_prob([piece] * len(z), condition=z)) - np.log(len(z)) for piece in pieces]
    assert bounds[2] == pytest.approx(np.mean(exact), abs=0.3)  # the closed sum over the prior: another estimate
    assert np.all(model.bound(pieces, 200).elbo <= model.bound(pieces, 200).log_prob + 1e-4)


def test_what_follows_the_end_does_not_count(model):
    short, long = rolls(5, 16)
    alone = model.bound([short], 30)
    together = model.bound([short, long], 30)
    np.testing.assert_allclose(together.log_prob[0], alone.log_prob[0], rtol=1e-5)
    np.testing.assert_allclose(model.encode([short, long])[0], model.encode([short])[0], atol=1e-5)
    padded = np.zeros((2, 16, KEYS), np.uint8)
    padded[0, :5], padded[1] = short, long
    junk = padded.copy()
    junk[0, 5:] = 1
    losses = [
        model.losses_on(model.prepare({"frames": frames, "length": np.array([5, 16])}), False)
        for frames in (padded, junk)
    ]
    for name, value in losses[0].items():
        np.testing.assert_allclose(value, losses[1][name], rtol=1e-5, err_msg=name)


def test_codes_hold_what_the_sequences_are():
    """Two kinds of sequences: the code tells them apart, and the decoder makes the kind of a code again."""
    generator = np.random.default_rng(0)
    low, high = (generator.integers(a, a + 4, (200, 12)) for a in (1, 5))
    model = SequenceVAE(
        vocabulary=9, units=16, latent_dim=3, context=12, cell="gru", input_dropout=0.5, free_bits=0.1, seed=1
    )
    model.compile("adam", jit_compile=True)
    model.optimizer.learning_rate = 0.02
    data = np.pad(generator.permutation(np.concatenate([low, high])), [(0, 0), (1, 0)]).astype(np.int32)  # 0 starts
    before = model.bound(list(low[:5]) + list(high[:5]), 20).log_prob.mean()
    model.fit(data, batch_size=40, epochs=25, verbose=0)
    sequences = list(low[:40]) + list(high[:40])
    assert model.bound(sequences, 20).log_prob.mean() > before + 5
    assert model.summarize([data[:100]])["active_units"] >= 1
    codes = model.encode(sequences)
    direction = codes[:40].mean(axis=0) - codes[40:].mean(axis=0)
    side = (codes - codes.mean(axis=0)) @ direction
    assert np.mean(side[:40] > 0) > 0.9 and np.mean(side[40:] < 0) > 0.9
    again = model.reconstruct(sequences, seed=3)
    assert (
        np.mean([np.mean(row > 4) for row in again[:40]]) < 0.15 < 0.85 < np.mean([np.mean(r > 4) for r in again[40:]])
    )
    longer = model.nats_of_stream(np.concatenate([low[0], low[1], low[2]]).astype(np.int32), samples=50)
    assert longer.shape == (35,) and 1.0 < longer.mean() < 2.2  # log 4 where the kind is known, log 9 where nothing is


def test_hidden_inputs_reach_the_decoder_in_training_alone():
    for options in ({}, {"vocabulary": 7, "tokenizer": None}):
        models = [
            SequenceVAE(**({"tokenizer": {"kind": "frames"}} | options), units=6, latent_dim=2, input_dropout=share)
            for share in (0.0, 0.9)
        ]
        data = np.arange(24).reshape(2, 12) % 7 if options else np.stack(rolls(12, 12))
        values = [[float(m.losses_on(m.prepare(data), training)["loss"]) for m in models] for training in (True, False)]
        assert values[0][0] != values[0][1] and values[1][0] == values[1][1]


def test_samples_take_codes_or_draw_them(model):
    whole = model.sample(5, seed=2, max_length=9)
    part = model.sample(2, seed=2, max_length=9)
    assert [row.tobytes() for row in whole[:2]] == [row.tobytes() for row in part]
    z = np.array(model._prior_of(random.spread(2, 5)))
    given = model.sample(5, seed=2, condition=z, max_length=9)
    assert [row.tobytes() for row in whole] == [row.tobytes() for row in given]
    assert abs(np.corrcoef(np.array(model._prior_of(random.spread(2, 4000))).T) - np.eye(4)).max() < 0.06
    other = model.decode(z + 9.0, seed=2, max_length=9)
    assert [row.tobytes() for row in other] != [row.tobytes() for row in given]
    with pytest.raises(ValueError, match=r"`z` must be \(n, 4\)"):
        model.decode(z[:, :3])
    with pytest.raises(ValueError, match="`condition` must be vectors of 4"):
        model.sample(2, condition=[1, 2])
    with pytest.raises(ValueError, match="at least one symbol"):
        model.encode([np.zeros((0, KEYS), np.uint8)])


def test_a_prompt_begins_what_is_generated():
    model = SequenceVAE(vocabulary=30, units=8, latent_dim=2)
    model.head.assign(50.0 * model.head)
    first, again, other = (model.sample(1, prompt=[p], seed=4, max_length=9)[0] for p in ([3, 9, 4], [3, 9, 4], [3, 9]))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("options", [{"posterior": "iaf", "prior": "flow", "cell": "gru"},
                                     {"posterior": "full", "prior": "mixture", "objective": "iwae", "samples": 3},
                                     {"objective": "beta_tc", "cell": "rnn", "layers": 2}])  # fmt: skip
def test_combinations_train_and_are_saved(options, tmp_path):
    model = of_frames(**({"units": 6, "latent_dim": 3} | options))
    data = np.stack(rolls(*[8] * 12))
    model.optimizer.learning_rate = 0.02
    losses = model.fit(data, epochs=6, batch_size=6, verbose=0).history["loss"]
    assert losses[-1] < 0.97 * losses[0]
    model.save(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.encode(list(data)), model.encode(list(data)))
    assert loaded.get_config() == model.get_config()


def test_served_texts_and_codes_are_those_of_python():
    texts = ["abba", "b", "", "abab ba"]
    tokenizer = train("char", ["abba ab ba"]).to_dict()
    model = SequenceVAE(
        vocabulary=len(tokenizer["characters"]) + 1, tokenizer=tokenizer, boundary=True, units=9, latent_dim=3
    )
    served = {name: tf.function(signature.function, autograph=False) for name, signature in model.signatures().items()}
    assert "score" not in served
    z = served["encode"](text=tf.constant(texts))["z"]
    np.testing.assert_allclose(z, model.encode(texts), atol=1e-5)
    seeds = random.spread(7, 4)
    found = served["log_prob"](text=tf.constant(texts), seed=seeds)
    python = model.bound(texts, model.served_samples, seed=7)
    np.testing.assert_allclose(found["log_prob"], python.log_prob, rtol=1e-4)
    np.testing.assert_allclose(found["stderr"], python.stderr, atol=1e-3)
    asked = {
        "prompt": tf.constant([""] * 4), "seed": seeds, "temperature": tf.ones(4), "top_p": tf.ones(4),
        "max_length": tf.fill([4], 10),
    }  # fmt: skip
    answer = served["decode"](**asked, z=z)["text"].numpy()
    assert [text.decode() for text in answer] == model.decode(z.numpy(), seed=7, max_length=10)
    drawn = served["generate"](**asked)["text"].numpy()
    assert [text.decode() for text in drawn] == model.sample(4, seed=7, max_length=10)
