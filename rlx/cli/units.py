"""Numbers as a person reads them: 98.4 MB, 134.5 M, 0.35 s."""

from __future__ import annotations


def bytes_text(count: int) -> str:
    """Bytes in decimal units, as disks and networks count: 98362432 is `98.4 MB`."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: int) -> str:
    """A large number with a suffix: 134515008 is `134.5 M`."""
    return _scaled(count, ("", "K", "M", "B", "T")).rstrip()


def seconds_text(seconds: float) -> str:
    """Seconds with three digits that matter: `0.351 s`, `12.0 s`."""
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.{max(0, 3 - len(str(int(seconds))))}f} s"


def _scaled(count: int, units: tuple[str, ...]) -> str:
    value, index = float(count), 0
    # 999.95 would print as 1000.0
    while abs(value) >= 999.95 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.1f} {units[index]}" if index else f"{count} {units[0]}"
