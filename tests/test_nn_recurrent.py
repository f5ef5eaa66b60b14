"""Keras' recurrent layers on our kernels: what Keras' own layers answer, with their weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.nn.recurrent import GRU, LSTM, SimpleRNN

X = np.random.default_rng(0).normal(size=(3, 6, 5)).astype(np.float32)
LENGTHS = tf.sequence_mask([6, 4, 1], 6)
FIRST_LEFT_OUT = tf.constant([[False] * 2 + [True] * 4, [True] * 6, [True] * 3 + [False] * 3])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("ours", "options", "mask"),
    [
        (SimpleRNN, {"activation": "relu", "return_state": True}, None),
        (SimpleRNN, {"return_sequences": True, "use_bias": False}, LENGTHS),
        (LSTM, {"return_sequences": True, "return_state": True}, FIRST_LEFT_OUT),
        (LSTM, {"go_backwards": True, "return_sequences": True, "zero_output_for_mask": True}, LENGTHS),
        (LSTM, {"activation": "relu"}, None),  # not on the kernel: Keras' own loop
        (GRU, {"return_sequences": True, "return_state": True}, LENGTHS),
        (GRU, {"reset_after": False, "go_backwards": True}, None),
        (GRU, {"use_bias": False}, LENGTHS),
    ],
)
def test_layer_gives_what_keras_gives(ours, options, mask, jit):
    stock = getattr(keras.layers, ours.__name__)
    plain = {} if ours is SimpleRNN else {"use_cudnn": False}
    layers = [ours(4, **options), stock(4, **options, **plain)]
    results = []
    for layer in layers:
        layer.build(X.shape)
        layer.set_weights([0.3 * np.sin(np.arange(w.size)).reshape(w.shape) for w in layer.get_weights()])

        def run(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = tf.nest.flatten(layer(x, mask=mask))
                loss = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in outputs])
            return outputs, tape.gradient(loss, [x, *layer.trainable_variables])

        results.append(tf.function(run, jit_compile=jit)(tf.constant(X)))
    for a, b in zip(tf.nest.flatten(results[0]), tf.nest.flatten(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [SimpleRNN, LSTM, GRU])
def test_layer_saves_and_trains_in_a_bidirectional_model(cls, tmp_path):
    model = keras.Sequential(
        [keras.Input((None, 5)), keras.layers.Masking(), keras.layers.Bidirectional(cls(4, dropout=0.5)),
         keras.layers.Dense(1)]
    )  # fmt: skip
    model.compile("adam", "mse", jit_compile=True)
    before = model.evaluate(X, np.ones((3, 1)), verbose=0)
    model.fit(X, np.ones((3, 1)), epochs=20, verbose=0)
    assert model.evaluate(X, np.ones((3, 1)), verbose=0) < before
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert type(again.layers[1].forward_layer) is cls
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_mixed_bfloat16():
    layer = LSTM(4, dtype="mixed_bfloat16", return_sequences=True)
    wide = LSTM(4, return_sequences=True)
    y = layer(X)
    wide.build(X.shape)
    wide.set_weights(layer.get_weights())
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), wide(X), atol=0.02)
