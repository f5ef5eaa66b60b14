"""What is known of a function while it is traced: sizes, numbers' widths, and who will compile it."""

from typing import Any, TypeAlias

import tensorflow as tf

Size: TypeAlias = Any  # an int where the size is static, else a scalar tensor


def size(x: tf.Tensor, axis: int) -> Size:
    """The size of one axis: a number where it is known."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


def widened(x: tf.Tensor) -> tf.Tensor:
    """x as float32; float64 stays."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def under_xla() -> bool:
    """Whether what is traced now is compiled by XLA as a whole: inside a function with jit_compile=True.

    XLA and the stock runtime want different formulations of some operations. Automatic clustering is not seen.
    """
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
