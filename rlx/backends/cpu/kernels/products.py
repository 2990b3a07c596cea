"""The products of a kernel: one weight with all rows, or each expert in use with the rows that chose it.

In: a `linear` or `grouped_linear` node. Out: what `linear.py` and `linear_float.py` have in common: the plan, the
products, and what happens to the sums of each. All experts' weights of a group of outputs belong to one unit, so that
threads share the work evenly whichever experts are in use. Next: `linear.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from rlx.backends.cpu.emit import F32, I32, I64, LANES, VF, Emit, Val
from rlx.backends.cpu.kernels.formats import WeightFormat
from rlx.backends.cpu.kernels.registry import Body, Setting
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.experts import rows_per_x
from rlx.ops.linear import optional_operands
from rlx.ops.op import static_axis


@dataclass(frozen=True, slots=True)
class Product:
    """Some rows of x with one matrix.

    Attributes:
        rows: how many (i64).
        x_row: (number of a row of the product) to its row of x.
        weight: address of the matrix' first group of outputs.
        epilogue: where its sums go.
    """

    rows: Val
    x_row: Callable[[Val], Val]
    weight: Val
    epilogue: Epilogue


Products: TypeAlias = Callable[[Body, Mapping[str, Setting], WeightFormat], AbstractContextManager[Product]]
"""(body, config, format of the weight) to a product, or a loop over products."""


@contextmanager
def one_product(body: Body, config: Mapping[str, Setting], fmt: WeightFormat) -> Generator[Product]:
    """A `linear`. Buffers: x, weight, (bias), (residual), out; sizes m, k, n."""
    yield Product(body.size(0), lambda row: row, body.buffer(1), Epilogue(body, config))


@contextmanager
def products_of_experts(body: Body, config: Mapping[str, Setting], fmt: WeightFormat) -> Generator[Product]:
    """A `grouped_linear`: a loop over the experts that have rows.

    Buffers: x, weights, order, starts, (biases), out; sizes m, k, n, experts, rows of the result for a row of x.
    """
    e = body.e
    order, starts, per_x = body.buffer(2), body.buffer(3), body.size(4)
    groups = (body.size(2) + (LANES - 1)) // LANES
    matrix_bytes = groups * (body.size(1) // fmt.block) * fmt.block_bytes
    with e.loop(0, body.size(3)) as expert:
        first = e.load(starts, I32, expert).sext(I64)
        count = e.load(starts, I32, expert + 1).sext(I64) - first

        def number(row: Val, first: Val = first) -> Val:
            return e.load(order, I32, first + row).sext(I64)

        with e.when(count > 0):
            weight = e.at(body.buffer(1), expert * matrix_bytes)
            epilogue = Epilogue(body, config, 4, number, expert)
            yield Product(count, lambda row: number(row) // per_x, weight, epilogue)


def product_plan(node: Node, variant: str, formats: Mapping[str, Setting]) -> KernelPlan:
    """The plan of either op; `formats` is what else the builder wants to know."""
    x, weight = node.inputs[0].type, node.inputs[1].type
    out, k = static_axis(weight, -2, "out"), static_axis(weight, -1, "in")
    groups, layouts = -(-out // LANES), {1: "rows16"}
    config: dict[str, Setting] = {**formats, "partial": bool(out % LANES)}
    if node.op == "linear":
        has_bias, has_residual = optional_operands(tuple(value.type for value in node.inputs))
        config |= {"bias": has_bias, "residual": has_residual}
        return KernelPlan(variant, config, (product(x.shape[:-1]), k, out), groups, layouts)
    order = node.inputs[2].type
    sizes = (product(order.shape), k, out, static_axis(weight, 0, "experts"), rows_per_x(x, order))
    config |= {"bias": len(node.inputs) == 5, "residual": False}
    return KernelPlan(variant, config, sizes, groups, layouts)


class Epilogue:
    """What happens to 16 sums of a row: the bias and the residual are added, in this order, and they are stored.

    Size 2 is the number of outputs.

    Args:
        body: of the kernel.
        config: what `product_plan` said of the node.
        first: the buffer after x, the weight and what says which rows there are: bias, residual and result begin
            there, those that there are.
        number: of a row of the product, in the result; they are the same where it is None.
        matrix: which row of the bias belongs to the product.
    """

    def __init__(
        self,
        body: Body,
        config: Mapping[str, Setting],
        first: int = 2,
        number: Callable[[Val], Val] | None = None,
        matrix: Val | None = None,
    ) -> None:
        self.e, self.columns, self.config, self._number = body.e, body.size(2), config, number
        self.bias = body.buffer(first) if config["bias"] else None
        self.residual = body.buffer(first + bool(config["bias"])) if config["residual"] else None
        self.out = body.buffer(first + bool(config["bias"]) + bool(config["residual"]))
        self._matrix = body.e.i64(0) if matrix is None else matrix

    @property
    def is_plain(self) -> bool:
        """Whether the sums are the result."""
        return self.bias is None and self.residual is None

    def finished(self, total: Val, row: Val, group: Val) -> Val:
        """Sums to results."""
        if self.bias is not None:
            total = total + self._load(self.bias, self._matrix, group)
        if self.residual is not None:
            total = total + self._load(self.residual, self._row(row), group)
        return total

    def load(self, row: Val, group: Val) -> Val:
        """What was stored; zero in the lanes beyond the last output."""
        return self._load(self.out, self._row(row), group)

    def store(self, value: Val, row: Val, group: Val) -> None:
        """16 values of a row, or as many as there are outputs left."""
        address, left = self._place(self.out, self._row(row), group)
        store_columns(self.e, value, address, left, self.config)

    def _row(self, row: Val) -> Val:
        return row if self._number is None else self._number(row)

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
