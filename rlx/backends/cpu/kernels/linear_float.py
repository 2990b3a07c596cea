"""linear on float activations: `x @ weight.T`, float32 with weights of any format, or bfloat16 with bfloat16.

Each output is one chain of fused multiply-adds in the order of k, whatever the tile: one k at a time in float32, a pair
of k in bfloat16. Few rows stream the weights as they lie, and unpack them in registers. For many rows, weights that lie
as panels are used as they are, and others are unpacked into panels, once for a block of rows.
Next: `float_tiles.py`, which has the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlx.backends.cpu.emit import F32, LANES, Val
from rlx.backends.cpu.kernels.float_tiles import (
    AHEAD,
    BFLOAT16,
    BLOCK_WORDS,
    FLOAT32,
    WORD,
    Operands,
    Stream,
    WordProduct,
    Words,
    blocked,
    registers,
    stream,
)
from rlx.backends.cpu.kernels.formats import FORMATS, WeightFormat, find_format, format_name
from rlx.backends.cpu.kernels.products import Product, Products, one_product, product_plan, products_of_experts
from rlx.backends.cpu.kernels.registry import Body, Plan, Setting, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dtype import bf16, bf16_act, f32
from rlx.core.graph import Node

PANEL_WORDS = BLOCK_WORDS * LANES


def _plan(variant: str) -> Plan:
    def plan(node: Node, target: Target) -> KernelPlan:
        return product_plan(node, variant, {"weight": format_name(node.inputs[1].type)})

    return plan


def _float_why_not(node: Node, target: Target) -> str | None:
    x, weight = node.inputs[0].type, node.inputs[1].type
    if weight.dtype.name not in FORMATS:
        return f"there is no layout for {weight.dtype} weights"
    return None if x.dtype == f32 else f"x is {x.dtype}"


@kernel(
    "linear",
    "float",
    help="float32 activations, weights unpacked to float32",
    when=_float_why_not,
    plan=_plan("float"),
)
def build_float(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x f32 [m, k], weight, (bias), (residual), out f32 [m, n]; sizes m, k, n."""
    _build_float(body, config, one_product)


