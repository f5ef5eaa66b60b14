"""What the tests of decoding share: decoders over tables, whose every probability can be written down."""

import numpy as np
import tensorflow as tf

from gentf.sampling.decode import Decoder


def random_table(*shape, seed=0, scale=1.5):
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)


def markov(table):
    """Logits after token x, as symbol p of a row, are table[p, x], of (T, V, V): a state that holds nothing, so that it
    is taken back by a smaller position, as a Transformer's is."""
    table = tf.constant(table)

    def at(position, token):
        return tf.gather_nd(table, tf.stack([tf.minimum(position, table.shape[0] - 1), token], axis=-1))

    def prefill(tokens, lengths, state):
        last = tf.maximum(lengths - 1, 0)
        return at(last, tf.gather(tokens, last, axis=1, batch_dims=1)), state

    def extend(tokens, position, state):
        return at(position[:, None] + tf.range(tokens.shape[1]), tokens), state

    return Decoder(
        lambda rows, capacity, label=None: (tf.zeros((rows, 1)),),
        prefill,
        lambda token, position, state: (at(position, token), state),
        extend,
    )


def hashed(table, factor=7):
    """Logits are table[h], of (M, V), where h takes in every token before: a state that cannot be taken back."""
    table = tf.constant(table)

    def after(h, token):
        return (h * factor + token + 1) % table.shape[0]

    def prefill(tokens, lengths, state):
        def body(at, h):
            return at + 1, tf.where(at < lengths, after(h, tokens[:, at]), h)

        _, h = tf.while_loop(lambda at, h: at < tf.shape(tokens)[1], body, (tf.constant(0), state[0]))
        return tf.gather(table, h), (h,)

    def step(token, position, state):
        h = after(state[0], token)
        return tf.gather(table, h), (h,)

    return Decoder(lambda rows, capacity, label=None: (tf.zeros((rows,), tf.int32),), prefill, step)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def hash_of(tokens, states, factor=7):
    h = 0
    for token in tokens:
        h = (h * factor + int(token) + 1) % states
    return h
