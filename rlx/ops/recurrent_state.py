"""What ops with a state per sequence have in common: where the state lies, and the walk over ragged rows.

Such an op has two forms. The plain one runs over whole sequences `[..., seq, width]`, each from a state of zeros. The
step form runs over the rows of many sequences side by side and takes four operands more:

    state: f32[slots, width]   bounds: i32[S + 1]   positions: i32[rows]   slots: i32[S]

Sequence s is the rows `bounds[s]` to `bounds[s + 1] - 1` in the order of its positions; its state is row `slots[s]`
from column `offset` on, and zeros where its first row has position 0, so that a slot never has to be cleaned. Rows are
taken one after another, so that no result depends on how a sequence was cut into calls. Next: `causal_conv.py`,
`gated_delta.py`; `rlx/hir/derive_step.py` makes the step form of the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import InputError, ShapeError
from rlx.ops.op import Array, Attribute, Types, check_index, int_attr, static_axis
from rlx.ops.packed_attention import check_bounds

OFFSET = Attribute("offset", "first column of this op's state within that of a sequence", 0)
STATE_OPERANDS = 4
"""The operands that the step form has more: state, bounds, positions, slots."""

Scan: TypeAlias = Callable[[Sequence[Array], Array], "tuple[Array, Array]"]
"""(rows of one sequence of each operand, its state, flat) to (rows of the result, the state afterwards)."""


@dataclass(frozen=True, slots=True)
class StateForm:
    """The step form of an op with a state.

    Attributes:
        step: the name of that op; its operands are those of the plain op, then the four above.
        activations: the leading operands that have a row for each token; the others are weights.
        width: floats of state of one sequence, from the types of the plain operands and the attributes.
    """

    step: str
    activations: int
    width: Callable[[Types, Attrs], int]


STATE_FORMS: dict[str, StateForm] = {}
"""By the name of the plain op."""


def check_state(types: Types, rows: TensorType, width: int, attrs: Attrs) -> None:
    """Refuse operands `state, bounds, positions, slots` that do not fit.

    Raises:
        ShapeError: a type is another, or the state is too narrow.
    """
    state, bounds, positions, slots = types
    offset = int_attr(attrs, "offset")
    if state.dtype != f32 or state.rank != 2:
        raise ShapeError("the state has to be f32[slots, width]", found=str(state))
    if not 0 <= offset <= static_axis(state, 1, "the width of the state") - width:
        raise ShapeError("the state does not fit", found=f"{width} from {offset} of {state}")
    if any(type_.dtype != i32 or type_.rank != 1 for type_ in (bounds, positions, slots)):
        raise ShapeError("bounds, positions and slots are i32[sequences + 1], i32[rows], i32[sequences]")
    if rows.rank != 2 or positions.shape != rows.shape[:1] or bounds.shape[0] != slots.shape[0] + 1:
        raise ShapeError(
            "there is a position for each row, and a slot for each sequence",
            found=f"{rows}, positions {positions}, bounds {bounds}, slots {slots}",
        )


def scan_whole(operands: Sequence[Array], width: int, out_width: int, scan: Scan) -> Array:
    """The plain form: every sequence `[..., seq, inner]` from zeros."""
    flat = [x.reshape(-1, *x.shape[-2:]) for x in operands]
    result = np.empty((*flat[0].shape[:2], out_width), operands[0].dtype)
    for index in range(len(result)):
        result[index], _ = scan([x[index] for x in flat], np.zeros(width, operands[0].dtype))
    return result.reshape(*operands[0].shape[:-1], out_width)


def scan_ragged(
    operands: Sequence[Array], index: Sequence[Array], width: int, attrs: Mapping[str, Any], out_width: int, scan: Scan
) -> tuple[Array, Array]:
    """The step form: the rows of the result, and the states.

    Raises:
        InputError: the bounds do not divide the rows, a slot is not there or belongs to two sequences.
    """
    state, bounds, positions, slots = index
    check_bounds(bounds, len(operands[0]))
    check_index(slots, len(state), "a slot")
    if len(set(slots.tolist())) != len(slots):
        raise InputError("two sequences have one slot", found=slots.tolist()[:8])
    result, states = np.empty((len(operands[0]), out_width), operands[0].dtype), state.copy()
    columns = slice(attrs["offset"], attrs["offset"] + width)
    for slot, (start, stop) in zip(slots, pairwise(bounds), strict=True):
        if start == stop:
            continue
        before = np.zeros_like(states[slot, columns]) if positions[start] == 0 else states[slot, columns]
        result[start:stop], states[slot, columns] = scan([x[start:stop] for x in operands], before)
    return result, states


def sample_index() -> dict[int, Callable[[], Array]]:
    """Bounds, positions and slots of a chunk, an empty sequence, a decode and a new sequence: 12 rows, 4 sequences.

    Keys count from the end of the operands.
    """
    positions = [*range(3, 9), 20, *range(5)]
    return {
        -3: lambda: np.array([0, 6, 6, 7, 12], np.int32),
        -2: lambda: np.array(positions, np.int32),
        -1: lambda: np.array([4, 2, 0, 1], np.int32),
    }


def sample_state_types(width: int) -> Types:
    """Types for `sample_index`, with a state of this width in 5 slots."""
    return (TensorType(f32, (5, width)), *(TensorType(i32, (count,)) for count in (5, 12, 4)))
