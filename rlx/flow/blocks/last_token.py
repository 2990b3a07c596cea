"""The last token of each sequence. In: `[..., seq, hidden]`. Out: `[..., 1, hidden]`. Next: `compose.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class LastTokenStage:
    """Keep the last row: the head then works on one token of each sequence."""

    path: str = "last_token"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """See the module."""
        return ctx.op("last_token", input)
