"""Work for later: what is kept on disk for the next start is written by a thread, so that the first tokens come first.

In: a function that does the work and asks now and then whether to stop. It runs after `PATIENCE_SECONDS`, or when the
model is closed, or when the program ends, whichever comes first; the end of the program waits for it, once per model,
so that a short run leaves something too. Ctrl-C then gives it up. Used by `weight_cache.py` and
`rlx/runtime/start_cache.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable

PATIENCE_SECONDS = 3.0
"""How long after loading the work begins, so that the first tokens have the cores to themselves."""


class Background:
    """One piece of work in a thread of its own.

    Args:
        name: of the thread.
        work: called once, with a function that says whether the work is no longer wanted. It raises nothing that
            anybody has to know of.
    """

    def __init__(self, name: str, work: Callable[[Callable[[], bool]], None]) -> None:
        self._start, self._give_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        atexit.register(self.finish)
        self._thread.start()

    def hurry(self) -> None:
        """Do not wait any longer before the work begins."""
        self._start.set()

    def finish(self) -> None:
        """Work now, and wait until that is done; Ctrl-C gives it up."""
        self._start.set()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self._give_up.set()
            self._thread.join()

    def _run(self, work: Callable[[Callable[[], bool]], None]) -> None:
        self._start.wait(PATIENCE_SECONDS)
        if sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        work(self._give_up.is_set)
