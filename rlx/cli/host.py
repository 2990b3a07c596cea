"""What `rlx doctor` says of the machine: what it offers, and what slows it right now.

In: the kernel's files below a root (so that a test can bring its own). Out: facts, and `Slowdown`s with one thing to do
each. Where a file is missing (another system, a container) the fact is left out and nothing is claimed. Sources:
proc(5), and the kernel's documents on sysfs CPU caches, cpufreq, transparent huge pages and pressure stall information.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
SAMPLE_SECONDS = 0.2
_ISA = ("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512vnni", "avx512bf16", "avx512fp16", "amx-int8", "amx-bf16",
        "neon", "dotprod", "i8mm", "bf16", "sve", "sve2")  # fmt: skip
_MEMORY_WORDS = {"MemTotal": "memory", "MemAvailable": "memory_available"}


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Something that makes RLX slower than the machine could be, and one thing to do about it."""

    what: str
    fix: str


def usable_processors() -> set[int]:
    """The processors this process may run on."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return set(range(os.cpu_count() or 1))


def offers(root: Path = ROOT) -> dict[str, object]:
    """Cores, quota, caches, memory and huge pages; sizes in bytes."""
    from rlx.backends.cpu.cache_sizes import data_caches
    from rlx.backends.cpu.cgroup import cpu_quota, memory_limit

    facts: dict[str, object] = {
        "processors": os.cpu_count(),
        "processors_allowed": len(usable_processors()),
        "cores": _physical_cores(root),
        "cpu_quota": cpu_quota(root),
        "caches": data_caches(root),
        **_memory(root),
        "memory_limit": memory_limit(root),
        "huge_pages": huge_page_mode(root),
        "governor": _line(_cpufreq(root) / "scaling_governor"),
    }
    return {name: value for name, value in facts.items() if value not in (None, {})}


def vector_extensions(features: frozenset[str]) -> list[str]:
    """Those of LLVM's feature names that RLX has, or will have, kernels for."""
    return [name for name in _ISA if name in features]


def slowdowns(threads: int, root: Path = ROOT, seconds: float = SAMPLE_SECONDS) -> list[Slowdown]:
    """Look at the machine for `seconds`.

    Args:
        threads: compute threads of RLX.
        root: of the kernel's files.
        seconds: how long the use of the processors is watched.
    """
    found = [
        *_quota(threads, root),
        *_frequency(root),
        *_busy(threads, root, seconds),
        *_memory_pressure(root),
    ]
    if huge_page_mode(root) == "never":
        found.append(
            Slowdown(
                "huge pages are switched off: reading weights costs more address translation",
                "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
            )
        )
    return found


def huge_page_mode(root: Path = ROOT) -> str | None:
    """`always`, `madvise` or `never`."""
    match = re.search(r"\[(\w+)\]", _line(root / "sys/kernel/mm/transparent_hugepage/enabled") or "")
    return match[1] if match else None


def _quota(threads: int, root: Path) -> list[Slowdown]:
    from rlx.backends.cpu.cgroup import cpu_quota

    quota, allowed = cpu_quota(root), len(usable_processors())
    found: list[Slowdown] = []
    if quota is not None and quota < allowed:
        found.append(
            Slowdown(
                f"the control group may use {quota:g} of {allowed} processors: all threads pause when that is used up",
                "raise it (docker run --cpus, resources.limits.cpu, cpu.max)",
            )
        )
    usable = allowed if quota is None else min(allowed, max(1, round(quota)))
    if threads > usable:
        found.append(
            Slowdown(f"{threads} threads for {usable} processors: they wait for each other", f"RLX_THREADS={usable}")
        )
    return found


def _frequency(root: Path) -> list[Slowdown]:
    folder = _cpufreq(root)
    governor, driver = _line(folder / "scaling_governor"), _line(folder / "scaling_driver") or ""
    # with the drivers that let the hardware choose, "powersave" is the ordinary mode and not slow
    if governor == "powersave" and "pstate" not in driver:
        return [Slowdown("the processors run at their lowest frequency", "sudo cpupower frequency-set -g performance")]
    cap, top = _number(folder / "scaling_max_freq"), _number(folder / "cpuinfo_max_freq")
    if cap and top and cap < 0.95 * top:
        return [
            Slowdown(
                f"the frequency is capped at {cap / 1e6:.2f} of {top / 1e6:.2f} GHz",
                f"sudo cpupower frequency-set -u {top}kHz, or plug in the power supply",
            )
        ]
    return []


