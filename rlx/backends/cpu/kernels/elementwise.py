"""elementwise: one loop for a fused expression; each operand is full, a row, a column or one element.

The operands are seen as [outer, inner]: a full operand has both, a row is repeated over outer, a column over inner. An
operand of any other broadcast shape is expanded by `broadcast` first (`mir/legalize.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlx.backends.cpu.emit import F32, I1, I8, I32, LANES, VF, Emit, Val, vec
from rlx.backends.cpu.kernels.registry import Body, Setting, kernel
from rlx.backends.cpu.kernels.store import store_quantised_blocks
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.vmath import SCALAR_EMITTERS
from rlx.core.backend import KernelPlan
from rlx.core.dim import Shape, Size, divide_exact, product
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, DType
from rlx.core.graph import Node
from rlx.core.type import TensorType
from rlx.ops.elementwise import Expression, parse_expression

ELEMENTS = {"f32": F32, "i32": I32, "bool": I8}
FULL, ROW, COLUMN, ONE = "full", "row", "column", "one"
BLOCKS_AT_ONCE = 16
"""Blocks whose values are made before they are quantised; for blocks of 32, 2 KB of the first-level cache."""


def operand_kind(operand: Shape, result: Shape) -> str | None:
    """How an operand is laid out against the result; None if it has to be expanded first."""
    if operand == result:
        return FULL
    if all(size == 1 for size in operand):
        return ONE
    if len(operand) == len(result) and operand[:-1] == result[:-1] and operand[-1] == 1:
        return COLUMN
    stripped = operand
    while stripped and stripped[0] == 1:
        stripped = stripped[1:]
    return ROW if stripped == result[-len(stripped) :] and len(stripped) == 1 else None


def _why_not(node: Node, target: Target) -> str | None:
    out = node.output.type
    for value in node.inputs:
        if value.type.dtype.name not in ELEMENTS:
            return f"there is no lane type for {value.type.dtype}"
        if operand_kind(value.type.shape, out.shape) is None:
            return f"{value.type} has to be broadcast to {out} first"
    if out.dtype.name not in ACTIVATION_TERMS:
        return None if out.dtype.name in ELEMENTS else f"there is no lane type for {out.dtype}"
    kinds = {operand_kind(value.type.shape, out.shape) for value in node.inputs}
    return None if kinds <= {FULL, ONE} else "a quantised result takes full operands"


def _plan(node: Node, target: Target) -> KernelPlan:
    out = node.output.type
    kinds = [operand_kind(value.type.shape, out.shape) or FULL for value in node.inputs]
    flat = all(kind in (FULL, ONE) for kind in kinds)
    config: dict[str, Setting] = {
        "expression": str(node.attrs["expression"]),
        "operands": ",".join(f"{value.type.dtype}:{kind}" for value, kind in zip(node.inputs, kinds, strict=True)),
        "out": str(out.dtype),
        "flat": flat,
    }
    count = out.num_elements
    if out.dtype.name in ACTIVATION_TERMS:
        return KernelPlan("flat", config, (), product((*out.shape[:-1], _blocks(out))))
    if flat:
        return KernelPlan("flat", config, (count,), _chunks(count))
    return KernelPlan("flat", config, (out.shape[-1],), product(out.shape[:-1]))


def _blocks(type_: TensorType) -> int:
    last = type_.shape[-1]
    return last // type_.dtype.block_size if isinstance(last, int) else 0


def _chunks(count: Size) -> Size:
    """Vectors needed. A symbolic count that cannot be divided gives more units than needed; the last are empty."""
    if isinstance(count, int):
        return -(-count // LANES)
    exact = divide_exact(count, LANES)
    return count if exact is None else exact


@kernel("elementwise", "flat", help="one loop over all elements, or rows of them", when=_why_not, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: operands, out; sizes: element count (flat) or row width."""
    operands = [part.split(":") for part in str(config["operands"]).split(",")]
    expression = parse_expression(str(config["expression"]))
    loader = _Loader(body, operands)
    if config["out"] in ACTIVATION_TERMS:
        _build_quantised(body, expression, loader, DTYPES[str(config["out"])])
    elif config["flat"]:
        e, count = body.e, body.size(0)
        start, stop = body.begin * LANES, e.minimum(body.end * LANES, count)
        _vector_loop(body, expression, loader, start, stop, e.i64(0), str(config["out"]))
    else:
        width = body.size(0)
        with body.e.loop(body.begin, body.end) as row:
            loader.row, loader.width = row, width
            _vector_loop(body, expression, loader, body.e.i64(0), width, row * width, str(config["out"]))


