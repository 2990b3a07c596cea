"""Queries that grow with their position, so that attention over a long text stays sharp (Llama 4, Ministral 3).

In: the positions of the tokens. Out: `named[NAME]`, `f32[seq, 1]`, which a `SelfAttentionStage` multiplies its rotated
queries with. Source: transformers' modeling_ministral3 (`get_llama_4_attn_scale`). Next: `per_layer_input.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlx.core.dtype import f32, i32
from rlx.flow.blocks.rope_tables import sequence_axis

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


QUERY_SCALE = "query_scale"


@dataclass(frozen=True, slots=True)
class QueryScaleStage:
    """`1 + beta * log(1 + floor(position / interval))` under a name; the input flows on."""

    beta: float
    interval: int
    name: str = QUERY_SCALE

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return self.name

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        seq = sequence_axis(input)

        def number(value: float) -> FlowValue:
            return ctx.constant(np.array(value, np.float32))

        position = ctx.op("cast", ctx.positions(seq), dtype=f32)
        # positions are not negative, so that a cast to a whole number is their floor
        intervals = ctx.op("cast", ctx.op("cast", ctx.op("div", position, number(self.interval)), dtype=i32), dtype=f32)
        logarithm = ctx.op("log", ctx.op("add", intervals, number(1.0)))
        scale = ctx.op("add", ctx.op("mul", logarithm, number(self.beta)), number(1.0))
        ctx.named[self.name] = ctx.op("reshape", scale, shape=(seq, 1))
