"""What is inside a SavedModel, read from its protocol buffers before anything of it runs.

Two rules are checked here.

*Plain* is what an export must be: TF Serving runs it with XLA switched off, on any device, without Python,
and the same request gives the same answer every time. `check_plain` holds a finished export to that.

*Safe* is what a SavedModel from elsewhere must be before `gentf.export.load` runs it. TensorFlow executes
what the graph says, and some operations call Python, or read and write files. Operations that TensorFlow
registers as stateful are refused unless they are known to touch nothing but tensors and the model's
variables; of the stateless ones, those that read files or reach out of the process are refused. The
function that saves a checkpoint, which every SavedModel holds, writes files: it is let through only where
nothing calls it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import (
    op_def_registry,
)  # no public name tells whether an operation is stateful

from gentf.errors import UserError

SERVE = "serve"  # the tag that TF Serving asks for
GRAPH_FILE = "saved_model.pb"
INTERNAL = "__saved_model_"  # signatures of the format's own

_MUST_COMPILE = "_XlaMustCompile"
_XLA = re.compile(r"Xla.*")
_NOT_SERVABLE = re.compile(r"Cudnn.*|.*PyFunc.*")
# Their state outlives a request, so the same request would not give the same answer.
_NOT_REPEATABLE = re.compile(
    r"Assign.*VariableOp|Resource(Scatter|Apply|SparseApply).*|Random(?!.*Dataset).*|Stateful(?!PartitionedCall).*"
    r"|Multinomial|TruncatedNormal|ParameterizedTruncatedNormal|RngReadAndSkip|RngSkip|NonDeterministicInts|Timestamp"
)
_SAFE_STATEFUL = re.compile(
    r"VarHandleOp|ReadVariableOp|AssignVariableOp|VariableShape|VarIsInitializedOp|DisableCopyOnRead|RestoreV2"
    r"|ResourceGather|ResourceGatherNd|StatefulPartitionedCall|If|While|Case|Assert|CheckNumerics|CheckNumericsV2|Empty"
    r"|TensorArray\w*V3|Stack\w*V2|GuaranteeConst|HashTableV2|LookupTable(Find|Import|Export|Size)V2"
    r"|StatelessRandomGetAlg|Random(Uniform|UniformInt|StandardNormal|Gamma|PoissonV2|Shuffle)|TruncatedNormal|Multinomial"
)
_UNSAFE_STATELESS = re.compile(
    r".*PyFunc.*|ReadFile|MatchingFiles|InitializeTableFromTextFile|Reader.*|.*Dataset.*|Debug.*|Copy|CopyHost"
    r"|.*Summary.*|TPU.*|XlaCallModule|XlaCustomCall.*|XlaLaunch.*|XlaHostCompute.*"
)
_WRITES_CHECKPOINT = frozenset({"SaveV2", "MergeV2Checkpoints"})


def read(folder: Path) -> meta_graph_pb2.MetaGraphDef:
    """The graph that a server would serve from a SavedModel's version folder.

    Raises:
        UserError: no SavedModel is there, or its graph file is damaged.
    """
    path = folder / GRAPH_FILE
    if not path.is_file():
        raise UserError(f"`export` must be a folder with {GRAPH_FILE} in it. Received: {folder}")
    content = path.read_bytes()
    try:
        saved = saved_model_pb2.SavedModel.FromString(content)
    except DecodeError:
        saved = None
    graphs = [] if saved is None else [meta for meta in saved.meta_graphs if SERVE in meta.meta_info_def.tags]
    # of several graphs, TensorFlow might load another one than is read here
    if saved is None or not graphs or len(saved.meta_graphs) > 1:
        raise UserError(
            f"`export` must be a SavedModel of one graph tagged {SERVE!r}. Received: {path}, damaged or none"
        )
    return graphs[0]


def signature_names(meta: meta_graph_pb2.MetaGraphDef) -> list[str]:
    """The signatures that can be called, sorted."""
    return sorted(name for name in meta.signature_def if not name.startswith(INTERNAL))


def check_plain(meta: meta_graph_pb2.MetaGraphDef, *, xla: bool = False) -> None:
    """Hold an export to what serves anywhere.

    Args:
        xla: the compiled variant: functions that must be compiled are what it is made of.
    Raises:
        ValueError: names the first operation that does not belong, and where it is.
    """
    library = _Library(meta.graph_def)
    for place, node in library.nodes():
        if _NOT_SERVABLE.fullmatch(node.op) or (_XLA.fullmatch(node.op) and not xla):
            raise ValueError(_refusal(node, place, "is not run by a stock server"))
        if not xla and node.attr[_MUST_COMPILE].b:
            raise ValueError(_refusal(node, place, "must be compiled by XLA, which a stock server has switched off"))
        if "GPU" in node.device.upper():
            raise ValueError(_refusal(node, place, f"is tied to {node.device}, which a server may not have"))
    for function in meta.graph_def.library.function:
        if not xla and function.attr[_MUST_COMPILE].b:
            name = function.signature.name
            raise ValueError(f"the function {name} must be compiled by XLA, which a stock server has switched off")
    for place, node in library.reached_from(_signature_nodes(meta)):
        if _NOT_REPEATABLE.fullmatch(node.op):
            raise ValueError(
                _refusal(node, place, "has a state that outlives a request: use seeds given by the request")
            )


def check_safe(meta: meta_graph_pb2.MetaGraphDef) -> None:
    """Refuse a graph that could do more than compute.

    Raises:
        UserError: names the first operation that is not known to be harmless, and where it is.
    """
    if not meta.HasField("object_graph_def"):  # TensorFlow 1 runs nodes of the main graph to load such a model
        raise UserError("it was written by TensorFlow 1, so it is not loaded")
    library = _Library(meta.graph_def)
    for place, node in library.nodes():
        if node.op in library.functions or node.op in _WRITES_CHECKPOINT:
            continue
        definition = op_def_registry.get(node.op)
        if definition is None:
            raise UserError(_refusal(node, place, "is not known to TensorFlow"))
        allowed = (
            _SAFE_STATEFUL.fullmatch(node.op) if definition.is_stateful else not _UNSAFE_STATELESS.fullmatch(node.op)
        )
        if not allowed:
            raise UserError(_refusal(node, place, "could reach out of the model, so it is not loaded"))
    # What can run in a loaded model: every function of its objects, and the graph's nodes but for the saver.
    saver = meta.saver_def.save_tensor_name.split(":")[0]
    used = {meta.saver_def.restore_op_name, *_signature_nodes(meta)}
    roots = [node for node in meta.graph_def.node if node.name != saver or node.name in used]
    names = list(meta.object_graph_def.concrete_functions)
    for place, node in (*library.reached(roots), *library.reached_functions(names)):
        if node.op in _WRITES_CHECKPOINT:
            raise UserError(_refusal(node, place, "writes files outside of the saver, so it is not loaded"))


def computes_in_bfloat16(meta: meta_graph_pb2.MetaGraphDef) -> bool:
    """Whether any operation works on bfloat16, whose rounding depends on how the operations are fused."""
    return any(
        attribute.type == types_pb2.DT_BFLOAT16
        for _, node in _Library(meta.graph_def).nodes()
        for attribute in node.attr.values()
    )


class _Library:
    """The nodes of a graph and of its functions, and who calls whom."""

    def __init__(self, graph: graph_pb2.GraphDef):
        self.graph = graph
        self.functions = {function.signature.name: function for function in graph.library.function}

    def nodes(self) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
        """All nodes, each with the name of the function it is in ("" for the main graph)."""
        yield from (("", node) for node in self.graph.node)
        for name, function in self.functions.items():
            yield from ((name, node) for node in function.node_def)

    def reached_from(self, names: set[str]) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
        """Nodes that run when the main graph's nodes called `names` are fetched."""
        by_name = {node.name: node for node in self.graph.node}
        todo, seen = list(names), set()
        while todo:
            name = todo.pop().lstrip("^").split(":")[0]
            if name in by_name and name not in seen:
                seen.add(name)
                todo += by_name[name].input
        yield from self.reached([by_name[name] for name in sorted(seen)])

    def reached(self, roots: list[node_def_pb2.NodeDef]) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
        """`roots`, and the nodes of all functions that they call."""
        yield from (("", node) for node in roots)
        yield from self.reached_functions([name for node in roots for name in self._called(node)])

    def reached_functions(self, names: list[str]) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
        """The nodes of the functions `names` and of all functions that they call."""
        todo, seen = list(names), set()
        while todo:
            name = todo.pop()
            if name in seen or name not in self.functions:
                continue
            seen.add(name)
            for node in self.functions[name].node_def:
                yield name, node
                todo += self._called(node)

    def _called(self, node: node_def_pb2.NodeDef) -> list[str]:
        called = [node.op] if node.op in self.functions else []
        for attribute in node.attr.values():
            called += [attribute.func.name] if attribute.HasField("func") else []
            called += [function.name for function in attribute.list.func]
        return called


def _signature_nodes(meta: meta_graph_pb2.MetaGraphDef) -> set[str]:
    return {info.name.split(":")[0] for signature in meta.signature_def.values() for info in signature.outputs.values()}


def _refusal(node: node_def_pb2.NodeDef, place: str, reason: str) -> str:
    return f"the operation {node.op} ({node.name}{f' in {place}' if place else ''}) {reason}"
