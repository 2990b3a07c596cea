"""The real command in a process of its own, and what a refusal has to look like.

In: arguments and an environment. Out: a finished process, checked. Next: `test_bad_input.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


def environment(**changes: str) -> dict[str, str]:
    """This environment without what would change RLX, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RLX_") or name == "RLX_CACHE_DIR"}
    return {**kept, **changes}


def arguments(*words: str) -> list[str]:
    """The command line of `rlx WORDS`, run by this Python."""
    return [sys.executable, "-m", "rlx", *words]


def rlx(*words: str, **changes: str) -> Done:
    """Run `rlx WORDS` to its end."""
    return subprocess.run(
        arguments(*words),
        cwd=ROOT,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def check_refusal(done: Done, code: int, *facts: str) -> None:
    """One clear message on stderr, nothing on stdout, the exit code of its cause, nothing from the inside."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    message = without_progress(done.stderr)
    assert len(re.findall(r"^[eE]rror: ", message, re.MULTILINE)) == 1, done.stderr
    for word in ("Traceback", 'File "', "internal error", "Exception"):
        assert word not in done.stderr, done.stderr
    for fact in facts:
        assert fact in message, message


def without_progress(text: str) -> str:
    """Standard error without the lines that tell how far a fetch is."""
    lines = [line for line in text.splitlines() if not re.match(r"(fetching|unpacking) .*: [\d.,]+ \w+", line)]
    return "\n".join(lines)
