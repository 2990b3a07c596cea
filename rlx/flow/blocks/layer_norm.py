"""Layer norm over the last axis. Source: Ba et al. 2016. Next: `residual.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.linear import bias_key, load_bias
from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class LayerNormStage:
    """`(x - mean) / sqrt(variance + eps) * weight (+ bias)`; the bias stands beside the weight."""

    key: str
    eps: float
    bias: bool = True

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        operands = [ctx.load_plain(self.key, (input.width,))]
        if self.bias:
            operands.append(load_bias(ctx, bias_key(self.key), input.width))
        return ctx.op("layer_norm", input, *operands, eps=self.eps)
