"""linear: the streaming form (few rows) and the tiled form (many) of `x @ weight.T`, from one description per format.

    for as many groups of 16 outputs (units, split over threads) as stay in the second-level cache
      for each tile of rows (8, then 4, then 1), which is read from further away once for all of them
        for each of the groups
          for each block of k:   accumulate 16 outputs x rows, in registers

Each output is reduced in one order, and the tile does not enter into it. Float weights: one fused multiply-add per k.
Integers: the chunks of 32 k in order, and for each of them, with u the unsigned bytes and x the int8 activations,

    total = fma(sum(u x), scale * x_scale, total)                       scale and minimum of a chunk
    total = fma(minimum, x_sum, total)

    total = fma(sum over both halves of scales[half] * sum((u - zero) x), scale * x_scale, total)
    total = fma(sum over both halves of minimums[half] * sum(x), minimum * x_scale, total)

where the second form is for formats with small integer scales for each 16 k. Its sums are below 2^24 in magnitude
(Q6_K: 2 * 128 * 16 * 32 * 127), so that they are exact in float32 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from rlx.backends.cpu.emit import F32, I32, LANES, VF, VI, Emit, Val, Var
from rlx.backends.cpu.kernels.byte_ops import half_sums
from rlx.backends.cpu.kernels.formats import FORMATS, WeightFormat
from rlx.backends.cpu.kernels.formats_blocks import IntegerChunk
from rlx.backends.cpu.kernels.registry import Body, Setting, When, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.dtype import ACTIVATION_TERMS, f32, q8_act
from rlx.core.graph import Node
from rlx.ops.op import static_axis

ROW_TILES = (8, 4, 1)
GROUPS_BYTES = 256 << 10
"""Weights that stay in the second-level cache while the tiles of rows pass by."""
ACTIVATION_BLOCK = q8_act.block_bytes

Tile: TypeAlias = Callable[[Emit, WeightFormat, Sequence[Val], Val, Val], list[Val]]
"""(e, format, addresses of the rows, address of the weights of 16 outputs, blocks) to 16 results for each row."""


def _why_not(quantised: bool) -> When:
    def when(node: Node, target: Target) -> str | None:
        x, weight = node.inputs[0].type, node.inputs[1].type
        if weight.dtype.name not in FORMATS:
            return f"there is no layout for {weight.dtype} weights"
        if (x.dtype.name in ACTIVATION_TERMS) != quantised:
            return f"x is {x.dtype}"
        if quantised and FORMATS[weight.dtype.name].integer is None:
            return f"a {weight.dtype} weight has no integer form"
        return None

    return when


def _plan(node: Node, target: Target) -> KernelPlan:
    x, weight = node.inputs[0].type, node.inputs[1].type
    out, k = static_axis(weight, 0, "out"), static_axis(weight, 1, "in")
    terms = ACTIVATION_TERMS.get(x.dtype.name, 0)
    config = {
        "terms": terms,
        "weight": weight.dtype.name,
        "bias": len(node.inputs) == 3,
        "partial": bool(out % LANES),
    }
    variant = "integer" if terms else "float"
    return KernelPlan(variant, config, (product(x.shape[:-1]), k, out), -(-out // LANES), {1: "rows16"})


@kernel(
    "linear",
    "integer",
    help="int8 activations times weights of 2 to 8 bits, 32-bit sums per chunk of 32",
    when=_why_not(quantised=True),
    plan=_plan,
)
def build_integer(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x quantised [m, k], weight, (bias), out f32 [m, n]; sizes m, k, n."""
    fmt = FORMATS[str(config["weight"])]
    terms = int(config["terms"])
    x_block = terms * ACTIVATION_BLOCK * (fmt.block // q8_act.block_size)
    _build(body, config, fmt, x_block, partial(_integer_tile, terms))


@kernel(
    "linear",
    "float",
    help="float32 activations, weights unpacked to float32 in registers",
    when=_why_not(quantised=False),
    plan=_plan,
)
def build_float(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x f32 [m, k], weight, (bias), out f32 [m, n]; sizes m, k, n."""
    fmt = FORMATS[str(config["weight"])]
    _build(body, config, fmt, fmt.block * f32.block_bytes, _float_tile)


def _build(body: Body, config: Mapping[str, Setting], fmt: WeightFormat, x_block: int, tile: Tile) -> None:
    e = body.e
    rows, k, columns = (body.size(i) for i in range(3))
    x, weight, out = body.buffer(0), body.buffer(1), body.buffer(3 if config["bias"] else 2)
    blocks = k // fmt.block
    group_bytes, row_bytes = blocks * fmt.block_bytes, blocks * x_block
    # as many groups as fit the second-level cache beside a tile of rows: rows are read once for all of them
    together = e.maximum(e.i64(GROUPS_BYTES) // group_bytes, 1)
    first = e.var(body.begin)
    with e.loop_while(lambda: first.get() < body.end):
        begin = first.get()
        end = e.minimum(begin + together, body.end)
        done = e.var(e.i64(0))
        for tile_rows in ROW_TILES:
            with e.loop_while(lambda tile_rows=tile_rows: done.get() + tile_rows <= rows):
                row = done.get()
                addresses = [e.at(x, (row + r) * row_bytes) for r in range(tile_rows)]
                with e.loop(begin, end) as group:
                    results = tile(e, fmt, addresses, e.at(weight, group * group_bytes), blocks)
                    column = group * LANES
                    left = columns - column
                    bias = _load_columns(e, e.at(body.buffer(2), column, F32), left, config) if config["bias"] else None
                    for r, result in enumerate(results):
                        total = result if bias is None else result + bias
                        _store_columns(e, total, e.at(out, (row + r) * columns + column, F32), left, config)
                done.set(row + tile_rows)
        first.set(end)


def _load_columns(e: Emit, address: Val, left: Val, config: Mapping[str, Setting]) -> Val:
    return e.masked_load(address, VF, e.tail_mask(left)) if config["partial"] else e.load(address, VF)


def _store_columns(e: Emit, value: Val, address: Val, left: Val, config: Mapping[str, Setting]) -> None:
    if not config["partial"]:
        e.store(value, address)
        return
    with e.either(left >= LANES) as (whole, part):
        with whole:
            e.store(value, address)
        with part:
            e.masked_store(value, address, e.tail_mask(left))


def _integer_tile(terms: int, e: Emit, fmt: WeightFormat, x: Sequence[Val], weight: Val, blocks: Val) -> list[Val]:
    if fmt.integer is None:
        return []
    sums = [e.var(0.0, VF) for _ in x]
    with fmt.chunks(e, weight, blocks) as (place, number):
        chunk = fmt.integer(e, place)
        for term in range(terms):
            rows = [e.at(row, number * (terms * ACTIVATION_BLOCK) + term * ACTIVATION_BLOCK) for row in x]
            if chunk.scales.scales:
                _add_halves(e, fmt, chunk, rows, sums)
            else:
                _add_whole(e, fmt, chunk, rows, sums)
    return [total.get() for total in sums]


def _add_whole(e: Emit, fmt: WeightFormat, chunk: IntegerChunk, rows: Sequence[Val], sums: Sequence[Var]) -> None:
    """A chunk that has one scale and minimum."""
    # two chains of sums hide the latency where a tile has few rows
    starts = [[e.typed(0, VI)] * (2 if len(rows) < 4 else 1) for _ in rows]
    for row, parts, total in zip(rows, _dots(e, fmt, chunk, rows, starts), sums, strict=True):
        integer = parts[0] + parts[1] if len(parts) == 2 else parts[0]
        x_scale = e.splat(e.load(e.at(row, 32), F32))
        product_sum = e.fma(integer.to_float(), chunk.scales.scale * x_scale, total.get())
        if chunk.scales.minimum is not None:
            product_sum = e.fma(chunk.scales.minimum, e.splat(e.load(e.at(row, 36), F32)), product_sum)
        total.set(product_sum)


def _add_halves(e: Emit, fmt: WeightFormat, chunk: IntegerChunk, rows: Sequence[Val], sums: Sequence[Var]) -> None:
    """A chunk with integer scales, and perhaps minimums, of both halves."""
    scales = chunk.scales
    zeros = [half_sums(e, row, -chunk.zero) if chunk.zero else [e.typed(0, VI)] * 2 for row in rows]
    for row, (low, high), total in zip(rows, _dots(e, fmt, chunk, rows, zeros, by_half=True), sums, strict=True):
        x_scale = e.splat(e.load(e.at(row, 32), F32))
        integer = scales.scales[0] * low + scales.scales[1] * high
        product_sum = e.fma(integer.to_float(), scales.scale * x_scale, total.get())
        if scales.minimum is not None:
            x_low, x_high = half_sums(e, row, 1)
            offset = scales.minimums[0] * x_low + scales.minimums[1] * x_high
            product_sum = e.fma(offset.to_float(), scales.minimum * x_scale, product_sum)
        total.set(product_sum)


def _dots(
    e: Emit,
    fmt: WeightFormat,
    chunk: IntegerChunk,
    rows: Sequence[Val],
    starts: Sequence[Sequence[Val]],
    by_half: bool = False,
) -> list[list[Val]]:
    """For every row the integer sums of the chunk on top of its starts, one for each half of k or any words in each."""
    parts = [list(start) for start in starts]
    for index, (k, unsigned) in enumerate(chunk.words):
        for row, part in zip(rows, parts, strict=True):
            slot = k // 16 if by_half else index % len(part)
            part[slot] = e.dot4(part[slot], unsigned, e.splat(e.load(e.at(row, k), I32)), fmt.small)
    return parts


def _float_tile(e: Emit, fmt: WeightFormat, x: Sequence[Val], weight: Val, blocks: Val) -> list[Val]:
    sums = [e.var(0.0, VF) for _ in x]
    with fmt.chunks(e, weight, blocks) as (place, number):
        rows = [e.at(row, number * fmt.chunk, F32) for row in x]
        totals = [total.get() for total in sums]
        for k in range(fmt.chunk):
            values = fmt.floats(e, place, k)
            totals = [
                e.fma(values, e.splat(e.load(row, F32, k)), total) for row, total in zip(rows, totals, strict=True)
            ]
        for variable, total in zip(sums, totals, strict=True):
            variable.set(total)
    return [total.get() for total in sums]
