"""Arena plan: which arena buffers may share memory, decided once for all sizes.

A buffer is live from the group of steps that writes it to the last that reads it. Each slot is a list of buffers whose
lives do not meet; where a slot lies follows from the sizes of a call (`Program.arena_offsets`). A buffer takes the free
slot whose largest buffer is nearest to its own size at the upper bounds of the dims.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.core.dim import bounds
from rlx.lir.program import Program


def live_ranges(program: Program) -> dict[int, tuple[int, int]]:
    """First and last group of steps of every arena buffer."""
    ranges: dict[int, tuple[int, int]] = {}
    for index, step in zip(program.groups, program.steps, strict=True):
        for buffer in step.buffers:
            if program.buffers[buffer].kind == "arena":
                ranges[buffer] = (ranges.get(buffer, (index, index))[0], index)
    return ranges


def plan_memory(program: Program) -> Program:
    """The program with its slots."""
    slots: list[list[int]] = []
    sizes: list[int] = []
    free_after: list[int] = []
    for buffer, (first, last) in sorted(live_ranges(program).items(), key=lambda item: item[1]):
        size = bounds(program.buffers[buffer].type.nbytes)[1]
        free = [slot for slot in range(len(slots)) if free_after[slot] < first]
        if free:
            slot = min(free, key=lambda slot: (abs(sizes[slot] - size), slot))
        else:
            slot = len(slots)
            slots.append([])
            sizes.append(0)
            free_after.append(-1)
        slots[slot].append(buffer)
        sizes[slot] = max(sizes[slot], size)
        free_after[slot] = last
    return replace(program, slots=tuple(tuple(slot) for slot in slots))
