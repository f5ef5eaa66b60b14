"""Greedy decoding by gentf's kernels: one compiled loop, a cache a layer."""

import tensorflow as tf
from rows import DECODE_HEADS as HEADS
from rows import DECODE_LAYERS as LAYERS
from rows import DECODE_MODEL as MODEL
from rows import TOKENS, VOCABULARY

from gentf.kernels.attention import attention_step, empty_cache


def decoder(batch: int, jit: bool = True):
    """A function that generates `TOKENS` tokens after one, as often as asked tokens come to."""

    def weight(*shape: int) -> tf.Variable:
        weight.count += 1
        return tf.Variable(0.02 * tf.random.stateless_normal(shape, seed=(weight.count, 0)))

    weight.count = 0
    embedding, positions = weight(VOCABULARY, MODEL), weight(TOKENS, MODEL)
    layers = [
        {"qkv": weight(MODEL, 3 * MODEL), "qkv_bias": weight(3 * MODEL), "out": weight(MODEL, MODEL),
         "out_bias": weight(MODEL), "up": weight(MODEL, 4 * MODEL), "up_bias": weight(4 * MODEL),
         "down": weight(4 * MODEL, MODEL), "down_bias": weight(MODEL),
         "norms": [(weight(MODEL), weight(MODEL)) for _ in range(2)]}
        for _ in range(LAYERS)
    ]  # fmt: skip
    last = weight(MODEL), weight(MODEL)

    @tf.function(jit_compile=jit)
    def generate(token):
        caches = tuple(empty_cache(batch, TOKENS, HEADS, MODEL // HEADS) for _ in range(LAYERS))
        # read once: inside the loop each read of a variable would be an operation
        table, places, blocks, (gain, shift) = tf.nest.map_structure(
            tf.convert_to_tensor, (embedding, positions, layers, last)
        )

        def body(place, token, tokens, caches):
            x = tf.gather(table, token) + places[place]
            updated = []
            for block, cache in zip(blocks, caches):
                y = tf.matmul(normalized(x, *block["norms"][0]), block["qkv"]) + block["qkv_bias"]
                q, k, v = tf.unstack(tf.reshape(y, (batch, 3, HEADS, MODEL // HEADS)), axis=1)
                y, cache = attention_step(q, k, v, cache, place)
                updated.append(cache)
                x += tf.matmul(tf.reshape(y, (batch, MODEL)), block["out"]) + block["out_bias"]
                y = tf.matmul(normalized(x, *block["norms"][1]), block["up"]) + block["up_bias"]
                x += tf.matmul(tf.nn.gelu(y, approximate=True), block["down"]) + block["down_bias"]
            logits = tf.matmul(normalized(x, gain, shift), table, transpose_b=True)
            token = tf.argmax(logits, axis=-1, output_type=tf.int32)
            return place + 1, token, tokens.write(place, token), tuple(updated)

        tokens = tf.TensorArray(tf.int32, TOKENS, element_shape=(batch,))
        state = (tf.constant(0), token, tokens, caches)
        return tf.while_loop(lambda place, *_: place < TOKENS, body, state, parallel_iterations=1)[2].stack()

    def run(number: int) -> None:
        for _ in range(number // TOKENS):
            generate(tf.zeros((batch,), tf.int32)).numpy()

    return run


def normalized(x: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor | float = 0.0) -> tf.Tensor:
    """Layer normalization over the last axis."""
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return (x - mean) * (tf.math.rsqrt(variance + 1e-5) * gain) + shift
