"""Tensor types: an element type (or storage format) and a shape of symbolic sizes. Next: `graph.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx.core.dim import Shape, Size, product
from rlx.core.dtype import DType
from rlx.errors import ShapeError


@dataclass(frozen=True, slots=True)
class TensorType:
    """`dtype[shape]`, row-major. A packed dtype packs along the last axis, which is static and whole blocks."""

    dtype: DType
    shape: Shape

    def __post_init__(self) -> None:
        if any(isinstance(size, int) and size < 0 for size in self.shape):
            raise ShapeError("a size cannot be negative", found=str(self))
        if self.dtype.is_packed:
            last = self.shape[-1] if self.shape else None
            if not isinstance(last, int) or last % self.dtype.block_size:
                raise ShapeError(
                    f"the last axis of a {self.dtype} tensor has to be static and whole blocks",
                    found=str(self),
                    expected=f"a multiple of {self.dtype.block_size}",
                )

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return str(self)

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def num_elements(self) -> Size:
        """The number of elements, symbolic."""
        return product(self.shape)

    @property
    def nbytes(self) -> Size:
        """The number of bytes, symbolic; packed formats at their packed size."""
        if not self.dtype.is_packed:
            return self.num_elements * self.dtype.block_bytes
        last = self.shape[-1]
        if not isinstance(last, int):
            raise ShapeError("a packed type needs a static last axis", found=str(self))
        return product(self.shape[:-1]) * self.dtype.nbytes(last)

    def with_shape(self, shape: Sequence[Size]) -> TensorType:
        """The same dtype with another shape."""
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        """The same shape with another dtype."""
        return TensorType(dtype, self.shape)


def tensor(dtype: DType, *shape: Size) -> TensorType:
    """Shorthand: `tensor(f32, seq, 576)`."""
    return TensorType(dtype, shape)


def numpy_shape(type_: TensorType, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the NumPy array that holds a value of `type_` whose sizes are `shape`.

    A packed value is held as its bytes: the last axis counts bytes.
    """
    if not type_.dtype.is_packed:
        return tuple(shape)
    return (*shape[:-1], type_.dtype.nbytes(shape[-1]))
