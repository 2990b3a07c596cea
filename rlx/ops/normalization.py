"""rms_norm, layer_norm, softmax. Sources: Zhang and Sennrich 2019; Ba et al. 2016."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import ACTIVATION_TERMS, DType, f32, q8_act, q8k_act, q8x2_act
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Emitter,
    Missing,
    OpDef,
    Sample,
    Types,
    bool_attr,
    check_arity,
    float_attr,
    int_attr,
    register,
    static_axis,
)


def _check_weight(x: TensorType, weights: Types, groups: int) -> None:
    width = static_axis(x, -1, "the normalised axis")
    if groups < 1 or width % groups:
        raise ShapeError("groups has to divide the last axis", found=f"{groups} groups of {width}")
    for weight in weights:
        if weight.shape != (width // groups,) or weight.dtype != f32:
            raise ShapeError("a norm weight has to be f32[last axis / groups]", found=str(weight))


def _infer_rms_norm(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    _check_weight(types[0], types[1:], int_attr(attrs, "groups"))
    dtype = attrs["dtype"]
    float_attr(attrs, "eps")
    bool_attr(attrs, "plus_one")
    if types[0].dtype != f32 or not isinstance(dtype, DType) or not (dtype == f32 or dtype.name in ACTIVATION_TERMS):
        raise ShapeError("rms_norm takes float32 to f32 or an activation format", found=f"{types[0]} to {dtype}")
    return (types[0].with_dtype(dtype),)


def _reference_rms_norm(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight = inputs
    grouped = x.reshape(*x.shape[:-1], attrs["groups"], x.shape[-1] // attrs["groups"])
    scale = 1.0 / np.sqrt(np.mean(grouped * grouped, axis=-1, keepdims=True) + attrs["eps"])
    result = (grouped * scale * (weight + 1.0 if attrs["plus_one"] else weight)).reshape(x.shape)
    if attrs["dtype"] != f32:
        from rlx.core.storage import decode, encode

        values = np.ascontiguousarray(result, np.float32)
        return (decode(attrs["dtype"], encode(attrs["dtype"], values), values.shape),)
    return (result.astype(x.dtype),)


def _rms_norm_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    x = TensorType(f32, (seq, 96))
    return (
        Sample("plain", (x, TensorType(f32, (96,))), {"eps": 1e-5}, {"seq": 5}),
        Sample("plus_one", (x, TensorType(f32, (96,))), {"eps": 1e-6, "plus_one": True}, {"seq": 1}),
        Sample("per_head", (x, TensorType(f32, (32,))), {"eps": 1e-6, "groups": 3}, {"seq": 3}),
        Sample("odd", (TensorType(f32, (seq, 21)), TensorType(f32, (7,))), {"eps": 1e-6, "groups": 3}, {"seq": 3}),
        # the norm differs by ulps, which can move a value over a rounding edge: one step of the int8 grid (of the
        # second grid, 127 times finer and doubled where the first moved too, with two terms)
        Sample("q8x2", (x, TensorType(f32, (96,))), {"eps": 1e-5, "dtype": q8x2_act}, {"seq": 2}, tolerance=1e-4),
        Sample(
            "q8k",
            (TensorType(f32, (seq, 512)), TensorType(f32, (512,))),
            {"eps": 1e-5, "dtype": q8k_act},
            {"seq": 3},
            tolerance=1.2 / 127,
        ),
        Sample("q8", (x, TensorType(f32, (96,))), {"eps": 1e-5, "dtype": q8_act}, {"seq": 5}, tolerance=1.2 / 127),
    )


rms_norm = register(
    OpDef(
        "rms_norm",
        "x / sqrt(mean(x^2) + eps) * weight over the last axis, or over each of its groups (heads).",
        _infer_rms_norm,
        _reference_rms_norm,
        Missing("primitive: a reduction and a scaling that every backend has in one kernel"),
        _rms_norm_samples,
        (
            Attribute("eps", "added to the mean square"),
            Attribute("groups", "number of equal parts of the last axis that are normalised alone", 1),
            Attribute("plus_one", "scale by 1 + weight, as Gemma does", False),
            Attribute("dtype", "f32, or an activation format to quantise the result", f32),
        ),
        row_wise=True,
    )
)


def _infer_layer_norm(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2, 3)
    _check_weight(types[0], types[1:], 1)
    float_attr(attrs, "eps")
    if types[0].dtype != f32:
        raise ShapeError("layer_norm takes float32", found=str(types[0]))
    return (types[0],)


def _reference_layer_norm(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight = inputs[:2]
    centred = x - np.mean(x, axis=-1, keepdims=True)
    result = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + attrs["eps"]) * weight
    return ((result + inputs[2] if len(inputs) == 3 else result).astype(x.dtype),)


def _decompose_layer_norm(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    x = inputs[0]
    width = static_axis(x.type, -1, "the normalised axis")
    mean = emit("reduce_sum", emit("mul", x, _scalar(emit, 1.0 / width)))
    centred = emit("sub", x, mean)
    variance = emit("reduce_sum", emit("mul", emit("mul", centred, centred), _scalar(emit, 1.0 / width)))
    scale = emit("rsqrt", emit("add", variance, _scalar(emit, float_attr(attrs, "eps"))))
    result = emit("mul", emit("mul", centred, scale), inputs[1])
    return (emit("add", result, inputs[2]) if len(inputs) == 3 else result,)


def _scalar(emit: Emitter, value: float) -> Value:
    return emit("constant", dtype=f32, shape=(), values=(value,))


def _layer_norm_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    x, w = TensorType(f32, (seq, 48)), TensorType(f32, (48,))
    return (
        Sample("bias", (x, w, w), {"eps": 1e-5}, {"seq": 5}, tolerance=4e-6),
        Sample("no_bias", (x, w), {"eps": 1e-5}, {"seq": 1}, tolerance=4e-6),
        Sample("odd", (TensorType(f32, (seq, 21)), *[TensorType(f32, (21,))] * 2), {"eps": 1e-12}, {"seq": 3}),
    )


layer_norm = register(
    OpDef(
        "layer_norm",
        "(x - mean) / sqrt(variance + eps) * weight (+ bias) over the last axis.",
        _infer_layer_norm,
        _reference_layer_norm,
        _decompose_layer_norm,
        _layer_norm_samples,
        (Attribute("eps", "added to the variance"),),
        row_wise=True,
    )
)


def _infer_softmax(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].dtype != f32 or types[0].rank < 1:
        raise ShapeError("softmax takes float32 with at least one axis", found=str(types[0]))
    return (types[0],)


def _reference_softmax(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    exponentials = np.exp(inputs[0] - np.max(inputs[0], axis=-1, keepdims=True))
    return (exponentials / np.sum(exponentials, axis=-1, keepdims=True),)


def _decompose_softmax(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    exponentials = emit("exp", emit("sub", inputs[0], emit("reduce_max", inputs[0])))
    return (emit("div", exponentials, emit("reduce_sum", exponentials)),)


softmax = register(
    OpDef(
        "softmax",
        "exp(x - max) / sum over the last axis.",
        _infer_softmax,
        _reference_softmax,
        _decompose_softmax,
        lambda: (Sample("rows", (TensorType(f32, (Dim("seq", max=64), 50)),), {}, {"seq": 4}),),
        row_wise=True,
    )
)
