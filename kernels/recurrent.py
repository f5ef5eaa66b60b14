"""Recurrent layers over a whole sequence: RNN, LSTM and GRU, forward and backward as two lean loops.

The input's share of the gates is one matrix product before the loop, the gradients of all weights are one matrix
product each after the backward loop, and the loops hold what is left: one product by the recurrent weights and the
gates. Sequences are time-major, (T, B, ...), so that a step is a contiguous block. No cuDNN: the same code runs
compiled and not, on any device, and in an export.

Stored for the backward pass: the gates and states of every step, O(T); with `segment`, inputs, outputs and the states
between segments only, and each segment is computed again, so that segments of about sqrt(T) steps need O(sqrt T)
besides inputs and outputs (Chen et al., 2016, "Training deep nets with sublinear memory cost", section 4).
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from gentf.kernels.quantize import lookup
from gentf.kernels.tracing import size

Tensors = tuple[tf.Tensor, ...]


def rnn(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: tf.Tensor,
    *,
    activation: str = "tanh",
    mask: tf.Tensor | None = None,
    reverse: bool = False,
    segment: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """h_t = f(x_t W + b + h_{t-1} U), of Elman (1990).

    Gradient: with g_t = f'(.) dh_t, dh_{t-1} = g_t U', dU = sum_t h_{t-1}' g_t.

    Args:
        x: (T, B, D) float; or (T, B) integers, each standing for a one-hot vector: then row x of `kernel` is gathered
            instead of a product taken. No gradient reaches integers.
        kernel, recurrent_kernel, bias: W (D, H), U (H, H), b (H,) or None.
        state: (B, H), h before the first step.
        activation: "tanh" or "relu".
        mask: (T, B) bool; where False the step is left out: it repeats the state. Ragged lengths: `lengths_mask`.
        reverse: go from the last step to the first. Outputs lie in the order in which they are computed.
        segment: steps in a segment of checkpointing over time; None stores every step.
    Returns:
        h of every step (T, B, H), and the last h (B, H).
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(_ACTIVATIONS)}. Received: activation={activation}")
    cell = _rnn_cell(*_ACTIVATIONS[activation])
    outputs, (h,) = _layer(cell, x, kernel, bias, (recurrent_kernel,), (state,), mask, reverse, segment)
    return outputs, h


