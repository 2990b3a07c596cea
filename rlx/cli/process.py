"""What the operating system knows about this process: when it started, and the most memory it held.

Out: seconds and bytes. Sources: proc(5) for /proc/self/stat and /proc/self/status, getrusage(2).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_IMPORTED = time.perf_counter()


def seconds_since_start() -> float:
    """Seconds since this process was started; on Linux to 10 ms, elsewhere since RLX was imported."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        # The name in parentheses may hold anything; the fields after it are numbered from 3, starttime is 22.
        started = int(stat.rpartition(")")[2].split()[22 - 3]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _IMPORTED


def peak_rss_bytes() -> int:
    """The most memory that was resident at once; 0 where the platform does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
