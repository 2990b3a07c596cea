"""A stage under a name in the block path. Next: `stream.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import BlockStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class NamedStage:
    """Run a stage under the block path segment `path`."""

    path: str
    stage: BlockStage

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """What the stage gives."""
        return ctx.run(self.stage, input)
