"""Precision `fast`: products with block-quantised weights run on int8 activations, as llama.cpp does.

Each such `linear` gets its operand through `quantize`; readers of one value share it. A norm or an elementwise loop
whose only reader is `quantize` then writes the quantised form itself. Next: `rlx/lir/lower.py`.
"""

from __future__ import annotations

from rlx.core.backend import Backend
from rlx.core.dtype import f32, q8_act
from rlx.core.graph import Graph, GraphBuilder, Node, Value
from rlx.ops.op import Emitter


def quantize_activations(graph: Graph, backend: Backend) -> Graph:
    """Quantise the operands of the products whose weights the backend multiplies as integers."""
    builder = GraphBuilder(graph.name, list(graph.inputs), outputs=list(graph.outputs))
    quantised: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op == "linear" and node.inputs[0].type.dtype == f32 and backend.quantizes(node.inputs[1].type.dtype):
            x = node.inputs[0]
            if x not in quantised:
                quantised[x] = Emitter(builder, node.location)("quantize", x)
            inputs = (quantised[x], *node.inputs[1:])
            candidate = Node(node.op, inputs, node.attrs, node.outputs, node.location)
            builder.nodes.append(candidate if backend.why_not(candidate) is None else node)
        else:
            builder.nodes.append(node)
    return builder.build()


def fuse_quantize(graph: Graph, backend: Backend) -> Graph:
    """Let producers write quantised rows where nothing else reads the floats."""
    uses, producers = graph.uses(), graph.producers()
    replaced: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for node in graph.nodes:
        producer = producers.get(node.inputs[0]) if node.op == "quantize" else None
        if producer is None or uses[node.inputs[0]] != 1 or producer.attrs.get("dtype") != f32:
            continue
        attrs = {**producer.attrs, "dtype": q8_act}
        candidate = Node(producer.op, producer.inputs, attrs, node.outputs, producer.location)
        if producer.op in ("rms_norm", "elementwise") and backend.why_not(candidate) is None:
            replaced[producer] = candidate
            dropped.add(node)
    nodes = tuple(replaced.get(node, node) for node in graph.nodes if node not in dropped)
    return Graph(graph.name, graph.inputs, nodes, graph.outputs)
