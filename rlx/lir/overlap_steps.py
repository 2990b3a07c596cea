"""Steps that need nothing of each other run beside each other: threads wait once for all of them.

Neighbours join a group as long as none reads or writes what another one writes: q, k and v, or gate and up. That saves
the waits between them, and short steps fill the gaps of long ones. Next: `plan_memory.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.lir.program import Program, Step


def overlap_steps(program: Program) -> Program:
    """The program with its groups."""
    steps: list[Step] = []
    read: set[int] = set()
    written: set[int] = set()
    for step in program.steps:
        touched, writes = set(step.buffers), set(step.written)
        beside = bool(steps) and not (touched & written) and not (writes & read)
        if not beside:
            read, written = set(), set()
        read |= touched
        written |= writes
        steps.append(replace(step, beside=beside))
    return replace(program, steps=tuple(steps))
