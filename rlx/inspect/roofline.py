"""The least time that a step could take on this machine: the roofline (Williams, Waterman, Patterson 2009).

In: what a step moves and computes in a run, and the measured limits. Out: seconds, and what bounds them. Bytes are
priced by where they come from: a set of data that fits into a cache with all else of its kind is read from there. Next:
`timing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.inspect.limits import Limits

MEASURED_L2 = 512 << 10
"""Bytes of each thread for which the bandwidth of L2 was measured."""
MEASURED_L3 = 8 << 20

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Roofline:
    """The limits, with the size of the last cache in bytes."""

    limits: Limits
    last_cache: int

    def level_of(self, nbytes: float) -> str:
        """Where a set of data of this size lies: "l2", "l3" or "dram"."""
        if nbytes <= self.limits.threads * MEASURED_L2:
            return "l2"
        return "l3" if nbytes <= max(self.last_cache, MEASURED_L3) else "dram"

    def bandwidth(self, level: str) -> float:
        """Bytes a second from a level of memory."""
        return 1e9 * {"l2": self.limits.l2, "l3": self.limits.l3, "dram": self.limits.dram}[level]

    def peak(self, arithmetic: str) -> float:
        """Operations a second."""
        limits = self.limits
        return 1e9 * {"f32": limits.f32, "bf16": limits.bf16 or limits.f32, "int8": limits.int8}[arithmetic]

    def bound(self, moved: dict[str, Numbers], operations: Numbers, arithmetic: list[str]) -> tuple[Numbers, Numbers]:
        """Least seconds of each step for its bytes, and for its operations.

        Args:
            moved: bytes of each step by the level they come from.
            operations: of each step.
            arithmetic: of each step.
        """
        memory = np.zeros(len(operations))
        for level, nbytes in moved.items():
            memory += nbytes / self.bandwidth(level)
        return memory, operations / np.array([self.peak(kind) for kind in arithmetic])
