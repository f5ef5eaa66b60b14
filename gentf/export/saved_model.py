"""From a model's signatures to a SavedModel: plain functions and the weights they use, and nothing else.

The Keras model itself is not saved: no layers, optimizers or training functions, no code, no metadata. What
is written is a bare `tf.Module` with one traced function a signature.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

DEFAULT = "serving_default"
HALF = (tf.float16, tf.bfloat16)

Arrays = dict[str, np.ndarray]


def trace(name: str, signature: Any) -> tf.types.experimental.ConcreteFunction:
    """The signature's function as a graph, held to what TF Serving and its batching need.

    Args:
        name: of the signature, for messages.
        signature: has `function` (keyword tensors in, dict of tensors out; plain TensorFlow operations) and
            `inputs` (name -> `tf.TensorSpec`).
    Raises:
        ValueError: an input or output without the batch as its first dimension, or of a half-precision dtype.
    """
    specs = _named_specs(name, signature.inputs)
    # autograph off: the functions are made of TensorFlow operations, and are to be traced as they stand
    traced = tf.function(signature.function, autograph=False).get_concrete_function(**specs)
    outputs = traced.structured_outputs
    if not isinstance(outputs, Mapping) or not outputs:
        raise ValueError(f"`{name}` must give a dict of tensors. Received: {type(outputs).__name__}")
    for key, output in outputs.items():
        if output.shape.rank in (None, 0) or output.shape[0] is not None:
            shape = output.shape
            raise ValueError(f"`{name}` output `{key}` must have the batch as dimension 0. Received: shape={shape}")
        if output.dtype in HALF:
            raise ValueError(f"`{name}` output `{key}` must be cast to float32. Received: dtype={output.dtype.name}")
    return traced


def trace_compiled(name: str, signature: Any) -> tf.types.experimental.ConcreteFunction | None:
    """The signature as a function that XLA compiles, without its string outputs; None if nothing is left, or if a
    string goes in.

    What only the string outputs need is cut from the graph: encoding an image, for one, cannot be compiled.
    """
    specs = _named_specs(name, signature.inputs)
    if any(spec.dtype == tf.string for spec in specs.values()):
        return None  # called with one, XLA ends the process
    names = list(specs)
    whole = tf.compat.v1.wrap_function(
        lambda *values: signature.function(**dict(zip(names, values, strict=True))), list(specs.values())
    )
    kept = {key: value for key, value in whole.structured_outputs.items() if value.dtype != tf.string}
    if not kept:
        return None
    numeric = whole.prune(whole.inputs[: len(names)], kept)
    inputs = [tensor.name for tensor in numeric.inputs[: len(names)]]
    captured = {inside.name: outside for outside, inside in numeric.graph.captures}
    outputs = {key: value.name for key, value in numeric.structured_outputs.items()}
    graph = _for_compiler(numeric.graph.as_graph_def(), {*inputs, *captured})
    read = {name if ":" in name else f"{name}:0" for node in graph.node for name in node.input}

    def compiled(**values):
        here = tf.compat.v1.get_default_graph()
        fed = {inside: values[key] for inside, key in zip(inputs, names, strict=True) if inside in read}
        fed |= {inside: here.capture(outside) for inside, outside in captured.items() if inside in read}
        found = tf.graph_util.import_graph_def(graph, fed, list(outputs.values()), name="compiled")
        return dict(zip(outputs, found, strict=True))

    return tf.function(compiled, jit_compile=True, autograph=False).get_concrete_function(**specs)


def _for_compiler(graph: Any, fed: set[str]) -> Any:
    """`graph` (a GraphDef) without placeholders of what is `fed`, and with its loops and branches left whole.

    XLA knows no placeholders; and a session, so a server too, takes marked loops apart into operations that
    XLA does not know.
    """
    kept = [node for node in graph.node if f"{node.name}:0" not in fed]
    del graph.node[:]
    graph.node.extend(kept)
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            node.attr.pop("_lower_using_switch_merge", None)
    return graph


def save(functions: Mapping[str, tf.types.experimental.ConcreteFunction], folder: Path, model: Any = None) -> None:
    """Write the traced `functions` and the variables they read to the new SavedModel `folder`.

    Args:
        functions: signature name -> traced function.
        folder: of the SavedModel; its parent exists.
        model: whose `variables` are looked through for those a graph does not list itself.
    Raises:
        ValueError: a function reads a resource that is not one of the model's variables.
        OSError: it cannot be written.
    """
    listed = [variable for function in functions.values() for variable in function.graph.variables]
    listed += [getattr(variable, "value", variable) for variable in getattr(model, "variables", ())]
    by_handle = {id(variable.handle): variable for variable in listed if hasattr(variable, "handle")}
    used = {}
    for name, function in functions.items():
        for captured in function.captured_inputs:
            if captured.dtype == tf.resource:
                if id(captured) not in by_handle:
                    raise ValueError(f"`{name}` must read nothing but the model's variables. Received: {captured}")
                used[id(captured)] = by_handle[id(captured)]
    module = tf.Module(name="served")
    module.weights = list(used.values())
    # a server asks for no gradients, and those of loops hold what cannot be saved
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(module, str(folder), signatures=dict(functions), options=options)
    except tf.errors.OpError as error:  # a full disk, most likely
        raise OSError(f"the SavedModel could not be written: {' '.join(error.message.split())}") from error


def examples(signature: Any, rows: int, num_classes: int = 0) -> Arrays:
    """Valid inputs for a signature, the same at every call.

    Seeds are [0, i], labels go round the classes, other integers are 0, floats lie evenly in [-1, 1]. A
    signature that takes something else brings a function of its own, `examples(rows) -> {name: array}`.
    """
    own: Callable[[int], Arrays] | None = getattr(signature, "examples", None)
    if own is not None:
        return own(rows)
    made = {}
    for name, spec in signature.inputs.items():
        shape = (rows, *(1 if size is None else size for size in spec.shape[1:]))
        dtype = spec.dtype.as_numpy_dtype
        if name == "seed":
            made[name] = np.stack([np.zeros(rows), np.arange(rows)], axis=1).astype(dtype)
        elif name == "label":
            made[name] = (np.arange(rows) % max(num_classes, 1)).astype(dtype)
        elif spec.dtype.is_floating:
            made[name] = np.random.default_rng(zlib.crc32(name.encode())).uniform(-1.0, 1.0, shape).astype(dtype)
        else:
            made[name] = np.full(shape, b"" if spec.dtype == tf.string else 0, dtype)
    return made


def call(function: Callable[..., Mapping[str, tf.Tensor]], inputs: Arrays) -> Arrays:
    """`function` on arrays, in arrays; strings come as an array of bytes objects.

    Runs on the CPU where there is a GPU too, so that it can be compared with a server without one.
    """
    with tf.device("/CPU:0"):
        outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def _named_specs(name: str, inputs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.TensorSpec]:
    if not inputs:
        raise ValueError(f"`{name}` must have at least one input. Received: inputs={inputs}")
    for key, spec in inputs.items():
        if spec.shape.rank in (None, 0) or spec.shape[0] is not None:
            shape = spec.shape
            raise ValueError(
                f"`{name}` input `{key}` must have shape [None, ...], batch first. Received: shape={shape}"
            )
    return {key: tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in inputs.items()}
