"""expert_linear, combine_experts: the layers of the experts a token uses, and their weighted sum.

Experts are a stack of linear layers `[experts, out, in]`; `route.py` says which of them a token uses. A backend runs
`expert_linear` as `group_rows` and `grouped_linear`: the rows of an expert together, so that its weights are read once,
and those of an expert that no token uses not at all. Source: Shazeer et al. 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim, product
from rlx.core.dtype import ACTIVATION_TERMS, DType, bf16, bf16_act, f32, i32, mxfp4, q4_0, q6_k, q8_act, q8k_act
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import (
    MIR,
    Array,
    Attribute,
    Cost,
    Emitter,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    check_index,
    int_attr,
    register,
    static_axis,
)

SEQ = Dim("seq", max=64)


def _check_stack(x: TensorType, weight: TensorType) -> tuple[int, int, int]:
    if weight.rank != 3:
        raise ShapeError("the weights of experts are a stack [experts, out, in]", found=str(weight))
    experts, out, k = (static_axis(weight, axis, "an axis of the weights") for axis in range(3))
    if x.rank < 2 or x.shape[-1] != k or (x.dtype != f32 and x.dtype.name not in ACTIVATION_TERMS):
        raise ShapeError("x has to be float32 or quantised, as wide as the weights", found=f"x {x}, weights {weight}")
    return experts, out, k


def _infer_expert_linear(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 3, 4)
    x, weight, ids = types[:3]
    experts, out, _ = _check_stack(x, weight)
    if ids.dtype != i32:
        raise ShapeError("the experts' numbers have to be int32", found=str(ids))
    rows_per_x(x, ids)
    if len(types) == 4 and types[3] != TensorType(f32, (experts, out)):
        raise ShapeError("the biases have to be f32[experts, out]", found=str(types[3]))
    return (TensorType(f32, (*ids.shape, out)),)


def _reference_expert_linear(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight, ids = inputs[:3]
    rows = np.broadcast_to(x[..., None, :], (*ids.shape, x.shape[-1])) if x.ndim == ids.ndim else x
    result = np.empty((*ids.shape, weight.shape[1]), np.result_type(x.dtype, np.float32))
    for expert in range(weight.shape[0]):
        chosen = ids == expert
        result[chosen] = rows[chosen] @ weight[expert].astype(result.dtype, copy=False).T
        if len(inputs) == 4:
            result[chosen] += inputs[3][expert]
    return (result,)


def _decompose_expert_linear(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    """The tokens of an expert side by side: what kernels run."""
    x, weight, ids = inputs[:3]
    order, starts = emit.many("group_rows", ids, groups=static_axis(weight.type, 0, "the number of experts"))
    return (emit("grouped_linear", x, weight, order, starts, *inputs[3:]),)


def _expert_ids(count: int, top_k: int, experts: int) -> Array:
    rng = np.random.default_rng(3)
    return np.stack([rng.permutation(experts)[:top_k] for _ in range(count)]).astype(np.int32)


def _expert_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """The products, and every expert read once."""
    moved = inputs[0].nbytes + inputs[1].nbytes + outputs[0].nbytes
    return Cost(2 * product(outputs[0].shape) * static_axis(inputs[1], -1, "in"), moved)


def _expert_samples() -> Sequence[Sample]:
    ids = TensorType(i32, (SEQ, 3))
    chosen = {2: lambda: _expert_ids(9, 3, 5)}
    stack, biases = TensorType(f32, (5, 24, 40)), TensorType(f32, (5, 24))
    token, each = TensorType(f32, (SEQ, 40)), TensorType(f32, (SEQ, 3, 40))
    packed = TensorType(q4_0, (5, 32, 64))
    return (
        Sample("tokens", (token, stack, ids), {}, {"seq": 9}, arrays=chosen, tolerance=4e-6),
        Sample("slots_bias", (each, stack, ids, biases), {}, {"seq": 9}, arrays=chosen, tolerance=4e-6),
        Sample("packed", (TensorType(f32, (SEQ, 64)), packed, ids), {}, {"seq": 9}, arrays=chosen, tolerance=4e-6),
    )


expert_linear = register(
    OpDef(
        "expert_linear",
        "x @ weight[id].T (+ bias[id]) for each expert id of each token.",
        _infer_expert_linear,
        _reference_expert_linear,
        _decompose_expert_linear,
        _expert_samples,
        cost=_expert_cost,
        row_wise=True,
    )
)


def _infer_group_rows(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].dtype != i32 or int_attr(attrs, "groups") < 1:
        raise ShapeError("group_rows takes int32 ids and a number of groups", found=str(types[0]))
    return types[0], TensorType(i32, (int_attr(attrs, "groups") + 1,))


def _reference_group_rows(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    ids = inputs[0].reshape(-1)
    check_index(ids, attrs["groups"], "an expert's number")
    order = np.argsort(ids, kind="stable").astype(np.int32).reshape(inputs[0].shape)
    counts = np.bincount(ids, minlength=attrs["groups"])
    return order, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


group_rows = register(
    OpDef(
        "group_rows",
        "The numbers of all ids by group: those of group g, in order, are order.flat[starts[g]:starts[g + 1]].",
        _infer_group_rows,
        _reference_group_rows,
        Missing("primitive: a counting sort"),
        lambda: (
            Sample(
                "ids",
                (TensorType(i32, (SEQ, 3)),),
                {"groups": 5},
                {"seq": 9},
                arrays={0: lambda: _expert_ids(9, 3, 5)},
            ),
        ),
        (Attribute("groups", "how many groups there are"),),
        levels=frozenset({MIR}),
    )
)


def _infer_grouped_linear(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 4, 5)
    x, weight, order, starts = types[:4]
    experts, out, _ = _check_stack(x, weight)
    if order.dtype != i32 or order.rank < 1 or starts != TensorType(i32, (experts + 1,)):
        raise ShapeError("order and starts are what group_rows gives", found=f"{order} and {starts}")
    rows_per_x(x, order)
    if len(types) == 5 and types[4] != TensorType(f32, (experts, out)):
        raise ShapeError("the biases have to be f32[groups, out]", found=str(types[4]))
    return (TensorType(f32, (*order.shape, out)),)


def rows_per_x(x: TensorType, ids: TensorType) -> int:
    """How many rows of a grouped product read one row of x: one, or as many as a token has experts.

    Raises:
        ShapeError: x has rows for something else.
    """
    if x.shape[:-1] == ids.shape:
        return 1
    if x.shape[:-1] != ids.shape[:-1]:
        raise ShapeError("x has a row for each token, or for each of its experts", found=f"x {x}, ids {ids}")
    return static_axis(ids, -1, "the experts of a token")


def _reference_grouped_linear(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight, order, starts = inputs[:4]
    numbers, rows = order.reshape(-1), x.reshape(-1, x.shape[-1])
    result = np.empty((numbers.size, weight.shape[1]), np.result_type(x.dtype, np.float32))
    per_x = numbers.size // len(rows) if len(rows) else 1
    for group in range(weight.shape[0]):
        chosen = numbers[starts[group] : starts[group + 1]]
        result[chosen] = rows[chosen // per_x] @ weight[group].astype(result.dtype, copy=False).T
        if len(inputs) == 5:
            result[chosen] += inputs[4][group]
    return (result.reshape(*order.shape, -1),)


def _grouped_samples() -> Sequence[Sample]:
    mixed = _expert_ids(9, 3, 5)
    choices = {
        "mixed": mixed,
        "one_token": mixed[:1],
        "unused": np.where(mixed == 2, 4, mixed).astype(np.int32),
        "all_to_one": np.full((13, 3), 3, np.int32),
    }

    def case(name: str, choice: str, x: DType, weight: DType, out: int, k: int, each: bool, bias: bool) -> Sample:
        ids = choices[choice]
        order, starts = _reference_group_rows((ids,), {"groups": 5})
        lead = ids.shape if each else ids.shape[:1]
        types = [TensorType(x, (*lead, k)), TensorType(weight, (5, out, k)), TensorType(i32, ids.shape)]
        types += [TensorType(i32, (6,)), *([TensorType(f32, (5, out))] if bias else [])]
        arrays = {2: lambda: order, 3: lambda: starts}
        return Sample(f"{name}_{choice}", tuple(types), {}, arrays=arrays, tolerance=4e-6)

    return (
        case("f32", "mixed", f32, f32, 24, 40, False, True),
        case("f32", "all_to_one", f32, f32, 40, 33, True, False),
        case("f32", "one_token", f32, f32, 16, 8, False, False),
        case("bf16", "unused", bf16_act, bf16, 40, 64, True, True),
        case("q4_0", "mixed", f32, q4_0, 32, 64, False, False),
        case("q4_0_q8", "all_to_one", q8_act, q4_0, 24, 64, False, True),
        case("q4_0_q8", "one_token", q8_act, q4_0, 48, 64, True, False),
        case("q6_k_q8", "unused", q8k_act, q6_k, 32, 256, False, False),
        case("mxfp4_q8", "mixed", q8_act, mxfp4, 32, 64, True, True),
    )


grouped_linear = register(
    OpDef(
        "grouped_linear",
        "Row r of group g is x[r] @ weight[g].T (+ bias[g]); x has a row for each r, or for each token.",
        _infer_grouped_linear,
        _reference_grouped_linear,
        Missing("primitive: products of as many rows as a group has"),
        _grouped_samples,
        levels=frozenset({MIR}),
        cost=_expert_cost,
    )
)


def _infer_combine(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    y, weights = types
    if y.dtype != f32 or weights.dtype != f32 or y.rank < 2 or y.shape[:-1] != weights.shape:
        raise ShapeError("combine_experts takes f32 [..., k, n] and weights [..., k]", found=f"{y} and {weights}")
    return (TensorType(f32, (*y.shape[:-2], y.shape[-1])),)


def _reference_combine(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    return ((inputs[0] * inputs[1][..., None]).sum(-2),)


combine_experts = register(
    OpDef(
        "combine_experts",
        "The sum over the experts of a token, each times its weight, best expert first.",
        _infer_combine,
        _reference_combine,
        Missing("primitive: a sum over an inner axis"),
        lambda: (
            Sample("rows", (TensorType(f32, (SEQ, 3, 40)), TensorType(f32, (SEQ, 3))), {}, {"seq": 9}),
            Sample("odd", (TensorType(f32, (SEQ, 8, 21)), TensorType(f32, (SEQ, 8))), {}, {"seq": 4}),
        ),
        row_wise=True,
    )
)