class _Loader:
    """Loads one vector of every operand."""

    def __init__(self, body: Body, operands: Sequence[Sequence[str]]) -> None:
        self.e, self.operands = body.e, operands
        self.pointers = [body.buffer(i) for i in range(len(operands))]
        self.out = body.buffer(len(operands))
        self.row: Val | None = None
        self.width: Val | None = None

    def load(self, column: Val, base: Val, mask: Val | None) -> list[Val]:
        return [
            self._load(pointer, ELEMENTS[dtype], dtype, kind, column, base, mask)
            for pointer, (dtype, kind) in zip(self.pointers, self.operands, strict=True)
        ]

    def _load(
        self, pointer: Val, element: object, dtype: str, kind: str, column: Val, base: Val, mask: Val | None
    ) -> Val:
        e = self.e
        if kind in (ONE, COLUMN):
            index = self.row if kind == COLUMN and self.row is not None else e.i64(0)
            value = e.splat(e.load(pointer, element, index))
        else:
            address = e.at(pointer, column if kind == ROW else base + column, element)
            type_ = vec(element)
            value = e.load(address, type_) if mask is None else e.masked_load(address, type_, mask)
        return value.trunc(I1) if dtype == "bool" else value


def _evaluate(e: Emit, expression: Expression, operands: Sequence[Val]) -> Val:
    if isinstance(expression, int):
        return operands[expression]
    if isinstance(expression, float):
        # a literal is a float unless all there is are integers
        numbers = [value for value in operands if value.element != I1]
        integers = numbers and not any(value.is_float for value in numbers)
        return e.typed(expression, vec(I32) if integers else vec(F32))
    values = [_evaluate(e, operand, operands) for operand in expression[1]]
    return SCALAR_EMITTERS[expression[0]](e, *values)


def _vector_loop(
    body: Body, expression: Expression, loader: _Loader, start: Val, stop: Val, base: Val, out: str
) -> None:
    e = body.e
    length = e.maximum(stop - start, 0)
    whole = start + (length - length % LANES)

    def value_at(column: Val, mask: Val | None) -> Val:
        value = _evaluate(e, expression, loader.load(column, base, mask))
        return value.zext(I8) if out == "bool" else value

    with e.loop(start, whole, LANES) as column:
        e.store(value_at(column, None), loader.out, base + column)
    with e.when(whole < stop):
        mask = e.tail_mask(stop - whole)
        value = value_at(whole, mask)
        e.masked_store(value, e.at(loader.out, base + whole, value.element), mask)


def _build_quantised(body: Body, expression: Expression, loader: _Loader, dtype: DType) -> None:
    """The values of some blocks, then the blocks of those.

    In one loop, the chain from an operand to its scale is so long that nothing runs beside it.
    """
    e, size = body.e, dtype.block_size
    scratch = e.local(F32, BLOCKS_AT_ONCE * size)
    with e.loop(body.begin, body.end, BLOCKS_AT_ONCE) as first:
        count = e.minimum(body.end - first, BLOCKS_AT_ONCE)
        with e.loop(0, count * size, LANES) as k:
            e.store(_evaluate(e, expression, loader.load(k, first * size, None)), scratch, k)
        target = e.at(loader.out, first * dtype.block_bytes)
        store_quantised_blocks(e, lambda k: e.load(scratch, VF, k), target, count, dtype)
