"""The language-model head. In: `[..., hidden]`. Out: logits `[..., vocab]`. Next: `soft_cap.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.linear import bias_key, load_bias
from rlx.flow.blocks.token_embed import EMBED_KEY

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue

HEAD_KEY = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class LmHeadStage:
    """`x @ weight.T`; the weight is the embedding's if tied. The graph's output is then called `logits`.

    Attributes:
        vocab_size, hidden_size: the weight's shape.
        tied: use the embedding table.
        key, embed_key: the two weights.
        bias: add the bias beside an untied weight.
    """

    vocab_size: int
    hidden_size: int
    tied: bool = False
    key: str = HEAD_KEY
    embed_key: str = EMBED_KEY
    bias: bool = False
    path: str = "lm_head"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to `[..., vocab]`."""
        key = self.embed_key if self.tied else self.key
        weight = ctx.load_param(key, transpose=True, shape=(self.vocab_size, self.hidden_size))
        ctx.output_name = "logits"
        return ctx.matmul(input, weight, load_bias(ctx, bias_key(self.key), self.vocab_size) if self.bias else None)
