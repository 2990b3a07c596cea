"""A product takes the sum with the residual stream along: `linear` then `add` become one `linear`.

The sum is made in the registers that hold the product, so a step and a pass over its rows are saved; a float32 sum of
two does not depend on their order, and the bits stay. It runs before `fuse_elementwise.py`, which would take sums into
longer loops. Next: `fuse_rope.py`.
"""

from __future__ import annotations

from rlx.core.backend import Backend
from rlx.core.graph import Graph, Node, Value
from rlx.ops.linear import optional_operands


def fuse_residual(graph: Graph, backend: Backend) -> Graph:
    """Give each product whose only reader adds a value of its shape that value as an operand."""
    uses = graph.uses()
    products: dict[Value, tuple[int, Node]] = {}
    fused: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for index, node in enumerate(graph.nodes):
        if node.op == "linear":
            products[node.output] = index, node
        elif (found := _fused(node, products, uses, backend)) is not None:
            product, fused[node] = found
            dropped.add(product)
            products[node.output] = index, fused[node]
    nodes = tuple(fused.get(node, node) for node in graph.nodes if node not in dropped)
    return Graph(graph.name, graph.inputs, nodes, graph.outputs)


def _fused(
    node: Node, products: dict[Value, tuple[int, Node]], uses: dict[Value, int], backend: Backend
) -> tuple[Node, Node] | None:
    """The product that a sum reads (of two the later one) and the product that takes its place."""
    if node.op != "elementwise" or node.attrs["expression"] != "add($0, $1)":
        return None
    left, right = node.inputs
    pairs = [
        (*products[product], residual)
        for product, residual in ((left, right), (right, left))
        if product in products and uses[product] == 1 and product.type == residual.type
    ]
    for _, product, residual in sorted(pairs, key=lambda pair: -pair[0]):
        types = tuple(value.type for value in product.inputs)
        if product.output.type.rank < 2 or optional_operands(types)[1]:
            continue
        inputs = (*product.inputs, residual)
        candidate = Node(product.op, inputs, product.attrs, node.outputs, product.location)
        if backend.why_not(candidate) is None:
            return product, candidate
    return None
