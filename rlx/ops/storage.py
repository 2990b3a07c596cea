"""dequantize, quantize, cast: between element types and storage formats.

In the reference interpreter a packed value is held by what it means (its dequantised floats), so `dequantize` is the
identity there and `quantize` is the rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, PACKED_WEIGHTS, DType, bf16, f16, f32, i32, q8_act
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import Array, Attribute, Missing, OpDef, Sample, Types, check_arity, register

_STORED = (*PACKED_WEIGHTS, f16, bf16)


def _infer_dequantize(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].dtype not in _STORED and types[0].dtype.name not in ACTIVATION_TERMS:
        raise ShapeError("dequantize takes a storage format", found=str(types[0]))
    return (types[0].with_dtype(f32),)


def _reference_dequantize(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return (inputs[0] if inputs[0].dtype == np.float64 else inputs[0].astype(np.float32),)


dequantize = register(
    OpDef(
        "dequantize",
        "A stored tensor as float32.",
        _infer_dequantize,
        _reference_dequantize,
        Missing("primitive: each format has its own unpacking"),
        lambda: tuple(Sample(str(dtype), (TensorType(dtype, (32, max(64, dtype.block_size))),)) for dtype in _STORED),
        row_wise=True,
    )
)


def _infer_quantize(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    dtype = attrs["dtype"]
    if types[0].dtype != f32 or not isinstance(dtype, DType) or dtype.name not in ACTIVATION_TERMS:
        raise ShapeError("quantize takes float32 to an activation format", found=f"{types[0]} to {dtype}")
    return (types[0].with_dtype(dtype),)


def _reference_quantize(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    from rlx.core.storage import decode, encode

    values = np.ascontiguousarray(inputs[0], np.float32)
    return (decode(attrs["dtype"], encode(attrs["dtype"], values), values.shape),)


quantize = register(
    OpDef(
        "quantize",
        "Float32 rows rounded to the activation format (int8, one scale per block).",
        _infer_quantize,
        _reference_quantize,
        Missing("primitive"),
        lambda: tuple(
            Sample(name, (TensorType(f32, (Dim("seq", max=64), width)),), {"dtype": DTYPES[name]}, {"seq": 5})
            for name in ACTIVATION_TERMS
            for width in (3 * DTYPES[name].block_size,)
        ),
        (Attribute("dtype", "the storage format", q8_act),),
        row_wise=True,
    )
)


def _infer_cast(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    dtype = attrs["dtype"]
    if types[0].dtype not in (f32, i32) or dtype not in (f32, i32):
        raise ShapeError("cast goes between f32 and i32", found=f"{types[0]} to {dtype}")
    return (types[0].with_dtype(i32 if dtype == i32 else f32),)


def _reference_cast(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    target = attrs["dtype"].numpy
    return (inputs[0].astype(np.float64 if target.kind == "f" and inputs[0].dtype == np.float64 else target),)


def _cast_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    return (
        Sample("to_float", (TensorType(i32, (seq, 5)),), {"dtype": f32}, {"seq": 5}, {0: (-100, 100)}),
        Sample("to_int", (TensorType(f32, (seq, 5)),), {"dtype": i32}, {"seq": 5}, {0: (-100.0, 100.0)}),
    )


cast = register(
    OpDef(
        "cast",
        "Between float32 and int32; to int rounds towards zero.",
        _infer_cast,
        _reference_cast,
        Missing("primitive"),
        _cast_samples,
        (Attribute("dtype", "the new element type"),),
        row_wise=True,
    )
)
