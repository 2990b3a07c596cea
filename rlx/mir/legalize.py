"""Break every op the backend has no kernel for into ops it has. Next: `fuse_residual.py`.

Single scalar ops become `elementwise` expressions here, and operands that do not line up with the result are expanded
by `broadcast`, so that later passes and kernels see one form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx.core.backend import Backend, KernelPlan
from rlx.core.dtype import DType, f32
from rlx.core.graph import Graph, GraphBuilder, Node, Value
from rlx.errors import UnsupportedOpError
from rlx.ops.elementwise import SCALAR_OPS, print_expression
from rlx.ops.op import Emitter, Missing, lookup

FREE = frozenset({"parameter", "constant", "reshape"})
"""Ops that need no kernel."""


def legalize(graph: Graph, backend: Backend) -> Graph:
    """A graph of kernels.

    Raises:
        UnsupportedOpError: an op has neither a kernel nor a decomposition; the message gives both reasons.
    """
    builder = GraphBuilder(graph.name, list(graph.inputs))
    backend = WeightAware(backend, {node.output for node in graph.nodes if node.op == "parameter"})
    tables = plain_tables(graph)
    values: dict[Value, Value] = {value: value for _, value in graph.inputs}
    for node in graph.nodes:
        inputs = tuple(values[value] for value in node.inputs)
        if node.op == "embedding" and node.inputs[1] in tables:
            results: Sequence[Value] = [Emitter(builder, node.location)("take_rows", inputs[1], inputs[0])]
        else:
            results = _node(builder, backend, node, inputs)
        values.update(zip(node.outputs, results, strict=True))
    for name, value in graph.outputs:
        builder.output(name, values[value])
    return builder.build()


def plain_tables(graph: Graph) -> set[Value]:
    """Tables of float32 that are only ever looked up in, unscaled: their rows are copied as they lie.

    One that is a product's weight too is packed for that, with a row in as many cache lines as it has elements.
    """
    tables = {node.output for node in graph.nodes if node.op == "parameter" and node.output.type.dtype == f32}
    for node in graph.nodes:
        is_lookup = node.op == "embedding" and node.attrs["scale"] == 1.0
        tables.difference_update(node.inputs[:1] if is_lookup else node.inputs)
    return tables - {value for _, value in graph.outputs}


def _node(builder: GraphBuilder, backend: Backend, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    emit = Emitter(builder, node.location)
    if node.op in SCALAR_OPS:
        return _scalar(builder, backend, node, inputs)
    candidate = Node(node.op, inputs, node.attrs, node.outputs, node.location)
    if node.op in FREE or (reason := backend.why_not(candidate)) is None:
        builder.nodes.append(candidate)
        return node.outputs
    if node.op == "elementwise":
        return _expanded(builder, candidate)
    rule = lookup(node.op).decompose
    if isinstance(rule, Missing):
        raise UnsupportedOpError(
            f"the {backend.name} backend cannot run {node.op}",
            where=str(node.location),
            found=reason,
            expected=f"a decomposition ({rule.reason})",
        )
    inner = GraphBuilder(builder.name)
    results = rule(Emitter(inner, emit.location), inputs, node.attrs)
    return _inline(builder, backend, inner, results)


@dataclass(frozen=True, slots=True)
class WeightAware:
    """A backend that also refuses to pack an operand which is computed and not a weight."""

    backend: Backend
    weights: set[Value]

    @property
    def name(self) -> str:
        """That of the backend."""
        return self.backend.name

    def why_not(self, node: Node) -> str | None:
        """As `Backend.why_not`."""
        reason = self.backend.why_not(node)
        if reason is not None:
            return reason
        for position in self.backend.plan(node).layouts:
            if node.inputs[position] not in self.weights:
                return f"operand {position} has to be a weight, because the kernel packs it"
        return None

    def plan(self, node: Node) -> KernelPlan:
        """As `Backend.plan`."""
        return self.backend.plan(node)

    def quantizes(self, weight: DType) -> bool:
        """As `Backend.quantizes`."""
        return self.backend.quantizes(weight)


def _inline(builder: GraphBuilder, backend: Backend, inner: GraphBuilder, results: Sequence[Value]) -> list[Value]:
    values: dict[Value, Value] = {}
    for node in inner.nodes:
        inputs = tuple(values.get(value, value) for value in node.inputs)
        values.update(zip(node.outputs, _node(builder, backend, node, inputs), strict=True))
    return [values.get(value, value) for value in results]


def _scalar(builder: GraphBuilder, backend: Backend, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    expression = print_expression((node.op, tuple(range(len(inputs)))))
    attrs = {"expression": expression, "dtype": node.output.type.dtype}
    fused = Node("elementwise", inputs, attrs, node.outputs, node.location)
    if backend.why_not(fused) is None:
        builder.nodes.append(fused)
        return node.outputs
    return _expanded(builder, fused)


def _expanded(builder: GraphBuilder, node: Node) -> Sequence[Value]:
    """Broadcast every operand to the shape of the result."""
    emit, shape = Emitter(builder, node.location), node.output.type.shape
    inputs = [v if v.type.shape == shape else emit("broadcast", v, shape=shape) for v in node.inputs]
    return emit.many("elementwise", *inputs, **node.attrs)
