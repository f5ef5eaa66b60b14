"""What the tests of constraints share: vocabularies, and texts drawn from an automaton."""

import numpy as np
import tensorflow as tf

from gentf.sampling.constraints import advance, allowed, initial

BYTES = [b"", *(bytes([value]) for value in range(256))]
PRINTABLE = [b"", *(bytes([value]) for value in range(32, 127))]  # 95 characters and the stop token


def pieces_of(alphabet):
    return [b"", *(character.encode() for character in alphabet)]


def accepts(constraint, text, pieces):
    """Of one-byte or one-character pieces: the text has one tokenisation."""
    place = {piece: index for index, piece in enumerate(pieces)}
    units = [c.encode() for c in text] if len(pieces) != 257 else [bytes([b]) for b in text.encode()]
    return all(unit in place for unit in units) and constraint.accepts([place[unit] for unit in units])


def walk(constraint, num, limit, seed=0, reluctant=False):
    """(num, limit) tokens drawn uniformly from the allowed ones; if reluctant, `stop` only where nothing else is."""
    random_numbers, tables = np.random.default_rng(seed), constraint.tables()
    state, drawn = initial(tables, num), []
    for step in range(limit):
        mask = allowed(tables, state, tf.fill([num], limit - step)).numpy()
        assert mask.any(axis=1).all()
        weights = random_numbers.random(mask.shape, np.float32) * mask
        if reluctant:
            weights[:, constraint.stop] *= 1e-6
        drawn.append(weights.argmax(axis=1).astype(np.int32))
        state = advance(tables, state, drawn[-1])
    assert (constraint.distance[state.numpy()] == 0).all(), "a sequence did not end within the limit"
    return np.stack(drawn, axis=1)


def texts(drawn, pieces):
    return [b"".join(pieces[token] for token in row).decode() for row in drawn]
