"""The sequences of a kernel with a state: which rows are whose, and where a sequence's state lies.

In: the frame of a plain op (whole sequences of one length) or of its step form (`ops/recurrent_state.py`). Out: for a
sequence its first row, how many there are, whether it starts from zeros, and the address of its state. Next:
`causal_conv.py`, `gated_delta.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.backends.cpu.emit import F32, I32, I64, Val
from rlx.backends.cpu.kernels.registry import Body, Setting
from rlx.core.dim import Size, product
from rlx.core.graph import Node
from rlx.ops.op import int_attr
from rlx.ops.recurrent_state import STATE_OPERANDS


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """What the operands of a node say of its sequences.

    Attributes:
        sequences: how many there are.
        sizes: the scalar arguments: rows of a sequence; or rows in all, slots, and the width of the state.
        in_place: result 1 is the state, in the place of the operand, in the step form.
        config: the settings that `SequenceFrame` reads.
    """

    sequences: Size
    sizes: tuple[Size, ...]
    in_place: dict[int, int]
    config: dict[str, Setting]


def ragged_rows(node: Node, operands: int) -> RaggedRows:
    """For a node whose plain form has this many operands."""
    x = node.inputs[0].type
    if len(node.inputs) < operands + STATE_OPERANDS:
        return RaggedRows(product(x.shape[:-2]), (x.shape[-2],), {}, {"first": operands, "stepped": False})
    state, bounds = node.inputs[operands].type, node.inputs[operands + 1].type
    config: dict[str, Setting] = {"first": operands, "stepped": True, "offset": int_attr(node.attrs, "offset")}
    return RaggedRows(bounds.shape[0] - 1, (x.shape[0], *state.shape), {1: operands}, config)


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """One sequence: its first row and the number of rows (i64), whether it starts from zeros (i1), its state."""

    first: Val
    count: Val
    is_new: Val
    state: Val | None


@dataclass(frozen=True, slots=True)
class SequenceFrame:
    """The frame of a kernel with a state; buffer `out` is the result."""

    body: Body
    config: dict[str, Setting]

    @property
    def out(self) -> Val:
        """The address of the result."""
        first = int(self.config["first"])
        return self.body.buffer(first + STATE_OPERANDS if self.config["stepped"] else first)

    def sequence(self, index: Val) -> SequenceRows:
        """Sequence `index` (i64); numbers that lead out of the rows or the slots give no rows, and a fault."""
        body, e = self.body, self.body.e
        if not self.config["stepped"]:
            count = body.size(0)
            return SequenceRows(index * count, count, e.like(0, count).equals(0), None)
        place = int(self.config["first"])
        state, bounds, positions, slots = (body.buffer(place + i) for i in range(STATE_OPERANDS))
        rows, num_slots, width = (body.size(i) for i in range(3))
        first = body.checked_index(e.load(bounds, I32, index).sext(I64), rows + 1)
        stop = e.load(bounds, I32, index + 1).sext(I64)
        count = body.checked_index(stop - first, rows - first + 1)
        slot = body.checked_index(e.load(slots, I32, index).sext(I64), num_slots)
        # the position of a sequence without rows is read of a row that is there
        row = e.select(count > 0, first, 0)
        is_new = e.load(positions, I32, row).equals(0)
        return SequenceRows(first, count, is_new, e.at(state, slot * width + int(self.config["offset"]), F32))
