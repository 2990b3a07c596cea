"""A learned table of positions, added to the embedding: GPT-2, BERT. Next: `rope_tables.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlx.flow.blocks.rope_tables import sequence_axis
from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class LearnedPositionsStage:
    """`x + table[first + position]`.

    Attributes:
        key: the table `[rows, hidden]`.
        rows: how many positions it has.
        first: the row of position 0; RoBERTa keeps those before it for padding.
    """

    key: str
    rows: int
    first: int = 0

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to the same."""
        table = ctx.load_param(self.key, shape=(self.rows, input.width))
        positions = ctx.positions(sequence_axis(input))
        if self.first:
            positions = ctx.op("add", positions, ctx.constant(np.array(self.first, np.int32)))
        return ctx.op("add", input, ctx.wrap(ctx.emit("embedding", positions.value, table.value, scale=1.0)))
