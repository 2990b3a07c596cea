"""causal_conv, causal_conv_step: each channel filtered over its own last rows, along the sequence.

    y[t, c] = activation(sum over k of weight[c, k] * x[t - (taps - 1) + k, c]),   x = 0 before the first row

The state of a sequence is its last `taps - 1` rows of x, oldest first: `[taps - 1, channels]`. Source: the short
convolution of Mamba (Gu and Dao 2023), as in transformers' Qwen3-Next. Next: `gated_delta.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim, Size, product
from rlx.core.dtype import f32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.elementwise import SCALAR_OPS
from rlx.ops.op import Array, Attribute, Cost, Missing, OpDef, Sample, Types, check_arity, register, static_axis
from rlx.ops.recurrent_state import (
    OFFSET,
    STATE_FORMS,
    STATE_OPERANDS,
    StateForm,
    check_state,
    sample_index,
    sample_state_types,
    scan_ragged,
    scan_whole,
)

ACTIVATIONS = ("none", "silu")
_ATTRIBUTE = Attribute("activation", "what the sums go through: none or silu", "none")


def conv_state_width(types: Types, attrs: Attrs) -> int:
    """Floats of state of one sequence: `taps - 1` rows."""
    channels, taps = (static_axis(types[1], axis, "the filters") for axis in (0, 1))
    return (taps - 1) * channels


def _check(types: Types, attrs: Attrs) -> None:
    x, weight = types
    if attrs["activation"] not in ACTIVATIONS:
        raise ShapeError("unknown activation", found=repr(attrs["activation"]), expected=" or ".join(ACTIVATIONS))
    if x.dtype != f32 or x.rank < 2 or weight != TensorType(f32, (x.shape[-1], *weight.shape[1:])) or weight.rank != 2:
        raise ShapeError("causal_conv takes f32[..., seq, channels] and f32[channels, taps]", found=f"{x} and {weight}")
    static_axis(x, -1, "the number of channels")
    if static_axis(weight, 1, "the number of taps") < 1:
        raise ShapeError("a filter needs a tap", found=str(weight))


def _scan(weight: Array, attrs: Mapping[str, Any], x: Array, state: Array) -> tuple[Array, Array]:
    """One sequence `[rows, channels]`."""
    taps = weight.shape[1]
    past = np.concatenate([state.reshape(taps - 1, x.shape[1]), x])
    total = sum(past[k : k + len(x)] * weight[:, k] for k in range(taps))
    y = SCALAR_OPS["silu"].function(np.asarray(total)) if attrs["activation"] == "silu" else np.asarray(total)
    return y, past[len(x) :].reshape(-1)


def _infer(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    _check(types, attrs)
    return (types[0],)


def _reference(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight = inputs
    width = (weight.shape[1] - 1) * weight.shape[0]
    return (scan_whole([x], width, x.shape[-1], lambda rows, state: _scan(weight, attrs, rows[0], state)),)


def _infer_step(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2 + STATE_OPERANDS)
    _check(types[:2], attrs)
    check_state(types[2:], types[0], conv_state_width(types[:2], attrs), attrs)
    return (types[0], types[2])


def _reference_step(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    x, weight, *index = inputs
    width = (weight.shape[1] - 1) * weight.shape[0]
    return scan_ragged([x], index, width, attrs, x.shape[1], lambda rows, s: _scan(weight, attrs, rows[0], s))


def _cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """A product and a sum for each tap; rows and states are read and written once."""
    elements: Size = product(inputs[0].shape)
    per_element = 2 * static_axis(inputs[1], 1, "the number of taps") + (16 if attrs["activation"] == "silu" else 0)
    moved = inputs[1].nbytes
    for type_ in (inputs[0], *inputs[2:3]):
        moved = moved + 2 * type_.nbytes
    return Cost(elements * per_element, moved)


def _samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)

    def case(name: str, channels: int, taps: int, activation: str) -> Sample:
        types = (TensorType(f32, (2, seq, channels)), TensorType(f32, (channels, taps)))
        # silu is within 3 ulp, and its sum within one for each tap
        return Sample(name, types, {"activation": activation}, {"seq": 7}, tolerance=4e-6)

    return (
        case("silu", 40, 4, "silu"),
        case("odd", 21, 3, "none"),
        case("wide", 300, 2, "silu"),
        case("one", 5, 1, "none"),
    )


def _step_samples() -> Sequence[Sample]:
    def case(name: str, channels: int, taps: int, offset: int) -> Sample:
        rows = (TensorType(f32, (12, channels)), TensorType(f32, (channels, taps)))
        types = (*rows, *sample_state_types((taps - 1) * channels + offset + 3))
        arrays = {len(types) + place: make for place, make in sample_index().items()}
        return Sample(name, types, {"activation": "silu", "offset": offset}, arrays=arrays, tolerance=4e-6)

    return (case("ragged", 272, 4, 16), case("odd", 21, 3, 0), case("long_filter", 8, 9, 5))


causal_conv = register(
    OpDef(
        "causal_conv",
        "Each channel filtered over its own last rows.",
        _infer,
        _reference,
        Missing("a shift along an axis of any length is no op here; every backend walks the rows itself"),
        _samples,
        (_ATTRIBUTE,),
        cost=_cost,
    )
)
causal_conv_step = register(
    OpDef(
        "causal_conv_step",
        "causal_conv over the rows of many sequences, each from its state on; a program updates the states in place.",
        _infer_step,
        _reference_step,
        Missing("which rows belong together depends on data; every backend walks the sequences itself"),
        _step_samples,
        (_ATTRIBUTE, OFFSET),
        cost=_cost,
    )
)
STATE_FORMS["causal_conv"] = StateForm("causal_conv_step", 1, conv_state_width)
