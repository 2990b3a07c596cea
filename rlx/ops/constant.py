"""parameter, constant: values that are in the program, not computed by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import product
from rlx.core.dtype import DType, f32, i32
from rlx.core.graph import Attrs, AttrValue
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import Array, Attribute, Missing, OpDef, Sample, Types, check_arity, register, size_tuple


def _type_of(attrs: Attrs) -> TensorType:
    dtype = attrs["dtype"]
    if not isinstance(dtype, DType):
        raise ShapeError("dtype has to be an element type", found=repr(dtype))
    return TensorType(dtype, size_tuple(attrs["shape"]))


def _infer_parameter(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 0)
    type_ = _type_of(attrs)
    if not isinstance(attrs["key"], str) or not all(isinstance(size, int) for size in type_.shape):
        raise ShapeError("a parameter has a key and a static shape", found=f"{attrs['key']!r}: {type_}")
    return (type_,)


def _reference_parameter(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    raise ShapeError("a parameter has no value of its own; the interpreter binds it", found=attrs["key"])


def _infer_constant(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 0)
    type_, values = _type_of(attrs), attrs["values"]
    if not isinstance(values, tuple) or product(type_.shape) != len(values) or type_.dtype.is_packed:
        raise ShapeError("a constant of a plain dtype needs one value for each element", found=str(type_))
    if not all(_fits(value, type_.dtype) for value in values):
        raise ShapeError(f"a constant of {type_.dtype} has another kind of value", found=repr(values)[:80])
    return (type_,)


def _fits(value: AttrValue, dtype: DType) -> bool:
    if dtype.kind == "bool" or isinstance(value, bool):
        return dtype.kind == "bool" and isinstance(value, bool)
    if dtype.is_float:
        return isinstance(value, (int, float))
    limits = np.iinfo(dtype.numpy)
    return isinstance(value, int) and limits.min <= value <= limits.max


def _reference_constant(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    # a float constant keeps the digits of its literal, as a float attribute does; whoever stores it rounds it
    dtype = np.dtype(np.float64) if attrs["dtype"].is_float else attrs["dtype"].numpy
    return (np.array(attrs["values"], dtype).reshape(attrs["shape"]),)


def _constant_samples() -> Sequence[Sample]:
    return (
        Sample("vector", (), {"dtype": f32, "shape": (3,), "values": (1.0, -2.5, 3.25)}),
        Sample("matrix", (), {"dtype": i32, "shape": (2, 2), "values": (1, 2, 3, 4)}),
    )


parameter = register(
    OpDef(
        "parameter",
        "A weight, found in the checkpoint by its key.",
        _infer_parameter,
        _reference_parameter,
        Missing("a parameter is bound, not computed"),
        lambda: (),
        (
            Attribute("key", "name of the tensor in the checkpoint"),
            Attribute("dtype", "element type or storage format"),
            Attribute("shape", "static shape"),
        ),
        vjp=Missing("a parameter has no operand"),
        jvp=Missing("a parameter has no operand"),
        batch=Missing("a parameter has no operand"),
    )
)

constant = register(
    OpDef(
        "constant",
        "A small tensor written into the program.",
        _infer_constant,
        _reference_constant,
        Missing("a constant is data"),
        _constant_samples,
        (
            Attribute("dtype", "element type"),
            Attribute("shape", "static shape"),
            Attribute("values", "the elements, row-major"),
        ),
        vjp=Missing("a constant has no operand"),
        jvp=Missing("a constant has no operand"),
        batch=Missing("a constant has no operand"),
    )
)
