"""From a row per token to a vector per text. In: `[..., seq, hidden]`. Out: `[..., 1, hidden]`. Next: `custom.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class PoolStage:
    """All rows of a sequence but the first `skip` as one; `mode` is one of `rlx.ops.pooling.POOLINGS`."""

    mode: str
    skip: int = 0
    path: str = "pool"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """See the module."""
        return ctx.op("pool_tokens", input, mode=self.mode, skip=self.skip)


@dataclass(frozen=True, slots=True)
class PoolAllStage:
    """The results of several poolings side by side, `[..., 1, modes * hidden]`."""

    modes: tuple[str, ...]
    path: str = "pool"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """See the module."""
        pooled = [ctx.op("pool_tokens", input, mode=mode) for mode in self.modes]
        return ctx.op("concat", *pooled, axis=input.type.rank - 1)


@dataclass(frozen=True, slots=True)
class NormalizeStage:
    """Vectors of length 1."""

    path: str = "normalize"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        return ctx.op("l2_normalize", input, eps=1e-12)
