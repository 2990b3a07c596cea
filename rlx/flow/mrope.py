"""MRoPE: pairs of a head that turn by different position rows (time, height, width).

In: frequencies, and how many pairs belong to each row. Out: the row of each pair. Sources: Qwen2-VL (Wang et al. 2024,
contiguous sections) and transformers' Qwen3-VL (interleaved). Next: `blocks/rope_tables.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.errors import FlowError
from rlx.flow.rope_scaling import RopeFrequencies


@dataclass(frozen=True, slots=True, eq=False)
class MRopeFrequencies:
    """What makes a RoPE table over three position rows.

    Attributes:
        frequencies: of all pairs.
        sections: pairs that turn by the first, second and third row; they sum up to all pairs.
        interleaved: deal the pairs out in turn (0, 1, 2, 0, ...), what is left over to the first row; else each row
            has a contiguous run.
        positions: the name of the input `i32[3, seq]`.
    """

    frequencies: RopeFrequencies
    sections: tuple[int, int, int]
    interleaved: bool = False
    positions: str = "position_rows"

    def row_of_pair(self) -> list[int]:
        """For each pair the position row it turns by.

        Raises:
            FlowError: the sections do not sum up to the pairs, or cannot be dealt out.
        """
        pairs = self.frequencies.inverse.size
        if self.interleaved:
            rows = [i % 3 if i % 3 and i < 3 * self.sections[i % 3] else 0 for i in range(pairs)]
        else:
            rows = [row for row, count in enumerate(self.sections) for _ in range(count)]
        if len(rows) != pairs or tuple(rows.count(row) for row in range(3)) != self.sections:
            raise FlowError(
                "the sections of MRoPE do not fit its pairs",
                found=f"sections {list(self.sections)}, {'interleaved' if self.interleaved else 'contiguous'}",
                expected=f"three sections of {pairs} pairs in all",
            )
        return rows
