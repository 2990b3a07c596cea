"""Images to rows: patches, their embedding, and the tokens that stand before them.

Source: Dosovitskiy et al. 2020 (patches, the CLS token), Darcet et al. 2023 (registers). Next: `attention_pool.py`.
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
class PatchEmbedStage:
    """A linear layer over the pixels of each patch: a convolution whose stride is its kernel.

    Attributes:
        key: the weight `[hidden, channels * patch * patch]`.
        patch_size: height and width of a patch.
        bias: add the bias beside the weight.
    """

    key: str
    patch_size: int
    bias: bool = True
    path: str = "patch_embed"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`f32[batch, channels, height, width]` to `f32[batch, patches, hidden]`."""
        rows = ctx.op("patches", input, height=self.patch_size, width=self.patch_size)
        weight = ctx.load_param(self.key, transpose=True)
        return ctx.matmul(rows, weight, load_bias(ctx, bias_key(self.key), weight.shape[1]) if self.bias else None)


@dataclass(frozen=True, slots=True)
class PrefixTokensStage:
    """Put rows that every image has before its own: the CLS token, registers.

    Attributes:
        keys: tables `[rows, hidden]`, one behind the other; the tables of an inner tuple are added to each other.
    """

    keys: tuple[tuple[str, ...], ...]
    path: str = "prefix"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[batch, seq, hidden]` to `[batch, rows + seq, hidden]`."""
        parts: list[FlowValue] = []
        for keys in self.keys:
            rows = ctx.load_plain(keys[0])
            for key in keys[1:]:
                rows = ctx.op("add", rows, ctx.load_plain(key, _static(rows)))
            parts.append(ctx.op("broadcast", rows, shape=(*input.shape[:-2], rows.shape[0], input.width)))
        return ctx.op("concat", *parts, input, axis=input.type.rank - 2) if parts else input


def _static(value: FlowValue) -> tuple[int, ...]:
    return tuple(size for size in value.shape if isinstance(size, int))


@dataclass(frozen=True, slots=True)
class LayerScaleStage:
    """`x * weight`, a factor for each column. Source: Touvron et al. 2021.

    Attributes:
        key: the factors `[hidden]`.
    """

    key: str

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        return ctx.op("mul", input, ctx.load_plain(self.key, (input.width,)))


@dataclass(frozen=True, slots=True)
class FirstAndMeanStage:
    """The first row beside the mean of those behind the first `skip`: what DINOv2's classifiers read."""

    skip: int
    path: str = "first_and_mean"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to `[..., 1, 2 * hidden]`."""
        first = ctx.op("pool_tokens", input, mode="first")
        mean = ctx.op("pool_tokens", input, mode="mean", skip=self.skip)
        return ctx.op("concat", first, mean, axis=input.type.rank - 1)
