"""Attention block by block: what `attention` does with sequences longer than a block.

It takes the softmax of one block of keys after the other, and joins the outputs in the proportion of their log-sum-exps
(the online softmax of Milakov & Gimelshein, 2018, with parts that are normalized: one fused operation on a CPU, quicker
there than the bare exponential). The backward pass computes each block of probabilities again from the stored
log-sum-exp (Dao et al., 2022, "FlashAttention", algorithms 2 and 4; Dao, 2023, "FlashAttention-2", for the order of the
loops; Rabe & Staats, 2021, for the memory bound).
"""

from typing import NamedTuple

import tensorflow as tf

from gentf.kernels.tracing import Size
from gentf.kernels.tracing import size as _size

HIDDEN = -1e30  # added to the score of a hidden key
FLOOR = -1e20  # log-sum-exp before any key: exp(HIDDEN - FLOOR) is 0, so hidden keys add nothing
AT_ONCE = 2  # heads of queries in a working block: on a CPU more of them fall out of its caches
SIDE_BY_SIDE = 2  # parts under way, so that the small operations of one do not leave cores idle


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    visible: tf.Tensor | None,
    first: int | None,
    last: int | None,
    block: int,
) -> tf.Tensor:
    """softmax(Q K' + visibility) V of float32 tensors.

    Args:
        query: (B, T, H, D), scaled.
        key, value: (B, S, G, D) and (B, S, G, E).
        visible: (B, S) bool, the keys that are seen at all; None for every one.
        first, last: the keys that a query sees, counted from its own place, the last query's place being the last
            key's; None: no end. `first` is None where `last` is.
        block: rows and columns of a block.
    Returns:
        (B, T, H, E).
    """
    (length, heads, width), (size, groups, out_width) = sizes_of(query), sizes_of(value)
    rows, columns = _minimum(block, length), _minimum(block, size)
    row_blocks, column_blocks = -(-length // rows), -(-size // columns)
    offset = size - length
    if visible is None and last is None and not (isinstance(size, int) and size % columns == 0):
        visible = tf.ones((_size(key, 0), size), tf.bool)  # so that the keys that fill up the last block are hidden

    def prepare(query, key):
        if visible is None:
            return query, key
        # a column of ones against a column of hidings: the product masks, at no pass over the scores
        hiding = tf.where(visible, 0.0, HIDDEN)[:, :, None, None] + tf.zeros_like(key[..., :1])
        hiding = tf.pad(hiding, [[0, 0], [0, column_blocks * columns - size], [0, 0], [0, 0]], constant_values=HIDDEN)
        key = _pad(key, column_blocks * columns)
        return tf.concat([query, tf.ones_like(query[..., :1])], -1), tf.concat([key, hiding], -1)

    def score(a, b, i, j, masked, of_keys):
        """Scores of a block, rows of `a` against rows of `b`; `of_keys` where `a` holds keys."""
        s = tf.matmul(a, b, transpose_b=True)
        if not masked or last is None:
            return s
        share, shape = heads // groups, tf.shape(s)
        hidden = hidden_places(i * rows + offset + tf.range(rows), j * columns + tf.range(columns), first, last)
        if of_keys:  # (heads of keys, columns, H/G * rows)
            s, hidden = tf.reshape(s, (-1, columns, share, rows)), tf.transpose(hidden)[:, None]
        else:  # (heads of keys, H/G * rows, columns)
            s = tf.reshape(s, (-1, share, rows, columns))
        return tf.reshape(s + hidden, shape)

    def forward(q, k, v):
        """Output and log-sum-exp of every row, as blocks."""

        def visit(i, outs, sums):
            q_i = q[i]

            def step(masked, j, acc, log_sum):
                s = score(q_i, k[j], i, j, masked, False)
                p = tf.nn.softmax(s)
                # the largest probability is exp(the largest score - the log-sum-exp), and at least 1 / columns
                here = tf.reduce_max(s, -1, keepdims=True) - tf.math.log(tf.reduce_max(p, -1, keepdims=True))
                top = tf.maximum(log_sum, here)
                new = top + tf.math.log(tf.exp(log_sum - top) + tf.exp(here - top))
                return acc * tf.exp(log_sum - new) + tf.matmul(p, v[j]) * tf.exp(here - new), new

            zero = tf.zeros_like(q_i[..., :1])
            state = (tf.repeat(zero, out_width, axis=-1), zero + FLOOR)
            out, log_sum = _over(i, rows, columns, column_blocks, offset, first, last, step, state)
            # where no key was seen, exp(s - log_sum) is to be 0
            return i + 1, outs.write(i, out), sums.write(i, tf.where(log_sum > FLOOR, log_sum, -HIDDEN))

        zero = tf.zeros_like(q[..., :1])
        outs, sums = _array(tf.repeat(zero, out_width, axis=-1)), _array(zero)
        _, outs, sums = _loop(lambda i, *_: i < row_blocks, visit, (0, outs, sums))
        return outs.stack(), sums.stack()

    def backward(q, k, v, out, log_sum, d_out):
        """Gradients as blocks. Scores are transposed, so that two of the three products are of plain operands."""
        # what is to be subtracted stands in one more column, against ones: the products subtract, at no pass over them
        delta = tf.reduce_sum(d_out * out, axis=-1, keepdims=True)
        q_sum, d_delta = tf.concat([q, -log_sum], -1), tf.concat([d_out, -delta], -1)
        k_one, v_one = (tf.concat([x, tf.ones_like(x[..., :1])], -1) for x in (k, v))

        def visit(j, d_q, d_k, d_v):
            k_j, k_one_j, v_one_j = k[j], k_one[j], v_one[j]

            def step(masked, i, d_q, dk_j, dv_j):
                p = tf.exp(score(k_one_j, q_sum[i], i, j, masked, True))
                d_s = p * tf.matmul(v_one_j, d_delta[i], transpose_b=True)
                d_q = d_q.write(i, d_q.read(i) + tf.matmul(d_s, k_j, transpose_a=True))
                return d_q, dk_j + tf.matmul(d_s, q[i]), dv_j + tf.matmul(p, d_out[i])

            low, high = None if last is None else -last, None if first is None else -first
            state = (d_q, tf.zeros_like(k_j), tf.zeros_like(v[j]))
            d_q, dk_j, dv_j = _over(j, columns, rows, row_blocks, -offset, low, high, step, state)
            return j + 1, d_q, d_k.write(j, dk_j), d_v.write(j, dv_j)

        state = (0, *(_array(tf.zeros_like(x)) for x in (q, k, v)))
        return [x.stack() for x in _loop(lambda j, *_: j < column_blocks, visit, state)[1:]]

    @tf.custom_gradient
    def run(query, key, value):
        batch = _size(query, 0)
        parts = _Parts.of(batch, heads, groups)
        q, k = prepare(query, key)
        q, k, v = (parts.to_blocks(q, rows, row_blocks), parts.to_blocks(k, columns, column_blocks),
                   parts.to_blocks(value, columns, column_blocks))  # fmt: skip
        of_rows = q.shape[1:-1]
        out, log_sum = _part_by_part(forward, (q, k, v), (of_rows + [out_width], of_rows + [1]))

        def grad(upstream):
            d_out = parts.to_blocks(upstream, rows, row_blocks)
            inputs = q, k, v, out, log_sum, d_out
            d_q, d_k, d_v = _part_by_part(backward, inputs, [x.shape[1:] for x in (q, k, v)])
            return (parts.from_blocks(d_q[..., :width], heads, length),
                    parts.from_blocks(d_k[..., :width], groups, size),
                    parts.from_blocks(d_v, groups, size))  # fmt: skip

        return parts.from_blocks(out, heads, length), grad

    return run(query, key, value)


def hidden_places(rows: tf.Tensor, columns: tf.Tensor, first: int | None, last: int) -> tf.Tensor:
    """(rows, columns): 0 where columns - rows is in [first, last], else HIDDEN."""
    distance = columns[None, :] - rows[:, None]
    seen = distance <= last
    return tf.where(seen if first is None else seen & (distance >= first), 0.0, HIDDEN)


def sizes_of(x: tf.Tensor) -> tuple[Size, int, int]:
    return _size(x, 1), x.shape[2], x.shape[3]


def _over(index, mine, theirs, count, offset, first, last, step, state):
    """Run `step(masked, other, *state)` over the blocks of the other axis that block `index` meets.

    Position a of this axis meets positions a + offset + first to a + offset + last of the other; None: no end. Blocks
    that all of it meets are not masked; those that none of it meets are not visited.
    """
    low, high = index * mine + offset, index * mine + offset + mine - 1  # where this block's ends stand
    start = start_full = 0
    end = end_full = count
    if first is not None:
        start = tf.clip_by_value((low + first) // theirs, 0, count)
        start_full = tf.clip_by_value(-((-high - first) // theirs), start, count)
    if last is not None:
        end = tf.clip_by_value((high + last) // theirs + 1, start, count)
        start_full = tf.minimum(start_full, end)
        end_full = tf.clip_by_value((low + last + 1) // theirs, start_full, end)
    pieces = [(start_full, end_full, False)]
    if first is not None:
        pieces.insert(0, (start, start_full, True))
    if last is not None:
        pieces.append((end_full, end, True))
    for begin, stop, masked in pieces:
        _, *state = _loop(lambda other, *_, stop=stop: other < stop,
                          lambda other, *state, masked=masked: (other + 1, *step(masked, other, *state)),
                          (begin, *state))  # fmt: skip
    return state


def _loop(condition, body, state, under_way=1):
    """A loop, by default one iteration at a time: blocks that ran side by side would each want their own scores."""
    state = tuple(tf.convert_to_tensor(x) if isinstance(x, int) else x for x in state)

    def keep_shapes(*state):
        new = body(*state)
        for x, old in zip(new, state):
            if isinstance(x, tf.Tensor):
                x.set_shape(old.shape)  # which a product of blocks of dynamic size forgets
        return new

    return tf.while_loop(condition, keep_shapes, state, parallel_iterations=under_way)


def _array(blocks: tf.Tensor) -> tf.TensorArray:
    """An array of blocks whose entries may be read and written again."""
    size = _size(blocks, 0)
    return tf.TensorArray(blocks.dtype, size, clear_after_read=False, element_shape=blocks.shape[1:]).unstack(blocks)


# --- parts of the heads


class _Parts(NamedTuple):
    """Which heads of keys, with the queries that share them, are worked on at once: a few; on a GPU all of all rows."""

    batch: Size
    groups: int
    at_once: int
    together: bool

    @classmethod
    def of(cls, batch: Size, heads: int, groups: int) -> "_Parts":
        together = bool(tf.config.list_physical_devices("GPU"))
        few = max(1, AT_ONCE * groups // heads)
        at_once = groups if together else max(n for n in range(1, few + 1) if groups % n == 0)
        return cls(batch, groups, at_once, together)

    @property
    def order(self) -> tuple[int, ...]:
        """Of the axes (batch, block, place in it, part, head of keys in it, head of queries on it, feature)."""
        return (3, 1, 0, 4, 5, 2, 6) if self.together else (0, 3, 1, 4, 5, 2, 6)

    def to_blocks(self, x: tf.Tensor, block: Size, count: Size) -> tf.Tensor:
        """(B, T, H, D), filled up with zeros, to (parts, count, heads of keys, H/G * block, D)."""
        share, width, parts = x.shape[2] // self.groups, x.shape[3], self.groups // self.at_once
        x = tf.reshape(_pad(x, count * block), (self.batch, count, block, parts, self.at_once, share, width))
        x = tf.transpose(x, self.order)
        if self.together:
            return tf.reshape(x, (1, count, self.batch * self.groups, share * block, width))
        return tf.reshape(x, (self.batch * parts, count, self.at_once, share * block, width))

    def from_blocks(self, x: tf.Tensor, heads: int, length: Size) -> tf.Tensor:
        """The inverse of `to_blocks`."""
        count, width, share = _size(x, 1), x.shape[4], heads // self.groups
        sizes = (self.batch, count, _size(x, 3) // share, self.groups // self.at_once, self.at_once, share, width)
        x = tf.reshape(x, [sizes[axis] for axis in self.order])
        x = tf.transpose(x, [self.order.index(axis) for axis in range(7)])
        return tf.reshape(x, (self.batch, count * sizes[2], heads, width))[:, :length]


def _part_by_part(function, inputs, shapes):
    """What `function` makes of each part of the inputs, tensors of `shapes`, laid along a first axis."""
    count = _size(inputs[0], 0)
    if isinstance(count, int) and count == 1:
        return [x[None] for x in function(*(x[0] for x in inputs))]
    arrays = [tf.TensorArray(tf.float32, count, element_shape=shape) for shape in shapes]

    def body(index, *arrays):
        results = function(*(x[index] for x in inputs))
        return index + 1, *(array.write(index, x) for array, x in zip(arrays, results))

    _, *arrays = _loop(lambda index, *_: index < count, body, (0, *arrays), SIDE_BY_SIDE)
    return [array.stack() for array in arrays]


def _pad(x: tf.Tensor, length: Size) -> tf.Tensor:
    return tf.pad(x, [[0, 0], [0, length - _size(x, 1)], [0, 0], [0, 0]])


def _minimum(a: int, b: Size) -> Size:
    return min(a, b) if isinstance(b, int) else tf.minimum(a, b)
