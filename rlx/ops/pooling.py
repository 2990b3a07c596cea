"""pool_tokens, packed_pool_tokens, l2_normalize: from one row per token to one vector per sequence.

Source: the pooling modes of sentence-transformers (Reimers and Gurevych 2019). `packed_pool_tokens` is the form for
sequences that lie side by side (`packed_attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import InputError, ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Emitter,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    float_attr,
    int_attr,
    register,
)
from rlx.ops.packed_attention import check_bounds

POOLINGS = ("mean", "mean_sqrt", "weighted_mean", "max", "first", "last")
MODE = Attribute(
    "mode",
    "mean, mean_sqrt (sum / sqrt(tokens)), weighted_mean (token i has weight i), max, first (the CLS token) or last",
)
SKIP = Attribute("skip", "rows at the start of a sequence that are left out", 0)
SEQ = Dim("seq", max=64)
PATCHES: Attrs = {"mode": "mean", "skip": 2}
"""The rows of an image behind its CLS and register tokens."""


def _check_attrs(attrs: Attrs) -> None:
    if attrs["mode"] not in POOLINGS:
        raise ShapeError("unknown pooling", found=repr(attrs["mode"]), expected=", ".join(POOLINGS))
    if int_attr(attrs, "skip") < 0:
        raise ShapeError("a negative number of rows cannot be left out", found=repr(attrs["skip"]))


def _pool(rows: Array, mode: str, skip: int) -> Array:
    """`[..., tokens, width]` to `[..., 1, width]`."""
    if rows.shape[-2] <= skip:
        raise InputError("a sequence without rows has nothing to pool", found=rows.shape[-2], expected=f"> {skip}")
    rows = rows[..., skip:, :]
    if mode == "first":
        return rows[..., :1, :]
    if mode == "last":
        return rows[..., -1:, :]
    if mode == "max":
        return rows.max(axis=-2, keepdims=True)
    if mode == "weighted_mean":
        weights = np.arange(1, rows.shape[-2] + 1, dtype=rows.dtype)[:, None]
        return (rows * weights).sum(axis=-2, keepdims=True) / weights.sum()
    total = rows.sum(axis=-2, keepdims=True)
    return total / np.asarray(rows.shape[-2] if mode == "mean" else np.sqrt(rows.shape[-2]), rows.dtype)


def _infer_pool(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    _check_attrs(attrs)
    x = types[0]
    if x.rank < 2 or x.dtype != f32:
        raise ShapeError("pool_tokens takes f32[..., seq, hidden]", found=str(x))
    return (x.with_shape((*x.shape[:-2], 1, x.shape[-1])),)


def _plain_samples() -> Sequence[Sample]:
    types = (TensorType(f32, (2, SEQ, 21)),)
    kinds = [(mode, {"mode": mode}) for mode in POOLINGS]
    return tuple(Sample(name, types, attrs, {"seq": 5}) for name, attrs in (*kinds, ("patches", PATCHES)))


pool_tokens = register(
    OpDef(
        "pool_tokens",
        "The rows of each sequence [..., seq, hidden] as one row [..., 1, hidden].",
        _infer_pool,
        lambda inputs, attrs: (_pool(inputs[0], attrs["mode"], attrs["skip"]),),
        Missing("primitive: a reduction over another axis than the last"),
        _plain_samples,
        (MODE, SKIP),
    )
)


def _infer_packed(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    _check_attrs(attrs)
    x, bounds = types
    if x.rank != 2 or x.dtype != f32 or bounds.dtype != i32 or bounds.rank != 1:
        raise ShapeError("packed_pool_tokens takes f32[rows, hidden], i32[sequences + 1]", found=f"{x} and {bounds}")
    return (x.with_shape((bounds.shape[0] - 1, x.shape[-1])),)


def _reference_packed(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, bounds = inputs
    check_bounds(bounds, len(x))
    result = np.empty((len(bounds) - 1, x.shape[1]), x.dtype)
    for index in range(len(result)):
        result[index : index + 1] = _pool(x[bounds[index] : bounds[index + 1]], attrs["mode"], attrs["skip"])
    return (result,)


def _packed_samples() -> Sequence[Sample]:
    bounds, longer = np.array([0, 4, 5, 12], np.int32), np.array([0, 4, 7, 12], np.int32)
    types = (TensorType(f32, (12, 21)), TensorType(i32, (4,)))
    kinds = tuple(Sample(mode, types, {"mode": mode}, arrays={1: lambda: bounds}) for mode in POOLINGS)
    return (*kinds, Sample("patches", types, PATCHES, arrays={1: lambda: longer}))


packed_pool_tokens = register(
    OpDef(
        "packed_pool_tokens",
        "The rows of each sequence as one row; the sequences lie side by side, none is empty.",
        _infer_packed,
        _reference_packed,
        Missing("which rows belong together depends on data; every backend walks the sequences itself"),
        _packed_samples,
        (MODE, SKIP),
    )
)


def _infer_normalize(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].rank < 1 or types[0].dtype != f32:
        raise ShapeError("l2_normalize takes float32", found=str(types[0]))
    float_attr(attrs, "eps")
    return (types[0],)


def _reference_normalize(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x = inputs[0]
    return (x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), attrs["eps"]),)


def _decompose_normalize(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    x = inputs[0]
    length = emit("sqrt", emit("reduce_sum", emit("mul", x, x)))
    smallest = emit("constant", dtype=f32, shape=(), values=(float_attr(attrs, "eps"),))
    return (emit("div", x, emit("maximum", length, smallest)),)


l2_normalize = register(
    OpDef(
        "l2_normalize",
        "x / max(|x|, eps) over the last axis.",
        _infer_normalize,
        _reference_normalize,
        _decompose_normalize,
        lambda: (Sample("rows", (TensorType(f32, (SEQ, 37)),), {}, {"seq": 5}, tolerance=4e-6),),
        (Attribute("eps", "smallest length that is divided by", 1e-12),),
        row_wise=True,
    )
)
