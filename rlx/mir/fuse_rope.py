"""Keys are rotated as they are written: `rope` then `cache_append` become one step, beside the rotation of queries.

Next: `fuse_elementwise.py`.
"""

from __future__ import annotations

from rlx.core.backend import Backend
from rlx.core.graph import Graph, Node, Value
from rlx.ops.paged_attention import cache_sizes


def fuse_rope(graph: Graph, backend: Backend) -> Graph:
    """Let `cache_append` rotate the keys that nothing else reads."""
    uses, producers = graph.uses(), graph.producers()
    fused: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for node in graph.nodes:
        rope = producers.get(node.inputs[2]) if node.op == "cache_append" and len(node.inputs) == 7 else None
        if rope is None or rope.op != "rope" or uses[rope.output] != 1:
            continue
        candidate = _rotating(node, rope)
        if candidate is not None and backend.why_not(candidate) is None:
            fused[node] = candidate
            dropped.add(rope)
    nodes = tuple(fused.get(node, node) for node in graph.nodes if node not in dropped)
    return Graph(graph.name, graph.inputs, nodes, graph.outputs)


def _rotating(node: Node, rope: Node) -> Node | None:
    """The `cache_append` with the rotation in it; None where the rotation does not go by the heads of the cache."""
    (x, cos, sin), tokens = rope.inputs, node.inputs[4]
    heads, _, _ = cache_sizes(node.inputs[0].type)
    if rope.attrs["num_heads"] != heads or cos.type.shape[:1] != tokens.type.shape:
        return None
    inputs: tuple[Value, ...] = (*node.inputs[:2], x, *node.inputs[3:], cos, sin)
    return Node(node.op, inputs, {**node.attrs, "rotation": rope.attrs["style"]}, node.outputs, node.location)
