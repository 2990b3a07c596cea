"""Pooling by attention: one learned query reads all rows. Source: Zhai et al. 2022 (Scaling Vision Transformers), the
head of SigLIP. In: `[batch, seq, hidden]`. Out: `[batch, 1, hidden]`. Next: `custom.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.linear import LinearStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class AttentionPoolStage:
    """`out(attention(q(probe), k(x), v(x)))`, every linear layer with its bias.

    Attributes:
        probe_key: the query before its projection, `[1, hidden]`.
        q_key, k_key, v_key, o_key: weights `[hidden, hidden]`.
        num_heads: of the attention.
    """

    probe_key: str
    q_key: str
    k_key: str
    v_key: str
    o_key: str
    num_heads: int
    path: str = "attention_pool"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """See the module."""
        probe = ctx.load_plain(self.probe_key, (1, input.width))
        query = ctx.run(LinearStage(self.q_key, bias=True), probe)
        queries = ctx.op("broadcast", query, shape=(*input.shape[:-2], 1, query.width))
        keys, values = (ctx.run(LinearStage(key, bias=True), input) for key in (self.k_key, self.v_key))
        attended = ctx.op(
            "attention",
            queries,
            keys,
            values,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            scale=(query.width // self.num_heads) ** -0.5,
            mask="none",
        )
        return ctx.run(LinearStage(self.o_key, bias=True), attended)
