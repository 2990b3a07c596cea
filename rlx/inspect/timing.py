"""Where the time of a phase went: by step, by kernel, by block, and beside the kernels.

In: traced runs of a program with the sizes of each, the spans of Python around them, the wall time that was measured
from outside. Out: a `Phase`. Time of a step is thread time divided by the number of threads: what each second of the
wall was spent on adds up to that second, whatever runs beside what. Next: `profile_report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.trace import TracedRun
from rlx.core.dim import Size
from rlx.inspect.roofline import Numbers, Roofline
from rlx.inspect.steps import StepInfo
from rlx.lir.program import Program
from rlx.lir.sizes import SizeTable

WAITS = "waiting for other threads"
ABSENT = "threads not there (asleep, or put aside by the system)"
BETWEEN = "between steps: taking chunks, reading the clock"
PREPARING = "Python around a run"
SAMPLING = "sampling"
SCHEDULING = "scheduling"


@dataclass(frozen=True, slots=True)
class SizedRun:
    """A run with the value of every symbol.

    Attributes:
        run: its time stamps.
        dims: sizes by name, those of the program's symbols.
        sequences: first position and number of rows of each sequence in it.
    """

    run: TracedRun
    dims: Mapping[str, int]
    sequences: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that Python did, in seconds of `time.perf_counter`."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Row:
    """Time, work and limits of a step, or of several.

    Attributes:
        name: what is told.
        steps: steps of the program it stands for.
        seconds: of the wall, in all runs of the phase.
        bytes, operations: moved and done in that time, in all.
        bound_seconds: the least that the roofline allows.
        memory_share: part of the bound that is for bytes where bytes bound, 0 to 1.
        arithmetic: of the step, or of the longest of them.
    """

    name: str
    steps: tuple[int, ...]
    seconds: float
    bytes: float
    operations: float
    bound_seconds: float
    memory_share: float
    arithmetic: str

    @property
    def bytes_per_second(self) -> float:
        """0 where no time was seen."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def operations_per_second(self) -> float:
        """0 where no time was seen."""
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def of_roofline(self) -> float:
        """Part of the speed that the roofline allows; 1 is at the limit."""
        return self.bound_seconds / self.seconds if self.seconds else 0.0

    @property
    def bounded_by(self) -> str:
        """ "memory", or the arithmetic."""
        return "memory" if self.memory_share >= 0.5 else self.arithmetic


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of work: prefill, decode, encode.

    Attributes:
        name: which.
        unit: what is counted: "tokens" or "texts".
        amount: how many of them.
        runs: native calls.
        wall_seconds: measured from outside, by one clock from the first call to the last.
        untraced_seconds: of the same work without a trace, just before or after.
        steps: a row for each step of the program.
        kernels: a row for each kernel, by its number.
        others: seconds beside the kernels by name.
        dims: the sizes of its largest run.
    """

    name: str
    unit: str
    amount: int
    runs: int
    wall_seconds: float
    untraced_seconds: float
    steps: tuple[Row, ...]
    blocks: tuple[Row, ...]
    kernels: tuple[Row, ...]
    others: Mapping[str, float]
    dims: Mapping[str, int]

    @property
    def kernel_seconds(self) -> float:
        """Of the wall, in kernels."""
        return sum(row.seconds for row in self.steps)

    @property
    def accounted(self) -> float:
        """Part of the wall time that has a name, 0 to 1."""
        return (self.kernel_seconds + sum(self.others.values())) / self.wall_seconds

    @property
    def overhead(self) -> float:
        """What tracing added to the wall time, relative; below 0 where the machine moved by more."""
        return self.wall_seconds / self.untraced_seconds - 1


def phase(
    name: str,
    unit: str,
    amount: int,
    wall: tuple[float, float],
    untraced_seconds: float,
    infos: Sequence[StepInfo],
    program: Program,
    runs: Sequence[SizedRun],
    spans: Sequence[Span],
    roofline: Roofline,
    kernel_names: Sequence[str],
) -> Phase:
    """Put together what was measured.

    Args:
        name, unit, amount: see `Phase`.
        wall: when the work began and ended.
        untraced_seconds: of the same work without a trace.
        infos: of every step of the program.
        program: what ran.
        runs: every native call within `wall`.
        spans: of Python; those called `PREPARING` hold a native call each, which is taken off.
        roofline: the limits.
        kernel_names: of every kernel of the program.
    """
    busy, waits, absent, between = _thread_times(runs, len(infos))
    moved, operations, memory, compute = _work(infos, program, runs, roofline)
    bound = np.maximum(memory, compute)
    share = np.where(memory >= compute, 1.0, 0.0)
    steps = tuple(
        Row(
            info.name, (i,), float(busy[i]), float(moved[i]), float(operations[i]), float(bound[i]), float(share[i]),
            info.arithmetic,
        )
        for i, info in enumerate(infos)
    )  # fmt: skip
    native = sum(sized.run.end - sized.run.begin for sized in runs)
    others = {WAITS: waits, ABSENT: absent, BETWEEN: between}
    for span in spans:
        others[span.name] = others.get(span.name, 0.0) + span.seconds
    if PREPARING in others:
        others[PREPARING] -= native
    return Phase(
        name,
        unit,
        amount,
        len(runs),
        wall[1] - wall[0],
        untraced_seconds,
        steps,
        grouped(steps, [info.block for info in infos]),
        grouped(steps, [kernel_names[info.kernel] for info in infos]),
        others,
        dict(max(runs, key=lambda sized: sized.dims.get("T", 0)).dims) if runs else {},
    )


def grouped(rows: Sequence[Row], names: Sequence[str]) -> tuple[Row, ...]:
    """Rows added up by name, the longest first."""
    groups: dict[str, list[Row]] = {}
    for row, name in zip(rows, names, strict=True):
        groups.setdefault(name, []).append(row)
    return tuple(sorted((_sum(name, group) for name, group in groups.items()), key=lambda row: -row.seconds))


def _sum(name: str, rows: Sequence[Row]) -> Row:
    bound = sum(row.bound_seconds for row in rows)
    return Row(
        name,
        tuple(step for row in rows for step in row.steps),
        sum(row.seconds for row in rows),
        sum(row.bytes for row in rows),
        sum(row.operations for row in rows),
        bound,
        sum(row.memory_share * row.bound_seconds for row in rows) / bound if bound else 1.0,
        max(rows, key=lambda row: row.seconds).arithmetic,
    )


def _thread_times(runs: Sequence[SizedRun], count: int) -> tuple[Numbers, float, float, float]:
    """Seconds of the wall in each step, at the ends of groups, of threads that were not there, and between events."""
    busy = np.zeros(count)
    waits = absent = between = 0.0
    for sized in runs:
        run, threads = sized.run, len(sized.run.threads)
        for events in run.threads:
            seconds, work = events.end - events.begin, events.is_work
            np.add.at(busy, events.step[work], seconds[work] / threads)
            waits += float(seconds[~work].sum()) / threads
            first, last = (events.begin[0], events.end[-1]) if len(seconds) else (run.end, run.end)
            absent += (max(0.0, first - run.begin) + max(0.0, run.end - last)) / threads
            between += max(0.0, float(last - first - seconds.sum())) / threads
    return busy, waits, absent, between


def _work(
    infos: Sequence[StepInfo], program: Program, runs: Sequence[SizedRun], roofline: Roofline
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Bytes and operations of each step in all runs, and the least seconds for either."""
    tables = [SizeTable([size(info) for info in infos]) for size in _SIZES]
    weights = np.array([info.weight_bytes for info in infos], np.float64)
    is_product = np.array([info.node.op == "linear" for info in infos])
    arithmetic = [info.arithmetic for info in infos]
    held = sum({b: w for info in infos for b, w in _weights_of(info, program)}.values())
    totals = [np.zeros(len(infos)) for _ in range(4)]
    for sized in runs:
        operations, cache, other = (_evaluated(table, infos, sized) for table in tables)
        read = np.where(is_product & (operations == 0), 0.0, weights)  # no rows, nothing read
        arena = program.arena_offsets(sized.dims)[1]
        moved: dict[str, NDArray[np.float64]] = {}
        for nbytes, whole in ((read, held), (cache, float(cache.sum())), (other, arena)):
            level = roofline.level_of(whole)
            moved[level] = moved.get(level, np.zeros(len(infos))) + nbytes
        memory, compute = roofline.bound(moved, operations, arithmetic)
        totals = [a + b for a, b in zip(totals, (read + cache + other, operations, memory, compute), strict=True)]
    return totals[0], totals[1], totals[2], totals[3]


_SIZES: tuple[Callable[[StepInfo], Size], ...] = (
    lambda info: info.operations,
    lambda info: info.cache_bytes,
    lambda info: info.other_bytes,
)


def _weights_of(info: StepInfo, program: Program) -> list[tuple[str, int]]:
    buffers = [program.buffers[buffer] for buffer in program.steps[info.index].buffers]
    names = [buffer.name for buffer in buffers if buffer.kind == "weight"]
    return [(",".join(names), info.weight_bytes)] if names else []


def _evaluated(table: SizeTable, infos: Sequence[StepInfo], sized: SizedRun) -> Numbers:
    result = np.zeros(len(infos))
    for reach in {info.reach for info in infos}:
        attended = sum(reach.attended(*rows) for rows in sized.sequences)
        cached = sum(reach.cached(*rows) for rows in sized.sequences)
        chosen = np.array([info.reach == reach for info in infos])
        dims = {**sized.dims, "attended": attended, "cached": cached}
        result[chosen] = table.evaluate(dims)[chosen]
    return result
