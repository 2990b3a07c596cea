"""How keys, values, queries and weights lie in memory for the products of attention, and how they are multiplied.

A word is what one lane holds: a float32, a half, or a pair of bfloat16 that are multiplied together. A page of keys is
`[head_dim / step, page]` words and a page of values `[page / step, head_dim]`, where `step` is the elements of a word:
neighbouring dims of a key, neighbouring positions of a value. Next: `attention_tile.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlx.backends.cpu.emit import F32, I16, I32, Emit, Val, vec


@dataclass(frozen=True, slots=True)
class Operands:
    """One way to hold and multiply.

    Attributes:
        element: LLVM's type of a word of keys or values.
        word_bytes: its size.
        step: elements of a word.
        dots: whether queries and weights are pairs of bfloat16 too, multiplied by `vdpbf16ps`; else they are float32.
    """

    element: Any
    word_bytes: int
    step: int
    dots: bool = False

    def address(self, e: Emit, page: Val, word: Val | int) -> Val:
        """The address of a word of a page."""
        return e.at(page, word, self.element)

    def load(self, e: Emit, page: Val, word: Val, lanes: int, kept: Val | None = None) -> list[Val]:
        """`lanes` words as the operands of `multiply_add`: `step` of them, or one of pairs for `dots`.

        `kept` (i32 on pairs) masks the words; what it takes away is 0, whatever it was.
        """
        loaded = e.load(page, vec(self.element, lanes), word, self.element)
        if self.step == 1:
            return [e.half_to_float(loaded) if self.element == I16 else loaded]
        if kept is not None:
            loaded = loaded & e.splat(kept, lanes)
        if self.dots:
            return [loaded]
        low, high = loaded << 16, loaded & -65536
        return [part.bitcast(vec(F32, lanes)) for part in (low, high)]

    @property
    def scalar(self) -> Any:
        """LLVM's type of an element of the queries and weights in scratch memory: float32, or a pair of bfloat16."""
        return I32 if self.dots else F32

    def scalars(self, e: Emit, memory: Val, index: Val | int) -> list[Val]:
        """The other side of `load`: element `index` of a row of queries or weights and, with it, a whole word."""
        if self.dots:
            return [e.load(e.at(memory, index, I16), I32)]
        return [e.load(e.at(memory, index, F32), F32, i) for i in range(self.step)]

    def keep(self, e: Emit, values: Sequence[Val], memory: Val, index: Val | int) -> list[Val]:
        """Write vectors of queries or weights from element `index` on; gives them back as they were rounded."""
        kept: list[Val] = []
        for number, value in enumerate(values):
            lanes = value.type.count if hasattr(value.type, "count") else 1
            at = index + number * lanes
            if self.dots:
                bits = e.round_to_bf16(value)
                e.store(bits, e.at(memory, at, I16))
                kept.append(e.bf16_to_float(bits))
            else:
                e.store(value, e.at(memory, at, F32))
                kept.append(value)
        return kept

    def multiply_add(self, e: Emit, stored: Sequence[Val], scalars: Sequence[Val], total: Val) -> Val:
        """total + the products of the lanes of `stored` with `scalars`, in order."""
        for part, scalar in zip(stored, scalars, strict=True):
            lanes = part.type.count if hasattr(part.type, "count") else 1
            other = e.splat(scalar, lanes)
            total = e.dot_bf16(total, part, other) if self.dots else e.fma(part, other, total)
        return total


FLOATS = Operands(F32, 4, 1)
HALVES = Operands(I16, 2, 1)
BF16_PAIRS = Operands(I32, 4, 2)
BF16_DOTS = Operands(I32, 4, 2, dots=True)
