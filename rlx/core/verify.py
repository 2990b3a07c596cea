"""What must hold between passes: `verify(graph, "mir", after="fuse_siblings")` or a VerifyError that names the node.

Checked: every value is defined once and before it is read; every op exists, is allowed on the level and has all its
attributes; types are those the op infers; names are unique and printable; one parameter key has one type; one
symbol name has one pair of bounds. Like `rewrite.py` this file stands above `rlx/ops/`. Next: `rewrite.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlx.core.dim import Symbol
from rlx.core.graph import Graph, Node, Value
from rlx.core.text import NAME, print_attrs, print_node_of
from rlx.core.type import TensorType
from rlx.errors import RlxError, VerifyError
from rlx.ops.op import REGISTRY


def verify(graph: Graph, level: str, *, after: str | None = None, trusted: set[tuple[str, Node]] | None = None) -> None:
    """Check a graph.

    Args:
        graph: the graph.
        level: "hir" or "mir".
        after: name of the pass that made the graph, for the message.
        trusted: nodes, with their level, whose own rules were checked before; those of this graph are added. Nodes do
            not change, so a pipeline checks each of them once; order and uses are checked every time.

    Raises:
        VerifyError: a rule is broken; the message names the node, its location and the pass.
    """
    _Check(graph, level, after, set() if trusted is None else trusted).run()


class _Check:
    def __init__(self, graph: Graph, level: str, after: str | None, trusted: set[tuple[str, Node]]) -> None:
        self.graph, self.level, self.after, self.trusted = graph, level, after, trusted
        self.defined: set[Value] = set()
        self.symbols: dict[str, Symbol] = {}
        self.keys: dict[str, TensorType] = {}
        self.inferred: dict[tuple[str, tuple[TensorType, ...], str], tuple[TensorType, ...]] = {}
        self.seen_types: set[TensorType] = set()

    def run(self) -> None:
        if NAME.fullmatch(self.graph.name) is None:
            raise self.error("a graph needs a printable name", found=repr(self.graph.name))
        self.check_names("input", self.graph.inputs)
        self.check_names("output", self.graph.outputs)
        for _, value in self.graph.inputs:
            self.define(value, None)
        for node in self.graph.nodes:
            self.check_node(node)
        for name, value in self.graph.outputs:
            if value not in self.defined:
                raise self.error(f"the output {name} is a value that no node makes", found=value.type)

    def check_names(self, what: str, named: Sequence[tuple[str, Value]]) -> None:
        seen: set[str] = set()
        for name, _ in named:
            if name in seen:
                raise self.error(f"two {what}s are called {name}")
            if NAME.fullmatch(name) is None:
                raise self.error(f"an {what} needs a printable name", found=repr(name), expected=NAME.pattern)
            seen.add(name)

    def define(self, value: Value, node: Node | None) -> None:
        if value in self.defined:
            raise self.error("a value is defined twice", node, found=value.type)
        self.defined.add(value)
        if value.type in self.seen_types:
            return
        self.seen_types.add(value.type)
        for size in value.type.shape:
            for symbol in () if isinstance(size, int) else size.symbols:
                other = self.symbols.setdefault(symbol.name, symbol)
                if other != symbol:
                    raise self.error(
                        f"the dim {symbol.name} has two pairs of bounds",
                        node,
                        found=f"{symbol.min}..{symbol.max}",
                        expected=f"{other.min}..{other.max}",
                    )

    def check_node(self, node: Node) -> None:
        for position, value in enumerate(node.inputs):
            if value not in self.defined:
                raise self.error(f"operand {position} is read before it is made", node, found=value.type)
        if (self.level, node) not in self.trusted:
            self.check_rules(node)
            self.trusted.add((self.level, node))
        if node.op == "parameter":
            self.check_key(node)
        for value in node.outputs:
            self.define(value, node)

    def check_rules(self, node: Node) -> None:
        """What holds of a node by itself."""
        op = REGISTRY.get(node.op)
        if op is None:
            raise self.error(f"there is no op called {node.op}", node)
        if self.level not in op.levels:
            raise self.error(
                f"{node.op} is not allowed on this level", node, self.level, " or ".join(sorted(op.levels))
            )
        found, expected = set(node.attrs), {attribute.name for attribute in op.attributes}
        if found != expected:
            raise self.error("the attributes are not those of the op", node, sorted(found), sorted(expected))
        self.check_types(node)

    def check_types(self, node: Node) -> None:
        """Infer equal nodes once, for layers repeat. The text of attributes tells 1 from 1.0 and True."""
        operands = tuple(value.type for value in node.inputs)
        key = (node.op, operands, print_attrs(node.attrs))
        types = self.inferred.get(key)
        if types is None:
            try:
                types = REGISTRY[node.op].infer(operands, node.attrs)
            except RlxError as error:
                raise self.error(error.what, node, error.found, error.expected) from error
            self.inferred[key] = types
        found = tuple(value.type for value in node.outputs)
        if found != types:
            raise self.error("the types are not those the op infers", node, _listed(found), _listed(types))

    def check_key(self, node: Node) -> None:
        key, type_ = str(node.attrs["key"]), node.output.type
        other = self.keys.setdefault(key, type_)
        if other != type_:
            raise self.error(f"the parameter {key} has two types", node, type_, other)

    def error(self, what: str, node: Node | None = None, found: object = None, expected: object = None) -> VerifyError:
        """The error, with the node as it prints, its location and the pass."""
        where = [f"graph {self.graph.name} ({self.level})"]
        if node is not None:
            where = [print_node_of(self.graph, node), str(node.location), *where]
        if self.after is not None:
            where.append(f"after the pass {self.after}")
        return VerifyError(what, where=", ".join(where), found=found, expected=expected)


def _listed(types: Sequence[TensorType]) -> str:
    return ", ".join(map(str, types)) or "none"
