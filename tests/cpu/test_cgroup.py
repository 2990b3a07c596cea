"""The limits of control groups, versions 1 and 2, nested, and absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlx.backends.cpu import threads
from rlx.backends.cpu.cgroup import cpu_quota, memory_limit


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota", "memory"),
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/\n"}, None, None),
        # a container with version 2: its own group is the root
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/memory.max": "4096\n"}, 1.5, 4096),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None, None),
        # the tightest of the group and those around it
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 50000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.max": "1000000\n",
            },
            1.0,
            1_000_000,
        ),
        # version 1; the path of the group is that of the host and does not exist inside of the container
        (
            {
                "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
            },
            2.5,
            2_000_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
            None,
        ),
        # what makes no sense is no limit
        ({"sys/fs/cgroup/cpu.max": "100000 0\n", "sys/fs/cgroup/memory.max": "\n"}, None, None),
        ({"sys/fs/cgroup/cpu.max": "100000\n"}, None, None),
    ],
)
def test_limits(tmp_path: Path, files: dict[str, str], quota: float | None, memory: int | None) -> None:
    root = tree(tmp_path, files)
    assert cpu_quota(root) == quota
    assert memory_limit(root) == memory


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (0.3, 1), (1.0, 1), (2.6, 3), (16.0, 4)])
def test_threads_obey_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert threads.available_cores() == expected
