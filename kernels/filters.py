"""Filters of next-token logits: what a sampler may draw, row by row.

Every control is a (B,) tensor, so that requests with different settings share a batch; a row's result depends on that
row alone. Logits are (B, V) float, finite or -inf (a token excluded before), with one finite entry a row at least. A
removed token becomes -inf; the likeliest one always stays, so that no row is left without a token.

Tokens rank by logit, highest first, and equal logits by index, lowest first. `top_k` and `top_p` keep the first tokens
of that order without sorting them all: the 256 likeliest suffice most of the time, and where in some row they do not,
the last token's logit is found bit by bit, by 32 sums over the vocabulary. Both ways give the same tokens.

Gradients are those of the logits that stay, under a mask held constant.
"""

import tensorflow as tf

SORTED = 256  # the likeliest tokens, sorted before anything else is tried
GREEDY = 1e-6  # temperatures up to here: below, float32 logits of the usual size would overflow


def temperature(logits: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """Divide by the temperature; where it is 0 (1e-6 or less), leave nothing but the likeliest token.

    Args:
        logits: (B, V) float.
        t: (B,) float, >= 0.
    Returns:
        (B, V), of the dtype of `logits`.
    """
    z = _rows(logits)
    t = tf.cast(t, tf.float32)[:, None]
    greedy = t <= GREEDY
    first = tf.range(z.shape[1])[None, :] == tf.argmax(z, axis=1, output_type=tf.int32)[:, None]
    scaled = tf.cast(z / tf.where(greedy, 1.0, t), logits.dtype)
    return _keep(scaled, first | ~greedy)


def top_k(logits: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Keep the `k` likeliest tokens: exactly k, equal logits by lowest index.

    Args:
        logits: (B, V) float.
        k: (B,) int32; 0 or less, or V and more, keeps all.
    Returns:
        (B, V), of the dtype of `logits`.
    Reference: Fan, Lewis & Dauphin (2018), section 5.
    """
    z = _rows(logits)
    k = tf.cast(k, tf.int32)
    off = (k <= 0) | (k >= z.shape[1])
    return _keep(logits, _leading(z, None, tf.where(off, 1, k)) | off[:, None])


def top_p(logits: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """Keep the nucleus: the fewest of the likeliest tokens whose probabilities sum to `p` or more.

    Probabilities are counted in whole units between 2**-30 and 2**-29: integers add up to the same sum in any order,
    so that the nucleus does not depend on the batch or on how a sum is carried out.

    Args:
        logits: (B, V) float.
        p: (B,) float; 0 or less keeps the likeliest token, 1 or more keeps all.
    Returns:
        (B, V), of the dtype of `logits`.
    Reference: Holtzman et al. (2020), section 3.1.
    """
    z = _rows(logits)
    p = tf.cast(p, tf.float32)
    weights = tf.exp(z - tf.reduce_max(z, axis=1, keepdims=True))
    # Only the total's power of two enters the unit: it is the same however the total was rounded.
    exponent = tf.bitwise.right_shift(tf.bitcast(tf.reduce_sum(weights, axis=1, keepdims=True), tf.int32), 23) - 127
    unit = tf.bitcast(tf.bitwise.left_shift(29 - exponent + 127, 23), tf.float32)
    units = tf.cast(tf.round(weights * unit), tf.int32)
    total = tf.reduce_sum(units, axis=1)
    off = p >= 1.0
    target = tf.cast(tf.math.ceil(tf.where(off, 0.0, p) * tf.cast(total, tf.float32)), tf.int32)
    return _keep(logits, _leading(z, units, tf.clip_by_value(target, 1, total)) | off[:, None])


def min_p(logits: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """Keep the tokens at least `p` times as likely as the likeliest one.

    Args:
        logits: (B, V) float.
        p: (B,) float; 0 or less keeps all, 1 or more keeps the likeliest (all of them, where several are).
    Returns:
        (B, V), of the dtype of `logits`.
    Reference: Nguyen et al. (2024), section 3.
    """
    z = _rows(logits)
    lowest = tf.math.log(tf.clip_by_value(tf.cast(p, tf.float32), 0.0, 1.0))[:, None]
    return _keep(logits, z - tf.reduce_max(z, axis=1, keepdims=True) >= lowest)


def repetition(logits: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """Make tokens that occurred less likely: positive logits are divided by `penalty`, negative ones multiplied.

    Args:
        logits: (B, V) float.
        tokens: (B, T) int32; what lies outside [0, V) occurs nowhere.
        lengths: (B,) int32: `tokens[b, :lengths[b]]` occurred.
        penalty: (B,) float, > 0; 1 changes nothing.
    Returns:
        (B, V), of the dtype of `logits`.
    Reference: Keskar et al. (2019), section 4.1, for positive logits.
    """
    z = _rows(logits)
    penalty = tf.cast(penalty, tf.float32)[:, None]
    penalised = tf.where(z > 0.0, z / penalty, z * penalty)
    return tf.where(_counts(z, tokens, lengths) > 0, tf.cast(penalised, logits.dtype), logits)


def occurrence(
    logits: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor, presence: tf.Tensor, frequency: tf.Tensor
) -> tf.Tensor:
    """Subtract `presence` from the logit of a token that occurred, and `frequency` for each time that it did.

    Args:
        logits, tokens, lengths: as of `repetition`.
        presence, frequency: (B,) float; 0 changes nothing.
    Returns:
        (B, V), of the dtype of `logits`.
    """
    z = _rows(logits)
    counts = tf.cast(_counts(z, tokens, lengths), tf.float32)
    presence, frequency = (tf.cast(x, tf.float32)[:, None] for x in (presence, frequency))
    return tf.cast(z - presence * tf.minimum(counts, 1.0) - frequency * counts, logits.dtype)


def _leading(z: tf.Tensor, units: tf.Tensor | None, target: tf.Tensor) -> tf.Tensor:
    """Mask of the shortest run of tokens, in rank order, whose units sum to `target` or more.

    Args:
        z: (B, V) float32.
        units: (B, V) int32, >= 0, of a sum a row below 2**31; None for one each.
        target: (B,) int32, from 1 to that sum.
    """
    z = tf.where(z == 0.0, 0.0, z)  # -0 is not below 0, in whatever way a sort compares them
    size = min(SORTED, z.shape[1])
    values, indices = tf.math.top_k(z, size)
    found = tf.ones_like(indices) if units is None else tf.gather(units, indices, batch_dims=1)
    before = tf.cumsum(found, axis=1, exclusive=True)

    def from_sorted():
        last = tf.reduce_sum(tf.cast(before < target[:, None], tf.int32), axis=1, keepdims=True) - 1
        value, index = (tf.gather(x, last, batch_dims=1) for x in (values, indices))
        return (z > value) | ((z == value) & (tf.range(z.shape[1]) <= index))

    if size == z.shape[1]:
        return from_sorted()
    enough = tf.reduce_all(tf.reduce_sum(found, axis=1) >= target)
    return tf.cond(enough, from_sorted, lambda: _leading_by_bits(_order(z), units, target))


def _leading_by_bits(key: tf.Tensor, units: tf.Tensor | None, target: tf.Tensor) -> tf.Tensor:
    """`_leading` of int32 keys, without a sort: finds the last token's key from its highest bit down."""

    def counted(mask):
        return tf.cast(mask, tf.int32) if units is None else tf.where(mask, units, 0)

    def reached(lowest):
        return tf.reduce_sum(counted(key >= lowest[:, None]), axis=1) >= target

    def narrow(bit, last):
        higher = last + tf.bitwise.left_shift(1, bit)
        return bit - 1, tf.where(reached(higher), higher, last)

    zero = tf.zeros_like(target)
    start = (tf.constant(30), tf.where(reached(zero), zero, tf.int32.min))
    _, last = tf.while_loop(lambda bit, _: bit >= 0, narrow, start, parallel_iterations=1)
    above, level = key > last[:, None], key == last[:, None]
    missing = target - tf.reduce_sum(counted(above), axis=1)
    return above | (level & (tf.cumsum(counted(level), axis=1, exclusive=True) < missing[:, None]))


def _order(z: tf.Tensor) -> tf.Tensor:
    """int32 keys in the order of the floats: the bits of a negative one count downwards."""
    bits = tf.bitcast(z, tf.int32)
    return tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, 0x7FFFFFFF), bits)


def _counts(z: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """(B, V) int32: how often each token occurs in `tokens[b, :lengths[b]]`."""
    batch, time = tf.unstack(tf.shape(tokens))
    counted = (tf.range(time)[None, :] < lengths[:, None]) & (tokens >= 0) & (tokens < z.shape[1])
    rows = tf.repeat(tf.range(batch)[:, None], time, axis=1)
    place = tf.stack([rows, tf.where(counted, tokens, 0)], axis=2)
    return tf.scatter_nd(place, tf.cast(counted, tf.int32), tf.shape(z))


def _keep(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return tf.where(mask, logits, tf.constant(float("-inf"), logits.dtype))


def _rows(logits: tf.Tensor) -> tf.Tensor:
    if not logits.dtype.is_floating or logits.shape.rank != 2 or logits.shape[1] is None:
        raise ValueError(
            f"`logits` must be (B, V) floats of static V. Received: logits={logits.dtype.name} of shape {logits.shape}"
        )
    return tf.cast(logits, tf.float32)
