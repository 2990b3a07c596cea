"""packed_attention: attention within each of several sequences that lie side by side, without padding.

The operands are q, k, v, what the mask kind relative adds, and the bounds:
`bounds: i32[sequences + 1]` says where each sequence begins; sequence s is the rows `bounds[s]` to `bounds[s + 1] - 1`,
the first bound is 0 and the last one the number of rows. A row sees rows of its own sequence only, as its mask says, so
what it computes does not depend on what else is in the batch. The padded form is `attention.py`; next: `pooling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import InputError, ShapeError
from rlx.ops.attention import HEAD_ATTRIBUTES, check_heads, check_mask, grouped_attention, mask_array
from rlx.ops.op import (
    ATTENDED,
    Array,
    Attribute,
    Cost,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    register,
    static_axis,
)

PACKED_MASKS = ("none", "causal", "sliding", "around", "relative")
PRODUCTS = ("f32", "bf16")


def check_bounds(bounds: Array, rows: int) -> None:
    """Refuse bounds that do not divide the rows into sequences.

    Raises:
        InputError: they do not start at 0, descend, or do not end at the number of rows.
    """
    if bounds.size < 1 or bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
        raise InputError("the bounds do not divide the rows", found=bounds.tolist()[:8], expected=f"0, ..., {rows}")


def _infer(types: Types, attrs: Attrs) -> Types:
    mask = attrs["mask"]
    if mask not in PACKED_MASKS:
        raise ShapeError("unknown mask kind", found=repr(mask), expected=", ".join(PACKED_MASKS))
    check_arity(types, 5 if mask == "relative" else 4)
    (q, k, v), bounds = types[:3], types[-1]
    check_mask(attrs, types[3] if mask == "relative" else None)
    if attrs["products"] not in PRODUCTS:
        raise ShapeError("unknown products", found=repr(attrs["products"]), expected=" or ".join(PRODUCTS))
    if any(type_.dtype != f32 or type_.rank != 2 for type_ in (q, k, v)) or k != v or q.shape[0] != k.shape[0]:
        raise ShapeError("packed_attention takes float32 q, k, v [rows, heads*head_dim]")
    if bounds.dtype != i32 or bounds.rank != 1:
        raise ShapeError("the bounds have to be i32[sequences + 1]", found=str(bounds))
    check_heads(q, static_axis(k, -1, "the width of k"), attrs)
    return (q,)


def _reference(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    """Without the rounding that `products` bf16 allows."""
    (q, k, v), bounds = inputs[:3], inputs[-1]
    check_bounds(bounds, len(q))
    result = np.empty_like(q)
    for start, stop in pairwise(bounds):
        if start == stop:
            continue
        index: Array = np.arange(int(stop - start))
        seen = mask_array(attrs, index, index, inputs[3] if len(inputs) == 5 else None)
        result[start:stop] = grouped_attention(q[start:stop], k[start:stop], v[start:stop], seen, attrs)
    return (result,)


def _samples() -> Sequence[Sample]:
    def case(
        name: str,
        bounds: Sequence[int],
        heads: int = 6,
        head_dim: int = 16,
        tolerance: float = 1e-5,
        extra: Types = (),
        **attrs: Any,
    ) -> Sample:
        q, kv = TensorType(f32, (bounds[-1], heads * head_dim)), TensorType(f32, (bounds[-1], 2 * head_dim))
        types = (q, kv, kv, *extra, TensorType(i32, (len(bounds),)))
        complete = {"num_heads": heads, "num_kv_heads": 2, "scale": 0.25, **attrs}
        array = np.array(bounds, np.int32)
        return Sample(name, types, complete, arrays={len(types) - 1: lambda: array}, tolerance=tolerance)

    return (
        case("full", (0, 5, 6, 23), mask="none"),
        case("causal", (0, 3, 20), mask="causal"),
        case("sliding", (0, 9, 9, 11), mask="sliding", window=4),
        case("around", (0, 9, 9, 40), mask="around", window=4),
        # some rows of lanes lie within the columns, others do not
        case("relative", (0, 9, 40), mask="relative", extra=(TensorType(f32, (6, 41)),)),
        case("softcap", (0, 2, 7), mask="none", softcap=2.0),
        case("odd_heads", (0, 18, 40), heads=2, head_dim=13, mask="none"),
        # bfloat16 has 8 bits: a weight is off by 2^-9 at most, and a score of a few units by some 2^-8
        case("bf16_products", (0, 1, 8, 190), heads=4, head_dim=22, tolerance=2**-6, mask="none", products="bf16"),
        case(
            "bf16_relative",
            (0, 7, 150),
            heads=4,
            tolerance=2**-6,
            mask="relative",
            products="bf16",
            extra=(TensorType(f32, (4, 401)),),
        ),
    )


def _cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """Two products of each row with those of its sequence that it sees."""
    q, k, v = inputs[:3]
    return Cost(4 * static_axis(q, -1, "q") * ATTENDED, q.nbytes + k.nbytes + v.nbytes + outputs[0].nbytes)


packed_attention = register(
    OpDef(
        "packed_attention",
        "Attention of each row within its own sequence; the sequences lie side by side.",
        _infer,
        _reference,
        Missing("which rows a row sees depends on data; every backend walks the sequences itself"),
        _samples,
        (
            *HEAD_ATTRIBUTES,
            Attribute("mask", f"one of {', '.join(PACKED_MASKS)}", "none"),
            Attribute("products", "f32, or bf16 where rounding is fine", "f32"),
        ),
        cost=_cost,
    )
)
