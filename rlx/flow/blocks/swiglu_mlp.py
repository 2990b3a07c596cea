"""SwiGLU MLP: `down(silu(gate(x)) * up(x))`. Source: Shazeer 2020. Next: `geglu_mlp.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.gated_mlp import GatedKeys, emit_gated

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class SwiGluMlpStage:
    """The MLP of Llama and most of its kin."""

    keys: GatedKeys
    bias: bool = False
    path: str = "mlp"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        return emit_gated(ctx, input, self.keys, self.bias, "swiglu")
