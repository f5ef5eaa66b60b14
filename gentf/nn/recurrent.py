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

    KNOWN: tuple[str, ...] = ("tanh",)  # activations of the kernel; gates, where there are any, are sigmoids

    def _run(self, x, kernel, recurrent_kernel, bias, state: list[tf.Tensor], **options):
        """-> (T, B, H) outputs, and the last states as a list."""
        raise NotImplementedError

    def inner_loop(self, sequences, initial_state, mask, training=False):
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        states = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        if not self._covered(training):
            return keras.layers.RNN.inner_loop(self, sequences, states, mask, training)
        cell = self.cell
        if training and cell.dropout:  # one pattern for all steps, as Keras has it
            sequences *= cell.get_dropout_mask(sequences[:, 0])[:, None]
        x = tf.transpose(sequences, (1, 0, 2))
        mask = None if mask is None else tf.transpose(tf.cast(mask, tf.bool))
        kernel, recurrent_kernel, bias = (
            None if weight is None else tf.cast(weight, x.dtype)
            for weight in (cell.kernel, cell.recurrent_kernel, cell.bias)
        )
        outputs, last = self._run(x, kernel, recurrent_kernel, bias, states, mask=mask, reverse=self.go_backwards)
        if mask is not None and self.zero_output_for_mask:
            seen = tf.reverse(mask, (0,)) if self.go_backwards else mask
            outputs = tf.where(seen[..., None], outputs, tf.zeros_like(outputs))
        if not self.return_sequences:  # the last step's output; `RNN.call` leaves the rest alone
            return outputs[-1], outputs[-1:], last
        return outputs[-1], tf.transpose(outputs, (1, 0, 2)), last

    def _covered(self, training: bool) -> bool:
        sigmoid = keras.activations.sigmoid
        known = self.activation in [getattr(keras.activations, name) for name in self.KNOWN]
        gates = getattr(self, "recurrent_activation", sigmoid) is sigmoid
        return known and gates and not (training and self.recurrent_dropout)


@keras.saving.register_keras_serializable("gentf")
class SimpleRNN(_OnKernels, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN`: see `gentf.kernels.recurrent.rnn`. tanh and relu run on the kernel."""

    KNOWN = ("tanh", "relu")

    def _run(self, x, kernel, recurrent_kernel, bias, state, **options):
        options["activation"] = self.activation.__name__
        outputs, h = recurrent.rnn(x, kernel, recurrent_kernel, bias, state[0], **options)
        return outputs, [h]


@keras.saving.register_keras_serializable("gentf")
class LSTM(_OnKernels, keras.layers.LSTM):
    """`keras.layers.LSTM`: see `gentf.kernels.recurrent.lstm`. The default activations run on the kernel."""

    def _run(self, x, kernel, recurrent_kernel, bias, state, **options):
        # Keras' columns are in the order of the kernel's: input, forget, cell, output
        outputs, last = recurrent.lstm(x, kernel, recurrent_kernel, bias, (state[0], state[1]), **options)
        return outputs, list(last)


@keras.saving.register_keras_serializable("gentf")
class GRU(_OnKernels, keras.layers.GRU):
    """`keras.layers.GRU`, both reset forms: see `gentf.kernels.recurrent.gru`."""

    def _run(self, x, kernel, recurrent_kernel, bias, state, **options):
        options["reset_after"] = self.cell.reset_after
        if bias is not None and self.cell.reset_after:
            bias, options["recurrent_bias"] = tf.unstack(bias)
        outputs, h = recurrent.gru(x, kernel, recurrent_kernel, bias, state[0], **options)
        return outputs, [h]
