"""Pure functions Graph -> Graph that every level shares: dead code, common nodes, substitution, pattern rewriting.

A pass writes a rule that looks at one node and its producers and gives replacement values, or None to leave it alone:

    def rule(node, rewriter):
        if node.op != "mul" or (gate := rewriter.producer(node.inputs[0], "silu")) is None:
            return None
        return [rewriter.emit("swiglu", gate.inputs[0], node.inputs[1])]

    graph = rewrite(graph, rule)

`emit` adds ops at the location of the node, so source locations survive. This file stands above `rlx/ops/` although it
is part of the kit: new nodes get their types from the ops. Next: `verify.py`, then any pass in `rlx/mir/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from rlx.core.graph import Graph, GraphBuilder, Node, Value
from rlx.core.text import print_attrs
from rlx.errors import VerifyError
from rlx.ops.op import Emitter


def eliminate_dead(graph: Graph) -> Graph:
    """The graph without nodes that no output depends on. Inputs stay: they are the signature."""
    live = {value for _, value in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(value in live for value in node.outputs):
            kept.append(node)
            live.update(node.inputs)
    return Graph(graph.name, graph.inputs, tuple(reversed(kept)), graph.outputs)


def merge_common(graph: Graph) -> Graph:
    """The graph with equal nodes (op, operands and attributes) computed once; the first one's location is kept.

    Attributes are compared by their text, which tells 1 from 1.0 and 0.0 from -0.0. Two parameters with one key and
    type are equal nodes. Time is linear in the size of the graph.
    """
    first: dict[tuple[str, tuple[Value, ...], str], Node] = {}
    replaced: dict[Value, Value] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        node = _with_operands(old, replaced)
        twin = first.setdefault((node.op, node.inputs, print_attrs(node.attrs)), node)
        if twin is node:
            nodes.append(node)
        else:
            replaced.update(zip(node.outputs, twin.outputs, strict=True))
    return _finish(graph, nodes, replaced)


def substitute_values(graph: Graph, replaced: Mapping[Value, Value]) -> Graph:
    """The graph with every read of a value turned into a read of its replacement; chains are followed.

    The replacements have to be defined before they are read; `verify` checks it.
    """
    closed: dict[Value, Value] = {}
    for value in replaced:
        end = replaced[value]
        while end in replaced and end is not value:
            end = replaced[end]
        closed[value] = end
    return _finish(graph, [_with_operands(node, closed) for node in graph.nodes], closed)


def inline_graph(builder: GraphBuilder, graph: Graph, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Append the nodes of a graph to one under construction.

    Args:
        builder: receives the nodes, with their locations.
        graph: what to inline; it may be inlined several times.
        inputs: a value of the same type for each input.

    Returns:
        The values of the graph's outputs in the builder, by name.

    Raises:
        VerifyError: an input is missing or has another type.
    """
    values: dict[Value, Value] = {}
    for name, value in graph.inputs:
        given = inputs.get(name)
        if given is None or given.type != value.type:
            raise VerifyError(
                f"the graph {graph.name} cannot be inlined: its input {name} does not fit",
                found=given.type if given else "nothing",
                expected=value.type,
            )
        values[value] = given
    for node in graph.nodes:
        operands = [values[value] for value in node.inputs]
        types = [value.type for value in node.outputs]
        values.update(
            zip(node.outputs, builder.append(node.op, operands, node.attrs, types, node.location), strict=True)
        )
    return {name: values[value] for name, value in graph.outputs}


