"""What the tests of every kernel share: its values and gradients beside those of its slow reference."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

TOLERANCE = {tf.float32: 2e-5, tf.bfloat16: 3e-2}  # of the largest entry of the expected tensor


def draw(*shape: int, seed: int = 0, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Standard normal numbers, rounded to `dtype`."""
    return tf.cast(tf.random.stateless_normal(shape, seed=(seed, 1)), dtype)


def derivatives(
    function: Callable,
    inputs: Sequence[tf.Tensor],
    *,
    order: int = 1,
    jit: bool = False,
    dynamic: Sequence[int] = (),
) -> list[list[np.ndarray]]:
    """[outputs, first gradients, second gradients, ...], up to `order`, as float32 or integer arrays.

    A gradient is that of the outputs' sum under fixed random weights, with respect to every floating input; a second
    gradient is the same of the first gradients. An output that is not floating has no gradient.

    Args:
        dynamic: the inputs whose first axis the function is traced without knowing.
    """
    shapes = [(None, *x.shape[1:]) if i in dynamic else x.shape for i, x in enumerate(inputs)]
    specs = [tf.TensorSpec(shape, x.dtype) for shape, x in zip(shapes, inputs)]
    floating = [i for i, x in enumerate(inputs) if x.dtype.is_floating]

    @tf.function(input_signature=specs, jit_compile=jit, autograph=False)
    def run(*arguments):
        def level(depth: int):
            if depth == 0:
                return [tf.nest.flatten(function(*arguments))]
            with tf.GradientTape() as tape:
                tape.watch([arguments[i] for i in floating])
                levels = level(depth - 1)
                total = weighted(levels[-1], seed=depth)
            gradients = tape.gradient(
                total, [arguments[i] for i in floating], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return [*levels, gradients]

        return level(order)

    return [[as_array(x) for x in level] for level in run(*inputs)]


def weighted(tensors: Sequence[tf.Tensor], seed: int) -> tf.Tensor:
    """The sum of the floating tensors' entries, each under a weight that depends on its place."""
    total = tf.constant(0.0)
    for number, x in enumerate(tensors):
        if x.dtype.is_floating:
            place = tf.cast(tf.reshape(tf.range(tf.size(x)), tf.shape(x)), tf.float32)
            place %= 97.0  # compiled and not, a sine of a large number differs
            weight = tf.sin(1.7 * place + seed + 0.3 * number)
            total += tf.reduce_sum(tf.cast(x, tf.float32) * weight)
    return total


def as_array(x: tf.Tensor) -> np.ndarray:
    return (tf.cast(x, tf.float32) if x.dtype.is_floating else x).numpy()


def assert_matches(
    kernel: Callable,
    reference: Callable,
    inputs: Sequence[tf.Tensor],
    *,
    order: int = 1,
    jit: bool = False,
    dynamic: Sequence[int] = (),
    tolerance: float | None = None,
) -> None:
    """Hold a kernel's outputs and gradients to its reference's, which computes in float32 from the same inputs."""
    lowest = min((x.dtype for x in inputs if x.dtype.is_floating), key=lambda dtype: dtype.size, default=tf.float32)
    wide = [tf.cast(x, tf.float32) if x.dtype.is_floating else x for x in inputs]
    ours = derivatives(kernel, inputs, order=order, jit=jit, dynamic=dynamic)
    theirs = derivatives(reference, wide, order=order)
    for depth, (got, expected) in enumerate(zip(ours, theirs, strict=True)):
        for number, (a, b) in enumerate(zip(got, expected, strict=True)):
            scale = max(1.0, float(np.abs(b).max(initial=0.0)))
            np.testing.assert_allclose(
                a, b, rtol=0, atol=(tolerance or TOLERANCE[lowest]) * scale, err_msg=f"order {depth}, tensor {number}"
            )
