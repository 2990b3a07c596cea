"""Blocks that read a named input: add it, or add the table rows it points at.

BERT's token types, a vision model's patches and learned positions come in this way. Next: `rms_norm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


def named_value(ctx: FlowCtx, name: str) -> FlowValue:
    """A value of `ctx.named`.

    Raises:
        FlowError: there is none of that name.
    """
    if name not in ctx.named:
        raise ctx.error(
            f"nothing is named {name!r}",
            found=", ".join(sorted(ctx.named)) or "no names",
            fix=f"add .input({name!r}, shape, dtype) to the flow",
        )
    return ctx.named[name]


@dataclass(frozen=True, slots=True)
class GatherStage:
    """Rows of a table at the indices of a named input: `table[named[name]] * scale`, which replaces the input.

    `rows` is how many the table has, where that is to be checked.
    """

    name: str
    key: str
    scale: float = 1.0
    rows: int | None = None

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`f32[..., width]` for indices `i32[...]`."""
        table = ctx.load_param(self.key)
        if self.rows is not None:
            ctx.load_param(self.key, shape=(self.rows, *(s for s in table.value.type.shape[1:] if isinstance(s, int))))
        return ctx.wrap(ctx.emit("embedding", named_value(ctx, self.name).value, table.value, scale=self.scale))


@dataclass(frozen=True, slots=True)
class GatherAddStage:
    """The input plus the table rows at the indices of a named input."""

    name: str
    key: str
    scale: float = 1.0
    rows: int | None = None

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., width]` to the same."""
        return ctx.op("add", input, ctx.run(GatherStage(self.name, self.key, self.scale, self.rows), input))


@dataclass(frozen=True, slots=True)
class AddInputStage:
    """The input plus a named value."""

    name: str

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """The sum, broadcast as NumPy does."""
        return ctx.op("add", input, named_value(ctx, self.name))
