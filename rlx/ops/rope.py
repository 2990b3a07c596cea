"""positions, rope_table, rope: rotary position embedding.

Source: Su et al. 2021 (RoFormer); the half-split pairing is that of transformers' `rotate_half`, the interleaved one
that of the paper. A table has one row per token and its width is half of the number of rotated dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    float_attr,
    int_attr,
    register,
    static_axis,
)

SEQ = Dim("seq", max=64)


def _infer_positions(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].rank < 1:
        raise ShapeError("positions takes tokens [..., seq]", found=str(types[0]))
    return (TensorType(i32, (types[0].shape[-1],)),)


def _reference_positions(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return (np.arange(inputs[0].shape[-1], dtype=np.int32),)


positions = register(
    OpDef(
        "positions",
        "0, 1, ... seq-1 for tokens [..., seq]; the step program has an input in its place.",
        _infer_positions,
        _reference_positions,
        lambda emit, inputs, attrs: (emit("iota", size=inputs[0].type.shape[-1]),),
        lambda: (Sample("tokens", (TensorType(i32, (2, SEQ)),), {}, {"seq": 5}),),
        levels=frozenset({"hir"}),
    )
)


def _infer_rope_table(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    index, frequencies = types
    if index.dtype != i32 or index.rank != 1 or frequencies.dtype != f32 or frequencies.rank != 1:
        raise ShapeError("rope_table takes i32[seq] and f32[width]", found=f"{index} and {frequencies}")
    static_axis(frequencies, 0, "the number of frequencies")
    float_attr(attrs, "scaling")
    table = TensorType(f32, (index.shape[0], frequencies.shape[0]))
    return (table, table)


def _reference_rope_table(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    # the angle is a float32 product, as in transformers; only its cosine and sine are taken more precisely
    angles = inputs[0].astype(np.float32)[:, None] * inputs[1].astype(np.float32)[None, :]
    wide = angles.astype(np.float64)
    dtype = inputs[1].dtype
    return tuple((function(wide) * attrs["scaling"]).astype(dtype) for function in (np.cos, np.sin))


rope_table = register(
    OpDef(
        "rope_table",
        "cos and sin of position * frequency (float32 angles), times the attention scaling.",
        _infer_rope_table,
        _reference_rope_table,
        Missing("primitive: one small kernel per step"),
        lambda: (
            Sample(
                "long",
                (TensorType(i32, (SEQ,)), TensorType(f32, (24,))),
                {"scaling": 1.25},
                {"seq": 9},
                {0: (0, 100_000), 1: (0.0, 1.0)},
            ),
        ),
        (Attribute("scaling", "factor of both tables (YaRN, LongRoPE)", 1.0),),
    )
)


def _infer_rope(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 3)
    x, cos, sin = types
    width, heads = static_axis(x, -1, "the width of x"), int_attr(attrs, "num_heads")
    half = static_axis(cos, -1, "the width of the rope table")
    if heads < 1 or width % heads:
        raise ShapeError("num_heads has to divide the width", found=f"{heads} heads of {x}")
    if cos != sin or cos.dtype != f32 or cos.rank != 2 or x.rank < 2:
        raise ShapeError("rope takes x [..., seq, heads*head_dim] and tables f32[seq, n_rot/2]", found=f"{cos}, {sin}")
    if 2 * half > width // heads:
        raise ShapeError(
            "the rope table is wider than half a head", found=f"width {half}", expected=f"<= {width // heads // 2}"
        )
    if cos.shape[0] != x.shape[-2]:
        raise ShapeError("the rope table needs one row per token", found=f"{cos} for x {x}")
    if attrs["style"] not in ("half", "interleaved"):
        raise ShapeError("unknown rope style", found=repr(attrs["style"]), expected="half or interleaved")
    return (x,)


def _reference_rope(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, cos, sin = inputs
    half = cos.shape[-1]
    heads = x.reshape(*x.shape[:-1], attrs["num_heads"], x.shape[-1] // attrs["num_heads"])
    cos, sin = cos[:, None, :], sin[:, None, :]
    result = heads.copy()
    if attrs["style"] == "half":
        first, second = slice(0, half), slice(half, 2 * half)
    else:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = heads[..., first], heads[..., second]
    result[..., first] = a * cos - b * sin
    result[..., second] = b * cos + a * sin
    return (result.reshape(x.shape),)


def _rope_samples() -> Sequence[Sample]:
    def case(name: str, half: int, **attrs: Any) -> Sample:
        table = TensorType(f32, (SEQ, half))
        x = TensorType(f32, (2, SEQ, 3 * 32))
        return Sample(name, (x, table, table), {"num_heads": 3, **attrs}, {"seq": 5}, {1: (-1, 1), 2: (-1, 1)})

    return (
        case("full", 16),
        case("partial", 8),
        case("odd", 5),
        case("interleaved", 16, style="interleaved"),
        case("interleaved_partial", 6, style="interleaved"),
    )


rope = register(
    OpDef(
        "rope",
        "Rotate the first 2 * width dims of each head by the angles of the row; copy the rest.",
        _infer_rope,
        _reference_rope,
        Missing("primitive"),
        _rope_samples,
        (
            Attribute("num_heads", "heads side by side in the last axis"),
            Attribute("style", "half (i with i + width) or interleaved (2i with 2i + 1)", "half"),
        ),
    )
)
