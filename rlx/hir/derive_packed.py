"""From one plain forward pass to the program for many texts side by side, without padding.

In: a graph `tokens: i32[batch, seq] -> ...`, bidirectional or causal, that may end in a pooling. Out: a graph over the
T tokens of S sequences,

    tokens, positions: i32[T]   bounds: i32[S + 1]   (token_types: i32[T])   -> every output

`[batch, seq, ...]` collapses to `[T, ...]` and `[batch, 1, ...]`, what is one row of a sequence, to `[S, ...]`.
Attention and pooling stay within the rows of a sequence, which `bounds` tells; `positions` count from 0 in each. Which
values have rows is found by `row_kinds.py`; the cached form is `derive_step.py`; next: `rlx/mir/`.
"""

from __future__ import annotations

from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.core.graph import Graph, GraphBuilder, Node, Value
from rlx.core.rewrite import eliminate_dead
from rlx.core.type import TensorType
from rlx.hir.collapse import collapsed
from rlx.hir.row_kinds import PACKED_RULES, Kind, RowKinds, row_kinds
from rlx.ops.op import Emitter

TOKENS, SEQUENCES = Dim("T"), Dim("S")


def derive_packed(graph: Graph) -> Graph:
    """The packed program of a plain forward pass.

    Args:
        graph: inputs `tokens` and perhaps `token_types`; attention with the masks none, causal or sliding; any outputs.

    Raises:
        FlowError: the flow cannot be packed; the message names the node that stands in the way.
    """
    graph = eliminate_dead(graph)
    return _Derivation(graph, row_kinds(graph, PACKED_RULES)).run()


class _Derivation:
    """The packed graph under construction; `packed` has the value that stands for each plain one."""

    def __init__(self, graph: Graph, rows: RowKinds) -> None:
        self.graph, self.rows = graph, rows
        self.builder = GraphBuilder(f"{graph.name}_packed")
        per_token = TensorType(i32, (TOKENS,))
        self.packed: dict[Value, Value] = {value: self.builder.input(name, per_token) for name, value in graph.inputs}
        self.positions = self.builder.input("positions", per_token)
        self.bounds = self.builder.input("bounds", TensorType(i32, (SEQUENCES + 1,)))

    def run(self) -> Graph:
        """Emit every node, then name the outputs."""
        for node in self.graph.nodes:
            self.derive(node)
        for name, value in self.graph.outputs:
            self.builder.output(name, self.packed[value])
        return self.builder.build()

    def derive(self, node: Node) -> None:
        """The node of the packed program for a node of the plain one."""
        emit = Emitter(self.builder, node.location)
        operands = [self.packed[value] for value in node.inputs]
        kind = self.rows[node.outputs[0]]
        if kind is Kind.STATIC:
            types = [value.type for value in node.outputs]
            made = self.builder.append(node.op, operands, node.attrs, types, node.location)
            self.packed.update(zip(node.outputs, made, strict=True))
        elif node.op == "positions":
            self.packed[node.output] = self.positions
        elif node.op == "last_token":
            self.packed[node.output] = emit("packed_pool_tokens", operands[0], self.bounds, mode="last")
        elif node.op == "pool_tokens":
            self.packed[node.output] = emit("packed_pool_tokens", operands[0], self.bounds, **node.attrs)
        elif node.op == "attention":
            self.packed[node.output] = emit("packed_attention", *operands, self.bounds, **node.attrs)
        else:
            self.packed.update(zip(node.outputs, self.collapsed(emit, node, operands, kind), strict=True))

    def collapsed(self, emit: Emitter, node: Node, operands: list[Value], kind: Kind) -> tuple[Value, ...]:
        """The node over `[T, inner...]` (or `[S, inner...]`) in place of `[batch, seq, inner...]`."""
        count = SEQUENCES if kind is Kind.LAST else TOKENS
        return collapsed(emit, node, operands, self.rows, count)
