"""Golden texts: what a level of the compiler prints for a small program, kept in files that a person reviews."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def check_golden(name: str, text: str, *, update: bool = False, folder: Path = FOLDER) -> None:
    """Compare `text` with `folder/name.txt`, or write it there; the test fails with a unified diff."""
    path = folder / f"{name}.txt"
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    if not path.exists():
        pytest.fail(f"there is no golden text {path.name}; run the test with --update-golden and review it")
    expected = path.read_text(encoding="utf-8")
    if text != expected:
        diff = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), f"golden/{path.name}", "produced now", lineterm=""
        )
        pytest.fail("\n".join(diff) or "the texts differ in line endings only", pytrace=False)
