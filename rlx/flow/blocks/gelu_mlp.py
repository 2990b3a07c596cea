"""GELU MLP: `down(gelu(up(x)))`. Source: Hendrycks and Gimpel 2016. Next: `lm_head.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.linear import LinearStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class GeluMlpStage:
    """The MLP of GPT-2, BERT and ViT.

    Attributes:
        up_key, down_key: weights `[intermediate, hidden]` and `[hidden, intermediate]`.
        bias: add the biases beside them.
        approximate: the tanh form of GELU.
        intermediate_size: the width inside, where it is to be checked.
    """

    up_key: str
    down_key: str
    bias: bool = True
    approximate: bool = False
    intermediate_size: int | None = None
    path: str = "mlp"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        if self.intermediate_size is not None:
            ctx.load_param(self.up_key, shape=(self.intermediate_size, input.width))
        hidden = ctx.run(LinearStage(self.up_key, self.bias), input)
        return ctx.run(
            LinearStage(self.down_key, self.bias), ctx.op("gelu_tanh" if self.approximate else "gelu", hidden)
        )
