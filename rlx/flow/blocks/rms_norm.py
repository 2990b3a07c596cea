"""RMS norm over the last axis. Source: Zhang and Sennrich 2019; the 1 + w form is Gemma's. Next: `residual.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class RmsNormStage:
    """`x / sqrt(mean(x^2) + eps) * weight`, or `* (1 + weight)` with `plus_one`."""

    key: str
    eps: float
    plus_one: bool = False

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        weight = ctx.load_plain(self.key, (input.width,))
        return ctx.op("rms_norm", input, weight, eps=self.eps, plus_one=self.plus_one)
