"""The escape hatch: a function that builds HIR itself.

The function gets the emitter (`emit("op", value, attribute=...)`; its `builder` is the HIR graph under construction)
and the current value. It gives the value that flows on, or None to let the current one flow on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rlx.core.graph import Value

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue
    from rlx.ops.op import Emitter

CustomFunction: TypeAlias = "Callable[[Emitter, Value], Value | None]"


@dataclass(frozen=True, slots=True)
class CustomStage:
    """Run `function(emit, value)` under the block path segment `path`."""

    function: CustomFunction
    path: str = "custom"

    @property
    def source_function(self) -> CustomFunction:
        """Nodes are located at the function."""
        return self.function

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue | None:
        """What the function gives."""
        value: object = self.function(ctx.emit, input.value)
        if value is None:
            return None
        if not isinstance(value, Value):  # pyright: ignore[reportUnnecessaryIsInstance]  # foreign code
            raise ctx.error(
                "a custom function gives a graph value or None",
                found=type(value).__name__,
                fix="return what emit(...) gave",
            )
        return ctx.wrap(value)
