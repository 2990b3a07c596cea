"""Attention over sequences of one length, batched, becomes `packed_attention` over their rows side by side.

In: a graph with attention `[batch, seq, hidden]` that sees every key of its own sequence. Out: the same graph with
one more input, `bounds: i32[batch + 1]`, that says where each sequence begins, which is what the kernels for many short
sequences take (`rlx/mir/round_attention.py` lets them multiply bfloat16). Images come in this way: all of one run
have one size. The form for texts of any length is `derive_packed.py`; next: `rlx/mir/`.
"""

from __future__ import annotations

from rlx.core.dim import product
from rlx.core.dtype import i32
from rlx.core.graph import Graph, GraphBuilder, Node, Value
from rlx.core.type import TensorType
from rlx.ops.op import Emitter


def pack_attention(graph: Graph) -> Graph:
    """Every self-attention without a mask over `[batch, seq, hidden]`, packed; the graph as it is if there is none."""
    batches = {node.inputs[0].type.shape[0] for node in graph.nodes if _is_packable(node)}
    if len(batches) != 1:
        return graph
    builder = GraphBuilder(graph.name, list(graph.inputs))
    bounds = builder.input("bounds", TensorType(i32, (batches.pop() + 1,)))
    values: dict[Value, Value] = {value: value for _, value in graph.inputs}
    for node in graph.nodes:
        inputs = tuple(values[value] for value in node.inputs)
        if _is_packable(node):
            values[node.output] = _packed(Emitter(builder, node.location), node, inputs, bounds)
        else:
            builder.nodes.append(Node(node.op, inputs, node.attrs, node.outputs, node.location))
            values.update((value, value) for value in node.outputs)
    for name, value in graph.outputs:
        builder.output(name, values[value])
    return builder.build()


def _is_packable(node: Node) -> bool:
    if node.op != "attention" or node.attrs["mask"] != "none":
        return False
    q, k = node.inputs[0].type, node.inputs[1].type
    return q.rank == 3 and q.shape[:2] == k.shape[:2]


def _packed(emit: Emitter, node: Node, inputs: tuple[Value, ...], bounds: Value) -> Value:
    rows = [emit("reshape", value, shape=(product(value.type.shape[:2]), value.type.shape[2])) for value in inputs[:3]]
    sinks = inputs[3:]
    packed = emit("packed_attention", *rows, *sinks, bounds, **node.attrs)
    return emit("reshape", packed, shape=node.output.type.shape)
