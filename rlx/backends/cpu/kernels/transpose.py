"""Sixteen vectors as a 16 x 16 square turned over its diagonal, in registers: 4 rounds of 16 two-operand shuffles."""

from __future__ import annotations

from collections.abc import Sequence

from rlx.backends.cpu.emit import LANES, Emit, Val


def transpose(e: Emit, rows: Sequence[Val]) -> list[Val]:
    """Vector i of the result holds lane i of every row.

    Each round swaps the off-diagonal halves of all squares of one size.
    """
    square = list(rows)
    step = LANES // 2
    while step:
        upper = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        lower = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        for i in (i for i in range(LANES) if not i & step):
            a, b = square[i], square[i + step]
            square[i], square[i + step] = e.shuffle(a, b, upper), e.shuffle(a, b, lower)
        step //= 2
    return square
