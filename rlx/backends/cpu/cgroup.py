"""What the control groups of this process allow: how much of the cores, how much memory.

In: the files of the kernel. Out: the tightest limit of the group and of all groups around it, None where there is none.
Sources: the kernel's documents cgroup-v2 (cpu.max, memory.max) and cgroup-v1 (cpu.cfs_quota_us, memory.limit_in_bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_UNLIMITED = 1 << 60  # version 1 writes the largest page count for "no limit"


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time per time that may be used, such as 1.5."""
    found: list[float] = []
    for folder in _folders(root, "cpu"):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        # "max 100000" in version 2 and "-1 100000" in version 1 are no limit
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes this process and those grouped with it may hold."""
    found: list[int] = []
    for folder in _folders(root, "memory"):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if words and words[0].isdecimal() and int(words[0]) < _UNLIMITED:
            found.append(int(words[0]))
    return min(found, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's group and those around it.

    Inside a container the path of the group may not exist; its outermost folder is then that of the container.
    """
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if number == "0" and not names:
            places = [mount, mount / "unified"]
        elif controller in names.split(","):
            places = [mount / controller, mount / names]
        else:
            continue
        path = PurePosixPath(group.lstrip("/"))
        for place in places:
            yield from (place / part for part in (path, *path.parents) if ".." not in part.parts)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
