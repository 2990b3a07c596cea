"""Graph to text and back: `parse(print_graph(g))` prints the same text again.

graph llama {
  dim seq in 1..2048
  input tokens: i32[seq]
  %0 = parameter() {key="model.embed_tokens.weight"} : f32[128, 64]
  %1 = embedding(%tokens, %0) : f32[seq, 64]  loc("embed", "token_embed.py:12")
  output hidden = %1
}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from rlx.core.dim import Dim, Size, Symbol, parse_size
from rlx.core.dtype import DTYPES, DType
from rlx.core.graph import UNKNOWN, AttrValue, Graph, Location, Node, Value
from rlx.core.type import TensorType
from rlx.errors import ParseError, RlxError

NAME = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
"""What graphs, inputs, outputs, ops and attributes may be called, so that their text can be read back."""

MAX_NESTING = 16


def print_attr(value: AttrValue) -> str:
    """One attribute value as text."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, (DType, Dim, int)):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    return "[" + ", ".join(print_attr(item) for item in value) + "]"


def print_attrs(attrs: Mapping[str, AttrValue]) -> str:
    """`{a=1, b="x"}`, sorted by name; empty for none."""
    return "{" + ", ".join(f"{k}={print_attr(attrs[k])}" for k in sorted(attrs)) + "}" if attrs else ""


def print_graph(graph: Graph, *, locations: bool = True) -> str:
    """The whole graph as text."""
    names = value_names(graph)
    lines = [f"graph {graph.name} {{"]
    lines += [f"  dim {s.name} in {s.min}..{s.max}" for s in graph.symbols]
    lines += [f"  input {name}: {value.type}" for name, value in graph.inputs]
    lines += ["  " + _print_node(node, names, locations) for node in graph.nodes]
    lines += [f"  output {name} = {names.get(value, _UNDEFINED)}" for name, value in graph.outputs]
    return "\n".join([*lines, "}"]) + "\n"


def value_names(graph: Graph) -> dict[Value, str]:
    """The name each value has in the text: `%tokens` for an input, `%0`, `%1`, ... for results in order."""
    names = {value: f"%{name}" for name, value in graph.inputs}
    results = (value for node in graph.nodes for value in node.outputs)
    names.update((value, f"%{i}") for i, value in enumerate(results))
    return names


def print_node_of(graph: Graph, node: Node) -> str:
    """One node of a graph as it stands in the graph's text, without its location."""
    return _print_node(node, value_names(graph), locations=False)


# what stands for a value that no node makes: a broken graph can still be read, but does not parse
_UNDEFINED = "%undefined"


def _print_node(node: Node, names: Mapping[Value, str], locations: bool) -> str:
    results = ", ".join(names.get(value, _UNDEFINED) for value in node.outputs)
    operands = ", ".join(names.get(value, _UNDEFINED) for value in node.inputs)
    types = ", ".join(str(value.type) for value in node.outputs)
    attrs = print_attrs(node.attrs)
    text = f"{results} = {node.op}({operands}){' ' + attrs if attrs else ''} : {types}"
    if locations and node.location != UNKNOWN:
        text += f"  loc({json.dumps(node.location.path)}, {json.dumps(node.location.source)})"
    return text


