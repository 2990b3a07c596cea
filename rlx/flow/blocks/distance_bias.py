"""A bias of the scores for each head and distance, from a small table: MPNet and T5. Source: Raffel et al. 2020.

Distances share rows of the table: near ones have one each, farther ones share by their logarithm, and keys before and
after the query have halves of their own. In: the table. Out: `named["distance_bias"]`, which a mask
`MaskKind.relative` takes. Next: `mask.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from rlx.flow.stage import segment_of_key

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue

FARTHEST = 128
"""Distance from which all share the last row."""
SPARE_COLUMNS = 32
"""Columns beyond the longest text: a kernel reads those of neighbouring queries at once."""


@dataclass(frozen=True, slots=True)
class DistanceBiasStage:
    """Put the bias of every distance into `named["distance_bias"]`; the input flows on.

    Attributes:
        key: the table `[buckets, num_heads]`, which all layers share.
        buckets: its rows, even.
        num_heads: its columns.
        max_tokens: the longest text.
    """

    operand: ClassVar[str] = "distance_bias"

    key: str
    buckets: int
    num_heads: int
    max_tokens: int

    @property
    def path(self) -> str:
        """Segment of the block path."""
        return segment_of_key(self.key)

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class."""
        reach = self.max_tokens + SPARE_COLUMNS
        rows = ctx.constant(buckets_of(np.arange(-reach, reach + 1), self.buckets))
        by_distance = ctx.op("take_rows", ctx.load_plain(self.key, (self.buckets, self.num_heads)), rows)
        ctx.named[self.operand] = ctx.op("transpose", by_distance, axes=(1, 0))


def buckets_of(distances: NDArray[np.int_], buckets: int) -> NDArray[np.int32]:
    """The row of the table for `query - key`; float32 as in the reference, since it decides where a bucket ends."""
    half, near = buckets // 2, np.abs(distances)
    exact = half // 2
    scaled = np.log(np.maximum(near, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(FARTHEST / exact))
    far = np.minimum(exact + (scaled * np.float32(half - exact)).astype(np.int32), half - 1)
    return (np.where(near < exact, near, far) + np.where(distances < 0, half, 0)).astype(np.int32)
