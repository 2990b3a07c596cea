"""A value as blocks see it: a tensor of the HIR graph with the sizes a block asks for. Next: `context.py`."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.core.dim import Shape, Size
from rlx.core.graph import Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError


@dataclass(frozen=True, slots=True)
class FlowValue:
    """A tensor that flows from block to block."""

    value: Value

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        return self.value.type

    @property
    def shape(self) -> Shape:
        """The sizes, some symbolic."""
        return self.value.type.shape

    @property
    def width(self) -> int:
        """The size of the last axis.

        Raises:
            ShapeError: it is symbolic, or there is no axis.
        """
        size: Size | None = self.shape[-1] if self.shape else None
        if not isinstance(size, int):
            raise ShapeError("a block needs a static last axis", found=str(self.type))
        return size
