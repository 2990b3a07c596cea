"""Residual connections: a stack of saved values. Next: `self_attn_prefill.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class SaveResidualStage:
    """Push the input on the residual stack; it flows on."""

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        ctx.save_residual(input)


@dataclass(frozen=True, slots=True)
class AddResidualStage:
    """Pop the value saved last and add `scale` times the input to it."""

    scale: float = 1.0
    path: str = "residual"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """The saved value plus the input."""
        saved = ctx.take_residual()
        if self.scale != 1.0:
            factor = ctx.wrap(ctx.emit("constant", dtype=input.type.dtype, shape=(), values=(self.scale,)))
            input = ctx.op("mul", input, factor)
        return ctx.op("add", saved, input)
