"""Precision `fast`: products with block-quantised weights run on int8 activations, those with bfloat16 on bfloat16.

llama.cpp does the same. Each such `linear` or `grouped_linear` gets its operand through `quantize`; readers of one
value share it. A product whose result leaves the graph (logits, an embedding) gets two int8 terms, or keeps float32
where its weight is bfloat16: its rounding goes into the answer as it is, and it runs for few rows, where the weights
are what takes the time. A norm, an elementwise loop or an attention whose only reader is `quantize` then writes the
quantised form itself. Next: `rlx/lir/lower.py`.
"""

from __future__ import annotations

from rlx.core.backend import Backend
from rlx.core.dtype import DType, activation_format, f32
from rlx.core.graph import Graph, GraphBuilder, Node, Value
from rlx.ops.linear import optional_operands
from rlx.ops.op import Emitter, static_axis

RESULT_FORMATS = {"rms_norm": "dtype", "elementwise": "dtype", "paged_attention": "result"}
"""Ops that may write an activation format, and the attribute that says so."""


PRODUCTS = frozenset({"linear", "grouped_linear"})
"""Ops that multiply operand 0 with the weight that is operand 1."""


def quantize_activations(graph: Graph, backend: Backend) -> Graph:
    """Quantise the operands of the products whose weights the backend multiplies as integers."""
    builder = GraphBuilder(graph.name, list(graph.inputs), outputs=list(graph.outputs))
    final = final_values(graph)
    quantised: dict[tuple[Value, DType], Value] = {}
    for node in graph.nodes:
        dtype = _activation(node, backend, final)
        if dtype != f32:
            x = node.inputs[0]
            if (x, dtype) not in quantised:
                quantised[x, dtype] = Emitter(builder, node.location)("quantize", x, dtype=dtype)
            inputs = (quantised[x, dtype], *node.inputs[1:])
            candidate = Node(node.op, inputs, node.attrs, node.outputs, node.location)
            builder.nodes.append(candidate if backend.why_not(candidate) is None else node)
        else:
            builder.nodes.append(node)
    return builder.build()


def _activation(node: Node, backend: Backend, final: set[Value]) -> DType:
    """The format for the operand of a product; float32 for what stays as it is."""
    if (
        node.op not in ("linear", "grouped_linear")
        or node.inputs[0].type.dtype != f32
        or not backend.quantizes(node.inputs[1].type.dtype)
    ):
        return f32
    dtype = activation_format(node.inputs[1].type.dtype, 2 if node.output in final else 1)
    # rows of bfloat16 weights need not be whole blocks
    return f32 if static_axis(node.inputs[1].type, -1, "in") % dtype.block_size else dtype


def final_values(graph: Graph) -> set[Value]:
    """The outputs that no node reads, and what they alone are made of by elementwise ops, sums and reshapes.

    An output that the graph goes on with (a tap of the residual stream) is not final: looking must not change anything.
    """
    reads: dict[Value, int] = {}
    for value in (value for node in graph.nodes for value in node.inputs):
        reads[value] = reads.get(value, 0) + 1
    final = {value for _, value in graph.outputs if value not in reads}
    for node in reversed(graph.nodes):
        if any(value in final for value in node.outputs):
            summands = node.inputs if node.op in ("elementwise", "reshape") else _residual(node)
            final.update(value for value in summands if reads[value] == 1)
    return final


def _residual(node: Node) -> tuple[Value, ...]:
    """What a product adds."""
    if node.op != "linear" or not optional_operands(tuple(value.type for value in node.inputs))[1]:
        return ()
    return node.inputs[-1:]


def fuse_quantize(graph: Graph, backend: Backend) -> Graph:
    """Let producers write quantised rows where nothing else reads the floats."""
    uses, producers = graph.uses(), graph.producers()
    replaced: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for node in graph.nodes:
        producer = producers.get(node.inputs[0]) if node.op == "quantize" else None
        attribute = RESULT_FORMATS.get(producer.op) if producer is not None else None
        if producer is None or attribute is None or uses[node.inputs[0]] != 1 or producer.attrs[attribute] != f32:
            continue
        attrs = {**producer.attrs, attribute: node.attrs["dtype"]}
        candidate = Node(producer.op, producer.inputs, attrs, node.outputs, producer.location)
        if backend.why_not(candidate) is None:
            replaced[producer] = candidate
            dropped.add(node)
    nodes = tuple(replaced.get(node, node) for node in graph.nodes if node not in dropped)
    return Graph(graph.name, graph.inputs, nodes, graph.outputs)
