"""Token embedding, scaled or not. In: token ids `i32[...]`. Out: `f32[..., hidden]`. Next: `gather.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.core.dtype import i32
from rlx.errors import FlowError

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue

EMBED_KEY = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class TokenEmbedStage:
    """Rows of a table, times `scale` (Gemma: `sqrt(hidden)`).

    Attributes:
        key: the table `[vocab, hidden]`, packed or not.
        scale: factor of the rows.
        shape: `(vocab, hidden)` if the configuration says it.
    """

    key: str = EMBED_KEY
    scale: float = 1.0
    shape: tuple[int, int] | None = None
    path: str = "embed"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`i32[...]` to `f32[..., hidden]`."""
        if input.type.dtype != i32:
            raise FlowError(
                "an embedding takes token ids",
                where=str(ctx.location),
                found=str(input.type),
                expected="i32[batch, seq]",
                fix="let the embedding follow .input('tokens', (batch, seq), i32)",
            )
        table = ctx.load_param(self.key, shape=self.shape)
        return ctx.wrap(ctx.emit("embedding", input.value, table.value, scale=self.scale))
