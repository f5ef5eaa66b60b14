"""Batch normalization that is fused on one device and synchronized over several."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("gentf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, over the last axis, with the same weights and results.

    In training it runs TensorFlow's fused operation, forward and backward, in place of a dozen elementwise ones; over
    several devices it takes the statistics of the global batch, so that two devices train as one does.

    Reference: Ioffe & Szegedy (2015), algorithm 1.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        self.synchronized = tf.distribute.get_strategy().num_replicas_in_sync > 1
        if self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = (tf.cast(weight, tf.float32) for weight in (self.gamma, self.beta))
        flat = inputs.shape.rank == 2
        x = tf.reshape(inputs, (-1, 1, 1, inputs.shape[-1])) if flat else inputs
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=self.epsilon)
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
        variance *= (count - 1.0) / count  # the operation divides by count - 1, Keras by count
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.stop_gradient(new) * (1.0 - self.momentum))
        return tf.reshape(y, (-1, inputs.shape[-1])) if flat else y
