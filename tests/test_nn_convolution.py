"""Keras' convolutions on our kernels: what Keras' own layers answer, with their weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.nn.convolution import Conv2D, Conv2DTranspose


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (Conv2D, {"strides": 2, "padding": "same", "use_bias": False}),
        (Conv2D, {"groups": 2, "activation": "relu"}),
        (Conv2D, {"dilation_rate": 2}),
        (Conv2DTranspose, {"strides": 2, "padding": "same", "activation": "tanh"}),
        (Conv2DTranspose, {"strides": (2, 1), "padding": "valid"}),
    ],
)
def test_layer_gives_what_keras_gives(ours, options, jit):
    x = tf.random.stateless_normal((3, 7, 6, 2), seed=(0, 0))
    results = []
    for layer in (ours(4, 3, **options), getattr(keras.layers, ours.__name__)(4, 3, **options)):
        layer.build(x.shape)
        layer.set_weights([np.sin(np.arange(w.size)).reshape(w.shape) for w in layer.get_weights()])

        def run(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                loss = tf.reduce_sum(tf.sin(y))
            return [y, *tape.gradient(loss, [x, *layer.trainable_variables])]

        results.append(tf.function(run, jit_compile=jit)(x))
        assert results[-1][0].shape == layer.compute_output_shape(x.shape)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_output_size_is_a_crop_and_is_saved():
    x = tf.random.stateless_normal((2, 4, 4, 3), seed=(0, 0))
    whole, cut = (Conv2DTranspose(1, 4, strides=2, padding="same", output_size=size) for size in (None, (7, 8)))
    whole.build(x.shape)
    cut.build(x.shape)
    cut.set_weights(whole.get_weights())
    np.testing.assert_allclose(cut(x), whole(x)[:, :7], rtol=1e-5, atol=1e-6)
    assert type(cut).from_config(cut.get_config()).output_size == (7, 8)
    assert cut.compute_output_shape((None, 4, 4, 3)) == (None, 7, 8, 1)
