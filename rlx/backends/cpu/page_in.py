"""Pages of mapped weights, brought in while the interpreter still prepares the first run.

In: an array over a mapped file. A thread asks the system to map all of it, in order and piece by piece; that takes a
third of a millisecond for 10 MB that are in memory, and it is time that the first run does not spend on page faults.
Nothing depends on it. Source: madvise(2).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14; older ones answer that they do not know it
_PIECE = 8 << 20
_WORTH_A_THREAD = 32 << 20


def bring_in(data: NDArray[np.uint8]) -> threading.Thread | None:
    """Start mapping the pages of `data`; gives the thread, or None where there is nothing to gain.

    A file that is large against the memory of the machine is left alone: its last pages would push out the first.
    """
    if sys.platform != "linux" or data.nbytes < _WORTH_A_THREAD or 2 * data.nbytes > _memory_bytes():
        return None
    try:
        advise: Any = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    thread = threading.Thread(target=_populate, args=(advise, data), name="rlx-page-in", daemon=True)
    thread.start()
    return thread


def _populate(advise: Any, data: NDArray[np.uint8]) -> None:
    # page after page from the start of the mapping; `data` is held, so that it stays mapped
    begin = data.ctypes.data
    for offset in range(0, data.nbytes, _PIECE):
        if advise(begin + offset, min(_PIECE, data.nbytes - offset), _POPULATE_READ):
            return


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
