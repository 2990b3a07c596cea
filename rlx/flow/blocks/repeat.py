"""A stage for each layer. Next: `named.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import BlockStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class RepeatStage:
    """`make(0)`, `make(1)`, ... one after the other, under the block paths `layers.0`, `layers.1`, ..."""

    count: int
    make: Callable[[int], BlockStage]
    name: str = "layers"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """What the last layer gives.

        Raises:
            FlowError: a layer leaves the residual stack another depth than it found.
        """
        for index in range(self.count):
            with ctx.at(f"{self.name}.{index}"):
                depth = ctx.residual_depth
                input = ctx.run(self.make(index), input)
                ctx.check_residuals(depth, f"{self.name}.{index}")
        return input
