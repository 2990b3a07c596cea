"""gated_delta, gated_delta_step: linear attention by the gated delta rule, one row of a sequence after another.

Operands: `mixed [..., seq, 2 * key_heads * key_dim + value_heads * value_dim]`, q, k and v side by side, and `decay`
and `beta [..., seq, value_heads]`. Each value head h has a state S `[key_dim, value_dim]`, zero at first:

    S = decay * S;   S = S + k (x) (beta * (v - S^T k));   y = S^T q

q is multiplied by `scale`; with `norm_eps` q and k are divided by `sqrt(sum of squares + norm_eps)` first. Value heads
share key heads: value head h uses key head `h // (value_heads / key_heads)`, or `h % key_heads` with `tiled`, which is
the order that GGUF files have the value heads in. A state is kept as `[value_heads, ceil(value_dim / 16), key_dim,
16]`, so that 16 value dims lie in a cache line; dims beyond `value_dim` have a v of 0.

Sources: Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"; the recurrent form in transformers' Qwen3-Next. Next:
`recurrent_state.py` for the step form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlx.core.dim import Dim, Size, product
from rlx.core.dtype import f32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Cost,
    Missing,
    OpDef,
    Sample,
    Types,
    bool_attr,
    check_arity,
    float_attr,
    int_attr,
    optional_float,
    register,
    static_axis,
)
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

LANES = 16
"""Value dims that lie together in a state."""
_ATTRIBUTES = (
    Attribute("key_heads", "heads of q and k"),
    Attribute("key_dim", "width of a head of q and k"),
    Attribute("scale", "factor of q"),
    Attribute("norm_eps", "added to the sum of squares whose root q and k are divided by; none: as they are", None),
    Attribute("tiled", "value head h uses key head h % key_heads", False),
)


class DeltaSizes(NamedTuple):
    """The sizes of one op."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int

    @property
    def blocks(self) -> int:
        """Groups of 16 value dims, the last perhaps in part."""
        return -(-self.value_dim // LANES)

    @property
    def state_width(self) -> int:
        """Floats of state of one sequence."""
        return self.value_heads * self.blocks * self.key_dim * LANES


def delta_sizes(types: Types, attrs: Attrs) -> DeltaSizes:
    """The sizes that the types of `mixed` and `decay` and the attributes give.

    Raises:
        ShapeError: the heads do not divide the widths, or the key heads the value heads.
    """
    key_heads, key_dim = int_attr(attrs, "key_heads"), int_attr(attrs, "key_dim")
    width, value_heads = (static_axis(type_, -1, "the width of a row") for type_ in types[:2])
    values = width - 2 * key_heads * key_dim
    if key_heads < 1 or key_dim < 1 or value_heads < 1 or values < 1 or values % value_heads:
        raise ShapeError(
            "q, k and v side by side do not divide into these heads",
            found=f"{width} for 2 * {key_heads} heads of {key_dim} and {value_heads} heads of values",
        )
    if value_heads % key_heads:
        raise ShapeError("the key heads have to divide the value heads", found=f"{key_heads} and {value_heads}")
    return DeltaSizes(key_heads, key_dim, value_heads, values // value_heads)


def _check(types: Types, attrs: Attrs) -> TensorType:
    mixed, decay, beta = types
    if any(type_.dtype != f32 or type_.rank < 2 for type_ in types) or decay != beta:
        raise ShapeError("gated_delta takes float32 mixed, decay and beta, the last two alike")
    if decay.shape[:-1] != mixed.shape[:-1]:
        raise ShapeError("there is a decay for each row", found=f"{mixed} and {decay}")
    float_attr(attrs, "scale")
    bool_attr(attrs, "tiled")
    eps = optional_float(attrs, "norm_eps")
    if eps is not None and eps < 0:
        raise ShapeError("norm_eps is not negative", found=eps)
    sizes = delta_sizes(types, attrs)
    return mixed.with_shape((*mixed.shape[:-1], sizes.value_heads * sizes.value_dim))


def _heads(x: Array, sizes: DeltaSizes, attrs: Mapping[str, Any]) -> Array:
    """`[rows, key_heads * key_dim]` to `[rows, value_heads, key_dim]`, normalised where that is asked for."""
    x = x.reshape(len(x), sizes.key_heads, sizes.key_dim)
    if attrs["norm_eps"] is not None:
        x = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + attrs["norm_eps"])
    repeats = sizes.value_heads // sizes.key_heads
    return np.tile(x, (1, repeats, 1)) if attrs["tiled"] else np.repeat(x, repeats, axis=1)


def _scan(sizes: DeltaSizes, attrs: Mapping[str, Any], rows: Sequence[Array], state: Array) -> tuple[Array, Array]:
    """One sequence."""
    mixed, decay, beta = rows
    keys, padded = sizes.key_heads * sizes.key_dim, sizes.blocks * LANES
    q, k = (_heads(x, sizes, attrs) for x in (mixed[:, :keys], mixed[:, keys : 2 * keys]))
    v = np.zeros((len(mixed), sizes.value_heads, padded), mixed.dtype)
    v[:, :, : sizes.value_dim] = mixed[:, 2 * keys :].reshape(len(mixed), sizes.value_heads, sizes.value_dim)
    blocked = state.reshape(sizes.value_heads, sizes.blocks, sizes.key_dim, LANES)
    held = blocked.swapaxes(1, 2).reshape(sizes.value_heads, sizes.key_dim, padded)
    y = np.empty_like(v)
    for t in range(len(mixed)):
        held = held * decay[t, :, None, None]
        correction = (v[t] - np.einsum("hkv,hk->hv", held, k[t])) * beta[t, :, None]
        held = held + k[t, :, :, None] * correction[:, None, :]
        y[t] = np.einsum("hkv,hk->hv", held, q[t]) * attrs["scale"]
    after = held.reshape(sizes.value_heads, sizes.key_dim, sizes.blocks, LANES).swapaxes(1, 2)
    return y[:, :, : sizes.value_dim].reshape(len(mixed), -1), after.reshape(-1)


def _array_sizes(inputs: Sequence[Array], attrs: Mapping[str, Any]) -> DeltaSizes:
    return delta_sizes(tuple(TensorType(f32, x.shape) for x in inputs[:2]), attrs)


def _infer(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 3)
    return (_check(types, attrs),)


def _reference(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    sizes = _array_sizes(inputs, attrs)
    width = sizes.value_heads * sizes.value_dim
    return (scan_whole(inputs, sizes.state_width, width, lambda rows, state: _scan(sizes, attrs, rows, state)),)


def delta_state_width(types: Types, attrs: Attrs) -> int:
    """Floats of state of one sequence."""
    return delta_sizes(types, attrs).state_width


def _infer_step(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 3 + STATE_OPERANDS)
    result = _check(types[:3], attrs)
    check_state(types[3:], types[0], delta_state_width(types, attrs), attrs)
    return (result, types[3])


def _reference_step(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    sizes = _array_sizes(inputs, attrs)
    width = sizes.value_heads * sizes.value_dim
    return scan_ragged(
        inputs[:3], inputs[3:], sizes.state_width, attrs, width, lambda rows, state: _scan(sizes, attrs, rows, state)
    )


def _cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """Seven operations for each element of a state and each row; states are read and written once."""
    sizes = delta_sizes(inputs, attrs)
    rows: Size = product(inputs[0].shape[:-1])
    moved = inputs[0].nbytes + 2 * inputs[1].nbytes + outputs[0].nbytes
    if len(inputs) > 3:
        moved = moved + 2 * inputs[3].nbytes
    return Cost(rows * (7 * sizes.value_heads * sizes.key_dim * sizes.value_dim), moved)


# sums of a head's dims in another order, carried through the rows; one of the corrections may cancel
_TOLERANCE = 1e-5
_RANGES = {1: (0.1, 1.0), 2: (0.0, 1.0)}


def _rows(rows: tuple[Size, ...], sizes: DeltaSizes) -> Types:
    width = 2 * sizes.key_heads * sizes.key_dim + sizes.value_heads * sizes.value_dim
    gates = TensorType(f32, (*rows, sizes.value_heads))
    return (TensorType(f32, (*rows, width)), gates, gates)


def _given(sizes: DeltaSizes, **attrs: Any) -> dict[str, Any]:
    common = {"key_heads": sizes.key_heads, "key_dim": sizes.key_dim, "scale": sizes.key_dim**-0.5}
    return {**common, "norm_eps": 1e-6, **attrs}


def _samples() -> Sequence[Sample]:
    def case(name: str, sizes: DeltaSizes, **attrs: Any) -> Sample:
        types = _rows((2, Dim("seq", max=64)), sizes)
        return Sample(name, types, _given(sizes, **attrs), {"seq": 9}, _RANGES, tolerance=_TOLERANCE)

    return (
        case("grouped", DeltaSizes(2, 32, 4, 32)),
        case("tiled_odd", DeltaSizes(2, 11, 6, 21), tiled=True),
        # without the norm a long key would make the rule diverge
        case("plain", DeltaSizes(1, 3, 1, 64), norm_eps=None, scale=0.5),
    )


def _step_samples() -> Sequence[Sample]:
    def case(name: str, sizes: DeltaSizes, offset: int, **attrs: Any) -> Sample:
        types = (*_rows((12,), sizes), *sample_state_types(sizes.state_width + offset + 5))
        arrays = {len(types) + place: make for place, make in sample_index().items()}
        given = _given(sizes, offset=offset, **attrs)
        return Sample(name, types, given, ranges=_RANGES, arrays=arrays, tolerance=_TOLERANCE)

    return (
        case("ragged", DeltaSizes(2, 32, 4, 64), 16),
        case("tiled_odd", DeltaSizes(2, 13, 4, 21), 7, tiled=True),
        case("one_head", DeltaSizes(1, 128, 1, 16), 0),
    )


gated_delta = register(
    OpDef(
        "gated_delta",
        "Linear attention by the gated delta rule, row after row.",
        _infer,
        _reference,
        Missing("a recurrence over the rows of a sequence; every backend walks them itself"),
        _samples,
        _ATTRIBUTES,
        cost=_cost,
    )
)
gated_delta_step = register(
    OpDef(
        "gated_delta_step",
        "gated_delta over the rows of many sequences, each from its state on; a program updates the states in place.",
        _infer_step,
        _reference_step,
        Missing("a recurrence over rows that data tells apart; every backend walks them itself"),
        _step_samples,
        (*_ATTRIBUTES, OFFSET),
        cost=_cost,
    )
)
STATE_FORMS["gated_delta"] = StateForm("gated_delta_step", 3, delta_state_width)
