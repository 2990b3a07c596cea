"""What a traced runtime does more than the ordinary one: it reads a clock around each chunk and each wait.

In: the state of a pool whose word `logs` is the address of a log for each thread (`words.py`). Out: events in them. The
clock is the counter of the processor, which runs at one rate on all cores: the time stamp counter on x86 (`rdtsc`),
the virtual count on AArch64 (`cntvct_el0`). Next: `trace.py`, which makes seconds of its ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rlx.backends.cpu.emit import I64, PTR, Emit, Val
from rlx.backends.cpu.words import LOG, WORDS


def emit_clock(e: Emit, arguments: list[Val], function: Any, *, finish: Callable[[Emit, Val | None], None]) -> None:
    """The body of `rlx_clock()`, which gives the ticks now."""
    finish(e, _clock(e))


@contextmanager
def recorded(e: Emit, state: Val, thread: Val, step: Val, units: Val) -> Generator[None]:
    """Surround a piece of work by two readings of the clock, and add an event to the log of the thread."""
    begin = _clock(e)
    yield
    end = _clock(e)
    logs = e.load(e.at(state, WORDS.logs, I64), PTR)
    log = e.at(logs, thread * LOG.count, I64)
    length = e.load(log, I64, LOG.length)
    with e.when(length < e.load(log, I64, LOG.capacity)):
        event = e.at(e.load(log, PTR, LOG.events), length * LOG.event, I64)
        for value, word in ((step, LOG.step), (begin, LOG.begin), (end, LOG.end), (units, LOG.units)):
            e.store(value, event, word)
        e.store(length + 1, log, LOG.length)


def _clock(e: Emit) -> Val:
    if not e.target.is_arm:
        return e.call("llvm.readcyclecounter", I64)
    # LLVM's cycle counter is one that the system keeps to itself there, and its steady one is not made
    register = Val(e, e.module.add_metadata(["cntvct_el0"]))
    return e.call("llvm.read_volatile_register.i64", I64, register)
