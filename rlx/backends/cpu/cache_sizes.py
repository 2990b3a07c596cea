"""Sizes of the processor's caches. Source: the kernel's document on sysfs, `/sys/devices/system/cpu/cpu*/cache`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")


def data_caches(root: Path = ROOT) -> dict[str, int]:
    """Data caches of the first processor, such as L1d, L2, L3, in bytes; empty where the system does not say."""
    found: dict[str, int] = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        match = re.fullmatch(r"(\d+)K", _word(folder / "size"))
        kind, level = _word(folder / "type"), _word(folder / "level")
        if match is not None and kind in ("Data", "Unified"):
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = 1024 * int(match[1])
    return found


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
