"""Kernels that work on one row at a time: rms_norm, quantize, reduce_sum, reduce_max.

A row is reduced in one order: 16 lanes walked along the row, then the lanes in a fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlx.backends.cpu.emit import F32, LANES, VF, Emit, Val
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.kernels.store import store_quantised_blocks
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, DType
from rlx.core.graph import Node
from rlx.ops.op import float_attr, int_attr, static_axis


def load_tail(e: Emit, address: Val, left: Val, fill: float) -> Val:
    """The last `left` (< 16) floats behind `address`; `fill` in the other lanes."""
    mask = e.tail_mask(left)
    return e.select(mask, e.masked_load(address, VF, mask), e.typed(fill, VF))


def reduce_row(e: Emit, address: Val, width: Val, start: float, step: Callable[[Val, Val], Val], fill: float) -> Val:
    """The 16 partial results of a row of float32: whole vectors first, then the rest."""
    total = e.var(start, VF)
    whole = width - width % LANES
    with e.loop(0, whole, LANES) as i:
        total.set(step(total.get(), e.load(address, VF, i)))
    with e.when(whole < width):
        total.set(step(total.get(), load_tail(e, e.at(address, whole, F32), width - whole, fill)))
    return total.get()


def _plan_rms_norm(node: Node, target: Target) -> KernelPlan:
    x, groups = node.inputs[0].type, int_attr(node.attrs, "groups")
    width = static_axis(x, -1, "the normalised axis") // groups
    config: dict[str, Setting] = {
        "eps": float_attr(node.attrs, "eps"),
        "plus_one": bool(node.attrs["plus_one"]),
        "out": str(node.attrs["dtype"]),
        "width": width,
    }
    return KernelPlan("row", config, (), product(x.shape[:-1]) * groups)


def _rms_norm_why_not(node: Node, target: Target) -> str | None:
    dtype = node.attrs["dtype"]
    if not isinstance(dtype, DType) or dtype.name not in ACTIVATION_TERMS:
        return None
    width = static_axis(node.inputs[0].type, -1, "the normalised axis") // int_attr(node.attrs, "groups")
    return f"a quantised result needs whole blocks of {dtype.block_size}" if width % dtype.block_size else None


@kernel("rms_norm", "row", help="one pass for the squares, one to scale", when=_rms_norm_why_not, plan=_plan_rms_norm)
def build_rms_norm(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, weight [width], out (f32 or quantised); units are rows of `width`."""
    e, width = body.e, int(config["width"])
    x, weight, out = (body.buffer(i) for i in range(3))
    dtype = DTYPES[str(config["out"])]
    with e.loop(body.begin, body.end) as row:
        source = e.at(x, row * width, F32)
        squares = reduce_row(e, source, e.i64(width), 0.0, lambda total, v: e.fma(v, v, total), 0.0)
        mean = e.reduce(squares, lambda a, b: a + b) / float(width) + float(config["eps"])
        scale = e.splat(e.like(1.0, mean) / e.sqrt(mean))

        def scaled(value: Val, factor: Val, scale: Val = scale) -> Val:
            return value * scale * (factor + 1.0 if config["plus_one"] else factor)

        if dtype.is_packed:
            target = e.at(out, row * dtype.nbytes(width))

            def values_at(k: Val, source: Val = source) -> Val:
                return scaled(e.load(source, VF, k), e.load(weight, VF, k))

            store_quantised_blocks(e, values_at, target, e.i64(width // dtype.block_size), dtype)
        else:
            target = e.at(out, row * width, F32)
            with e.loop(0, width // LANES * LANES, LANES) as i:
                e.store(scaled(e.load(source, VF, i), e.load(weight, VF, i)), target, i)
            if width % LANES:
                start, mask = width // LANES * LANES, e.tail_mask(e.i64(width % LANES))
                loaded = [e.masked_load(e.at(p, start, F32), VF, mask) for p in (source, weight)]
                e.masked_store(scaled(*loaded), e.at(target, start, F32), mask)


def _plan_quantize(node: Node, target: Target) -> KernelPlan:
    x = node.inputs[0].type
    blocks = static_axis(x, -1, "the quantised axis") // node.output.type.dtype.block_size
    return KernelPlan("row", {"out": str(node.output.type.dtype)}, (blocks,), product(x.shape[:-1]))


@kernel("quantize", "row", help="int8 with a scale for each block", when=always, plan=_plan_quantize)
def build_quantize(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x f32, out quantised; sizes blocks per row; units are rows."""
    e, blocks, dtype = body.e, body.size(0), DTYPES[str(config["out"])]
    x, out = body.buffer(0), body.buffer(1)
    first, count = body.begin * blocks, (body.end - body.begin) * blocks
    source, target = e.at(x, first * dtype.block_size, F32), e.at(out, first * dtype.block_bytes)
    store_quantised_blocks(e, lambda k: e.load(source, VF, k), target, count, dtype)


def _plan_reduce(node: Node, target: Target) -> KernelPlan:
    x = node.inputs[0].type
    return KernelPlan("row", {}, (x.shape[-1],), product(x.shape[:-1]))


def _build_reduce(body: Body, start: float, step: Callable[[Val, Val], Val]) -> None:
    e, width = body.e, body.size(0)
    x, out = body.buffer(0), body.buffer(1)
    with e.loop(body.begin, body.end) as row:
        lanes = reduce_row(e, e.at(x, row * width, F32), width, start, step, start)
        e.store(e.reduce(lanes, step), out, row)


@kernel("reduce_sum", "row", help="16 lanes along the row", when=always, plan=_plan_reduce)
def build_reduce_sum(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x [rows, width], out [rows, 1]; sizes width."""
    _build_reduce(body, 0.0, lambda a, b: a + b)


@kernel("reduce_max", "row", help="16 lanes along the row", when=always, plan=_plan_reduce)
def build_reduce_max(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x [rows, width], out [rows, 1]; sizes width. Not-a-number in a row is its maximum, as in NumPy."""
    _build_reduce(body, float("-inf"), lambda a, b: body.e.intrinsic("maximum", a, b))
