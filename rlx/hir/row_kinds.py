"""Which values of a plain forward pass have a row for each token, and which ops keep rows apart.

In: a graph with the input `tokens: i32[lead..., seq]`, and perhaps one `source: f32[lead..., frames, width]`. Out: the
kind of every value. A value of kind TOKEN has the shape `[lead..., seq, inner...]`, POSITION `[seq, inner...]`, LAST
`[lead..., 1, inner...]`, SOURCE `[lead..., frames, inner...]` (what an encoder made of something else), and STATIC
depends on weights and constants alone. An op that mixes rows in a way nobody declared is refused. Next:
`derive_step.py`, `derive_packed.py`, `derive_source.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from rlx.core.dim import Shape, symbols_of
from rlx.core.dtype import f32, i32
from rlx.core.graph import Graph, Node, Value
from rlx.errors import FlowError
from rlx.ops.elementwise import SCALAR_OPS
from rlx.ops.op import lookup
from rlx.ops.packed_attention import PACKED_MASKS
from rlx.ops.recurrent_state import STATE_FORMS


class Kind(Enum):
    """What the leading axes of a value are."""

    STATIC = "static"
    POSITION = "position"
    TOKEN = "token"
    LAST = "last"
    SOURCE = "source"


# Ops without the flag row_wise that still keep rows apart: they look at the inner axes of each row alone.
PER_ROW = frozenset({"rope", "repeat_kv", "reshape", "transpose", "broadcast", "slice", "concat"})
# Row-wise ops for which a row may be a single number.
SCALAR_ROWS = frozenset(SCALAR_OPS) | {"elementwise", "cast", "soft_cap", "swiglu", "geglu"}


@dataclass(frozen=True, slots=True)
class RowRules:
    """What a derived program can do.

    Attributes:
        masks: mask kinds of attention.
        one_row: ops that make one row of all rows of a sequence.
        states: whether ops may carry a state from row to row (`ops/recurrent_state.py`).
        inputs: further inputs with a number for each token, such as its type.
        source: a further input with rows of its own, which cross attention reads; None where there can be none.
    """

    masks: tuple[str, ...]
    one_row: tuple[str, ...]
    states: bool = False
    inputs: tuple[str, ...] = ()
    source: str | None = None


STEP_RULES = RowRules(("causal", "sliding"), ("last_token",), states=True, source="source")
PACKED_RULES = RowRules(PACKED_MASKS, ("last_token", "pool_tokens"), inputs=("token_types",))


@dataclass(frozen=True, slots=True)
class RowKinds:
    """The kind of each value, the token axes, and what is allowed."""

    lead: Shape
    tokens: Value
    kinds: dict[Value, Kind]
    rules: RowRules
    source: Value | None = None

    def __getitem__(self, value: Value) -> Kind:
        return self.kinds[value]

    def row_axes(self, value: Value) -> int:
        """How many leading axes of a value count rows."""
        return {Kind.STATIC: 0, Kind.POSITION: 1}.get(self.kinds[value], len(self.lead) + 1)

    def inner(self, value: Value) -> Shape:
        """The axes of one row."""
        return value.type.shape[self.row_axes(value) :]


def refuse(node: Node, why: str, fix: str | None = None) -> NoReturn:
    """Raise FlowError: the node stands in the way of a step program."""
    raise FlowError(
        f"no program over rows can be derived from this flow: {why}",
        where=str(node.location),
        found=f"{node.op}({', '.join(str(value.type) for value in node.inputs)})",
        fix=fix or "use the plain graph (`rlx.compile` without a cache), or write the block with row-wise ops",
    )


def row_kinds(graph: Graph, rules: RowRules = STEP_RULES) -> RowKinds:
    """Classify every value.

    Raises:
        FlowError: the inputs are others, or an op mixes rows in an unknown way.
    """
    tokens = dict(graph.inputs).get("tokens")
    allowed = {"tokens", *rules.inputs}
    source = dict(graph.inputs).get(rules.source or "")
    plain = [(name, value) for name, value in graph.inputs if value is not source]
    if tokens is None or any(name not in allowed or value.type != tokens.type for name, value in plain):
        found = ", ".join(f"{name}: {value.type}" for name, value in graph.inputs)
        raise FlowError(
            "a program is derived from a flow whose only input is the token ids",
            where=graph.name,
            found=found or "no input",
            expected=f"tokens: i32[batch, seq]{''.join(f', perhaps {name}' for name in rules.inputs)}",
        )
    if tokens.type.dtype != i32 or not tokens.type.rank:
        raise FlowError("token ids are whole numbers with a sequence axis", where=graph.name, found=str(tokens.type))
    rows = RowKinds(tokens.type.shape[:-1], tokens, {value: Kind.TOKEN for _, value in plain}, rules, source)
    if source is not None:
        _check_source(graph, source, rows)
        rows.kinds[source] = Kind.SOURCE
    own = set(symbols_of(tokens.type.shape))
    for node in graph.nodes:
        kind = _kind_of(node, rows)
        for value in node.outputs:
            rows.kinds[value] = kind
            _check_shape(node, value, rows)
            if kind is Kind.STATIC and own & set(symbols_of(value.type.shape)):
                refuse(node, "a value is made from the length of the sequence alone", "take it from ctx.positions(seq)")
    return rows


def _check_source(graph: Graph, source: Value, rows: RowKinds) -> None:
    lead, type_ = rows.lead, source.type
    if type_.dtype != f32 or type_.rank != len(lead) + 2 or type_.shape[: len(lead)] != lead:
        expected = f"f32[{', '.join(map(str, lead))}, frames, width]"
        raise FlowError("a source has rows of numbers", where=graph.name, found=str(type_), expected=expected)


def is_cross_attention(node: Node, rows: RowKinds) -> bool:
    """Whether the tokens attend to the rows of the source."""
    return node.op == "attention" and [rows[value] for value in node.inputs[1:]] == [Kind.SOURCE, Kind.SOURCE]


def _kind_of(node: Node, rows: RowKinds) -> Kind:
    kinds = {rows[value] for value in node.inputs} - {Kind.STATIC}
    if not kinds:
        return Kind.STATIC
    if node.op == "positions":
        if node.inputs[0] is not rows.tokens:
            refuse(node, "positions are taken of something that is not the token ids")
        return Kind.POSITION
    if node.op in rows.rules.one_row:
        what = node.op.replace("_", " ")
        return Kind.LAST if kinds == {Kind.TOKEN} else refuse(node, f"the {what} is taken twice, or of no sequence")
    if is_cross_attention(node, rows):
        if rows[node.inputs[0]] is not Kind.TOKEN or node.attrs["mask"] != "none":
            refuse(node, "cross attention is of all tokens, over every row of the source", "use MaskKind.none()")
        return Kind.TOKEN
    if Kind.SOURCE in kinds and len(kinds) > 1:
        refuse(node, "rows of the source meet values of the tokens", "let tokens read the source by attention alone")
    if Kind.LAST in kinds and len(kinds) > 1:
        refuse(node, "what is one row of each sequence meets values of all tokens")
    kind = Kind.TOKEN if Kind.TOKEN in kinds else kinds.pop()
    _check_op(node, rows, kind)
    return kind


def _check_op(node: Node, rows: RowKinds, kind: Kind) -> None:
    """Refuse an op that does not keep rows apart."""
    if node.op == "attention":
        return _check_attention(node, rows)
    if node.op in STATE_FORMS:
        return _check_state(node, rows)
    first = rows[node.inputs[0]]
    if node.op in ("embedding", "take_rows", "rope_table", "matmul"):
        indexed, other = (1, 0) if node.op == "take_rows" else (0, 1)
        if rows[node.inputs[other]] is not Kind.STATIC or rows[node.inputs[indexed]] is Kind.STATIC:
            refuse(node, f"{node.op} takes rows from something that depends on the tokens")
        if node.op == "matmul" and (node.inputs[1].type.rank != 2 or not rows.inner(node.inputs[0])):
            refuse(node, "the product runs over the token axis")
        return None
    if node.op in PER_ROW:
        if first is Kind.STATIC or (node.op == "rope" and any(rows[v] is not Kind.POSITION for v in node.inputs[1:])):
            refuse(node, f"{node.op} mixes rows with values that have none")
        return None
    if not lookup(node.op).row_wise:
        refuse(node, f"nobody declared that {node.op} keeps the rows of tokens apart")
    if node.op not in SCALAR_ROWS and any(rows[v] is kind and not rows.inner(v) for v in node.inputs):
        refuse(node, f"{node.op} runs over the token axis")
    return None


def _check_attention(node: Node, rows: RowKinds) -> None:
    if node.attrs["mask"] not in rows.rules.masks:
        refuse(
            node,
            f"attention with the mask kind {node.attrs['mask']} cannot be derived",
            "use " + " or ".join(f"MaskKind.{mask}()" for mask in rows.rules.masks),
        )
    if any(rows[value] is not Kind.TOKEN or len(rows.inner(value)) != 1 for value in node.inputs[:3]):
        refuse(node, "attention has to run over all tokens of the sequence")
    if any(rows[value] is not Kind.STATIC for value in node.inputs[3:]):
        refuse(node, "what attention adds to its scores depends on the tokens")


def _check_state(node: Node, rows: RowKinds) -> None:
    if not rows.rules.states:
        refuse(node, f"{node.op} carries a state from row to row, which this program has no place for")
    rowed = node.inputs[: STATE_FORMS[node.op].activations]
    if any(rows[value] is not Kind.TOKEN or len(rows.inner(value)) != 1 for value in rowed):
        refuse(node, f"{node.op} has to run over all tokens of the sequence")


def _check_shape(node: Node, value: Value, rows: RowKinds) -> None:
    """The leading axes have to be what the kind says; a reshape or transpose may have moved them."""
    seq = rows.tokens.type.shape[-1]
    prefix = {
        Kind.STATIC: (),
        Kind.POSITION: (seq,),
        Kind.TOKEN: (*rows.lead, seq),
        Kind.LAST: (*rows.lead, 1),
        Kind.SOURCE: (*rows.lead, *(() if rows.source is None else rows.source.type.shape[len(rows.lead) :][:1])),
    }[rows[value]]
    axes = len(prefix)
    moved = node.op == "transpose" and rows[value] is not Kind.STATIC and _axes(node)[:axes] != tuple(range(axes))
    along = node.op in ("concat", "slice") and rows[value] is not Kind.STATIC and _axis(node) < axes
    if moved or along or value.type.shape[:axes] != prefix:
        refuse(node, f"{node.op} moves or cuts the token axis")


def _axes(node: Node) -> tuple[object, ...]:
    axes = node.attrs["axes"]
    return axes if isinstance(axes, tuple) else ()


def _axis(node: Node) -> int:
    axis = node.attrs["axis"]
    return axis if isinstance(axis, int) else 0
