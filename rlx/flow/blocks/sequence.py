"""Stages one after the other. Next: `repeat.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import BlockStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True, init=False)
class SequenceStage:
    """`SequenceStage(a, b, c)` runs a, then b on what a gives, then c."""

    stages: tuple[BlockStage, ...]

    def __init__(self, *stages: BlockStage) -> None:
        object.__setattr__(self, "stages", stages)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """What the last stage gives."""
        for stage in self.stages:
            input = ctx.run(stage, input)
        return input
