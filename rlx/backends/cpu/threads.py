"""Worker threads: Python threads that spend their life in native code (`native.py`) and sleep on a lock when idle.

A pool belongs to one loaded module. A run is one native call; it takes whichever workers are awake, so a worker that
the system has put aside never holds it up, and an interrupt between two calls leaves nothing waiting.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

from rlx.backends.cpu.cgroup import cpu_quota
from rlx.backends.cpu.words import LINE, SLEEPING, WORDS
from rlx.errors import OptionError

IDLE_SPINS = 300_000
"""About 10 ms: longer than the Python work between two tokens, short enough to leave an idle machine alone."""
WAKE_SPINS = 60_000
"""About 2 ms: how long a run waits for a worker it has woken."""


def available_cores() -> int:
    """Cores this process may use: affinity, bounded by the cgroup CPU quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, round(quota)))


class ThreadPool:
    """`threads - 1` workers next to the calling thread.

    Args:
        run: address of `rlx_run`.
        worker: address of `rlx_worker`.
        threads: threads of a run, the caller's included.
        code: whatever keeps the code of the two in memory; each worker holds it until it has left native code.
    """

    def __init__(self, run: int, worker: int, threads: int, code: object) -> None:
        self.threads = threads
        # one line of slack to start on a cache line
        self._memory = np.zeros(WORDS.workers + (threads + 1) * LINE, np.int64)
        skip = (-self._memory.ctypes.data % (8 * LINE)) // 8
        self.state = self._memory[skip:]
        self._address = self.state.ctypes.data
        self.state[WORDS.yield_now] = _yield_address()
        self._run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(run)
        self._worker = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(worker)
        self._wake = [threading.Lock() for _ in range(threads - 1)]
        for wake in self._wake:
            wake.acquire()
        self._lock = threading.Lock()
        workers: list[threading.Thread] = []
        for index, wake in enumerate(self._wake):
            arguments = ([self._memory, code], self._address, self._worker, index, wake)
            worker_thread = threading.Thread(target=_serve, args=arguments, name=f"rlx-{index + 1}", daemon=True)
            try:
                worker_thread.start()
            except RuntimeError as error:
                _stop(self.state, self._wake, workers)
                raise OptionError(
                    "the system gives no more threads", found=f"{index + 1} of {threads}", fix="ask for fewer threads"
                ) from error
            workers.append(worker_thread)
        self._finalizer = weakref.finalize(self, _stop, self.state, self._wake, workers)

    def run(self, steps: int, count: int, fault: int) -> int:
        """Run a step table; gives the number of threads that took part."""
        with self._lock:
            state, patience = self.state, 0
            state[WORDS.steps], state[WORDS.count], state[WORDS.fault] = steps, count, fault
            for index, wake in enumerate(self._wake):
                if state[WORDS.workers + index * LINE] == SLEEPING:
                    _open(wake)
                    patience = WAKE_SPINS
            return int(self._run(self._address, self.threads - 1, patience))

    def close(self) -> None:
        """End the workers."""
        self._finalizer()


def _open(wake: threading.Lock) -> None:
    """Let the worker through.

    A bare lock, not a semaphore: a forked child might find the inner lock of that taken for ever.
    """
    with suppress(RuntimeError):  # open already: the worker has not come through yet
        wake.release()


def _serve(held: list[object], address: int, worker: Any, index: int, wake: threading.Lock) -> None:
    """The life of a worker. It holds the words and the code, so that both outlive a pool that is dropped."""
    while True:
        wake.acquire()
        if worker(address, index, IDLE_SPINS):
            held.clear()
            return


def _stop(state: Any, wake: list[threading.Lock], workers: list[threading.Thread]) -> None:
    """End the workers and wait for it: their code must not be unmapped under them."""
    state[WORDS.stop] = 1
    for lock in wake:
        _open(lock)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join()


def _yield_address() -> int:
    """The address of sched_yield, 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (OSError, AttributeError, TypeError):
        return 0
