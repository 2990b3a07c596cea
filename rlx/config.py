"""Every environment variable RLX reads, typed and documented in one place.

Nobody else reads `os.environ`. A flag beats the environment, the environment beats the default.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rlx.errors import OptionError


@dataclass(frozen=True, slots=True)
class Knob:
    """One environment variable: its name, what it does and its allowed values (empty: any)."""

    name: str
    help: str
    choices: tuple[str, ...] = ()


CACHE_DIR = Knob(
    "RLX_CACHE_DIR",
    "Folder for fetched models, compiled objects and packed weights (default: the user's cache folder).",
)
THREADS = Knob("RLX_THREADS", "Number of compute threads (default: what affinity and the cgroup quota allow).")
TARGETS = ("native", "amx", "avx512", "avxvnni", "avx2", "i8mm", "apple", "neon", "portable")
"""Instruction sets by name; `rlx/backends/cpu/target.py` says what they are."""
TARGET = Knob("RLX_TARGET", "Instruction set to compile for.", TARGETS)
PRECISION = Knob("RLX_PRECISION", "Arithmetic of the products.", ("fast", "exact"))
DUMP = Knob("RLX_DUMP", "Folder that receives the text of every stage of a compilation.")
OBJECT_CACHE = Knob("RLX_OBJECT_CACHE", "Keep compiled objects and packed weights on disk.", ("on", "off"))
CACHE_LIMIT = Knob(
    "RLX_CACHE_LIMIT",
    "Most bytes of compiled objects and packed weights on disk, such as 500MB (default: 20GB); the longest unused go "
    "first. Fetched models do not count.",
)
LLAMA_BENCH = Knob("RLX_LLAMA_BENCH", "Path of llama.cpp's llama-bench, for `rlx bench --peer` (default: on PATH).")
IK_LLAMA_BENCH = Knob("RLX_IK_LLAMA_BENCH", "Path of ik_llama.cpp's llama-bench, for `rlx bench --peer`.")
PEER_PYTHON = Knob(
    "RLX_PEER_PYTHON", "Python that has torch, onnxruntime or openvino, for `rlx bench --peer` (default: this one)."
)
KNOBS = (
    CACHE_DIR, THREADS, TARGET, PRECISION, DUMP, OBJECT_CACHE, CACHE_LIMIT, LLAMA_BENCH, IK_LLAMA_BENCH, PEER_PYTHON,
)  # fmt: skip

DEFAULT_CACHE_LIMIT = 20_000_000_000
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment, read and checked. `threads` None means: find out."""

    cache_dir: Path
    threads: int | None
    target: str
    precision: str
    dump: Path | None
    object_cache: bool
    cache_limit: int
    llama_bench: str | None
    ik_llama_bench: str | None
    peer_python: str | None


def _read(knob: Knob) -> str | None:
    value = os.environ.get(knob.name)
    if value is None or value == "":
        return None
    if knob.choices and value not in knob.choices:
        raise OptionError(
            f"{knob.name} has a value that is not allowed", found=repr(value), expected=" or ".join(knob.choices)
        )
    return value


def _read_size(knob: Knob, default: int) -> int:
    value = _read(knob)
    if value is None:
        return default
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?b?)", value.strip().lower())
    if match is None:
        raise OptionError(f"{knob.name} is not a size", found=repr(value), expected="such as 20GB, 500MB or 0")
    unit = match[2] if match[2].endswith("b") or not match[2] else match[2] + "b"
    return int(float(match[1]) * _UNITS[unit])


def default_cache_dir() -> Path:
    """The user's cache folder for RLX: XDG_CACHE_HOME or ~/.cache (LOCALAPPDATA on Windows), plus `rlx`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "rlx"


def settings() -> Settings:
    """Read the environment now.

    Raises:
        OptionError: a variable has a value that is not allowed.
    """
    threads = _read(THREADS)
    if threads is not None and (not threads.isdecimal() or not 1 <= int(threads) <= 1024):
        raise OptionError(f"{THREADS.name} is not a number of threads", found=repr(threads), expected="1 to 1024")
    cache_dir, dump = _read(CACHE_DIR), _read(DUMP)
    return Settings(
        cache_dir=Path(cache_dir) if cache_dir else default_cache_dir(),
        threads=int(threads) if threads else None,
        target=_read(TARGET) or "native",
        precision=_read(PRECISION) or "fast",
        dump=Path(dump) if dump else None,
        object_cache=_read(OBJECT_CACHE) != "off",
        cache_limit=_read_size(CACHE_LIMIT, DEFAULT_CACHE_LIMIT),
        llama_bench=_read(LLAMA_BENCH),
        ik_llama_bench=_read(IK_LLAMA_BENCH),
        peer_python=_read(PEER_PYTHON),
    )


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that RLX starts: this one with some variables changed, or dropped if empty."""
    environment = {**os.environ, **changes}
    return {name: value for name, value in environment.items() if value or name not in changes}
