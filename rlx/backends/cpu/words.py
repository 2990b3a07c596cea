"""Where things lie in the memory that native code and Python share: the state of a pool, and the rows of a step table.

`native.py` emits code that reads and writes these words; `threads.py` and `module.py` set them up.
"""

from __future__ import annotations

from dataclasses import dataclass

LINE = 8  # words of a cache line


@dataclass(frozen=True, slots=True)
class Words:
    """Positions in the shared state."""

    go: int = 0  # number of the run that claimed workers may start
    threads: int = 2 * LINE
    steps: int = 2 * LINE + 1
    count: int = 2 * LINE + 2
    fault: int = 2 * LINE + 3
    yield_now: int = 2 * LINE + 4  # address of sched_yield, or 0
    logs: int = 2 * LINE + 5  # address of a log for each thread; only a traced runtime looks at it
    stop: int = 3 * LINE
    workers: int = 4 * LINE  # a line for each worker: state, run it is claimed for


WORDS = Words()
SLEEPING, READY, CLAIMED, RUNNING = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class StepWords:
    """Positions in a row of the step table, which is one cache line. `claimed` and `done` start a run at 0."""

    function: int = 0
    buffers: int = 1
    sizes: int = 2
    units: int = 3
    claimed: int = 4  # chunks taken
    done: int = 5  # chunks finished
    group: int = 6  # steps to wait for after this one, itself included; 0 to go on
    count: int = LINE


STEP = StepWords()


@dataclass(frozen=True, slots=True)
class LogWords:
    """Positions in the log of a thread, which is one cache line, and in an event of it."""

    events: int = 0  # address of the first event
    capacity: int = 1  # events there is room for; what comes after them is dropped
    length: int = 2  # events so far
    count: int = LINE
    step: int = 0  # row of the step table
    begin: int = 1  # clock
    end: int = 2
    units: int = 3  # of the step; -1 for a wait at the end of a group
    event: int = 4  # words of an event


LOG = LogWords()
