"""Chains of elementwise ops become one loop; scalar constants become literals in it.

Next: `quantize_activations.py`.
"""

from __future__ import annotations

from rlx.core.dtype import boolean, f32
from rlx.core.graph import Graph, Node, Value
from rlx.core.rewrite import eliminate_dead
from rlx.ops.elementwise import SCALAR_OPS, Expression, parse_expression, print_expression, renumber

MAX_OPERATIONS = 24
"""Operations in one expression: enough for any block here, and a bound for the code of one loop."""


def fuse_elementwise(graph: Graph) -> Graph:
    """Inline each expression that is read once (a boolean one always) into its reader of the same shape."""
    uses, producers = graph.uses(), graph.producers()
    fused: dict[Value, tuple[Expression, tuple[Value, ...]]] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op != "elementwise":
            nodes.append(node)
            continue
        expression, operands = _inline(node, fused, uses, producers)
        fused[node.output] = (expression, operands)
        attrs = {**node.attrs, "expression": print_expression(expression)}
        nodes.append(Node(node.op, operands, attrs, node.outputs, node.location))
    return eliminate_dead(Graph(graph.name, graph.inputs, tuple(nodes), graph.outputs))


def _inline(
    node: Node,
    fused: dict[Value, tuple[Expression, tuple[Value, ...]]],
    uses: dict[Value, int],
    producers: dict[Value, Node],
) -> tuple[Expression, tuple[Value, ...]]:
    operands: list[Value] = []
    mapping: list[Expression] = []

    def operand(value: Value) -> Expression:
        if value not in operands:
            operands.append(value)
        return operands.index(value)

    size = _operations(parse_expression(str(node.attrs["expression"])))
    for value in node.inputs:
        literal = _literal(producers.get(value))
        if literal is not None:
            mapping.append(literal)
            continue
        inner = fused.get(value)
        once = uses[value] == 1 or value.type.dtype == boolean
        if inner and once and value.type.shape == node.output.type.shape and value.type.dtype in (f32, boolean):
            added = _operations(inner[0])
            if size + added <= MAX_OPERATIONS:
                size += added
                mapping.append(renumber(inner[0], [operand(v) for v in inner[1]]))
                continue
        mapping.append(operand(value))
    expression = renumber(parse_expression(str(node.attrs["expression"])), mapping)
    if not operands:  # every operand was a literal: keep one, which gives the shape
        return parse_expression(str(node.attrs["expression"])), node.inputs
    full = any(value.type.shape == node.output.type.shape for value in operands)
    return (expression, tuple(operands)) if full else (parse_expression(str(node.attrs["expression"])), node.inputs)


def _operations(expression: Expression) -> int:
    if isinstance(expression, tuple):
        return (SCALAR_OPS[expression[0]].flops > 1) * 3 + 1 + sum(_operations(e) for e in expression[1])
    return 0


def _literal(node: Node | None) -> float | None:
    if node is None or node.op != "constant" or node.output.type.shape != () or node.output.type.dtype != f32:
        return None
    values = node.attrs["values"]
    return float(values[0]) if isinstance(values, tuple) and isinstance(values[0], (int, float)) else None