@kernel(
    "grouped_linear",
    "float",
    help="float32 activations, weights of the experts in use unpacked to float32",
    when=_float_why_not,
    plan=_plan("float"),
)
def build_grouped_float(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x f32, weights, order, starts, (biases), out f32; sizes of `products_of_experts`."""
    _build_float(body, config, products_of_experts)


def _build_float(body: Body, config: Mapping[str, Setting], products: Products) -> None:
    fmt = find_format(str(config["weight"]))
    tiles = registers(body.e.target)
    # quantised formats unpack so many k at once that a tile of one row and one of a few are code enough
    sizes = ((1, 1), (tiles.rows[-1], 1)) if fmt.dtype.is_packed else tiles.streams
    with products(body, config, fmt) as part:
        _Product(body, fmt, FLOAT32, sizes, part).build(body.size(1))


def _bf16_why_not(node: Node, target: Target) -> str | None:
    x, weight = node.inputs[0].type, node.inputs[1].type
    return None if (x.dtype, weight.dtype) == (bf16_act, bf16) else f"x is {x.dtype} and the weight {weight.dtype}"


@kernel("linear", "bf16", help="pairs of bfloat16 summed in float32", when=_bf16_why_not, plan=_plan("bf16"))
def build_bf16(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x bf16_act [m, k], weight, (bias), (residual), out f32 [m, n]; sizes m, k, n."""
    _build_bf16(body, config, one_product)


@kernel(
    "grouped_linear",
    "bf16",
    help="pairs of bfloat16 summed in float32, for the experts in use",
    when=_bf16_why_not,
    plan=_plan("bf16"),
)
def build_grouped_bf16(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x bf16_act, weights, order, starts, (biases), out f32; sizes of `products_of_experts`."""
    _build_bf16(body, config, products_of_experts)


def _build_bf16(body: Body, config: Mapping[str, Setting], products: Products) -> None:
    fmt = find_format(str(config["weight"]))
    with products(body, config, fmt) as part:
        _Product(body, fmt, BFLOAT16, registers(body.e.target).streams, part).build(body.size(1) // 2)


@dataclass(frozen=True, slots=True)
class _Product:
    """A product of rows of 32-bit words; of bfloat16, a word is a pair of k, and a block of the weights is one word."""

    body: Body
    fmt: WeightFormat
    product: WordProduct
    sizes: Sequence[tuple[int, int]]
    part: Product

    def build(self, words: Val) -> None:
        """Both forms for rows of `words` words; a call runs one of them."""
        body, part, e = self.body, self.part, self.body.e
        rows, blocks = part.rows, body.size(1) // self.fmt.block
        x = body.buffer(0)

        def row_at(row: Val) -> Val:
            return e.at(x, part.x_row(row) * words, F32)

        def group_at(group: Val) -> Val:
            return e.at(part.weight, group * (blocks * self.fmt.block_bytes))

        with e.either(rows <= self.sizes[-1][0]) as (few, many):
            with few:
                form = Stream(rows, body.begin, body.end, row_at, group_at, self._walk(blocks), self._store)
                stream(e, self.product, form, self.sizes)
            with many:
                panel = self._panel(group_at)
                form = Operands(rows, words, body.begin, body.end, row_at, panel, part.epilogue.load, self._store)
                blocked(e, self.product, form)

    def _walk(self, blocks: Val) -> Callable[[Sequence[Val]], Words]:
        e, fmt = self.body.e, self.fmt

        @contextmanager
        def walk(groups: Sequence[Val]) -> Generator[list[tuple[Val, list[Val]]]]:
            if fmt.dtype.is_packed:
                with fmt.chunks(e, groups[0], blocks) as (place, number):
                    yield [(number * fmt.chunk + k, [fmt.floats(e, place, k)]) for k in range(fmt.chunk)]
                return
            with e.loop(0, blocks) as block:
                places = [e.at(group, block * fmt.block_bytes) for group in groups]
                for place in places:
                    e.prefetch(e.at(place, AHEAD))
                if self._is_panel:
                    yield [(block, [self.product.panel(e, place) for place in places])]
                    return
                words = [fmt.words(e, place) for place in places]
                yield [(block * fmt.block + k, list(panels)) for k, panels in enumerate(zip(*words, strict=True))]

        return walk

    @property
    def _is_panel(self) -> bool:
        """Whether the weights lie as panels of words."""
        return self.product is BFLOAT16 or self.fmt.dtype == f32

    def _panel(self, group_at: Callable[[Val], Val]) -> Callable[[Val, Val, Val, int], Val]:
        e, fmt = self.body.e, self.fmt
        if self._is_panel:
            return lambda group, start, words, slot: e.at(group_at(group), start * (LANES * WORD))
        unpacked = e.local(F32, registers(e.target).groups * PANEL_WORDS)

        def panel(group: Val, start: Val, words: Val, slot: int) -> Val:
            target = e.at(unpacked, slot * PANEL_WORDS, F32)
            source = e.at(group_at(group), start // fmt.block * fmt.block_bytes)
            with fmt.chunks(e, source, words // fmt.block) as (place, number):
                for k in range(fmt.chunk):
                    e.store(fmt.floats(e, place, k), target, (number * fmt.chunk + k) * LANES)
            return target

        return panel

    def _store(self, total: Val, row: Val, group: Val, is_last: Val | None = None) -> None:
        """The result, or the sums so far where k goes on."""
        epilogue = self.part.epilogue
        if not epilogue.is_plain:
            result = epilogue.finished(total, row, group)
            total = result if is_last is None else self.body.e.select(is_last, result, total)
        epilogue.store(total, row, group)
