"""RLX and its peers on the same works, in turn.

In: works, systems (RLX first), a number of rounds. Out: `Result`s: samples of every system, and the ratio of RLX to a
peer within each round. A machine changes its pace from second to second, so two speeds are compared only where one was
measured right after the other; which of the two goes first alternates.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlx.cli.peers.peer import System
from rlx.cli.peers.work import Work
from rlx.errors import PeerError


@dataclass(frozen=True, slots=True)
class Samples:
    """Several measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest one."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest one."""
        return max(self.values)

    def to_json(self) -> dict[str, object]:
        """Median, range and every value."""
        return {"median": self.median, "min": self.least, "max": self.most, "values": list(self.values)}


@dataclass(slots=True)
class Result:
    """What became of one work.

    Attributes:
        work: what was done.
        speeds: for each system its speed in each round it got through.
        problems: for each system that refused or failed, why.
    """

    work: Work
    speeds: dict[str, dict[int, float]] = field(default_factory=dict[str, "dict[int, float]"])
    problems: dict[str, str] = field(default_factory=dict[str, str])

    def samples(self, system: str) -> Samples | None:
        """The speeds of a system; None if it has none."""
        values = tuple(self.speeds.get(system, {}).values())
        return Samples(values) if values else None

    def ratios(self, system: str, other: str) -> Samples | None:
        """Speed of `system` over that of `other`, within the rounds that both got through."""
        mine, theirs = self.speeds.get(system, {}), self.speeds.get(other, {})
        values = tuple(mine[index] / theirs[index] for index in mine if index in theirs)
        return Samples(values) if values else None


def compare(
    works: Sequence[Work],
    systems: Sequence[System],
    rounds: int,
    results: list[Result],
    progress: Callable[[str], None] | None = None,
) -> None:
    """Run everything, each work `rounds` times on every system after one run of RLX that does not count.

    Args:
        works: what is measured, in this order.
        systems: RLX first. A peer that fails is left out for the rest of the work; what RLX fails with is raised.
        rounds: how often.
        results: receives a `Result` for each work before it starts, so that an interrupt leaves what was measured.
        progress: called with a line of text before each run.
    """
    for work in works:
        result = Result(work)
        results.append(result)
        for system in systems:
            reason = system.refuses(work)
            if reason is not None:
                result.problems[system.name] = reason
        able = [system for system in systems if system.name not in result.problems]
        if systems[0] in able:
            systems[0].run(work)  # touches its memory for the first time
        try:
            for index in range(rounds):
                for system in able[:: -1 if index % 2 else 1]:
                    if system.name not in result.problems:
                        if progress is not None:
                            progress(f"{work.title}, {index + 1} of {rounds}: {system.name}")
                        _run(system, work, index, result)
        finally:
            for system in able:
                system.finish()


def _run(system: System, work: Work, index: int, result: Result) -> None:
    try:
        result.speeds.setdefault(system.name, {})[index] = system.run(work)
    except PeerError as error:
        result.problems[system.name] = error.message
