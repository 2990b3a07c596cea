"""Two branches of one input, added to it: the parallel residual of GPT-J and GPT-NeoX. Next: `residual.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import BlockStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class ParallelStage:
    """`x + (first(x) + second(x))`. Source: Wang and Komatsuzaki 2021 (GPT-J)."""

    first: BlockStage
    second: BlockStage

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        return ctx.op("add", input, ctx.op("add", ctx.run(self.first, input), ctx.run(self.second, input)))
