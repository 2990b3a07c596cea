"""Full self-attention: the pieces of the prefill stage with biases, q/k norms, an output gate and the projection.

In: `[..., seq, hidden]`. Out: the same shape. Next: `swiglu_mlp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.linear import bias_key, load_bias
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec, attend, load_qkv, resolve_rope, rotate

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx, Operand
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norm of q and k, before RoPE.

    Attributes:
        q_key, k_key: weights `[head_dim]`, or of the whole width.
        eps: added to the mean square.
        plus_one: scale by 1 + weight, as Gemma does.
        whole_width: one norm over all heads (OLMo 2) in place of one for each head.
    """

    q_key: str
    k_key: str
    eps: float
    plus_one: bool = False
    whole_width: bool = False


@dataclass(frozen=True, slots=True)
class SelfAttentionStage:
    """Self-attention with its output projection.

    Attributes:
        spec: what is attended to, and how.
        o_key: output projection `[hidden, num_heads * head_dim]`.
        qkv_bias, o_bias: add the biases that stand beside the weights (`...proj.bias`).
        k_bias: whether k has one too, where `qkv_bias` adds them; it adds the same to every score of a query.
        head_norm: norm of q and k, or None.
        gate_key: a projection `[num_heads * head_dim, hidden]` whose sigmoid what attention gives is multiplied by, as
            in Qwen3-Next; None for no gate.
        path: segment of the block path.
    """

    spec: SelfAttnPrefillSpec
    o_key: str
    qkv_bias: bool = False
    o_bias: bool = False
    head_norm: HeadNorm | None = None
    gate_key: str | None = None
    path: str = "self_attn"
    k_bias: bool = True

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to the same."""
        spec, norm = self.spec, self.head_norm
        spec.check(ctx)
        pair = resolve_rope(ctx, spec, input)
        weights = load_qkv(ctx, spec, input.width)
        q = _project(ctx, input, weights.q, self.qkv_bias)
        k = _project(ctx, input, weights.k, self.qkv_bias and self.k_bias)
        v = k if weights.v is None else _project(ctx, input, weights.v, self.qkv_bias)
        width = spec.num_heads * spec.head_dim
        gate = None
        if self.gate_key is not None:
            gate_weight = ctx.load_param(self.gate_key, transpose=True, shape=(width, input.width))
            gate = _project(ctx, input, gate_weight, self.qkv_bias)
        if norm is not None:
            q = _normalise(ctx, q, norm.q_key, spec.num_heads, norm)
            k = _normalise(ctx, k, norm.k_key, spec.num_kv_heads, norm)
        q = rotate(ctx, q, spec.num_heads, pair, spec.rope_style)
        k = rotate(ctx, k, spec.num_kv_heads, pair, spec.rope_style)
        attended = attend(ctx, spec, q, k, v)
        if gate is not None:
            attended = ctx.op("mul", attended, ctx.op("sigmoid", gate))
        o_weight = ctx.load_param(self.o_key, transpose=True, shape=(input.width, width))
        return ctx.matmul(
            attended, o_weight, load_bias(ctx, bias_key(self.o_key), input.width) if self.o_bias else None
        )


def _project(ctx: FlowCtx, x: FlowValue, weight: Operand, bias: bool) -> FlowValue:
    return ctx.matmul(x, weight, load_bias(ctx, bias_key(weight.key), weight.shape[1]) if bias else None)


def _normalise(ctx: FlowCtx, x: FlowValue, key: str, num_heads: int, norm: HeadNorm) -> FlowValue:
    groups = 1 if norm.whole_width else num_heads
    weight = ctx.load_plain(key, (x.width // groups,))
    return ctx.op("rms_norm", x, weight, eps=norm.eps, groups=groups, plus_one=norm.plus_one)
