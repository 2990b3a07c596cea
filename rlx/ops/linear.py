"""linear, matmul: products with a weight `[out, in]`, and of two activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim, product
from rlx.core.dtype import (
    ACTIVATION_TERMS,
    DTYPES,
    PACKED_WEIGHTS,
    WITHOUT_INTEGERS,
    activation_format,
    bf16,
    bf16_act,
    f16,
    f32,
    q4_0,
    q4_1,
    q4_k,
    q6_k,
    q8_0,
    q8_act,
    q8k_act,
)
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.elementwise import broadcast_shapes
from rlx.ops.op import Array, Cost, Emitter, Missing, OpDef, Sample, Types, check_arity, register


def _infer_linear(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2, 3, 4)
    x, weight = types[:2]
    if weight.rank != 2 or not all(isinstance(size, int) for size in weight.shape):
        raise ShapeError("a linear weight is a static matrix [out, in]", found=str(weight))
    if x.rank < 1 or x.shape[-1] != weight.shape[1]:
        raise ShapeError("the last axis of x has to be the weight's in size", found=f"x {x}, weight {weight}")
    if x.dtype != f32 and x.dtype.name not in ACTIVATION_TERMS:
        raise ShapeError("linear takes float32 or quantised activations", found=str(x))
    result = TensorType(f32, (*x.shape[:-1], weight.shape[0]))
    has_bias, has_residual = optional_operands(types)
    if has_bias and types[2] != TensorType(f32, (weight.shape[0],)):
        raise ShapeError("the bias has to be f32[out]", found=str(types[2]), expected=f"f32[{weight.shape[0]}]")
    if has_residual and types[-1] != result:
        raise ShapeError("the residual has to be like the result", found=str(types[-1]), expected=str(result))
    return (result,)


def optional_operands(types: Types) -> tuple[bool, bool]:
    """Whether a `linear` with operands of these types has a bias, and whether it has a residual.

    The bias comes first. A third operand alone is the bias if it has one axis, so that a residual needs two.
    """
    has_bias = len(types) == 4 or (len(types) == 3 and types[2].rank == 1)
    return has_bias, len(types) - has_bias == 3


def _reference_linear(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight = inputs[:2]
    result = x @ weight.astype(np.result_type(x.dtype, np.float32), copy=False).T
    for operand in inputs[2:]:
        result = result + operand
    return (result,)


def _linear_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    moved = inputs[0].nbytes + inputs[1].nbytes + outputs[0].nbytes
    for operand in inputs[2:]:
        moved = moved + operand.nbytes
    return Cost(2 * product((*inputs[0].shape, inputs[1].shape[0])), moved)


def _decompose_linear(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    """For a weight that is computed: a transpose and a matmul."""
    weight = inputs[1] if inputs[1].type.dtype == f32 else emit("dequantize", inputs[1])
    x = inputs[0] if inputs[0].type.dtype == f32 else emit("dequantize", inputs[0])
    lead = x.type.shape[:-1]
    if x.type.rank == 1:
        x = emit("reshape", x, shape=(1, x.type.shape[0]))
    result = emit("matmul", x, emit("transpose", weight, axes=(1, 0)))
    if not lead:
        result = emit("reshape", result, shape=(weight.type.shape[0],))
    for operand in inputs[2:]:
        result = emit("add", result, operand)
    return (result,)


def _linear_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    cases: list[Sample] = []
    for dtype in (f32, f16, bf16, q4_0, q4_1, q8_0):
        for rows, out, k in ((1, 48, 96), (13, 40, 64)):
            x, weight = TensorType(f32, (seq, k)), TensorType(dtype, (out, k))
            cases.append(Sample(f"{dtype}_{rows}x{out}x{k}", (x, weight), {}, {"seq": rows}, tolerance=4e-6))
            if dtype.is_packed:
                quantised = TensorType(q8_act, (seq, k))
                cases.append(
                    Sample(f"{dtype}_q8_{rows}x{out}x{k}", (quantised, weight), {}, {"seq": rows}, tolerance=4e-6)
                )
    for dtype in PACKED_WEIGHTS[3:]:
        k = 2 * dtype.block_size
        forms = (("", f32), ("_q8", activation_format(dtype, 1)))
        for name, act in forms[: 1 if dtype in WITHOUT_INTEGERS else 2]:
            pair = (TensorType(act, (seq, k)), TensorType(dtype, (40, k)))
            cases.append(Sample(f"{dtype}{name}_13x40x{k}", pair, {}, {"seq": 13}, tolerance=4e-6))
    for rows, weight in ((1, q8_0), (9, q4_1), (5, q4_k), (9, q6_k)):
        k = 2 * weight.block_size
        pair = (TensorType(activation_format(weight, 2), (seq, k)), TensorType(weight, (48, k)))
        cases.append(Sample(f"{weight}_q8x2_{rows}", pair, {}, {"seq": rows}, tolerance=4e-6))
    for rows, out in ((1, 48), (13, 40)):
        pair = (TensorType(bf16_act, (seq, 64)), TensorType(bf16, (out, 64)))
        cases.append(Sample(f"bf16_act_{rows}x{out}", pair, {}, {"seq": rows}, tolerance=4e-6))
    bias = (TensorType(f32, (seq, 33)), TensorType(f32, (17, 33)), TensorType(f32, (17,)))
    cases.append(Sample("bias_odd", bias, {}, {"seq": 6}, tolerance=4e-6))
    batch = (TensorType(f32, (2, seq, 32)), TensorType(DTYPES["q4_0"], (16, 32)))
    cases.append(Sample("batch", batch, {}, {"seq": 3}, tolerance=4e-6))
    for name, act, weight, rows in _RESIDUALS:
        k = 2 * weight.block_size if weight.is_packed else 64
        residual = (TensorType(act, (seq, k)), TensorType(weight, (40, k)), TensorType(f32, (seq, 40)))
        cases.append(Sample(f"residual_{name}", residual, {}, {"seq": rows}, tolerance=4e-6))
    both = (TensorType(f32, (17,)), TensorType(f32, (2, seq, 17)))
    pair = (TensorType(f32, (2, seq, 33)), TensorType(f32, (17, 33)))
    cases.append(Sample("bias_residual", (*pair, *both), {}, {"seq": 5}, tolerance=4e-6))
    return cases


_RESIDUALS = (
    ("f32_1", f32, f32, 1),
    ("f32_13", f32, f32, 13),
    ("q4_1", f32, q4_1, 9),
    ("q4_1_q8_1", q8_act, q4_1, 1),
    ("q4_1_q8_21", q8_act, q4_1, 21),
    ("q6_k_q8", q8k_act, q6_k, 13),
    ("bf16_act_1", bf16_act, bf16, 1),
    ("bf16_act_13", bf16_act, bf16, 13),
)


linear = register(
    OpDef(
        "linear",
        "x @ weight.T (+ bias) (+ residual); the weight is [out, in] and may be packed, x may be quantised.",
        _infer_linear,
        _reference_linear,
        _decompose_linear,
        _linear_samples,
        cost=_linear_cost,
        row_wise=True,
    )
)


def _infer_matmul(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    a, b = types
    if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2] or a.dtype != f32 or b.dtype != f32:
        raise ShapeError("matmul takes f32 [..., m, k] and [..., k, n]", found=f"{a} and {b}")
    return (TensorType(f32, (*broadcast_shapes([a.shape[:-2], b.shape[:-2]]), a.shape[-2], b.shape[-1])),)


def _reference_matmul(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return (np.matmul(inputs[0], inputs[1]),)


def _matmul_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    plain = (TensorType(f32, (seq, 24)), TensorType(f32, (24, 20)))
    batched = (TensorType(f32, (2, seq, 24)), TensorType(f32, (2, 24, seq)))
    shared = (TensorType(f32, (2, 3, seq, 8)), TensorType(f32, (8, 5)))
    return tuple(
        Sample(name, types, {}, {"seq": 7}, tolerance=4e-6)
        for name, types in (("plain", plain), ("batched", batched), ("shared", shared))
    )


def _matmul_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    moved = inputs[0].nbytes + inputs[1].nbytes + outputs[0].nbytes
    return Cost(2 * product((*outputs[0].shape, inputs[0].shape[-1])), moved)


matmul = register(
    OpDef(
        "matmul",
        "The matrix product of two activations, batched over the leading axes.",
        _infer_matmul,
        _reference_matmul,
        Missing("primitive"),
        _matmul_samples,
        cost=_matmul_cost,
    )
)
