"""reshape, transpose, broadcast, slice, concat, iota, take_rows: moving elements without arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim, Size, product
from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.elementwise import broadcast_shapes
from rlx.ops.op import (
    Array,
    Attribute,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    check_index,
    int_attr,
    register,
    rows_cost,
    size_tuple,
    static_axis,
)

SEQ = Dim("seq", max=64)
PRIMITIVE = Missing("primitive")


def _infer_reshape(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    shape = size_tuple(attrs["shape"])
    if types[0].dtype.is_packed or product(shape) != types[0].num_elements:
        raise ShapeError("a reshape keeps the number of elements", found=f"{types[0]} to {shape}")
    return (types[0].with_shape(shape),)


reshape = register(
    OpDef(
        "reshape",
        "The same elements in the same order under another shape.",
        _infer_reshape,
        lambda inputs, attrs: (inputs[0].reshape(attrs["shape"]),),
        PRIMITIVE,
        lambda: (Sample("split", (TensorType(f32, (SEQ, 12)),), {"shape": (SEQ, 3, 4)}, {"seq": 5}),),
        (Attribute("shape", "the new shape"),),
    )
)


def _permutation(attrs: Attrs, rank: int) -> tuple[int, ...]:
    axes = attrs["axes"]
    plain = axes if isinstance(axes, tuple) else ()
    numbers = tuple(axis for axis in plain if isinstance(axis, int) and not isinstance(axis, bool))
    if not isinstance(axes, tuple) or len(numbers) != len(axes) or sorted(numbers) != list(range(rank)):
        raise ShapeError("axes has to be a permutation of the axes", found=repr(axes), expected=f"of 0..{rank - 1}")
    return numbers


def _infer_transpose(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    axes = _permutation(attrs, types[0].rank)
    if types[0].dtype.is_packed:
        raise ShapeError("a packed tensor cannot be transposed", fix="use linear, or dequantize first")
    return (types[0].with_shape([types[0].shape[axis] for axis in axes]),)


transpose = register(
    OpDef(
        "transpose",
        "The axes in another order.",
        _infer_transpose,
        lambda inputs, attrs: (np.transpose(inputs[0], attrs["axes"]),),
        PRIMITIVE,
        lambda: (
            Sample("heads", (TensorType(f32, (2, SEQ, 3, 8)),), {"axes": (0, 2, 1, 3)}, {"seq": 5}),
            Sample("matrix", (TensorType(f32, (SEQ, 7)),), {"axes": (1, 0)}, {"seq": 5}),
        ),
        (Attribute("axes", "axis of the operand for each axis of the result"),),
    )
)


def _infer_broadcast(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    shape = size_tuple(attrs["shape"])
    if types[0].dtype.is_packed or broadcast_shapes([types[0].shape, shape]) != shape:
        raise ShapeError("the operand does not broadcast to the shape", found=f"{types[0]} to {shape}")
    return (types[0].with_shape(shape),)


broadcast = register(
    OpDef(
        "broadcast",
        "The operand repeated along new axes and axes of size 1, as NumPy does.",
        _infer_broadcast,
        lambda inputs, attrs: (np.broadcast_to(inputs[0], attrs["shape"]),),
        PRIMITIVE,
        lambda: (
            Sample("row", (TensorType(f32, (6,)),), {"shape": (SEQ, 6)}, {"seq": 3}),
            Sample("middle", (TensorType(f32, (2, 1, 5)),), {"shape": (2, SEQ, 5)}, {"seq": 3}),
        ),
        (Attribute("shape", "the shape of the result"),),
    )
)


def _infer_slice(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    axis, start, stop = int_attr(attrs, "axis"), int_attr(attrs, "start"), int_attr(attrs, "stop")
    size = static_axis(types[0], axis, "the sliced axis")
    if types[0].dtype.is_packed or not 0 <= start < stop <= size or axis < 0:
        raise ShapeError("a slice has to lie within its axis", found=f"{start}:{stop} of {size}")
    shape: list[Size] = list(types[0].shape)
    shape[axis] = stop - start
    return (types[0].with_shape(shape),)


def _reference_slice(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    index = [slice(None)] * attrs["axis"] + [slice(attrs["start"], attrs["stop"])]
    return (inputs[0][tuple(index)],)


slice_op = register(
    OpDef(
        "slice",
        "The part start:stop of one static axis.",
        _infer_slice,
        _reference_slice,
        PRIMITIVE,
        lambda: (Sample("columns", (TensorType(f32, (SEQ, 12)),), {"axis": 1, "start": 4, "stop": 9}, {"seq": 5}),),
        (
            Attribute("axis", "the axis, from 0"),
            Attribute("start", "first index"),
            Attribute("stop", "one past the last index"),
        ),
    )
)


def _infer_concat(types: Types, attrs: Attrs) -> Types:
    axis = int_attr(attrs, "axis")
    if not types or not 0 <= axis < types[0].rank:
        raise ShapeError("concat needs operands and one of their axes", found=str(axis))
    total: Size = 0
    for type_ in types:
        same = type_.shape[:axis] + type_.shape[axis + 1 :] == types[0].shape[:axis] + types[0].shape[axis + 1 :]
        if not same or type_.dtype != types[0].dtype or type_.dtype.is_packed:
            raise ShapeError("operands of concat differ in one axis only")
        total = total + type_.shape[axis]
    return (types[0].with_shape((*types[0].shape[:axis], total, *types[0].shape[axis + 1 :])),)


concat = register(
    OpDef(
        "concat",
        "Operands one after the other along an axis.",
        _infer_concat,
        lambda inputs, attrs: (np.concatenate(inputs, axis=attrs["axis"]),),
        PRIMITIVE,
        lambda: (
            Sample("columns", (TensorType(f32, (SEQ, 3)), TensorType(f32, (SEQ, 5))), {"axis": 1}, {"seq": 5}),
            Sample("rows", (TensorType(f32, (SEQ, 3)), TensorType(f32, (2, 3))), {"axis": 0}, {"seq": 5}),
        ),
        (Attribute("axis", "the axis, from 0"),),
    )
)


def _infer_iota(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 0)
    return (TensorType(i32, size_tuple((attrs["size"],))),)


iota = register(
    OpDef(
        "iota",
        "0, 1, 2, ... as int32.",
        _infer_iota,
        lambda inputs, attrs: (np.arange(attrs["size"], dtype=np.int32),),
        PRIMITIVE,
        lambda: (Sample("count", (), {"size": SEQ}, {"seq": 9}),),
        (Attribute("size", "how many"),),
    )
)


def _infer_take_rows(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    table, indices = types
    if table.rank < 1 or table.dtype.is_packed or indices.dtype != i32:
        raise ShapeError("take_rows takes a plain table and int32 indices", found=f"{table} and {indices}")
    return (table.with_shape((*indices.shape, *table.shape[1:])),)


def _reference_take_rows(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    check_index(inputs[1], len(inputs[0]), "an index")
    return (inputs[0][inputs[1]],)


def _take_rows_samples() -> Sequence[Sample]:
    types = (TensorType(f32, (11, 6)), TensorType(i32, (SEQ,)))
    return (Sample("rows", types, {}, {"seq": 5}, {1: (0, 10)}),)


take_rows = register(
    OpDef(
        "take_rows",
        "table[indices]: rows of a table, one for each index; indices are within the table.",
        _infer_take_rows,
        _reference_take_rows,
        PRIMITIVE,
        _take_rows_samples,
        cost=lambda inputs, outputs, attrs: rows_cost(inputs[0], inputs[1], outputs[0]),
    )
)