class Rewriter:
    """What a rule may ask and do while `rewrite` stands at one node.

    Producers and use counts are those of the graph as rewritten so far, so a rule sees the results of its earlier
    replacements and a chain fuses in one walk.
    """

    def __init__(self, graph: Graph) -> None:
        self._builder = GraphBuilder(graph.name)
        self._producers: dict[Value, Node] = {}
        self._indexed = 0
        self._uses = graph.uses()
        self.emit = Emitter(self._builder)
        """Adds an op at the location of the node; gives its output. `emit.many` gives all outputs."""

    def producer(self, value: Value, op: str | None = None) -> Node | None:
        """The node that makes `value`; None for an input of the graph, or if it is not an `op`."""
        self._index()
        node = self._producers.get(value)
        return node if node is not None and op in (None, node.op) else None

    def uses(self, value: Value) -> int:
        """How often `value` is read, an output of the graph counting as one read."""
        return self._uses.get(value, 0)

    def only_use(self, value: Value, op: str | None = None) -> Node | None:
        """The producer of `value` if nobody else reads any of its outputs, so that it may be fused away."""
        node = self.producer(value, op)
        return node if node is not None and sum(map(self.uses, node.outputs)) == 1 else None

    def _index(self) -> None:
        for node in self._builder.nodes[self._indexed :]:
            self._producers.update(dict.fromkeys(node.outputs, node))
        self._indexed = len(self._builder.nodes)

    def keep(self, node: Node) -> None:
        """Put a node into the result as it is. For `rewrite`, not for rules."""
        self._builder.nodes.append(node)

    def apply(self, node: Node, rule: Rule) -> Sequence[Value] | None:
        """Ask the rule. What it emitted before it declined is dead and not counted. For `rewrite`, not for rules."""
        start = len(self._builder.nodes)
        self.emit = Emitter(self._builder, node.location)
        result = rule(node, self)
        if result is None:
            return None
        _check_replacement(node, result)
        self._count(self._builder.nodes[start:], result)
        for old, new in zip(node.outputs, result, strict=True):
            self._uses[new] = self.uses(new) + self._uses.pop(old, 0)
        self._release(node)
        return result

    def _count(self, emitted: Sequence[Node], result: Sequence[Value]) -> None:
        """Count the reads of new nodes, those that the result does not depend on left out."""
        live = set(result)
        for node in reversed(emitted):
            if any(value in live for value in node.outputs):
                live.update(node.inputs)
                for value in node.inputs:
                    self._uses[value] = self.uses(value) + 1

    def _release(self, node: Node) -> None:
        """Stop counting the reads of a node that is gone, and of producers that nobody reads because of it."""
        gone = [node]
        while gone:
            for value in gone.pop().inputs:
                self._uses[value] -= 1
                maker = self.producer(value)
                if maker is not None and not any(map(self.uses, maker.outputs)):
                    gone.append(maker)

    def finish(self, graph: Graph, replaced: Mapping[Value, Value]) -> Graph:
        """The rewritten graph. For `rewrite`, not for rules."""
        return eliminate_dead(_finish(graph, self._builder.nodes, replaced))


Rule: TypeAlias = Callable[[Node, Rewriter], "Sequence[Value] | None"]
"""One value for each output of the node (of the same type), or None to leave the node as it is."""


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """Walk the graph once in order, ask the rule at every node, and drop what became dead.

    A node reaches the rule with its operands already replaced. Nodes that a rule emits are not offered to it again.

    Raises:
        VerifyError: the rule gave the wrong number of values or another type.
    """
    graph = eliminate_dead(graph)  # a dead reader would make a value look shared
    rewriter = Rewriter(graph)
    replaced: dict[Value, Value] = {}
    for old in graph.nodes:
        node = _with_operands(old, replaced)
        result = rewriter.apply(node, rule)
        if result is None:
            rewriter.keep(node)
        else:
            replaced.update(zip(node.outputs, result, strict=True))
    return rewriter.finish(graph, replaced)


def _check_replacement(node: Node, result: Sequence[Value]) -> None:
    found, expected = [value.type for value in result], [value.type for value in node.outputs]
    if found != expected:
        raise VerifyError(
            f"a rule replaced {node.op} by values of other types",
            where=str(node.location),
            found=", ".join(map(str, found)),
            expected=", ".join(map(str, expected)),
        )


def _with_operands(node: Node, replaced: Mapping[Value, Value]) -> Node:
    """The node reading the replacements; the same object if it reads none. Its outputs stay the same values."""
    if not any(value in replaced for value in node.inputs):
        return node
    operands = tuple(replaced.get(value, value) for value in node.inputs)
    return Node(node.op, operands, node.attrs, node.outputs, node.location)


def _finish(graph: Graph, nodes: Sequence[Node], replaced: Mapping[Value, Value]) -> Graph:
    outputs = tuple((name, replaced.get(value, value)) for name, value in graph.outputs)
    return Graph(graph.name, graph.inputs, tuple(nodes), outputs)
