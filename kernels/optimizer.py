"""Optimizers whose update is one fused operation a variable."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("gentf")
class Adam(keras.optimizers.Adam):
    """Keras' Adam, same arguments, state and results, with the update of a variable as one operation.

    The operation reads and writes each of variable, mean and variance once; the dozen elementwise operations it
    replaces move each of them several times. Over several devices, and with `amsgrad`, the update is Keras' own.

    Reference: Kingma & Ba (2015), algorithm 1 in the form of section 2's last paragraph.
    """

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        if self.amsgrad or tf.distribute.has_strategy():
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations.value + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, variable.dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, variable.dtype), step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )
