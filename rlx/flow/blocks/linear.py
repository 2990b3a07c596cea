"""A linear layer, with or without bias. In: `[..., in]`. Out: `[..., out]`. Next: `norm.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.core.dim import Size
from rlx.errors import TensorShapeError
from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


def bias_key(weight_key: str) -> str:
    """The key of the bias that stands beside a weight: `...proj.bias` for `...proj.weight`."""
    return weight_key.removesuffix(".weight") + ".bias"


def load_bias(ctx: FlowCtx, key: str, out: Size) -> FlowValue:
    """A bias `f32[out]`.

    Raises:
        TensorShapeError: it has another shape.
    """
    value = ctx.load_plain(key)
    if value.shape != (out,):
        raise TensorShapeError(
            f"the bias {key} has another shape", where=str(ctx.location), found=str(value.type), expected=f"[{out}]"
        )
    return value


@dataclass(frozen=True, slots=True)
class LinearStage:
    """`x @ weight.T (+ bias)`.

    Attributes:
        key: the weight `[out, in]`.
        bias: add the bias beside the weight.
        out: the width that comes out, where it is to be checked.
    """

    key: str
    bias: bool = False
    out: int | None = None

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., in]` to `[..., out]`."""
        shape = None if self.out is None else (self.out, input.width)
        weight = ctx.load_param(self.key, transpose=True, shape=shape)
        return ctx.matmul(input, weight, load_bias(ctx, bias_key(self.key), weight.shape[1]) if self.bias else None)
