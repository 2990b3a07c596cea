"""A weight of a flow that is some rows of a checkpoint's tensor, or that tensor turned round.

In: the tensor's entry and bytes. Out: those of the weight. Fused projections come in this way (Phi's qkv, GPT-NeoX's
heads of q, k and v in turns), GPT-2's matrices, which are `[in, out]`, and the convolutions of vision models, which
are read as matrices. Next: `weights.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType, bf16, f16, f32
from rlx.errors import TensorShapeError, UnsupportedModelError
from rlx.io.checkpoint import TensorInfo


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Which part of which tensor.

    Attributes:
        name: the tensor in the checkpoint.
        rows: ranges `(start, stop)` of the first axis, one after another; None for all.
        transposed: the tensor is `[in, out]`; it is read as `[out, in]`, and the rows are those of that reading.
        stored: the shape that the tensor has to have in the checkpoint; None for any.
        shown: the shape under which its elements are read, as many as are stored; the rows are those of that reading.
    """

    name: str
    rows: tuple[tuple[int, int], ...] | None = None
    transposed: bool = False
    stored: tuple[int, ...] | None = None
    shown: tuple[int, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor in the checkpoint, as `TensorStack` lists its own."""
        return (self.name,)

    def without_prefix(self, prefix: str) -> TensorPart:
        """The same of a tensor whose name lacks a prefix."""
        return replace(self, name=self.name.removeprefix(prefix))

    def shape(self, info: TensorInfo) -> tuple[int, ...]:
        """The weight's shape.

        Raises:
            TensorShapeError: the tensor has another shape than it has to have.
            UnsupportedModelError: the tensor has too few rows, or cannot be turned round.
        """
        if self.stored is not None and info.shape != self.stored:
            raise TensorShapeError(
                f"the tensor {info.name} has another shape than the configuration says",
                found=list(info.shape),
                expected=list(self.stored),
                fix="check the configuration against the checkpoint",
            )
        shape = info.shape if self.shown is None else self.shown
        if self.transposed and len(shape) == 2:
            if info.dtype not in (f32, f16, bf16):
                raise UnsupportedModelError(
                    "a quantised matrix cannot be turned round", where=info.name, found=info.dtype
                )
            shape = shape[::-1]
        if self.rows is None:
            return shape
        needed = max(stop for _, stop in self.rows)
        if not shape or shape[0] < needed:
            raise UnsupportedModelError(
                f"the tensor {info.name} has fewer rows than the configuration says",
                found=list(shape),
                expected=f"at least {needed} rows",
                fix="check the configuration against the checkpoint",
            )
        return (sum(stop - start for start, stop in self.rows), *shape[1:])

    def bytes_of(self, info: TensorInfo, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The weight's bytes: a view for one range of rows, else a copy."""
        if self.transposed and len(info.shape) == 2:
            data = np.ascontiguousarray(data.view(_bits(info.dtype)).reshape(info.shape).T).reshape(-1).view(np.uint8)
        if self.rows is None:
            return data
        count = info.shape[-1] if self.transposed else (self.shown or info.shape)[0]
        by_row = data.reshape(count, -1)
        parts = [by_row[start:stop] for start, stop in self.rows]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1)


@dataclass(frozen=True, slots=True)
class TensorStack:
    """Tensors of one shape and type one above another: a weight `[count, ...]`, as the experts of a layer.

    Attributes:
        names: the tensors in the checkpoint, in order.
    """

    names: tuple[str, ...]

    def without_prefix(self, prefix: str) -> TensorStack:
        """The same of tensors whose names lack a prefix."""
        return TensorStack(tuple(name.removeprefix(prefix) for name in self.names))

    def type_of(self, infos: Sequence[TensorInfo]) -> tuple[DType, tuple[int, ...]]:
        """Element type and shape of the stack.

        Raises:
            UnsupportedModelError: the tensors differ in shape or type.
        """
        first = infos[0]
        for info in infos:
            if (info.shape, info.dtype) != (first.shape, first.dtype):
                raise UnsupportedModelError(
                    "experts of one layer have different shapes or types",
                    found=f"{info.name}: {info.dtype}{list(info.shape)}",
                    expected=f"{first.dtype}{list(first.shape)}, as {first.name}",
                )
        return first.dtype, (len(infos), *first.shape)


def _bits(dtype: DType) -> type[np.generic]:
    return np.uint32 if dtype == f32 else np.uint16
