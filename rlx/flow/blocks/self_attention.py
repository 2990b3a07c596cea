"""Full self-attention: the pieces of the prefill stage with biases, q/k norms, an output gate and the projection.

In: `[..., seq, hidden]`. Out: the same shape. Next: `swiglu_mlp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlx.flow.blocks.gather import named_value
from rlx.flow.blocks.linear import bias_key, load_bias
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec, attend, load_qkv, resolve_rope, rotate

if TYPE_CHECKING:
    from rlx.flow.blocks.self_attn_prefill import RopePair
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
        values: norm v as well, without a weight (Gemma 4).
    """

    q_key: str
    k_key: str
    eps: float
    plus_one: bool = False
    whole_width: bool = False
    values: bool = False


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
        query_scale: the name of a factor `f32[seq, 1]` of the queries (`query_scale.py`), or None.
        keeps, reuses: a name under which k and v are kept for later layers, or under which an earlier layer kept those
            to attend to; a layer that reuses has no weights for k and v.
        path: segment of the block path.
    """

    spec: SelfAttnPrefillSpec
    o_key: str
    qkv_bias: bool = False
    o_bias: bool = False
    head_norm: HeadNorm | None = None
    gate_key: str | None = None
    query_scale: str | None = None
    keeps: str | None = None
    reuses: str | None = None
    path: str = "self_attn"
    k_bias: bool = True

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to the same."""
        spec = self.spec
        spec.check(ctx)
        pair = resolve_rope(ctx, spec, input)
        width = spec.num_heads * spec.head_dim
        gate = None
        if self.gate_key is not None:
            gate_weight = ctx.load_param(self.gate_key, transpose=True, shape=(width, input.width))
            gate = _project(ctx, input, gate_weight, self.qkv_bias)
        q, k, v = self._own(ctx, input, pair) if self.reuses is None else self._reusing(ctx, input, pair, self.reuses)
        if self.query_scale is not None:
            q = ctx.op("mul", q, named_value(ctx, self.query_scale))
        attended = attend(ctx, spec, q, k, v)
        if gate is not None:
            attended = ctx.op("mul", attended, ctx.op("sigmoid", gate))
        o_weight = ctx.load_param(self.o_key, transpose=True, shape=(input.width, width))
        return ctx.matmul(
            attended, o_weight, load_bias(ctx, bias_key(self.o_key), input.width) if self.o_bias else None
        )

    def _own(self, ctx: FlowCtx, x: FlowValue, pair: RopePair | None) -> tuple[FlowValue, FlowValue, FlowValue]:
        """q, k and v of this layer."""
        spec, norm = self.spec, self.head_norm
        weights = load_qkv(ctx, spec, x.width)
        q = _project(ctx, x, weights.q, self.qkv_bias)
        k = _project(ctx, x, weights.k, self.qkv_bias and self.k_bias)
        v = k if weights.v is None else _project(ctx, x, weights.v, self.qkv_bias)
        if norm is not None:
            q = _normalise(ctx, q, norm.q_key, spec.num_heads, norm)
            k = _normalise(ctx, k, norm.k_key, spec.num_kv_heads, norm)
            if norm.values:
                ones = ctx.constant(np.ones(spec.head_dim, np.float32))
                v = ctx.op("rms_norm", v, ones, eps=norm.eps, groups=spec.num_kv_heads)
        q = rotate(ctx, q, spec.num_heads, pair, spec.rope_style)
        k = rotate(ctx, k, spec.num_kv_heads, pair, spec.rope_style)
        if self.keeps is not None:
            ctx.set_stream(f"{self.keeps}.k", k)
            ctx.set_stream(f"{self.keeps}.v", v)
        return q, k, v

    def _reusing(
        self, ctx: FlowCtx, x: FlowValue, pair: RopePair | None, kept: str
    ) -> tuple[FlowValue, FlowValue, FlowValue]:
        """q of this layer, k and v of an earlier one."""
        spec, norm = self.spec, self.head_norm
        weight = ctx.load_param(spec.q_key, transpose=True, shape=(spec.num_heads * spec.head_dim, x.width))
        q = _project(ctx, x, weight, self.qkv_bias)
        if norm is not None:
            q = _normalise(ctx, q, norm.q_key, spec.num_heads, norm)
        q = rotate(ctx, q, spec.num_heads, pair, spec.rope_style)
        return q, ctx.stream(f"{kept}.k"), ctx.stream(f"{kept}.v")


def _project(ctx: FlowCtx, x: FlowValue, weight: Operand, bias: bool) -> FlowValue:
    return ctx.matmul(x, weight, load_bias(ctx, bias_key(weight.key), weight.shape[1]) if bias else None)


def _normalise(ctx: FlowCtx, x: FlowValue, key: str, num_heads: int, norm: HeadNorm) -> FlowValue:
    groups = 1 if norm.whole_width else num_heads
    weight = ctx.load_plain(key, (x.width // groups,))
    return ctx.op("rms_norm", x, weight, eps=norm.eps, groups=groups, plus_one=norm.plus_one)