_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>%?[^\s,(){}\[\]=:"]+)|(?P<mark>[,(){}\[\]=:]))')
_FLOAT = re.compile(r"-?(\d+\.\d*([eE][+-]?\d+)?|\d+[eE][+-]?\d+|inf|nan)")


class Cursor:
    """A line of text read token by token."""

    def __init__(self, text: str, where: str, symbols: Mapping[str, Symbol]) -> None:
        self.where, self.symbols = where, symbols
        self.tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ParseError("cannot read this line", where=where, found=repr(text[position:]))
            self.tokens.append(match.group().strip())
            position = match.end()
        self.at = 0

    def peek(self) -> str:
        """The next token, or an empty string at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        """The next token, which must be `expected` if that is given."""
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise ParseError(
                "unexpected text", where=self.where, found=repr(token) or "the end", expected=expected or "more"
            )
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        """Take the token if it is next."""
        if self.peek() != token:
            return False
        self.at += 1
        return True

    def items(self, closing: str) -> Iterator[None]:
        """Iterate over a comma-separated list up to `closing`, which is taken too."""
        if self.accept(closing):
            return
        while True:
            yield
            if self.accept(closing):
                return
            self.take(",")

    def size(self) -> Size:
        """A symbolic size."""
        return self._size(self.take())

    def _size(self, token: str) -> Size:
        try:
            return parse_size(token, self.symbols)
        except ParseError as error:
            raise ParseError(
                error.what, where=self.where, found=error.found, expected=error.expected, fix=error.fix
            ) from None

    def name(self) -> str:
        """A name, such as that of an op or an attribute."""
        token = self.take()
        if NAME.fullmatch(token) is None:
            raise ParseError("a name is needed", where=self.where, found=token)
        return token

    def string(self, token: str | None = None) -> str:
        """A quoted string."""
        token = self.take() if token is None else token
        try:
            if token.startswith('"'):
                return str(json.loads(token))
        except ValueError:
            pass
        raise ParseError("not a quoted string", where=self.where, found=token)

    def end(self) -> None:
        """Refuse what is left."""
        if self.peek():
            raise ParseError("text after the end", where=self.where, found=self.peek())

    def type(self) -> TensorType:
        """A tensor type."""
        name = self.take()
        if name not in DTYPES:
            raise ParseError("unknown dtype", where=self.where, found=name, expected=", ".join(DTYPES))
        self.take("[")
        shape = tuple(self.size() for _ in self.items("]"))
        try:
            return TensorType(DTYPES[name], shape)
        except RlxError as error:
            raise ParseError(error.what, where=self.where, found=error.found) from error

    def attr(self, depth: int = 0) -> AttrValue:
        """An attribute value."""
        if depth > MAX_NESTING:
            raise ParseError("lists are nested too deep", where=self.where, expected=f"{MAX_NESTING} levels")
        if self.accept("["):
            return tuple(self.attr(depth + 1) for _ in self.items("]"))
        token = self.take()
        if token.startswith('"'):
            return self.string(token)
        if token in ("none", "true", "false"):
            return {"none": None, "true": True, "false": False}[token]
        if token in DTYPES:
            return DTYPES[token]
        if _FLOAT.fullmatch(token):
            return float(token)
        return self._size(token)

    def attrs(self) -> dict[str, AttrValue]:
        """`{...}`, or nothing."""
        result: dict[str, AttrValue] = {}
        if self.accept("{"):
            for _ in self.items("}"):
                name = self.name()
                if name in result:
                    raise ParseError(f"the attribute {name} is given twice", where=self.where)
                self.take("=")
                result[name] = self.attr()
        return result


def parse_graph(text: str) -> Graph:
    """The graph that a text describes.

    Raises:
        ParseError: with the line that could not be read.
    """
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line and not line.startswith("#")]
    head = re.fullmatch(rf"graph ({NAME.pattern}) \{{", lines[0][1], re.ASCII) if lines else None
    if head is None or lines[-1][1] != "}":
        raise ParseError("not the text of a graph", expected="graph NAME { ... }")
    symbols: dict[str, Symbol] = {}
    values: dict[str, Value] = {}
    inputs: list[tuple[str, Value]] = []
    outputs: list[tuple[str, Value]] = []
    nodes: list[Node] = []
    for number, line in lines[1:-1]:
        where = f"line {number}"
        if match := re.fullmatch(r"dim (\w+) in (\d{1,12})\.\.(\d{1,12})", line, re.ASCII):
            _declare(symbols, match[1], int(match[2]), int(match[3]), where)
        elif match := re.fullmatch(rf"input ({NAME.pattern}): (.+)", line, re.ASCII):
            cursor = Cursor(match[2], where, symbols)
            value = Value(cursor.type())
            cursor.end()
            _define(values, f"%{match[1]}", value, where)
            inputs.append((match[1], value))
        elif match := re.fullmatch(rf"output ({NAME.pattern}) = (%\S+)", line, re.ASCII):
            outputs.append((match[1], _lookup(values, match[2], where)))
        else:
            nodes.append(_parse_node(Cursor(line, where, symbols), values))
    return Graph(head[1], tuple(inputs), tuple(nodes), tuple(outputs))


def _declare(symbols: dict[str, Symbol], name: str, low: int, high: int, where: str) -> None:
    if name in symbols:
        raise ParseError(f"the dim {name} is declared twice", where=where)
    try:
        (symbols[name],) = Dim(name, low, high).symbols
    except RlxError as error:
        raise ParseError(error.what, where=where, found=error.found) from error


def _define(values: dict[str, Value], name: str, value: Value, where: str) -> None:
    if not name.startswith("%") or name in values:
        raise ParseError("a value needs a name of its own that starts with %", where=where, found=name)
    values[name] = value


def _lookup(values: Mapping[str, Value], name: str, where: str) -> Value:
    if name not in values:
        raise ParseError("a value is used before it is made", where=where, found=name)
    return values[name]


def _parse_node(cursor: Cursor, values: dict[str, Value]) -> Node:
    names = [cursor.take()]
    while cursor.accept(","):
        names.append(cursor.take())
    cursor.take("=")
    op = cursor.name()
    cursor.take("(")
    operands = tuple(_lookup(values, cursor.take(), cursor.where) for _ in cursor.items(")"))
    attrs = cursor.attrs()
    cursor.take(":")
    types = [cursor.type()]
    while cursor.accept(","):
        types.append(cursor.type())
    location = UNKNOWN
    if cursor.accept("loc"):
        cursor.take("(")
        path, _, source, _ = cursor.string(), cursor.take(","), cursor.string(), cursor.take(")")
        location = Location(path, source)
    cursor.end()
    if len(names) != len(types):
        raise ParseError("as many types as results are needed", where=cursor.where, found=f"{len(types)} types")
    outputs = tuple(Value(type_) for type_ in types)
    for name, value in zip(names, outputs, strict=True):
        _define(values, name, value, cursor.where)
    return Node(op, operands, attrs, outputs, location)
