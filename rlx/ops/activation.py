"""swiglu, swiglu_clamped, geglu, soft_cap: activations with more than one scalar function.

Sources: Shazeer 2020 (gated units), gpt-oss 2025 (the clamped unit), Gemma 2 report 2024 (soft cap).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.elementwise import SCALAR_OPS
from rlx.ops.op import Array, Attribute, Emitter, OpDef, Sample, Types, bool_attr, check_arity, float_attr, register


def _infer_gated(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    if types[0] != types[1] or types[0].dtype != f32:
        raise ShapeError("gate and up have to be float32 of one shape", found=f"{types[0]} and {types[1]}")
    return (types[0],)


def _gated_samples() -> Sequence[Sample]:
    x = TensorType(f32, (Dim("seq", max=64), 40))
    return (Sample("rows", (x, x), {}, {"seq": 5}),)


def _reference_swiglu(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return (SCALAR_OPS["silu"].function(inputs[0]) * inputs[1],)


def _decompose_swiglu(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    return (emit("mul", emit("silu", inputs[0]), inputs[1]),)


swiglu = register(
    OpDef(
        "swiglu",
        "silu(gate) * up.",
        _infer_gated,
        _reference_swiglu,
        _decompose_swiglu,
        _gated_samples,
        row_wise=True,
    )
)


def _infer_clamped(types: Types, attrs: Attrs) -> Types:
    if not float_attr(attrs, "limit") > 0:
        raise ShapeError("the limit has to be positive", found=repr(attrs["limit"]))
    float_attr(attrs, "alpha")
    return _infer_gated(types, attrs)


def _reference_clamped(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    gate = np.minimum(inputs[0], attrs["limit"])
    up = np.clip(inputs[1], -attrs["limit"], attrs["limit"])
    return ((up + 1) * (gate * SCALAR_OPS["sigmoid"].function(attrs["alpha"] * gate)),)


def _decompose_clamped(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    def scalar(value: float) -> Value:
        return emit("constant", dtype=f32, shape=(), values=(value,))

    limit = float_attr(attrs, "limit")
    gate = emit("minimum", inputs[0], scalar(limit))
    up = emit("maximum", emit("minimum", inputs[1], scalar(limit)), scalar(-limit))
    gated = emit("mul", gate, emit("sigmoid", emit("mul", gate, scalar(float_attr(attrs, "alpha")))))
    return (emit("mul", emit("add", up, scalar(1.0)), gated),)


swiglu_clamped = register(
    OpDef(
        "swiglu_clamped",
        "(up + 1) * gate * sigmoid(alpha * gate), with gate at most limit, and up between -limit and limit.",
        _infer_clamped,
        _reference_clamped,
        _decompose_clamped,
        lambda: (Sample("rows", _gated_samples()[0].inputs, {"limit": 0.75}, {"seq": 5}),),
        (Attribute("alpha", "steepness of the gate", 1.702), Attribute("limit", "bound of gate and up", 7.0)),
        row_wise=True,
    )
)


def _gelu_name(attrs: Attrs | Mapping[str, Any]) -> str:
    return "gelu_tanh" if attrs["approximate"] else "gelu"


def _infer_geglu(types: Types, attrs: Attrs) -> Types:
    bool_attr(attrs, "approximate")
    return _infer_gated(types, attrs)


def _reference_geglu(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return (SCALAR_OPS[_gelu_name(attrs)].function(inputs[0]) * inputs[1],)


def _decompose_geglu(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    return (emit("mul", emit(_gelu_name(attrs), inputs[0]), inputs[1]),)


geglu = register(
    OpDef(
        "geglu",
        "gelu(gate) * up.",
        _infer_geglu,
        _reference_geglu,
        _decompose_geglu,
        lambda: (
            *_gated_samples(),
            Sample("erf", (TensorType(f32, (3, 40)),) * 2, {"approximate": False}),
        ),
        (Attribute("approximate", "the tanh form of GELU, as Gemma uses", True),),
        row_wise=True,
    )
)


def _infer_soft_cap(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].dtype != f32:
        raise ShapeError("soft_cap takes float32", found=str(types[0]))
    if not float_attr(attrs, "cap") > 0:
        raise ShapeError(
            "a soft cap has to be positive", found=repr(attrs["cap"]), fix="leave the op out to cap nothing"
        )
    return (types[0],)


def _reference_soft_cap(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return (attrs["cap"] * np.tanh(inputs[0] / attrs["cap"]),)


def _decompose_soft_cap(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    cap = emit("constant", dtype=f32, shape=(), values=(float_attr(attrs, "cap"),))
    return (emit("mul", cap, emit("tanh", emit("div", inputs[0], cap))),)


soft_cap = register(
    OpDef(
        "soft_cap",
        "cap * tanh(x / cap).",
        _infer_soft_cap,
        _reference_soft_cap,
        _decompose_soft_cap,
        lambda: (Sample("rows", (TensorType(f32, (Dim("seq", max=64), 40)),), {"cap": 3.0}, {"seq": 5}),),
        (Attribute("cap", "the bound, positive"),),
        row_wise=True,
    )
)