def lstm(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: tuple[tf.Tensor, tf.Tensor],
    *,
    mask: tf.Tensor | None = None,
    reverse: bool = False,
    segment: int | None = None,
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """Long short-term memory, of Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000).

    (i, f, g, o) = x_t W + b + h_{t-1} U;  c_t = s(f) c_{t-1} + s(i) tanh(g);  h_t = s(o) tanh(c_t), s the sigmoid.
    Gradient: dc_{t-1} = dc_t s(f), the gates' from dc_t and dh_t, dh_{t-1} = d(i, f, g, o) U', dU = sum h_{t-1}' d(.).

    Args:
        x, mask, reverse, segment: as of `rnn`.
        kernel, recurrent_kernel, bias: W (D, 4 H), U (H, 4 H), b (4 H,) or None; columns in the order i, f, g, o.
        state: h and c before the first step, (B, H) each.
    Returns:
        h of every step (T, B, H), and the last h and c.
    """
    # The three sigmoid gates side by side are one operation on one block.
    kernel, recurrent_kernel = _swap_last_gates(kernel), _swap_last_gates(recurrent_kernel)
    bias = None if bias is None else _swap_last_gates(bias)
    outputs, (h, c) = _layer(_LSTM, x, kernel, bias, (recurrent_kernel,), state, mask, reverse, segment)
    return outputs, (h, c)


def gru(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: tf.Tensor,
    *,
    recurrent_bias: tf.Tensor | None = None,
    reset_after: bool = True,
    mask: tf.Tensor | None = None,
    reverse: bool = False,
    segment: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gated recurrent unit, of Cho et al. (2014).

    (z, r) = s(x_t W + b + h_{t-1} U) in their columns;  h_t = z h_{t-1} + (1 - z) c.
    `reset_after`: c = tanh(x_t W_c + b_c + r (h_{t-1} U_c + b'_c)), one product a step (cuDNN's form).
    Else: c = tanh(x_t W_c + b_c + (r h_{t-1}) U_c), the paper's (its equation 8).
    Gradient: dz = dh (h_{t-1} - c), dc = dh (1 - z), and through the tanh, the reset gate and the products.

    Args:
        x, mask, reverse, segment: as of `rnn`.
        kernel, recurrent_kernel, bias: W (D, 3 H), U (H, 3 H), b (3 H,) or None; columns in the order z, r, c.
        state: (B, H), h before the first step.
        recurrent_bias: b' (3 H,), added to h U; with `reset_after` only.
    Returns:
        h of every step (T, B, H), and the last h (B, H).
    """
    if not reset_after:
        if recurrent_bias is not None:
            raise ValueError("`recurrent_bias` must be None where `reset_after` is False. Received: a tensor")
        units = state.shape[-1]
        weights: Tensors = (recurrent_kernel[:, : 2 * units], recurrent_kernel[:, 2 * units :])
        outputs, (h,) = _layer(_GRU_RESET_BEFORE, x, kernel, bias, weights, (state,), mask, reverse, segment)
        return outputs, h
    if recurrent_bias is None:
        recurrent_bias = tf.zeros_like(recurrent_kernel[0])
    weights = (recurrent_kernel, recurrent_bias)
    outputs, (h,) = _layer(_GRU, x, kernel, bias, weights, (state,), mask, reverse, segment)
    return outputs, h


def one_step(
    cell: str,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor | None,
    recurrent_bias: tf.Tensor | None = None,
) -> Callable[[tf.Tensor, Tensors], Tensors]:
    """One step of `rnn` (tanh), `lstm` or `gru` (`reset_after`), its weights made ready once, outside of a loop.

    Args:
        cell: "rnn", "lstm" or "gru".
        kernel, recurrent_kernel, bias, recurrent_bias: as of these.
    Returns:
        x (B, D) float or (B,) integer, state (h,) or (h, c) of (B, H) float32 -> the state after it, whose h is the
        output.
    """
    weights: Tensors = (recurrent_kernel,)
    if cell == "lstm":
        kernel, weights = _swap_last_gates(kernel), (_swap_last_gates(recurrent_kernel),)
        bias = None if bias is None else _swap_last_gates(bias)
    elif cell == "gru":
        weights = (recurrent_kernel, tf.zeros_like(recurrent_kernel[0]) if recurrent_bias is None else recurrent_bias)
    step = {"rnn": _rnn_cell(*_ACTIVATIONS["tanh"]), "lstm": _LSTM, "gru": _GRU}[cell].step
    table = kernel if bias is None else kernel + bias

    def advance(x: tf.Tensor, state: Tensors) -> Tensors:
        if x.dtype.is_integer:
            z = tf.gather(table, x)
        else:
            z = tf.matmul(tf.cast(x, kernel.dtype), kernel)
            z = z if bias is None else z + bias
        return step(tf.cast(z, tf.float32), weights, state)[0]

    return advance


def lengths_mask(lengths: tf.Tensor, steps: int | tf.Tensor) -> tf.Tensor:
    """(T, B) bool mask of sequences that end after `lengths` (B,) of `steps` = T steps."""
    return tf.range(steps, dtype=lengths.dtype)[:, None] < lengths[None, :]


def project(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """x W + b over all steps: one product for (T, B, D) floats, gathered rows of W + b for (T, B) integers."""
    if x.dtype.is_integer:
        return lookup(kernel if bias is None else kernel + bias, x)  # its gradient is dense: the table is small
    y = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), kernel)
    y = y if bias is None else y + bias
    return tf.reshape(y, (size(x, 0), size(x, 1), kernel.shape[-1]))


class _Cell(NamedTuple):
    """One step, its gradient, and the gradient of the weights from all steps at once.

    step(z, weights, state) -> state, saved: `z` (B, gates) is the input's share; the state's first tensor is the
        output; `saved` are tensors that the gradient needs besides the states.
    gradient(saved, before, after, d_after, turned) -> dz, d_before, kept: by the states before and after the step;
        `turned` are the transposed weights, `kept` tensors that `weights_gradient` needs.
    weights_gradient(h_before, dz, saved, kept) -> gradients of the weights, from the sequences (T * B, ...); `saved`
        are those that `reused` numbers.
    """

    step: Callable
    gradient: Callable
    weights_gradient: Callable
    saved: int
    kept: int = 0
    reused: tuple[int, ...] = ()


def _layer(cell, x, kernel, bias, weights, state, mask, reverse, segment) -> tuple[tf.Tensor, Tensors]:
    if segment is not None and segment < 1:
        raise ValueError(f"`segment` must be positive. Received: segment={segment}")
    if reverse:
        x = tf.reverse(x, (0,))
        mask = None if mask is None else tf.reverse(mask, (0,))
    dtype = kernel.dtype
    count = len(weights)
    parameters = (kernel, *weights) if bias is None else (kernel, *weights, bias)

    def whole(x, mask, parameters, state):
        kernel, weights = parameters[0], parameters[1 : 1 + count]
        projected = project(x, kernel, None if bias is None else parameters[-1])
        return _scan(cell, projected, mask, weights, state)

    wide = tuple(tf.cast(s, tf.float32) for s in state)
    run = whole if segment is None else _checkpointed(whole, segment)
    outputs, last = run(x, mask, parameters, wide)
    return outputs, tuple(tf.cast(s, dtype) for s in last)


def _scan(cell: _Cell, projected: tf.Tensor, mask: tf.Tensor | None, weights: Tensors, state: Tensors):
    """The loop over time. States and gates are float32, products in the dtype of `projected`."""
    dtype = projected.dtype
    steps, rows = size(projected, 0), size(projected, 1)
    units = state[0].shape[-1]
    count = len(weights)

    def at(sequence, t):
        return tf.cast(sequence[t], tf.float32)

    @tf.custom_gradient
    def run(projected, *rest):
        weights, state = rest[:count], rest[count:]

        def body(t, state, states, saved):
            after, new = cell.step(at(projected, t), weights, state)
            if mask is not None:
                seen = mask[t][:, None]
                after = tuple(tf.where(seen, a, s) for a, s in zip(after, state))
            states = tuple(array.write(t + 1, s) for array, s in zip(states, after))
            return t + 1, after, states, tuple(array.write(t, s) for array, s in zip(saved, new))

        def arrays(size, number):
            return tuple(tf.TensorArray(tf.float32, size, clear_after_read=False) for _ in range(number))

        states = tuple(array.write(0, s) for array, s in zip(arrays(steps + 1, len(state)), state))
        _, last, states, saved = tf.while_loop(
            lambda t, *_: t < steps,
            body,
            (tf.constant(0), state, states, arrays(steps, cell.saved)),
            parallel_iterations=1,
        )
        every = states[0].stack()
        outputs = tf.cast(every[1:], dtype)

        def gradient(d_outputs, *d_last):
            turned = tuple(tf.transpose(weight) for weight in weights)  # once, not in each step

            def body(t, d_after, d_projected, kept):
                before = tuple(array.read(t) for array in states)
                after = tuple(array.read(t + 1) for array in states)
                d_after = (d_after[0] + at(d_outputs, t), *d_after[1:])
                passed = None
                if mask is not None:
                    seen = mask[t][:, None]
                    passed = tuple(tf.where(seen, 0.0, d) for d in d_after)
                    d_after = tuple(tf.where(seen, d, 0.0) for d in d_after)
                dz, d_before, new = cell.gradient(tuple(a.read(t) for a in saved), before, after, d_after, turned)
                if passed is not None:
                    d_before = tuple(d + p for d, p in zip(d_before, passed))
                kept = tuple(array.write(t, tf.cast(k, dtype)) for array, k in zip(kept, new))
                return t - 1, d_before, d_projected.write(t, tf.cast(dz, dtype)), kept

            d_projected = tf.TensorArray(dtype, steps)
            kept = tuple(tf.TensorArray(dtype, steps) for _ in range(cell.kept))
            _, d_state, d_projected, kept = tf.while_loop(
                lambda t, *_: t >= 0, body, (steps - 1, d_last, d_projected, kept), parallel_iterations=1
            )
            dz = d_projected.stack()
            flat = [tf.reshape(tf.cast(saved[i].stack(), dtype), (steps * rows, -1)) for i in cell.reused]
            d_weights = cell.weights_gradient(
                tf.reshape(tf.cast(every[:-1], dtype), (steps * rows, units)),
                tf.reshape(dz, (steps * rows, dz.shape[-1])),
                flat,
                [tf.reshape(k.stack(), (steps * rows, -1)) for k in kept],
            )
            return (dz, *d_weights, *d_state)

        return (outputs, *last), gradient

    outputs, *last = run(projected, *weights, *state)
    return outputs, tuple(last)


def _checkpointed(function: Callable, segment: int) -> Callable:
    """`function` over segments of the sequence: only the states between them are stored, and in the backward pass each
    segment is computed again, last one first."""

    def whole(x, mask, parameters, state):
        steps, rows = size(x, 0), size(x, 1)
        segments = -(-steps // segment)
        missing = segments * segment - steps
        if mask is None:
            mask = tf.ones((steps, rows), tf.bool)
        mask = tf.reshape(tf.pad(mask, ((0, missing), (0, 0))), (segments, segment, rows))
        padded = tf.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))
        padded = tf.reshape(padded, (segments, segment, rows, *x.shape[2:]))
        count = len(parameters)

        @tf.custom_gradient
        def run(x, *rest):
            parameters, state = rest[:count], rest[count:]

            def body(k, state, starts, outputs):
                starts = tuple(array.write(k, s) for array, s in zip(starts, state))
                y, state = function(x[k], mask[k], parameters, state)
                return k + 1, state, starts, outputs.write(k, y)

            starts = tuple(tf.TensorArray(s.dtype, segments, clear_after_read=False) for s in state)
            outputs = tf.TensorArray(parameters[0].dtype, segments)
            _, last, starts, outputs = tf.while_loop(
                lambda k, *_: k < segments, body, (tf.constant(0), state, starts, outputs), parallel_iterations=1
            )

            def gradient(d_outputs, *d_last):
                floating = x.dtype.is_floating

                def body(k, d_state, d_parameters, d_x):
                    start, block = tuple(array.read(k) for array in starts), x[k]
                    sources = (*parameters, *start, *((block,) if floating else ()))
                    with tf.GradientTape(watch_accessed_variables=False) as tape:
                        tape.watch(sources)
                        y, end = function(block, mask[k], parameters, start)
                    got = tape.gradient((y, *end), sources, output_gradients=(d_outputs[k], *d_state))
                    d_parameters = tuple(total + new for total, new in zip(d_parameters, got[:count]))
                    d_state = tuple(got[count : count + len(start)])
                    return k - 1, d_state, d_parameters, d_x.write(k, got[-1]) if floating else d_x

                d_x = tf.TensorArray(x.dtype if floating else tf.float32, segments)
                zeros = tuple(tf.zeros_like(p) for p in parameters)
                _, d_state, d_parameters, d_x = tf.while_loop(
                    lambda k, *_: k >= 0, body, (segments - 1, d_last, zeros, d_x), parallel_iterations=1
                )
                return (d_x.stack() if floating else None, *d_parameters, *d_state)

            return (outputs.stack(), *last), gradient

        outputs, *last = run(padded, *parameters, *state)
        return tf.reshape(outputs, (segments * segment, rows, outputs.shape[-1]))[:steps], tuple(last)

    return whole


def _product(h: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.matmul(tf.cast(h, weight.dtype), weight), tf.float32)


def _sigmoid_gradient(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.SigmoidGrad(y=y, dy=dy)  # dy y (1 - y) in one operation


def _tanh_gradient(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.TanhGrad(y=y, dy=dy)  # dy (1 - y^2) in one operation


def _rnn_cell(activate: Callable, derivative: Callable) -> _Cell:
    def step(z, weights, state):
        return (activate(z + _product(state[0], weights[0])),), ()

    def gradient(saved, before, after, d_after, turned):
        dz = derivative(after[0], d_after[0])
        return dz, (_product(dz, turned[0]),), ()

    return _Cell(step, gradient, _outer_product, saved=0)


def _outer_product(h_before, dz, saved, kept):
    return (tf.matmul(h_before, dz, transpose_a=True),)


def _lstm_step(z, weights, state):
    h, c = state
    units = c.shape[-1]
    z += _product(h, weights[0])
    gates = tf.sigmoid(z[:, : 3 * units])
    i, f, o = tf.split(gates, 3, axis=1)
    g = tf.tanh(z[:, 3 * units :])
    c = f * c + i * g
    squashed = tf.tanh(c)
    return (o * squashed, c), (gates, g, squashed)


def _lstm_gradient(saved, before, after, d_after, turned):
    (gates, g, squashed), (dh, dc) = saved, d_after
    i, f, o = tf.split(gates, 3, axis=1)
    dc += _tanh_gradient(squashed, dh * o)
    d_gates = _sigmoid_gradient(gates, tf.concat([dc * g, dc * before[1], dh * squashed], axis=1))
    dz = tf.concat([d_gates, _tanh_gradient(g, dc * i)], axis=1)
    return dz, (_product(dz, turned[0]), dc * f), ()


def _gru_step(z, weights, state):
    (h,) = state
    units = h.shape[-1]
    inner = _product(h, weights[0]) + tf.cast(weights[1], tf.float32)
    gates = tf.sigmoid(z[:, : 2 * units] + inner[:, : 2 * units])
    update, reset = tf.split(gates, 2, axis=1)
    candidate = inner[:, 2 * units :]
    c = tf.tanh(z[:, 2 * units :] + reset * candidate)
    return (c + update * (h - c),), (gates, c, candidate)


def _gru_gradient(saved, before, after, d_after, turned):
    (gates, c, candidate), (h,), (dh,) = saved, before, d_after
    update, reset = tf.split(gates, 2, axis=1)
    passed = dh * update
    dc = _tanh_gradient(c, dh - passed)
    d_gates = _sigmoid_gradient(gates, tf.concat([dh * (h - c), dc * candidate], axis=1))
    inner = tf.concat([d_gates, dc * reset], axis=1)
    return tf.concat([d_gates, dc], axis=1), (passed + _product(inner, turned[0]),), (inner,)


def _gru_weights_gradient(h_before, dz, saved, kept):
    (inner,) = kept
    d_bias = tf.cast(tf.reduce_sum(tf.cast(inner, tf.float32), axis=0), inner.dtype)
    return tf.matmul(h_before, inner, transpose_a=True), d_bias


def _gru_reset_before_step(z, weights, state):
    (h,) = state
    units = h.shape[-1]
    gates = tf.sigmoid(z[:, : 2 * units] + _product(h, weights[0]))
    update, reset = tf.split(gates, 2, axis=1)
    c = tf.tanh(z[:, 2 * units :] + _product(reset * h, weights[1]))
    return (c + update * (h - c),), (gates, c)


def _gru_reset_before_gradient(saved, before, after, d_after, turned):
    (gates, c), (h,), (dh,) = saved, before, d_after
    update, reset = tf.split(gates, 2, axis=1)
    passed = dh * update
    dc = _tanh_gradient(c, dh - passed)
    d_reset_h = _product(dc, turned[1])
    d_gates = _sigmoid_gradient(gates, tf.concat([dh * (h - c), d_reset_h * h], axis=1))
    d_before = passed + d_reset_h * reset + _product(d_gates, turned[0])
    return tf.concat([d_gates, dc], axis=1), (d_before,), ()


def _gru_reset_before_weights_gradient(h_before, dz, saved, kept):
    units = h_before.shape[-1]
    reset = saved[0][:, units:]
    return (
        tf.matmul(h_before, dz[:, : 2 * units], transpose_a=True),
        tf.matmul(reset * h_before, dz[:, 2 * units :], transpose_a=True),
    )


_ACTIVATIONS = {
    "tanh": (tf.tanh, _tanh_gradient),
    "relu": (tf.nn.relu, lambda y, dy: tf.raw_ops.ReluGrad(gradients=dy, features=y)),
}
_LSTM = _Cell(_lstm_step, _lstm_gradient, _outer_product, saved=3)
_GRU = _Cell(_gru_step, _gru_gradient, _gru_weights_gradient, saved=3, kept=1)
_GRU_RESET_BEFORE = _Cell(
    _gru_reset_before_step, _gru_reset_before_gradient, _gru_reset_before_weights_gradient, saved=2, reused=(0,)
)


def _swap_last_gates(weight: tf.Tensor) -> tf.Tensor:
    """Columns i, f, g, o in the order i, f, o, g."""
    i, f, g, o = tf.split(weight, 4, axis=-1)
    return tf.concat([i, f, o, g], axis=-1)
