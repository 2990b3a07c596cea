"""A value times a number: Granite's and Cohere's logits. Next: `soft_cap.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
