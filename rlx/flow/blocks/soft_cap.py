"""Soft cap of logits: `c * tanh(x / c)`. Source: Gemma 2 report 2024. Next: `last_token.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class SoftCapStage:
    """Bound the input smoothly; a cap of None or <= 0 is off."""

    cap: float | None
    path: str = "soft_cap"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """The same shape."""
        return input if self.cap is None or self.cap <= 0 else ctx.op("soft_cap", input, cap=float(self.cap))
