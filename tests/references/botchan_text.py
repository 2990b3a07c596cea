"""The prose of botchan.txt (sentencepiece 0.2.1 source archive, test/botchan.txt), public domain.

In: the path of the file. Out: its lines 31 to 3985, which leave out the head and the notes at the end, as one string.
Next: `botchan.py`.
"""

from __future__ import annotations

from pathlib import Path

FIRST_LINE, LAST_LINE = 31, 3985


def read_text(path: Path) -> str:
    """Lines 31 to 3985 (from 1, both included) with their line ends."""
    return "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[FIRST_LINE - 1 : LAST_LINE])
