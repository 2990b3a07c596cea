"""The IR of HIR and MIR: a list of nodes in topological order over typed values. This is the page to read first.

    Graph(name, inputs, nodes, outputs)      inputs and outputs are (name, Value) pairs
    Node(op, inputs, attrs, outputs, location)
    Value(type)                              identity only; names are invented when printing

Weights are `parameter` nodes that carry a key. Everything is immutable; a pass builds a new graph with `GraphBuilder`.
Next: `text.py`, and `rlx/ops/op.py` for what an op is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rlx.core.dim import Dim, Symbol, symbols_of
from rlx.core.dtype import DType
from rlx.core.type import TensorType

AttrValue: TypeAlias = "int | float | bool | str | DType | Dim | tuple[AttrValue, ...] | None"
Attrs: TypeAlias = Mapping[str, AttrValue]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a node comes from: the block path (`layers.3.self_attn`) and the source line of the block."""

    path: str = ""
    source: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.path, f"({self.source})" if self.source else ""))) or "unknown"


UNKNOWN = Location()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor that a node or the caller produces. Two values are equal when they are the same object."""

    type: TensorType


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One application of an op. `attrs` is not to be changed after construction."""

    op: str
    inputs: tuple[Value, ...]
    attrs: Attrs
    outputs: tuple[Value, ...]
    location: Location = UNKNOWN

    @property
    def output(self) -> Value:
        """The only output; for nodes that have one."""
        (value,) = self.outputs
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A function from named inputs to named outputs."""

    name: str
    inputs: tuple[tuple[str, Value], ...]
    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, Value], ...]

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Every symbol of every type and attribute, sorted by name."""
        values = [v for _, v in self.inputs] + [v for node in self.nodes for v in node.outputs]
        types = {value.type for value in values}
        attrs = (size for node in self.nodes for value in node.attrs.values() for size in _sizes_in(value))
        return symbols_of([*(size for type_ in types for size in type_.shape), *attrs])

    def producers(self) -> dict[Value, Node]:
        """Which node makes each value (inputs are not in it)."""
        return {value: node for node in self.nodes for value in node.outputs}

    def uses(self) -> dict[Value, int]:
        """How often each value is read, an output of the graph counting as one read."""
        counts: dict[Value, int] = {}
        for node in self.nodes:
            for value in node.inputs:
                counts[value] = counts.get(value, 0) + 1
        for _, value in self.outputs:
            counts[value] = counts.get(value, 0) + 1
        return counts

    def parameters(self) -> Iterator[tuple[str, Value]]:
        """Key and value of every weight, in order of first use."""
        for node in self.nodes:
            if node.op == "parameter":
                yield str(node.attrs["key"]), node.output

    def input(self, name: str) -> Value:
        """The input called `name`.

        Raises:
            KeyError: there is none.
        """
        return dict(self.inputs)[name]


def _sizes_in(value: AttrValue) -> Iterator[Dim]:
    if isinstance(value, Dim):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _sizes_in(item)


@dataclass(slots=True)
class GraphBuilder:
    """Collects the nodes of a graph under construction. Types are inferred by the ops (`rlx.ops.op.Emitter`)."""

    name: str
    inputs: list[tuple[str, Value]] = field(default_factory=list[tuple[str, Value]])
    nodes: list[Node] = field(default_factory=list[Node])
    outputs: list[tuple[str, Value]] = field(default_factory=list[tuple[str, Value]])

    def input(self, name: str, type_: TensorType) -> Value:
        """Add an input."""
        value = Value(type_)
        self.inputs.append((name, value))
        return value

    def append(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Attrs,
        types: Iterable[TensorType],
        location: Location = UNKNOWN,
    ) -> tuple[Value, ...]:
        """Add a node whose output types are known; gives its outputs."""
        outputs = tuple(Value(type_) for type_ in types)
        self.nodes.append(Node(op, tuple(inputs), attrs, outputs, location))
        return outputs

    def output(self, name: str, value: Value) -> None:
        """Name a result."""
        self.outputs.append((name, value))

    def build(self) -> Graph:
        """The finished graph."""
        return Graph(self.name, tuple(self.inputs), tuple(self.nodes), tuple(self.outputs))
