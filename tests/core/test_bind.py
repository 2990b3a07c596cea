"""Symbols are bound from the shapes of inputs, and every input that does not fit is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.core.bind import bind_inputs, solve
from rlx.core.dim import Dim, evaluate
from rlx.core.dtype import f16, f32, i32, q4_0
from rlx.core.graph import Value
from rlx.core.type import TensorType, tensor
from rlx.errors import InputError

BATCH, SEQ, PAST = Dim("batch", max=8), Dim("seq", max=64), Dim("past", min=0, max=64)


def bind(types: dict[str, TensorType], arrays: dict[str, Any], **options: bool) -> dict[str, int]:
    return bind_inputs([(name, Value(type_)) for name, type_ in types.items()], arrays, **options)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def test_each_symbol_gets_its_number() -> None:
    types = {"x": tensor(f32, BATCH, SEQ, 4), "w": tensor(q4_0, SEQ, 64), "tokens": tensor(i32, SEQ)}
    arrays = {"x": zeros(2, 9, 4), "w": zeros(9, 36, dtype=np.uint8), "tokens": zeros(9, dtype=np.int32)}
    assert bind(types, arrays) == {"batch": 2, "seq": 9}


@given(st.integers(1, 64), st.integers(0, 64))
def test_compound_sizes_are_solved_for_their_unknown(seq: int, past: int) -> None:
    mask = tensor(f32, SEQ, PAST + SEQ)
    assert bind({"mask": mask}, {"mask": zeros(seq, past + seq)}) == {"seq": seq, "past": past}
    flat = tensor(f32, 3 * SEQ + 2)
    assert bind({"flat": flat}, {"flat": zeros(3 * seq + 2)}) == {"seq": seq}


@given(st.integers(1, 8), st.integers(1, 64))
def test_every_axis_holds_after_solving(batch: int, seq: int) -> None:
    axes = [("a", BATCH * SEQ + 1, batch * seq + 1), ("b", SEQ, seq), ("c", 2 * BATCH + SEQ, 2 * batch + seq)]
    values = solve(axes)
    assert [evaluate(size, values) for _, size, _ in axes] == [found for _, _, found in axes]
    assert values == {"batch": batch, "seq": seq}


X = tensor(f32, SEQ, 4)
REFUSED: dict[str, tuple[dict[str, TensorType], dict[str, Any], list[str]]] = {
    "missing": ({"x": X, "y": X}, {"x": zeros(3, 4)}, ["the input y is missing", "x, y"]),
    "unknown": ({"x": X}, {"x": zeros(3, 4), "z": zeros(1)}, ["no input called z"]),
    "not an array": ({"x": X}, {"x": [[1.0]]}, ["not a NumPy array", "list"]),
    "dtype": ({"x": X}, {"x": zeros(3, 4, dtype=np.float16)}, ["another dtype", "float16", "float32", "astype"]),
    "double": ({"x": X}, {"x": zeros(3, 4, dtype=np.float64)}, ["another dtype", "float64"]),
    "half": ({"x": tensor(f16, 3)}, {"x": zeros(3)}, ["another dtype", "float16"]),
    "packed as floats": ({"x": tensor(q4_0, 2, 32)}, {"x": zeros(2, 32)}, ["another dtype", "packed bytes"]),
    "packed length": ({"x": tensor(q4_0, 2, 32)}, {"x": zeros(2, 32, dtype=np.uint8)}, ["axis 1 of x", "32", "18"]),
    "rank": ({"x": X}, {"x": zeros(3)}, ["another rank", "(3,)"]),
    "static": ({"x": X}, {"x": zeros(3, 5)}, ["axis 1 of x", "5", "4"]),
    "conflict": (
        {"x": X, "y": tensor(f32, SEQ)},
        {"x": zeros(3, 4), "y": zeros(7)},
        ["axis 0 of y", "found:    7", "seq = 3 from axis 0 of x"],
    ),
    "too small": ({"x": X}, {"x": zeros(0, 4)}, ["seq is out of its bounds", "found:    0", "1 to 64"]),
    "too large": ({"x": X}, {"x": zeros(65, 4)}, ["seq is out of its bounds", "found:    65"]),
    "solved below": ({"m": tensor(f32, SEQ, PAST + SEQ)}, {"m": zeros(5, 4)}, ["past is out of its bounds", "-1"]),
    "no multiple": ({"x": tensor(f32, 2 * SEQ)}, {"x": zeros(7)}, ["no seq gives axis 0 of x"]),
    "undetermined": ({"x": tensor(f32, BATCH * SEQ)}, {"x": zeros(6)}, ["do not determine batch"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_both_sides(name: str) -> None:
    types, arrays, words = REFUSED[name]
    with pytest.raises(InputError) as error:
        bind(types, arrays)
    for word in words:
        assert word in str(error.value)


def test_float64_is_taken_where_asked() -> None:
    assert bind({"x": X}, {"x": zeros(3, 4, dtype=np.float64)}, allow_wide=True) == {"seq": 3}
