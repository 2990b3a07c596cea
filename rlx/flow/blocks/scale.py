"""A value times a number, given or a weight: Granite's logits, Gemma 4's layers. Next: `soft_cap.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class ScaleStage:
    """`x * factor`."""

    factor: float
    path: str = "scale"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[...]` to the same."""
        factor = ctx.wrap(ctx.emit("constant", dtype=input.type.dtype, shape=(), values=(self.factor,)))
        return ctx.op("mul", input, factor)


@dataclass(frozen=True, slots=True)
class WeightScaleStage:
    """`x * weight`, where the weight is one number, `[1]`."""

    key: str

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[...]` to the same."""
        return ctx.op("mul", input, ctx.load_plain(self.key, (1,)))
