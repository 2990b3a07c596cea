"""GeGLU MLP: `down(gelu(gate(x)) * up(x))`. Source: Shazeer 2020. Next: `gelu_mlp.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.gated_mlp import GatedKeys, emit_gated

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class GeGluMlpStage:
    """The MLP of Gemma; `approximate` is the tanh form of GELU, `intermediate_size` the width inside, if checked."""

    keys: GatedKeys
    bias: bool = False
    approximate: bool = True
    intermediate_size: int | None = None
    path: str = "mlp"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        return emit_gated(
            ctx, input, self.keys, self.bias, self.intermediate_size, "geglu", approximate=self.approximate
        )
