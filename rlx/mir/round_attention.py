"""Precision `fast`: attention over a bfloat16 cache, or within the texts of an encoder, multiplies bfloat16.

Where the backend has such products. The keys and values of a cache have been rounded to it already; queries and the
weights of the softmax are too, the sums stay float32. Next: `rlx/lir/lower.py`.
"""

from __future__ import annotations

from rlx.core.backend import Backend
from rlx.core.dtype import bf16
from rlx.core.graph import Graph, Node


def round_attention(graph: Graph, backend: Backend) -> Graph:
    """Set `products` of the attentions that the backend runs with it."""

    def rounded(node: Node) -> Node:
        is_paged = node.op == "paged_attention" and node.attrs["dtype"] == bf16
        if not is_paged and node.op != "packed_attention":
            return node
        attrs = {**node.attrs, "products": "bf16"}
        candidate = Node(node.op, node.inputs, attrs, node.outputs, node.location)
        return candidate if backend.why_not(candidate) is None else node

    return Graph(graph.name, graph.inputs, tuple(rounded(node) for node in graph.nodes), graph.outputs)
