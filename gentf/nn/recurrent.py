"""Keras' recurrent layers on `gentf.kernels.recurrent`: same arguments, weights and results, faster and XLA-safe.

A model saved with Keras' own layers loads into these and back. They never use cuDNN, whose operations neither compile
nor serve on a CPU.
"""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from gentf.kernels import recurrent

_Mixin: Any = keras.layers.RNN if TYPE_CHECKING else object


class _OnKernels(_Mixin):
    """What the three share: `inner_loop` of a Keras layer, by a kernel where the kernel covers the layer's options."""

    def _covered(self, training: bool) -> bool:
        raise NotImplementedError

    def _run(self, x: tf.Tensor, state: list[tf.Tensor], mask: tf.Tensor | None):
        """-> (T, B, H) outputs, and the last states as a list."""
        raise NotImplementedError

    def inner_loop(self, sequences, initial_state, mask, training=False):
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        states = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        if not self._covered(training):
            return keras.layers.RNN.inner_loop(self, sequences, states, mask, training)
        if training and self.cell.dropout:  # one pattern for all steps, as Keras has it
            sequences *= self.cell.get_dropout_mask(sequences[:, 0])[:, None]
        x = tf.transpose(sequences, (1, 0, 2))
        mask = None if mask is None else tf.transpose(tf.cast(mask, tf.bool))
        outputs, last = self._run(x, states, mask)
        if mask is not None and self.zero_output_for_mask:
            seen = tf.reverse(mask, (0,)) if self.go_backwards else mask
            outputs = tf.where(seen[..., None], outputs, tf.zeros_like(outputs))
        if not self.return_sequences:  # the last step's output; `RNN.call` leaves the rest alone
            return outputs[-1], outputs[-1:], last
        return outputs[-1], tf.transpose(outputs, (1, 0, 2)), last


def _is(function, name: str) -> bool:
    return function is getattr(keras.activations, name)


@keras.saving.register_keras_serializable("gentf")
class SimpleRNN(_OnKernels, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN`: see `gentf.kernels.recurrent.rnn`. tanh and relu run on the kernel."""

    def _covered(self, training):
        known = _is(self.activation, "tanh") or _is(self.activation, "relu")
        return known and not (training and self.recurrent_dropout)

    def _run(self, x, state, mask):
        cell = self.cell
        kernel, recurrent_kernel, bias = _cast(x.dtype, cell.kernel, cell.recurrent_kernel, cell.bias)
        outputs, h = recurrent.rnn(
            x, kernel, recurrent_kernel, bias, state[0], mask=mask,
            activation="tanh" if _is(self.activation, "tanh") else "relu", reverse=self.go_backwards,
        )  # fmt: skip
        return outputs, [h]


@keras.saving.register_keras_serializable("gentf")
class LSTM(_OnKernels, keras.layers.LSTM):
    """`keras.layers.LSTM`: see `gentf.kernels.recurrent.lstm`. The default activations run on the kernel."""

    def _covered(self, training):
        usual = _is(self.activation, "tanh") and _is(self.recurrent_activation, "sigmoid")
        return usual and not (training and self.recurrent_dropout)

    def _run(self, x, state, mask):
        cell = self.cell
        kernel, recurrent_kernel, bias = _cast(x.dtype, cell.kernel, cell.recurrent_kernel, cell.bias)
        # Keras' columns are in the order of the kernel's: input, forget, cell, output
        outputs, last = recurrent.lstm(
            x, kernel, recurrent_kernel, bias, (state[0], state[1]), mask=mask, reverse=self.go_backwards
        )
        return outputs, list(last)


@keras.saving.register_keras_serializable("gentf")
class GRU(_OnKernels, keras.layers.GRU):
    """`keras.layers.GRU`, both reset forms: see `gentf.kernels.recurrent.gru`."""

    def _covered(self, training):
        usual = _is(self.activation, "tanh") and _is(self.recurrent_activation, "sigmoid")
        return usual and not (training and self.recurrent_dropout)

    def _run(self, x, state, mask):
        cell = self.cell
        kernel, recurrent_kernel, bias = _cast(x.dtype, cell.kernel, cell.recurrent_kernel, cell.bias)
        recurrent_bias = None
        if bias is not None and cell.reset_after:
            bias, recurrent_bias = tf.unstack(bias)
        outputs, h = recurrent.gru(
            x, kernel, recurrent_kernel, bias, state[0], recurrent_bias=recurrent_bias, reset_after=cell.reset_after,
            mask=mask, reverse=self.go_backwards,
        )  # fmt: skip
        return outputs, [h]


def _cast(dtype: tf.DType, *weights) -> list:
    return [None if weight is None else tf.cast(weight, dtype) for weight in weights]
