"""embedding: rows of a (packed) table. last_token: the last row of each sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import PACKED_WEIGHTS, bf16, f16, f32, i32
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
    check_index,
    float_attr,
    register,
    rows_cost,
)


def _infer_embedding(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2)
    tokens, table = types
    if tokens.dtype != i32 or table.rank != 2 or not all(isinstance(size, int) for size in table.shape):
        raise ShapeError("embedding takes int32 tokens and a static table [rows, hidden]", found=f"{tokens}, {table}")
    float_attr(attrs, "scale")
    return (TensorType(f32, (*tokens.shape, table.shape[1])),)


def _reference_embedding(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    check_index(inputs[0], len(inputs[1]), "a token")
    rows = inputs[1][inputs[0]]
    rows = rows if rows.dtype == np.float64 else rows.astype(np.float32)
    return (rows * np.asarray(attrs["scale"], rows.dtype),)


def _embedding_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    return tuple(
        Sample(
            str(dtype),
            (TensorType(i32, (seq,)), TensorType(dtype, (40, max(64, dtype.block_size)))),
            {"scale": 1.0 if dtype != f32 else 2.5},
            {"seq": 6},
            {0: (0, 39)},
        )
        for dtype in (f32, f16, bf16, *PACKED_WEIGHTS)
    )


embedding = register(
    OpDef(
        "embedding",
        "table[tokens] * scale as float32; every token is within the table.",
        _infer_embedding,
        _reference_embedding,
        Missing("primitive"),
        _embedding_samples,
        (Attribute("scale", "factor, such as sqrt(hidden) for Gemma", 1.0),),
        cost=lambda inputs, outputs, attrs: rows_cost(inputs[1], inputs[0], outputs[0]),
    )
)


def _infer_last_token(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].rank < 2:
        raise ShapeError("last_token takes [..., seq, hidden]", found=str(types[0]))
    return (types[0].with_shape((*types[0].shape[:-2], 1, types[0].shape[-1])),)


last_token = register(
    OpDef(
        "last_token",
        "The last row of [..., seq, hidden], as [..., 1, hidden].",
        _infer_last_token,
        lambda inputs, attrs: (inputs[0][..., -1:, :],),
        Missing("primitive"),
        lambda: (Sample("batch", (TensorType(f32, (2, Dim("seq", max=64), 12)),), {}, {"seq": 5}),),
    )
)
