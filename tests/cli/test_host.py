"""What `rlx doctor` reads from the kernel's files: made-up machines below a folder, each slowed by one thing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlx.cli import host
from rlx.cli.host import Slowdown, offers, slowdowns, vector_extensions

FREQUENCY = "sys/devices/system/cpu/cpu0/cpufreq/"
HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch):
    monkeypatch.setattr(host, "usable_processors", lambda: {0, 1})


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def found(root: Path, files: dict[str, str], threads: int = 2) -> list[Slowdown]:
    return slowdowns(threads, tree(root, files), seconds=0)


def test_an_unknown_machine(tmp_path):
    assert slowdowns(2, tmp_path, seconds=0) == []
    assert offers(tmp_path) == {"processors": os.cpu_count(), "processors_allowed": 2}


def test_what_a_machine_offers(tmp_path):
    cache = "sys/devices/system/cpu/cpu0/cache/"
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {
        f"{cache}index0/size": "48K\n", f"{cache}index0/type": "Data\n", f"{cache}index0/level": "1\n",
        f"{cache}index1/size": "32K\n", f"{cache}index1/type": "Instruction\n", f"{cache}index1/level": "1\n",
        f"{cache}index2/size": "1024K\n", f"{cache}index2/type": "Unified\n", f"{cache}index2/level": "2\n",
        topology.format(0): "0-1\n", topology.format(1): "0-1\n",
        "proc/meminfo": "MemTotal:       1000 kB\nMemFree:   1 kB\nMemAvailable:   900 kB\n",
        HUGE_PAGES: "always [madvise] never\n",
        FREQUENCY + "scaling_governor": "schedutil\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "77\n",
    }  # fmt: skip
    facts = offers(tree(tmp_path, files))
    assert facts["caches"] == {"L1d": 48 * 1024, "L2": 1024 * 1024}
    assert facts["cores"] == 1
    assert (facts["memory"], facts["memory_available"], facts["memory_limit"]) == (1_024_000, 921_600, 77)
    assert (facts["huge_pages"], facts["governor"], facts["cpu_quota"]) == ("madvise", "schedutil", 1.5)


def test_extensions_in_their_order():
    assert vector_extensions(frozenset({"sse2", "avx512vnni", "avx2"})) == ["avx2", "avx512vnni"]


def test_a_quota_below_the_processors(tmp_path):
    (slowdown,) = found(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000\n"}, threads=1)
    assert "1 of 2 processors" in slowdown.what
    assert "--cpus" in slowdown.fix


def test_more_threads_than_processors(tmp_path):
    (slowdown,) = found(tmp_path, {}, threads=3)
    assert "3 threads for 2 processors" in slowdown.what
    assert slowdown.fix == "RLX_THREADS=2"


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"scaling_governor": "powersave", "scaling_driver": "acpi-cpufreq"}, "lowest frequency"),
        ({"scaling_governor": "powersave", "scaling_driver": "intel_pstate"}, None),
        (
            {"scaling_governor": "performance", "scaling_max_freq": "2000000", "cpuinfo_max_freq": "4000000"},
            "2.00 of 4.00",
        ),
        ({"scaling_max_freq": "3900000", "cpuinfo_max_freq": "4000000"}, None),
    ],
)
def test_frequency(tmp_path, files, word):
    slow = found(tmp_path, {FREQUENCY + name: text + "\n" for name, text in files.items()})
    assert [word in slowdown.what for slowdown in slow] == ([True] if word else [])


def test_huge_pages_that_are_off(tmp_path):
    (slowdown,) = found(tmp_path, {HUGE_PAGES: "always madvise [never]\n"})
    assert "transparent_hugepage" in slowdown.fix


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"proc/pressure/memory": "some avg10=12.50 avg60=0 avg300=0 total=1\nfull avg10=0.00"}, "12%"),
        ({"proc/pressure/memory": "some avg10=0.00 avg60=0 avg300=0 total=1\n"}, None),
        ({"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 40 kB\n"}, "4%"),
        ({"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 400 kB\n"}, None),
    ],
)
def test_memory_pressure(tmp_path, files, word):
    assert [word in slowdown.what for slowdown in found(tmp_path, files)] == ([True] if word else [])


def processors(*ticks: tuple[int, int, int]) -> str:
    """/proc/stat of processors with (used, idle, stolen) ticks; a third one is not allowed and always busy."""
    lines = [f"cpu{i} {used} 0 0 {idle} 0 0 0 {stolen} 0 0" for i, (used, idle, stolen) in enumerate(ticks)]
    return "\n".join(["cpu  1 2 3", *lines, "cpu2 999999 0 0 0 0 0 0 0 0 0", "ctxt 1"]) + "\n"


def program(ticks: int) -> str:
    return f"7 (a (b) c) R 1 1 1 0 -1 0 0 0 0 0 {ticks} 5 0 0 20 0 1 0 1\n"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (processors((100, 200, 0), (100, 200, 0)), []),
        (processors((200, 100, 0), (100, 200, 0)), ["1.0 of 2 processors now, most of it a (b) c (process 7)"]),
        (processors((110, 190, 0), (105, 195, 0)), []),
        (processors((100, 150, 50), (100, 200, 0)), ["25% of the processors' time"]),
    ],
)
def test_other_programs(tmp_path, monkeypatch, after, words):
    """Between the two looks each processor has 100 ticks."""
    root = tree(tmp_path, {"proc/stat": processors((100, 100, 0), (100, 100, 0)), "proc/7/stat": program(10)})

    def wait(seconds):
        assert seconds == 0.2
        tree(root, {"proc/stat": after, "proc/7/stat": program(60)})

    monkeypatch.setattr(host.time, "sleep", wait)
    slow = slowdowns(2, root)
    assert len(slow) == len(words)
    assert all(word in slowdown.what for word, slowdown in zip(words, slow, strict=True))


def test_a_processor_that_others_use_is_no_loss_if_it_is_not_asked_for(tmp_path, monkeypatch):
    root = tree(tmp_path, {"proc/stat": processors((100, 100, 0), (100, 100, 0))})
    monkeypatch.setattr(
        host.time, "sleep", lambda _: tree(root, {"proc/stat": processors((200, 100, 0), (100, 200, 0))})
    )
    assert slowdowns(1, root) == []
