"""linear: the streaming form (few rows) and the tiled form (many) of `x @ weight.T`, from one description per format.

    for as many groups of 16 outputs (units, split over threads) as stay in the second-level cache
      for each tile of rows (8 with 512-bit registers, 4, 1), which is read from further away once for all of them
        for each of the groups
          for each block of k:   accumulate 16 outputs x rows, in registers

Each output is reduced in one order, and the tile does not enter into it. Here are the loops for quantised activations.
`grouped_linear` is the same for each expert with the rows that chose it (`products.py`).
Next: `linear_integer.py`, which says what an output is; `linear_float.py` for float activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from rlx.backends.cpu.emit import Emit, Val
from rlx.backends.cpu.kernels.formats import FORMATS, WeightFormat
from rlx.backends.cpu.kernels.linear_integer import integer_tile
from rlx.backends.cpu.kernels.products import Product, Products, one_product, product_plan, products_of_experts
from rlx.backends.cpu.kernels.registry import Body, Setting, kernel
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.tiles import TILE_ROWS
from rlx.core.backend import KernelPlan
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, activation_format
from rlx.core.graph import Node

GROUPS_BYTES = 256 << 10
"""Weights that stay in the second-level cache while the tiles of rows pass by."""

Tile: TypeAlias = Callable[[Emit, Sequence[Val], Val, Val], list[Val]]
"""(e, addresses of the rows, address of the weights of 16 outputs, blocks) to 16 results for each row."""


def _why_not(node: Node, target: Target) -> str | None:
    x, weight = node.inputs[0].type, node.inputs[1].type
    if weight.dtype.name not in FORMATS or not FORMATS[weight.dtype.name].has_integers:
        return f"a {weight.dtype} weight has no integer form"
    if x.dtype.name not in ACTIVATION_TERMS:
        return f"x is {x.dtype}"
    if x.dtype != (needed := activation_format(weight.dtype, ACTIVATION_TERMS[x.dtype.name])):
        return f"x is {x.dtype}, and a {weight.dtype} weight takes {needed}"
    return None


def _plan(node: Node, target: Target) -> KernelPlan:
    formats = {"x": node.inputs[0].type.dtype.name, "weight": node.inputs[1].type.dtype.name}
    return product_plan(node, "integer", formats)


@kernel(
    "linear",
    "integer",
    help="int8 activations times weights of 2 to 8 bits, 32-bit sums per block",
    when=_why_not,
    plan=_plan,
)
def build_integer(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x quantised [m, k], weight, (bias), (residual), out f32 [m, n]; sizes m, k, n."""
    _build(body, config, one_product, body.e.target.amx)


@kernel(
    "grouped_linear",
    "integer",
    help="int8 activations times the weights of the experts in use, 32-bit sums per block",
    when=_why_not,
    plan=_plan,
)
def build_grouped(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x quantised, weights, order, starts, (biases), out f32; sizes of `products_of_experts`."""
    # the rows of a tile of AMX lie at equal distances, which those of an expert do not
    _build(body, config, products_of_experts, with_amx=False)


def _build(body: Body, config: Mapping[str, Setting], products: Products, with_amx: bool) -> None:
    fmt, activation = FORMATS[str(config["weight"])], DTYPES[str(config["x"])]
    if fmt.layout is None:
        return
    row_tiles = body.e.target.row_tiles
    if with_amx and ACTIVATION_TERMS[activation.name] == 1:
        row_tiles = (TILE_ROWS, *row_tiles)
    tile = partial(integer_tile, activation, fmt.layout)
    with products(body, config, fmt) as part:
        _multiply(body, part, fmt, activation.block_bytes, tile, row_tiles)


def _multiply(body: Body, part: Product, fmt: WeightFormat, x_block: int, tile: Tile, row_tiles: Sequence[int]) -> None:
    e, epilogue = body.e, part.epilogue
    x, blocks = body.buffer(0), body.size(1) // fmt.block
    group_bytes, row_bytes = blocks * fmt.block_bytes, blocks * x_block
    # as many groups as fit the second-level cache beside a tile of rows: rows are read once for all of them
    together = e.maximum(e.i64(GROUPS_BYTES) // group_bytes, 1)
    first = e.var(body.begin)
    with e.loop_while(lambda: first.get() < body.end):
        begin = first.get()
        end = e.minimum(begin + together, body.end)
        done = e.var(e.i64(0))
        for tile_rows in row_tiles:
            with e.loop_while(lambda tile_rows=tile_rows: done.get() + tile_rows <= part.rows):
                row = done.get()
                addresses = [e.at(x, part.x_row(row + r) * row_bytes) for r in range(tile_rows)]
                with e.loop(begin, end) as group:
                    results = tile(e, addresses, e.at(part.weight, group * group_bytes), blocks)
                    for r, result in enumerate(results):
                        epilogue.store(epilogue.finished(result, row + r, group), row + r, group)
                done.set(row + tile_rows)
        first.set(end)
