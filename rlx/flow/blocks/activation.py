"""A scalar function of every element: what stands between two linear layers. Next: `pooling.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class ActivationStage:
    """`function(x)`; the function is an op of `rlx/ops/elementwise.py`: gelu, gelu_tanh, relu, silu, tanh, ..."""

    function: str

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return self.function

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """Any shape to the same."""
        return ctx.op(self.function, input)
