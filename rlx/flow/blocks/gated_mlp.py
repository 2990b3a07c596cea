"""What SwiGLU and GeGLU share: two projections, a gate, one projection back. Source: Shazeer 2020.

In: `[..., hidden]`. Out: the same. Next: `swiglu_mlp.py`, `geglu_mlp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rlx.core.graph import AttrValue
from rlx.flow.blocks.linear import bias_key, load_bias

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class GatedKeys:
    """The weights: gate and up `[intermediate, hidden]`, down `[hidden, intermediate]`; biases stand beside them."""

    gate: str
    up: str
    down: str

    @staticmethod
    def hf_layer(prefix: str) -> GatedKeys:
        """The names of Hugging Face under `prefix`."""
        return GatedKeys(*(f"{prefix}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")))


def emit_gated(
    ctx: FlowCtx, x: FlowValue, keys: GatedKeys, bias: bool, size: int | None, activation: str, **attrs: AttrValue
) -> FlowValue:
    """`down(activation(gate(x), up(x)))`; `size` is the width inside where the configuration says it."""

    def project(value: FlowValue, key: str) -> FlowValue:
        inner = (size, x.width) if key != keys.down else (x.width, size)
        weight = ctx.load_param(key, transpose=True, shape=None if size is None else cast("tuple[int, int]", inner))
        return ctx.matmul(value, weight, load_bias(ctx, bias_key(key), weight.shape[1]) if bias else None)

    return project(ctx.op(activation, project(x, keys.gate), project(x, keys.up), **attrs), keys.down)
