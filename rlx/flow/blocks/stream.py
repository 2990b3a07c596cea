"""Named streams: values that skip blocks. And taps: values that become extra outputs. Next: `custom.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class SaveStreamStage:
    """Keep the input as the stream `name`; it flows on."""

    name: str

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        ctx.set_stream(self.name, input)


@dataclass(frozen=True, slots=True)
class UseStreamStage:
    """Let the stream `name` flow on in place of the input."""

    name: str

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """The stream; FlowError if there is none of that name."""
        return ctx.stream(self.name)


@dataclass(frozen=True, slots=True)
class TapStage:
    """Make the input an extra output of the graph; it flows on."""

    name: str

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        ctx.tap(self.name, input)
