"""Linear attention by the gated delta rule, with its short convolution, its gates and its output projection.

In: `[..., seq, hidden]`. Out: the same shape. Sources: Yang, Kautz and Hatamizadeh 2024; transformers' Qwen3-Next.
Next: `rlx/ops/gated_delta.py` for what the rule is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue

KEY_NORM_EPS = 1e-6
"""Added to the sum of squares of q and of k; transformers has the number in its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaStage:
    """q, k and v are filtered over the last rows, then the rule; a norm of each head and a gate; the projection.

    Attributes:
        prefix: stands before the keys of its weights, `in_proj_qkv.weight` and so on.
        key_heads, key_dim: heads of q and k, and their width.
        value_heads, value_dim: heads of v, and their width; the key heads divide them.
        taps: rows that the filter sees, the own one included.
        eps: of the norm of what a head gives.
        tiled: value head h uses key head `h % key_heads`, as in GGUF files.
        log_rate: `A_log` is the logarithm of the rate of decay; else it is minus the rate.
        path: segment of the block path.
    """

    prefix: str
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    taps: int
    eps: float
    tiled: bool = False
    log_rate: bool = True
    path: str = "linear_attn"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to the same."""
        values = self.value_heads * self.value_dim
        channels = 2 * self.key_heads * self.key_dim + values
        mixed = self._project(ctx, input, "in_proj_qkv", channels)
        gate = self._project(ctx, input, "in_proj_z", values)
        b, a = (self._project(ctx, input, f"in_proj_{name}", self.value_heads) for name in "ba")
        rate = ctx.load_plain(f"{self.prefix}.A_log", (self.value_heads,))
        if self.log_rate:
            rate = ctx.op("neg", ctx.op("exp", rate))
        shift = ctx.load_plain(f"{self.prefix}.dt_bias", (self.value_heads,))
        decay = ctx.op("exp", ctx.op("mul", ctx.op("softplus", ctx.op("add", a, shift)), rate))
        mixed = ctx.op("causal_conv", mixed, self._filters(ctx, channels), activation="silu")
        attended = ctx.op(
            "gated_delta",
            mixed,
            decay,
            ctx.op("sigmoid", b),
            key_heads=self.key_heads,
            key_dim=self.key_dim,
            scale=self.key_dim**-0.5,
            norm_eps=KEY_NORM_EPS,
            tiled=self.tiled,
        )
        norm = ctx.load_plain(f"{self.prefix}.norm.weight", (self.value_dim,))
        normed = ctx.op("rms_norm", attended, norm, eps=self.eps, groups=self.value_heads)
        return self._project(ctx, ctx.op("swiglu", gate, normed), "out_proj", input.width)

    def _project(self, ctx: FlowCtx, x: FlowValue, name: str, out: int) -> FlowValue:
        return ctx.matmul(x, ctx.load_param(f"{self.prefix}.{name}.weight", transpose=True, shape=(out, x.width)))

    def _filters(self, ctx: FlowCtx, channels: int) -> FlowValue:
        """`[channels, taps]`, which a Hugging Face file has as `[channels, 1, taps]`."""
        key = f"{self.prefix}.conv1d.weight"
        if ctx.load_param(key).value.type.rank == 3:
            return ctx.op("reshape", ctx.load_plain(key, (channels, 1, self.taps)), shape=(channels, self.taps))
        return ctx.load_plain(key, (channels, self.taps))
