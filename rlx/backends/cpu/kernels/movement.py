"""transpose, broadcast, slice, last_token (one strided copy), concat, iota, take_rows, cast, dequantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlx.backends.cpu.emit import F32, I32, I64, LANES, Val, ir, vec
from rlx.backends.cpu.kernels.formats import FORMATS, find_format, format_name
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import Shape, Size, product
from rlx.core.graph import Node
from rlx.core.type import TensorType
from rlx.ops.op import int_attr, size_tuple, static_axis


def strides_of(shape: Shape) -> list[Size]:
    """Elements between neighbours along each axis of a row-major tensor."""
    result: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        result.insert(0, step)
        step = step * size
    return result


def _plain(node: Node, target: Target) -> str | None:
    dtype = node.output.type.dtype
    return f"{dtype} is packed" if dtype.is_packed else None


def _strided_plan(out: TensorType, strides: Sequence[Size], offset: Size) -> KernelPlan:
    """out[i, j, ...] = in[offset + i * strides[0] + j * strides[1] + ...]."""
    shape, strides = [*out.shape] or [1], [*strides] or [0]
    config: dict[str, Setting] = {
        "bytes": out.dtype.block_bytes,
        "rank": len(shape),
        "contiguous": strides[-1] == 1,
    }
    return KernelPlan("strided", config, (offset, *shape, *strides), product(shape[:-1]))


def _plan_transpose(node: Node, target: Target) -> KernelPlan:
    strides, axes = strides_of(node.inputs[0].type.shape), node.attrs["axes"]
    order = [axis for axis in axes if isinstance(axis, int)] if isinstance(axes, tuple) else []
    return _strided_plan(node.output.type, [strides[axis] for axis in order], 0)


def _plan_broadcast(node: Node, target: Target) -> KernelPlan:
    x, shape = node.inputs[0].type, size_tuple(node.attrs["shape"])
    strides = strides_of(x.shape)
    lead = len(shape) - x.rank
    kept = [0 if x.shape[i] == 1 and shape[lead + i] != 1 else strides[i] for i in range(x.rank)]
    return _strided_plan(node.output.type, [0] * lead + kept, 0)


def _plan_slice(node: Node, target: Target) -> KernelPlan:
    strides, axis = strides_of(node.inputs[0].type.shape), int_attr(node.attrs, "axis")
    return _strided_plan(node.output.type, strides, int_attr(node.attrs, "start") * strides[axis])


def _plan_last_token(node: Node, target: Target) -> KernelPlan:
    shape = node.inputs[0].type.shape
    strides = strides_of(shape)
    return _strided_plan(node.output.type, strides, (shape[-2] - 1) * strides[-2])


def _build_strided(body: Body, config: Mapping[str, Setting]) -> None:
    e, rank = body.e, int(config["rank"])
    element = ir.IntType(8 * int(config["bytes"]))
    source, out = body.buffer(0), body.buffer(1)
    offset = body.size(0)
    shape = [body.size(1 + axis) for axis in range(rank)]
    strides = [body.size(1 + rank + axis) for axis in range(rank)]
    with e.loop(body.begin, body.end) as unit:
        rest, address = unit, offset
        for axis in reversed(range(rank - 1)):
            address = address + (rest % shape[axis]) * strides[axis]
            rest = rest // shape[axis]
        target, width = e.at(out, unit * shape[-1], element), shape[-1]
        start: Val | int = 0
        if config["contiguous"]:
            start = width - width % LANES
            with e.loop(0, start, LANES) as i:
                e.store(e.load(source, vec(element), address + i), target, i)
        with e.loop(start, width) as i:
            e.store(e.load(source, element, address + i * strides[-1]), target, i)


for _op, _plan in (
    ("transpose", _plan_transpose),
    ("broadcast", _plan_broadcast),
    ("slice", _plan_slice),
    ("last_token", _plan_last_token),
):
    kernel(_op, "strided", help="a strided copy, vectors where the last axis is dense", when=_plain, plan=_plan)(
        _build_strided
    )


def _plan_concat(node: Node, target: Target) -> KernelPlan:
    axis = int_attr(node.attrs, "axis")
    out = node.output.type
    widths = [product(value.type.shape[axis:]) for value in node.inputs]
    config: dict[str, Setting] = {"operands": len(widths), "bytes": out.dtype.block_bytes}
    return KernelPlan("rows", config, (*widths,), product(out.shape[:axis]))


@kernel("concat", "rows", help="each operand's part of a row in turn", when=_plain, plan=_plan_concat)
def build_concat(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: operands, out; sizes: elements of one row of each operand."""
    e, count = body.e, int(config["operands"])
    element = ir.IntType(8 * int(config["bytes"]))
    out, widths = body.buffer(count), [body.size(i) for i in range(count)]
    total = widths[0]
    for width in widths[1:]:
        total = total + width
    with e.loop(body.begin, body.end) as row:
        target = row * total
        for index, width in enumerate(widths):
            source = e.at(body.buffer(index), row * width, element)
            with e.loop(0, width) as i:
                e.store(e.load(source, element, i), out, target + i)
            target = target + width


