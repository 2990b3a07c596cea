"""patches: an image as rows, one for each patch, so that a convolution whose stride is its kernel becomes a product.

Source: the patch embedding of Dosovitskiy et al. 2020. A row holds the pixels of its patch in the order in which the
weight `[out, channels, height, width]` of the convolution lies in memory. Next: `pooling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlx.core.dim import Dim, Size, divide_exact
from rlx.core.dtype import f32
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import Array, Attribute, Emitter, OpDef, Sample, Types, check_arity, int_attr, register, static_axis


def patch_grid(image: TensorType, height: int, width: int) -> tuple[Size, Size]:
    """Patches from top to bottom and from left to right.

    Raises:
        ShapeError: the image is not made of whole patches.
    """
    if image.rank < 3 or height < 1 or width < 1:
        raise ShapeError("patches takes images [..., channels, height, width]", found=str(image))
    rows, columns = divide_exact(image.shape[-2], height), divide_exact(image.shape[-1], width)
    if rows is None or columns is None:
        raise ShapeError("an image has to be made of whole patches", found=str(image), expected=f"{height} x {width}")
    return rows, columns


def _infer(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    image, height, width = types[0], int_attr(attrs, "height"), int_attr(attrs, "width")
    rows, columns = patch_grid(image, height, width)
    if image.dtype != f32:
        raise ShapeError("patches takes float32", found=str(image))
    channels = static_axis(image, -3, "the number of channels")
    return (image.with_shape((*image.shape[:-3], rows * columns, channels * height * width)),)


def _reference(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, height, width = inputs[0], attrs["height"], attrs["width"]
    *lead, channels, full_height, full_width = x.shape
    rows, columns = full_height // height, full_width // width
    split = x.reshape(-1, channels, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
    return (split.reshape(*lead, rows * columns, channels * height * width),)


def _decompose(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    x, height, width = inputs[0], int_attr(attrs, "height"), int_attr(attrs, "width")
    lead, channels = x.type.shape[:-3], x.type.shape[-3]
    rows, columns = patch_grid(x.type, height, width)
    split = emit("reshape", x, shape=(*lead, channels, rows, height, columns, width))
    axes = (*range(len(lead)), *(len(lead) + axis for axis in (1, 3, 0, 2, 4)))
    moved = emit("transpose", split, axes=axes)
    (result,) = _infer((x.type,), attrs)
    return (emit("reshape", moved, shape=result.shape),)


def _samples() -> Sequence[Sample]:
    batch, rows, columns = Dim("batch", max=8), Dim("rows", max=8), Dim("columns", max=8)
    sizes = {"batch": 2, "rows": 3, "columns": 2}

    def case(name: str, channels: int, height: int, width: int) -> Sample:
        image = TensorType(f32, (batch, channels, rows * height, columns * width))
        return Sample(name, (image,), {"height": height, "width": width}, sizes)

    return (case("square", 3, 4, 4), case("wide", 2, 3, 18), case("pixels", 1, 1, 1))


patches = register(
    OpDef(
        "patches",
        "Images [..., channels, height, width] as rows [..., patches, pixels], patches from left to right, then down.",
        _infer,
        _reference,
        _decompose,
        _samples,
        (Attribute("height", "of a patch"), Attribute("width", "of a patch")),
    )
)
