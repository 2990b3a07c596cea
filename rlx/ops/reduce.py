"""reduce_sum, reduce_max over the last axis, which is kept with size 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import Array, Missing, OpDef, Sample, Types, check_arity, register


def _infer(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    if types[0].rank < 1 or types[0].dtype != f32:
        raise ShapeError("a reduction takes float32 with at least one axis", found=str(types[0]))
    return (types[0].with_shape((*types[0].shape[:-1], 1)),)


def _register(name: str, help: str, function: Callable[[Array], Array]) -> OpDef:
    seq = Dim("seq", max=64)
    return register(
        OpDef(
            name,
            help,
            _infer,
            lambda inputs, attrs: (function(inputs[0]),),
            Missing("primitive"),
            lambda: (
                Sample("rows", (TensorType(f32, (seq, 37)),), {}, {"seq": 5}, tolerance=4e-6),
                Sample("symbolic", (TensorType(f32, (3, seq)),), {}, {"seq": 21}, tolerance=4e-6),
            ),
            row_wise=True,
        )
    )


def _sum(x: Array) -> Array:
    return np.sum(x, axis=-1, keepdims=True)


def _max(x: Array) -> Array:
    return np.max(x, axis=-1, keepdims=True)


reduce_sum = _register("reduce_sum", "The sum over the last axis.", _sum)
reduce_max = _register("reduce_max", "The largest value of the last axis.", _max)
