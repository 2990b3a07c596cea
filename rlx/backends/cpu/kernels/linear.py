"""linear: the streaming form (few rows) and the tiled form (many) of `x @ weight.T`, from one description per format.

    for as many groups of 16 outputs (units, split over threads) as stay in the second-level cache
      for each tile of rows (8 with 512-bit registers, 4, 1), which is read from further away once for all of them
        for each of the groups
          for each block of k:   accumulate 16 outputs x rows, in registers

Each output is reduced in one order, and the tile does not enter into it. Here are the loops for quantised activations.
Next: `linear_integer.py`, which says what an output is; `linear_float.py` for float activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from rlx.backends.cpu.emit import F32, LANES, VF, Emit, Val
from rlx.backends.cpu.kernels.formats import FORMATS, WeightFormat
from rlx.backends.cpu.kernels.linear_integer import integer_tile
from rlx.backends.cpu.kernels.registry import Body, Setting, kernel
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.tiles import TILE_ROWS
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, activation_format
from rlx.core.graph import Node
from rlx.ops.linear import optional_operands
from rlx.ops.op import static_axis

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
    x, weight = node.inputs[0].type, node.inputs[1].type
    out, k = static_axis(weight, 0, "out"), static_axis(weight, 1, "in")
    config: dict[str, Setting] = {
        "x": x.dtype.name,
        "weight": weight.dtype.name,
        **epilogue_config(node),
    }
    return KernelPlan("integer", config, (product(x.shape[:-1]), k, out), -(-out // LANES), {1: "rows16"})


@kernel(
    "linear",
    "integer",
    help="int8 activations times weights of 2 to 8 bits, 32-bit sums per block",
    when=_why_not,
    plan=_plan,
)
def build_integer(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x quantised [m, k], weight, (bias), (residual), out f32 [m, n]; sizes m, k, n."""
    fmt, activation = FORMATS[str(config["weight"])], DTYPES[str(config["x"])]
    if fmt.layout is not None:
        row_tiles = body.e.target.row_tiles
        if body.e.target.amx and ACTIVATION_TERMS[activation.name] == 1:
            row_tiles = (TILE_ROWS, *row_tiles)
        tile = partial(integer_tile, activation, fmt.layout)
        _build(body, config, fmt, activation.block_bytes, tile, row_tiles)


def _build(
    body: Body,
    config: Mapping[str, Setting],
    fmt: WeightFormat,
    x_block: int,
    tile: Tile,
    row_tiles: Sequence[int],
) -> None:
    e = body.e
    rows, k = body.size(0), body.size(1)
    x, weight, epilogue = body.buffer(0), body.buffer(1), Epilogue(body, config)
    blocks = k // fmt.block
    group_bytes, row_bytes = blocks * fmt.block_bytes, blocks * x_block
    # as many groups as fit the second-level cache beside a tile of rows: rows are read once for all of them
    together = e.maximum(e.i64(GROUPS_BYTES) // group_bytes, 1)
    first = e.var(body.begin)
    with e.loop_while(lambda: first.get() < body.end):
        begin = first.get()
        end = e.minimum(begin + together, body.end)
        done = e.var(e.i64(0))
        for tile_rows in row_tiles:
            with e.loop_while(lambda tile_rows=tile_rows: done.get() + tile_rows <= rows):
                row = done.get()
                addresses = [e.at(x, (row + r) * row_bytes) for r in range(tile_rows)]
                with e.loop(begin, end) as group:
                    results = tile(e, addresses, e.at(weight, group * group_bytes), blocks)
                    for r, result in enumerate(results):
                        epilogue.store(epilogue.finished(result, row + r, group), row + r, group)
                done.set(row + tile_rows)
        first.set(end)


def epilogue_config(node: Node) -> dict[str, Setting]:
    """What of a node's plan `Epilogue` reads."""
    has_bias, has_residual = optional_operands(tuple(value.type for value in node.inputs))
    out = static_axis(node.inputs[1].type, 0, "out")
    return {"bias": has_bias, "residual": has_residual, "partial": bool(out % LANES)}


class Epilogue:
    """What happens to 16 sums of a row: the bias and the residual are added, in this order, and they are stored.

    Buffers 2 and on are bias, residual and result, those that there are; size 2 is the number of outputs.
    """

    def __init__(self, body: Body, config: Mapping[str, Setting]) -> None:
        self.e, self.columns, self.config = body.e, body.size(2), config
        self.bias = body.buffer(2) if config["bias"] else None
        self.residual = body.buffer(2 + bool(config["bias"])) if config["residual"] else None
        self.out = body.buffer(2 + bool(config["bias"]) + bool(config["residual"]))

    @property
    def is_plain(self) -> bool:
        """Whether the sums are the result."""
        return self.bias is None and self.residual is None

    def finished(self, total: Val, row: Val, group: Val) -> Val:
        """Sums to results."""
        if self.bias is not None:
            total = total + self._load(self.bias, self.e.i64(0), group)
        if self.residual is not None:
            total = total + self._load(self.residual, row, group)
        return total

    def load(self, row: Val, group: Val) -> Val:
        """What was stored; zero in the lanes beyond the last output."""
        return self._load(self.out, row, group)

    def store(self, value: Val, row: Val, group: Val) -> None:
        """16 values of a row, or as many as there are outputs left."""
        address, left = self._place(self.out, row, group)
        store_columns(self.e, value, address, left, self.config)

    def _place(self, buffer: Val, row: Val, group: Val) -> tuple[Val, Val]:
        """An address in a matrix of the result's shape, and how many outputs there are from there on."""
        column = group * LANES
        return self.e.at(buffer, row * self.columns + column, F32), self.columns - column

    def _load(self, buffer: Val, row: Val, group: Val) -> Val:
        address, left = self._place(buffer, row, group)
        return load_columns(self.e, address, left, self.config)


def load_columns(e: Emit, address: Val, left: Val, config: Mapping[str, Setting]) -> Val:
    """16 outputs, or the `left` that there are; zero in the other lanes."""
    return e.masked_load(address, VF, e.tail_mask(left)) if config["partial"] else e.load(address, VF)


def store_columns(e: Emit, value: Val, address: Val, left: Val, config: Mapping[str, Setting]) -> None:
    """Store 16 outputs, or the `left` that there are."""
    if not config["partial"]:
        e.store(value, address)
        return
    with e.either(left >= LANES) as (whole, part):
        with whole:
            e.store(value, address)
        with part:
            e.masked_store(value, address, e.tail_mask(left))
