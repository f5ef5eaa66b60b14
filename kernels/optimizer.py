"""Keras' Adam, AdamW and Lion as one update of all variables: same arguments, state and results, less work.

What every variable needs (the rate, the powers of beta, the clipping factor) is computed once. Adam reads and writes
variable, mean and variance once each, where Keras' dozen elementwise operations move them several times; clipping by
the global norm takes one reduction a variable; the moving average of the weights is one read-modify-write. Under XLA
all of it fuses with the gradients' last operations. Over several devices, with gradient accumulation and with
`amsgrad`, the update is Keras' own.
"""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

_Mixin: Any = keras.optimizers.Optimizer if TYPE_CHECKING else object


class _MultiTensor(_Mixin):
    """The update of a Keras optimizer over lists of tensors, in place of a method call a variable."""

    amsgrad = False

    def _update_all(self, gradients: list, variables: list, indices: list[int], rate: tf.Tensor) -> None:
        """Update the variables and the state at `indices`. All tensors are of one dtype."""
        raise NotImplementedError

    def _backend_update_step(self, grads, trainable_variables, learning_rate) -> None:
        if tf.distribute.has_strategy() or self.amsgrad:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        by_dtype: dict[str, list] = {}
        for gradient, variable in zip(grads, trainable_variables):
            by_dtype.setdefault(variable.dtype, []).append((tf.convert_to_tensor(gradient), variable))
        for dtype, pairs in by_dtype.items():
            gradients, variables = [tf.cast(g, dtype) for g, _ in pairs], [v for _, v in pairs]
            indices = [self._get_variable_index(v) for v in variables]
            self._update_all(gradients, [_native(v) for v in variables], indices, tf.cast(learning_rate, dtype))

    def _apply_weight_decay(self, variables) -> None:
        if self.weight_decay is None or tf.distribute.has_strategy():
            super()._apply_weight_decay(variables)
            return
        for variable in filter(self._use_weight_decay, variables):
            native = _native(variable)
            native.assign_sub(native * tf.cast(self.weight_decay * self.learning_rate, native.dtype))

    def _clip_gradients(self, grads):
        if not self.global_clipnorm or self.clipnorm:
            return super()._clip_gradients(grads)
        squares = [tf.nn.l2_loss(tf.cast(g, tf.float32)) for g in grads]  # half the sum of squares, one operation each
        scale = self.global_clipnorm / tf.maximum(tf.sqrt(2.0 * tf.add_n(squares)), self.global_clipnorm)
        return [tf.convert_to_tensor(g) * tf.cast(scale, g.dtype) for g in grads]

    def _update_model_variables_moving_average(self, trainable_variables) -> None:
        if not self.use_ema or tf.distribute.has_strategy():
            super()._update_model_variables_moving_average(trainable_variables)
            return
        first = tf.equal(
            tf.convert_to_tensor(self.iterations), 0
        )  # the average starts at the weights after the first step
        for variable, average in zip(trainable_variables, self._model_variables_moving_average):
            if average is not None:
                average, value = _native(average), _native(variable)
                rate = tf.where(first, tf.ones((), value.dtype), tf.cast(1.0 - self.ema_momentum, value.dtype))
                average.assign_sub(rate * (average - value))


class _AdamUpdate(_MultiTensor):
    def _update_all(self, gradients, variables, indices, rate) -> None:
        dtype = rate.dtype
        step = tf.cast(tf.convert_to_tensor(self.iterations) + 1, dtype)
        shared = {
            "beta1_power": tf.pow(tf.cast(self.beta_1, dtype), step),
            "beta2_power": tf.pow(tf.cast(self.beta_2, dtype), step),
            "lr": rate,
            "beta1": tf.cast(self.beta_1, dtype),
            "beta2": tf.cast(self.beta_2, dtype),
            "epsilon": tf.cast(self.epsilon, dtype),
        }
        for gradient, variable, index in zip(gradients, variables, indices):
            mean, variance = _native(self._momentums[index]), _native(self._velocities[index])
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=mean.handle, v=variance.handle, grad=gradient, **shared
            )  # fmt: skip


@keras.saving.register_keras_serializable("gentf")
class Adam(_AdamUpdate, keras.optimizers.Adam):
    """`keras.optimizers.Adam`. Reference: Kingma & Ba (2015), algorithm 1 in the form of section 2's last paragraph."""


@keras.saving.register_keras_serializable("gentf")
class AdamW(_AdamUpdate, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`. Reference: Loshchilov & Hutter (2019), algorithm 2."""


@keras.saving.register_keras_serializable("gentf")
class Lion(_MultiTensor, keras.optimizers.Lion):
    """`keras.optimizers.Lion`. Reference: Chen et al. (2023), "Symbolic discovery of optimization algorithms",
    algorithm 2."""

    def _update_all(self, gradients, variables, indices, rate) -> None:
        for gradient, variable, index in zip(gradients, variables, indices):
            mean = _native(self._momentums[index])
            change = gradient - mean  # both blends of mean and gradient start from it
            variable.assign_sub(rate * tf.sign(mean + (1.0 - self.beta_1) * change))
            mean.assign_add((1.0 - self.beta_2) * change)


def _native(variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable
