"""Time stamps of the runs of a module: when each thread worked on which step, and when it waited.

In: a program, a target, a number of threads. Out: `Trace.runs`, a `TracedRun` for each run of the module, in seconds of
`time.perf_counter`. The events themselves are written by native code (`native_trace.py`). Next:
`rlx/inspect/timing.py`, which makes tables of them.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.native_code import CLOCK, RUNTIME, load_traced_runtime
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.threads import ThreadPool
from rlx.backends.cpu.words import LINE, LOG, WORDS
from rlx.errors import RlxError
from rlx.lir.program import Program

Seconds = NDArray[np.float64]
MIN_CAPACITY = 1 << 14  # events of a thread, between two times that its log is emptied


@dataclass(frozen=True, slots=True)
class Events:
    """What one thread did in one run, in order.

    Attributes:
        step: int64 [n], the index of the step.
        begin, end: float64 [n], seconds.
        units: int64 [n], how many units of the step it did; -1 for a wait at the end of a group.
    """

    step: NDArray[np.int64]
    begin: Seconds
    end: Seconds
    units: NDArray[np.int64]

    @property
    def is_work(self) -> NDArray[np.bool_]:
        """Which of them are kernels at work."""
        return self.units >= 0


@dataclass(frozen=True, slots=True)
class TracedRun:
    """One native call: when it began and ended, and what each thread did in it."""

    begin: float
    end: float
    threads: tuple[Events, ...]


class _TracedPool(ThreadPool):
    """A pool that notes when each run begins and ends, and how long the logs were then."""

    def __init__(self, trace: Trace, run: int, worker: int, threads: int, code: object) -> None:
        super().__init__(run, worker, threads, code)
        self._trace = trace

    def run(self, steps: int, count: int, fault: int) -> int:
        """As for any pool."""
        self._trace.make_room(count)
        begin = time.perf_counter()
        threads = super().run(steps, count, fault)
        self._trace.note(begin, time.perf_counter())
        return threads


class Trace:
    """The time stamps of one module, from now on.

    Attributes:
        pool: the threads that write them.
    """

    def __init__(self, program: Program, target: Target, threads: int, cache: Path | None) -> None:
        code = load_traced_runtime(target, cache)
        run, worker = (code.addresses[name] for name in RUNTIME)
        self._clock = ctypes.CFUNCTYPE(ctypes.c_int64)(code.addresses[CLOCK])
        self._threads = threads
        self._marks: list[tuple[float, float, list[int]]] = []
        self._runs: list[tuple[float, float, list[NDArray[np.int64]]]] = []
        self._logs: NDArray[np.int64] = np.zeros(0, np.int64)
        self._events: list[NDArray[np.int64]] = []
        self.pool = _TracedPool(self, run, worker, threads, (code.library, self))
        self._allocate(max(MIN_CAPACITY, 4 * len(program.steps) * (threads + 1)))
        self._origin = self._reading()
        if self._clock() == self._origin[1]:
            raise RlxError("the counter of this processor does not count", where=target.name)

    def make_room(self, steps: int) -> None:
        """See to it that a run of so many steps fits into every log."""
        most = steps * (self._threads + 1)  # a thread may get every chunk of a step, and waits once
        if max(self._lengths(), default=0) + most > len(self._events[0]):
            self._empty()
            if most > len(self._events[0]):
                self._allocate(most)

    def note(self, begin: float, end: float) -> None:
        """A run is over; its events are those that the logs hold now and did not before."""
        self._marks.append((begin, end, self._lengths()))

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self._empty()
        self._runs.clear()

    @property
    def runs(self) -> list[TracedRun]:
        """Every run since the trace began, or was cleared."""
        self._empty()
        (origin, ticks), (now, later) = self._origin, self._reading()
        scale = (now - origin) / (later - ticks)

        def events(rows: NDArray[np.int64]) -> Events:
            begin, end = (
                (origin + (rows[:, word] - ticks) * scale).astype(np.float64) for word in (LOG.begin, LOG.end)
            )
            return Events(rows[:, LOG.step], begin, end, rows[:, LOG.units])

        return [TracedRun(begin, end, tuple(map(events, rows))) for begin, end, rows in self._runs]

    def close(self) -> None:
        """End the threads; what was recorded can still be read."""
        self.pool.close()

    def _reading(self) -> tuple[float, int]:
        """Seconds and ticks at one moment: of several tries the one that took least."""
        tries: list[tuple[float, float, int]] = []
        for _ in range(8):
            before, ticks, after = time.perf_counter(), self._clock(), time.perf_counter()
            tries.append((after - before, (before + after) / 2, ticks))
        _, seconds, ticks = min(tries)
        return seconds, ticks

    def _allocate(self, capacity: int) -> None:
        self._events = [np.zeros((capacity, LOG.event), np.int64) for _ in range(self._threads)]
        memory: NDArray[Any] = np.zeros((self._threads + 1) * LINE, np.int64)
        start = (-memory.ctypes.data % (8 * LINE)) // 8  # on a cache line, so that no two threads write to one
        self._logs = memory[start : start + self._threads * LOG.count].reshape(self._threads, LOG.count)
        self._logs[:, LOG.events] = [events.ctypes.data for events in self._events]
        self._logs[:, LOG.capacity] = capacity
        self.pool.state[WORDS.logs] = self._logs.ctypes.data

    def _lengths(self) -> list[int]:
        return [int(length) for length in self._logs[:, LOG.length]]

    def _empty(self) -> None:
        """Take the events out of the logs."""
        before = [0] * self._threads
        for begin, end, lengths in self._marks:
            parts = [
                events[first:last].copy() for events, first, last in zip(self._events, before, lengths, strict=True)
            ]
            self._runs.append((begin, end, parts))
            before = lengths
        self._marks.clear()
        self._logs[:, LOG.length] = 0