def _plan_iota(node: Node, target: Target) -> KernelPlan:
    return KernelPlan("scalar", {}, (), node.output.type.num_elements)


@kernel("iota", "scalar", help="one store each", when=always, plan=_plan_iota)
def build_iota(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: out."""
    with body.e.loop(body.begin, body.end) as i:
        body.e.store(i.trunc(I32), body.buffer(0), i)


def _plan_take_rows(node: Node, target: Target) -> KernelPlan:
    table, indices = node.inputs[0].type, node.inputs[1].type
    width = product(table.shape[1:])
    config: dict[str, Setting] = {"bytes": table.dtype.block_bytes}
    return KernelPlan("rows", config, (width, table.shape[0]), indices.num_elements)


@kernel("take_rows", "rows", help="a copy of each row, indices checked", when=_plain, plan=_plan_take_rows)
def build_take_rows(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: table, indices, out; sizes row width, table rows."""
    e, element = body.e, ir.IntType(8 * int(config["bytes"]))
    width, limit = body.size(0), body.size(1)
    table, indices, out = (body.buffer(i) for i in range(3))
    with e.loop(body.begin, body.end) as row:
        index = body.checked_index(e.load(indices, I32, row).sext(I64), limit)
        source, target = e.at(table, index * width, element), e.at(out, row * width, element)
        whole = width - width % LANES
        with e.loop(0, whole, LANES) as i:
            e.store(e.load(source, vec(element), i), target, i)
        with e.loop(whole, width) as i:
            e.store(e.load(source, element, i), target, i)


def _plan_cast(node: Node, target: Target) -> KernelPlan:
    return KernelPlan("scalar", {"to": str(node.output.type.dtype)}, (), node.output.type.num_elements)


@kernel("cast", "scalar", help="one conversion each", when=always, plan=_plan_cast)
def build_cast(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, out."""
    e, to_float = body.e, config["to"] == "f32"
    with e.loop(body.begin, body.end) as i:
        value = e.load(body.buffer(0), I32 if to_float else F32, i)
        converted = value.to_float() if to_float else Val(e, _saturating(body, value).v)
        e.store(converted, body.buffer(1), i)


def _saturating(body: Body, value: Val) -> Val:
    """Float to int32 with values out of range held at the ends (a plain conversion would be undefined)."""
    e = body.e
    bounded = e.select(value > -2147483648.0, value, e.like(-2147483648.0, value))
    return e.select(bounded < 2147483520.0, bounded, e.like(2147483520.0, bounded)).to_int()


def _dequantize_why_not(node: Node, target: Target) -> str | None:
    x = node.inputs[0].type
    if x.dtype.name not in FORMATS or x.rank not in (1, 2):
        return f"only stored weights [rows, k] and vectors are unpacked, not {x}"
    return None


def _plan_dequantize(node: Node, target: Target) -> KernelPlan:
    x = node.inputs[0].type
    config: dict[str, Setting] = {"weight": format_name(x)}
    return KernelPlan("rows", config, (static_axis(x, -1, "k"),), product(x.shape[:-1]), {0: "rows16"})


@kernel("dequantize", "rows", help="one row at a time", when=_dequantize_why_not, plan=_plan_dequantize)
def build_dequantize(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: weight (rows16), out f32; sizes k."""
    e, k = body.e, body.size(0)
    with e.loop(body.begin, body.end) as row:
        copy_row(body, str(config["weight"]), body.buffer(0), row, e.at(body.buffer(1), row * k, F32), k, None)


def copy_row(body: Body, weight: str, table: Val, row: Val, target: Val, k: Val, scale: float | None) -> None:
    """One row of a `rows16` table as float32, times `scale`."""
    e, fmt = body.e, find_format(weight)
    blocks = k // fmt.block
    group = e.at(table, (row // LANES) * blocks * fmt.block_bytes)
    lane = row % LANES
    with fmt.chunks(e, group, blocks) as (place, number):
        for index, value in enumerate(fmt.row(e, place, lane)):
            e.store(value if scale is None else value * scale, target, number * fmt.chunk + index * LANES)
