"""Attention of a decoder over what an encoder made of something else: audio, an image, a text to translate.

In: `[..., seq, hidden]`, and the encoder's rows `[..., frames, width]` as a named input. Out: `[..., seq, hidden]`. An
author writes it as plain attention without a mask; the step program computes its keys and values once for each source
(`rlx/hir/derive_source.py`). Source: Vaswani et al. 2017, section 3.2.3. Next: `gated_mlp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.gather import named_value
from rlx.flow.blocks.linear import bias_key, load_bias
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec, attend

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class CrossAttentionStage:
    """Cross attention with its output projection; q, v and the output have biases, k has none.

    Attributes:
        prefix: stands before `.q_proj`, `.k_proj`, `.v_proj` and `.out_proj`.
        num_heads, head_dim: sizes of the heads.
        source: the input with the encoder's rows.
        path: segment of the block path.
    """

    prefix: str
    num_heads: int
    head_dim: int
    source: str = "source"
    path: str = "cross_attn"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to the same.

        Raises:
            FlowError: the flow has no input with the encoder's rows.
        """
        source, width = named_value(ctx, self.source), self.num_heads * self.head_dim
        q_key, k_key, v_key = (f"{self.prefix}.{letter}_proj.weight" for letter in "qkv")
        spec = SelfAttnPrefillSpec(
            q_key, k_key, v_key, self.num_heads, self.head_dim, self.num_heads, n_rot=0, mask=MaskKind.none()
        )
        spec.check(ctx)
        q = self._project(ctx, input, "q_proj", width)
        k = self._project(ctx, source, "k_proj", width, bias=False)
        v = self._project(ctx, source, "v_proj", width)
        attended = attend(ctx, spec, q, k, v)
        return self._project(ctx, attended, "out_proj", input.width)

    def _project(self, ctx: FlowCtx, x: FlowValue, part: str, out: int, bias: bool = True) -> FlowValue:
        key = f"{self.prefix}.{part}.weight"
        weight = ctx.load_param(key, transpose=True, shape=(out, x.width))
        return ctx.matmul(x, weight, load_bias(ctx, bias_key(key), out) if bias else None)
