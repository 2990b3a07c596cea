"""A convolution over the rows of a sequence, with bias. In: `[..., frames, channels]`. Out: `[..., places, out]`.

Next: `cross_attention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.flow.blocks.linear import bias_key, load_bias
from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class Conv1dStage:
    """A convolution over time, as torch.nn.Conv1d computes it, on rows that hold all channels.

    Attributes:
        key: the weight `[out, channels * kernel]`, torch's with its last two axes as one; its bias stands beside it.
        out: channels of the result.
        kernel, stride, padding: rows under the window, between its places, and of zeros at both ends.
    """

    key: str
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., frames, channels]` to `[..., places, out]`."""
        weight = ctx.load_param(self.key, shape=(self.out, input.width * self.kernel))
        bias = load_bias(ctx, bias_key(self.key), self.out)
        sizes = {"kernel": self.kernel, "stride": self.stride, "padding": self.padding}
        return ctx.wrap(ctx.emit("conv1d", input.value, weight.value, bias.value, **sizes))
