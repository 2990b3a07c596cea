"""What a profile found: phases, limits, and the time stamps themselves.

In: `Phase`s (`timing.py`) and the runs they were made of. Out: plain values (`to_json`). Written as tables by
`rlx/cli/profile.py`, as a trace by `chrome_trace.py`, as pictures by `page/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlx.backends.cpu.trace import TracedRun
from rlx.inspect.limits import Limits
from rlx.inspect.steps import StepInfo
from rlx.inspect.timing import Phase, Row, Span


@dataclass(frozen=True, slots=True)
class Recording:
    """The time stamps of one phase: native runs, and the spans of Python around them."""

    phase: str
    runs: Sequence[TracedRun]
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What `rlx profile` shows.

    Attributes:
        model: its name.
        facts: threads, target, precision and the like.
        limits: of the machine, measured in the same process just before.
        phases: what was timed.
        infos: every step of the program.
        recordings: the time stamps of each phase.
    """

    model: str
    facts: Mapping[str, object]
    limits: Limits
    phases: Sequence[Phase]
    infos: Sequence[StepInfo]
    recordings: Sequence[Recording]

    def to_json(self) -> dict[str, object]:
        """Plain values; times in seconds, rates in units a second."""
        return {
            "model": self.model,
            "facts": {key: value for key, value in self.facts.items() if isinstance(value, str | int | float)},
            "limits": self.limits.to_json(),
            "phases": [self._phase_json(phase) for phase in self.phases],
        }

    def _phase_json(self, phase: Phase) -> dict[str, object]:
        steps = [
            {
                "step": info.index,
                "block": info.location.path,
                "source": info.location.source,
                **row_json(row, phase.wall_seconds),
                "name": info.name,
            }
            for info, row in zip(self.infos, phase.steps, strict=True)
        ]
        return {
            "name": phase.name,
            phase.unit: phase.amount,
            "runs": phase.runs,
            "wall_seconds": phase.wall_seconds,
            f"{phase.unit}_per_second": phase.amount / phase.wall_seconds,
            "untraced_wall_seconds": phase.untraced_seconds,
            "overhead": phase.overhead,
            "accounted": phase.accounted,
            "kernel_seconds": phase.kernel_seconds,
            "other_seconds": dict(phase.others),
            "kernels": [row_json(row, phase.wall_seconds) for row in phase.kernels],
            "blocks": [row_json(row, phase.wall_seconds) for row in phase.blocks],
            "steps": steps,
        }


def row_json(row: Row, wall_seconds: float) -> dict[str, object]:
    """A row as plain values."""
    return {
        "name": row.name,
        "steps": len(row.steps),
        "seconds": row.seconds,
        "share": row.seconds / wall_seconds,
        "bytes": row.bytes,
        "bytes_per_second": row.bytes_per_second,
        "operations": row.operations,
        "operations_per_second": row.operations_per_second,
        "arithmetic": row.arithmetic,
        "bounded_by": row.bounded_by,
        "of_roofline": row.of_roofline,
    }
