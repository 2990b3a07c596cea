"""RoPE tables: the default pair, and named pairs beside it.

In: frequencies (the table is then computed in the graph, once for all layers) or a table given as data, one row per
position. Out: `rope_cos` and `rope_sin`, or `named["NAME_cos"]` and `named["NAME_sin"]`: `f32[seq, width]`, one row per
token, column i the angle of pair i. Next: `self_attn_prefill.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlx.core.dim import Size, bounds
from rlx.core.dtype import i32
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.flow.blocks.gather import named_value
from rlx.flow.mrope import MRopeFrequencies
from rlx.flow.rope_scaling import RopeFrequencies

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True, eq=False)
class RopeTableData:
    """A pair of tables given as data: arrays `[rows, width]` that are written into the program, or keys of weights.

    Row p holds the angles of position p; width is the number of pairs.
    """

    cos: NDArray[Any] | str
    sin: NDArray[Any] | str


RopeSource: TypeAlias = RopeFrequencies | MRopeFrequencies | RopeTableData


def sequence_axis(value: FlowValue) -> Size:
    """The size of the token axis: the last of token ids, the last but one of activations."""
    return value.shape[-1] if value.type.dtype == i32 or value.type.rank < 2 else value.shape[-2]


def emit_tables(ctx: FlowCtx, source: RopeSource, seq: Size) -> tuple[FlowValue, FlowValue]:
    """cos and sin, `f32[seq, width]`.

    Raises:
        ShapeError: a table given as data is no pair of matrices, or has fewer rows than the sequence.
    """
    if isinstance(source, RopeFrequencies):
        return _computed(ctx, ctx.positions(seq), source.inverse, source.attention_scaling)
    if isinstance(source, MRopeFrequencies):
        return _over_rows(ctx, source, seq)
    tables = [
        ctx.load_plain(part) if isinstance(part, str) else ctx.constant(part) for part in (source.cos, source.sin)
    ]
    if tables[0].type != tables[1].type or tables[0].type.rank != 2:
        raise ShapeError(
            "a RoPE table is a pair of matrices of one shape",
            where=str(ctx.location),
            found=f"cos {tables[0].type}, sin {tables[1].type}",
            expected="[rows, pairs]",
        )
    return rows_of_tokens(ctx, tables[0], seq), rows_of_tokens(ctx, tables[1], seq)


def _computed(ctx: FlowCtx, positions: FlowValue, inverse: NDArray[Any], scaling: float) -> tuple[FlowValue, FlowValue]:
    cos, sin = ctx.emit.many("rope_table", positions.value, ctx.constant(inverse).value, scaling=scaling)
    return ctx.wrap(cos), ctx.wrap(sin)


def _over_rows(ctx: FlowCtx, source: MRopeFrequencies, seq: Size) -> tuple[FlowValue, FlowValue]:
    """A table for each position row, side by side, then the columns in the order of the pairs."""
    positions = named_value(ctx, source.positions)
    if positions.type != TensorType(i32, (3, seq)):
        raise ShapeError(
            "MRoPE needs three position rows",
            where=str(ctx.location),
            found=str(positions.type),
            expected=f"i32[3, {seq}]",
        )
    row_of_pair = np.array(source.row_of_pair())
    halves: tuple[list[FlowValue], list[FlowValue]] = ([], [])
    for row in sorted(set(row_of_pair.tolist())):
        index = ctx.op("reshape", ctx.op("slice", positions, axis=0, start=row, stop=row + 1), shape=(seq,))
        inverse = source.frequencies.inverse[row_of_pair == row]
        for half, table in zip(
            halves, _computed(ctx, index, inverse, source.frequencies.attention_scaling), strict=True
        ):
            half.append(table)
    # column j of the tables side by side belongs to the pair order[j]
    order = np.argsort(row_of_pair, kind="stable")
    cos, sin = (_columns(ctx, ctx.op("concat", *half, axis=1), np.argsort(order)) for half in halves)
    return cos, sin


def _columns(ctx: FlowCtx, table: FlowValue, order: NDArray[np.intp]) -> FlowValue:
    if bool((order == np.arange(order.size)).all()):
        return table
    columns = ctx.op("take_rows", ctx.op("transpose", table, axes=(1, 0)), ctx.constant(order))
    return ctx.op("transpose", columns, axes=(1, 0))


def rows_of_tokens(ctx: FlowCtx, table: FlowValue, seq: Size) -> FlowValue:
    """The rows of a table `[rows, width]`, row = position, at the positions of the tokens; refuses as `check_rows`."""
    check_rows(ctx, table, seq)
    return ctx.op("take_rows", table, ctx.positions(seq))


def fit_rows(ctx: FlowCtx, table: FlowValue, seq: Size) -> FlowValue:
    """A table that has a row for each token as it is; of one that is data (row = position) the rows of the tokens.

    Raises:
        ShapeError: it has fewer rows than the sequence, or is neither.
    """
    if table.shape[0] == seq:
        return table
    check_rows(ctx, table, seq)
    maker = next((node for node in ctx.builder.nodes if table.value in node.outputs), None)
    is_data = maker is not None and maker.op in ("constant", "parameter", "dequantize")
    # the positions are known for the tokens of the input, not for a part of them such as the last one
    if is_data and seq == sequence_axis(ctx.wrap(ctx.builder.inputs[0][1])):
        return ctx.op("take_rows", table, ctx.positions(seq))
    raise ShapeError(
        "the RoPE table needs one row for each token",
        where=str(ctx.location),
        found=f"{table.type} for a sequence of {seq}",
        fix="give a table whose rows are positions to RopeTablesStage(RopeTableData(cos, sin))",
    )


def check_rows(ctx: FlowCtx, table: FlowValue, seq: Size) -> None:
    """Refuse a table that is too short.

    Raises:
        ShapeError: it has fewer rows than the longest sequence.
    """
    rows, longest = table.shape[0], bounds(seq)[1]
    if bounds(rows)[1] < longest:
        raise ShapeError(
            "the RoPE table has fewer rows than the sequence",
            where=str(ctx.location),
            found=f"{rows} rows",
            expected=f"{longest}, the longest {seq}" if seq != longest else str(longest),
            fix="give a longer table, or bound the sequence: Dim('seq', max=...)",
        )


@dataclass(frozen=True, slots=True, eq=False)
class RopeTablesStage:
    """Put the default pair into `rope_cos` and `rope_sin`; the input flows on."""

    source: RopeSource
    path: str = "rope"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        ctx.rope_cos, ctx.rope_sin = emit_tables(ctx, self.source, sequence_axis(input))


@dataclass(frozen=True, slots=True, eq=False)
class NamedRopeTablesStage:
    """Put a pair into `named["NAME_cos"]` and `named["NAME_sin"]`; the input flows on."""

    name: str
    source: RopeSource

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return f"rope_{self.name}"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        cos, sin = emit_tables(ctx, self.source, sequence_axis(input))
        ctx.named[f"{self.name}_cos"], ctx.named[f"{self.name}_sin"] = cos, sin