def _busy(threads: int, root: Path, seconds: float) -> list[Slowdown]:
    """Whether others use the processors now: time not idle of those allowed, and time the hypervisor took."""
    before, programs = _processor_times(root), _program_times(root)
    time.sleep(seconds)
    after = _processor_times(root)
    if not before or not after:
        return []
    total, busy, stolen = (sum(new) - sum(old) for old, new in zip(before, after, strict=True))
    if total <= 0:
        return []
    count = len(before[0])
    found: list[Slowdown] = []
    # a quarter of a processor is more than a desktop at rest, and is felt where all processors compute
    if (in_use := busy / total * count) >= 0.25 and count - in_use < threads:
        name = _busiest(programs, _program_times(root))
        found.append(
            Slowdown(
                f"other programs use {in_use:.1f} of {count} processors now" + (f", most of it {name}" if name else ""),
                "end them, or leave them a processor: RLX_THREADS=" + str(max(1, int(count - in_use))),
            )
        )
    if stolen / total >= 0.02:
        found.append(
            Slowdown(
                f"the hypervisor gives {stolen / total:.0%} of the processors' time to other machines",
                "choose a machine with dedicated processors",
            )
        )
    return found


def _processor_times(root: Path) -> tuple[list[int], list[int], list[int]] | None:
    """Of each processor that is allowed: ticks in all, ticks in use by programs, ticks stolen."""
    allowed = usable_processors()
    total: list[int] = []
    busy: list[int] = []
    stolen: list[int] = []
    for line in _lines(root / "proc/stat"):
        match = re.match(r"cpu(\d+) (.*)", line)
        if match is None or int(match[1]) not in allowed:
            continue
        # user nice system idle iowait irq softirq steal; guest time is part of user
        ticks = [int(word) for word in match[2].split()[:8]]
        ticks += [0] * (8 - len(ticks))
        total.append(sum(ticks))
        busy.append(sum(ticks) - ticks[3] - ticks[4] - ticks[7])
        stolen.append(ticks[7])
    return (total, busy, stolen) if total else None


def _program_times(root: Path) -> dict[int, tuple[str, int]]:
    """Process id to name and ticks used."""
    found: dict[int, tuple[str, int]] = {}
    try:
        places = [place for place in (root / "proc").iterdir() if place.name.isdecimal()]
    except OSError:
        return found
    for place in places:
        match = re.match(r"\d+ \((.*)\) (.*)", _line(place / "stat") or "")
        fields = match[2].split() if match else []
        if match is not None and len(fields) > 12:
            found[int(place.name)] = (match[1], int(fields[11]) + int(fields[12]))
    return found


def _busiest(before: dict[int, tuple[str, int]], after: dict[int, tuple[str, int]]) -> str | None:
    """Name and process id of the program that used most time between the two, this one excepted."""
    used = {
        process: ticks - before.get(process, (name, 0))[1]
        for process, (name, ticks) in after.items()
        if process != os.getpid()
    }
    process = max(used, key=lambda process: used[process], default=None)
    return f"{after[process][0]} (process {process})" if process is not None and used[process] > 0 else None


def _memory_pressure(root: Path) -> list[Slowdown]:
    fix = "end a program, or choose a smaller model or --context"
    match = re.search(r"some avg10=([\d.]+)", " ".join(_lines(root / "proc/pressure/memory")))
    if match is not None and float(match[1]) >= 1:
        return [Slowdown(f"programs wait for memory {float(match[1]):.0f}% of the time", fix)]
    memory = _memory(root)
    total, available = memory.get("memory", 0), memory.get("memory_available", 0)
    if total and available < 0.1 * total:
        return [Slowdown(f"only {available / total:.0%} of the memory is available", fix)]
    return []


def _memory(root: Path) -> dict[str, int]:
    """Total and available memory in bytes."""
    found: dict[str, int] = {}
    for line in _lines(root / "proc/meminfo"):
        match = re.match(r"(\w+): +(\d+) kB", line)
        if match is not None and match[1] in _MEMORY_WORDS:
            found[_MEMORY_WORDS[match[1]]] = 1024 * int(match[2])
    return found


def _physical_cores(root: Path) -> int | None:
    """Cores behind the allowed processors: two processors of one core share its arithmetic."""
    cores: set[str] = set()
    for number in usable_processors():
        siblings = _line(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        if siblings is None:
            return None
        cores.add(siblings)
    return len(cores)


def _cpufreq(root: Path) -> Path:
    return root / "sys/devices/system/cpu/cpu0/cpufreq"


def _line(path: Path) -> str | None:
    return next(iter(_lines(path)), None)


def _number(path: Path) -> int | None:
    text = _line(path)
    return int(text) if text is not None and text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
