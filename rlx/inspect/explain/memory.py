"""The arena as it is for given sizes: where each buffer lies, and from when to when it is used.

In: a program with its plan, the sizes of a run. Out: `MemoryMap`. Next: `data.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlx.core.dim import evaluate
from rlx.lir.plan_memory import live_ranges
from rlx.lir.program import Program


@dataclass(frozen=True, slots=True)
class Placed:
    """A buffer of the arena: number, byte offset and size, first and last group of steps, the step that makes it."""

    buffer: int
    offset: int
    size: int
    first: int
    last: int
    step: int


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """The arena for one set of sizes.

    Attributes:
        arena: bytes in all.
        unshared: what it would take if no two buffers shared memory.
        groups: groups of steps.
        placed: every buffer in it.
    """

    arena: int
    unshared: int
    groups: int
    placed: tuple[Placed, ...]


def memory_map(program: Program, dims: Mapping[str, int]) -> MemoryMap:
    """Where everything lies."""
    offsets, arena = program.arena_offsets(dims)
    makers: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        for buffer in step.written:
            makers.setdefault(buffer, index)
    placed = tuple(
        Placed(
            buffer,
            offsets[buffer],
            evaluate(program.buffers[buffer].type.nbytes, dims),
            first,
            last,
            makers.get(buffer, 0),
        )
        for buffer, (first, last) in sorted(live_ranges(program).items())
        if buffer in offsets
    )
    return MemoryMap(arena, sum(item.size for item in placed), len(set(program.groups)), placed)
