"""A case measured: compiled, checked against its plain form, timed without Python in between, held against the limits.

In: `Case`s, limits. Out: `Row`s. Times are the least of several runs, as the limits are. Next: `bench/kernels.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.lab.cases import Array, Built, Case
from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.module import CpuModule
from rlx.backends.cpu.target import Target
from rlx.compiler import compile_graph
from rlx.flow.weights import DictWeights
from rlx.inspect.limits import DramProbe, Limits
from rlx.runtime.executable import Executable

RUN_SECONDS = 0.01
MOST_RUNS, LEAST_RUNS = 9, 3
CASE_SECONDS = 0.3  # for all runs of a case, where one of them is not longer
PLAIN_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class Row:
    """What was found out about a case.

    Attributes:
        seconds: of one op.
        bytes_per_second, operations_per_second: reached.
        limit: what holds it back by the roofline: "dram", "l3", "l2" or the name of an arithmetic.
        of_limit: least time by the limits over the time it took; 1 is as fast as the machine.
        plain_seconds, torch_seconds: of NumPy and of torch on the same thing; None where it was not measured.
        error: norm of the difference to the plain form over the norm of its result.
        is_right: whether that is within the case's tolerance.
    """

    group: str
    name: str
    seconds: float
    bytes_per_second: float
    operations_per_second: float
    limit: str
    of_limit: float
    plain_seconds: float
    torch_seconds: float | None
    error: float
    is_right: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Bytes up to which operands are taken to come from a cache: three quarters of what all threads have of it."""

    l2: int
    l3: int

    @staticmethod
    def of(caches: Mapping[str, int], threads: int) -> CacheSizes:
        """From the sizes that `rlx doctor` shows; common ones where the system does not say."""
        return CacheSizes(3 * threads * caches.get("L2", 1 << 20) // 4, 3 * caches.get("L3", 32 << 20) // 4)

    def level(self, resident: int) -> str:
        """Where that many bytes come from when they are read over and over."""
        return "l2" if resident <= self.l2 else "l3" if resident <= self.l3 else "dram"


def measure_case(
    case: Case,
    target: Target,
    threads: int,
    limits: Limits,
    caches: CacheSizes,
    probe: DramProbe,
    torch_seconds: float | None = None,
) -> Row:
    """Run a case.

    Args:
        case: what.
        target, threads: how.
        limits, caches: what it is held against.
        probe: the bandwidth of memory is taken before and after what reads from there.
        torch_seconds: what torch takes for the same.
    """
    built = case.build()
    executable = _compiled(built, target, threads)
    try:
        error = _error(executable, built)
        level = caches.level(built.resident)
        bandwidth = _bandwidth(limits, level)
        if level == "dram":
            bandwidth = probe.read()
        seconds = _least_seconds(executable, built)
        if level == "dram":
            bandwidth = max(bandwidth, probe.read())
    finally:
        executable.close()
    peak = _peak(limits, built.peak)
    by_memory, by_arithmetic = built.moved / (bandwidth * 1e9), built.operations / (peak * 1e9)
    return Row(
        case.group,
        case.name,
        seconds,
        built.moved / seconds,
        built.operations / seconds,
        limit=level if by_memory >= by_arithmetic else built.peak,
        of_limit=max(by_memory, by_arithmetic) / seconds,
        plain_seconds=least_seconds_of(built.plain),
        torch_seconds=torch_seconds,
        error=error,
        is_right=error <= built.tolerance,
    )


def _compiled(built: Built, target: Target, threads: int) -> Executable:
    """Without running copies of an op beside each other: in a model each waits for the one before it."""
    program, stages = compile_graph(built.graph, CpuBackend(target), fusion=built.copies == 1)
    module = CpuModule(program, DictWeights(built.weights), target, threads, None)
    return Executable(built.graph, program, stages, module)


def _error(executable: Executable, built: Built) -> float:
    found = executable(**built.inputs)["y0"]
    expected: Array = built.plain()
    wide = [np.asarray(a).astype(np.float64).reshape(-1) for a in (found, expected)]
    return float(np.linalg.norm(wide[0] - wide[1]) / max(float(np.linalg.norm(wide[1])), 1e-30))


def _least_seconds(executable: Executable, built: Built) -> float:
    once = executable.seconds(1, **built.inputs)
    times = max(1, min(10_000, round(RUN_SECONDS / max(once, 1e-7))))
    runs = max(LEAST_RUNS, min(MOST_RUNS, int(CASE_SECONDS / (times * once))))
    return min(executable.seconds(times, **built.inputs) for _ in range(runs)) / built.copies


def least_seconds_of(function: Callable[[], object]) -> float:
    """Least seconds of a call: as many calls as fit into a while, and one at least (it has been called before)."""
    least, spent = float("inf"), 0.0
    while spent < PLAIN_SECONDS:
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
        least, spent = min(least, seconds), spent + seconds
    return least


def _bandwidth(limits: Limits, level: str) -> float:
    return {"dram": limits.dram, "l3": limits.l3, "l2": limits.l2}[level]


def _peak(limits: Limits, kind: str) -> float:
    """Where there are no bfloat16 instructions, float32 ones do it."""
    return {"f32": limits.f32, "int8": limits.int8, "bf16": limits.bf16 or limits.f32}[kind]
