"""Texts that lie one a line in a file or on stdin, and the count of those that are done.

In: a file's name. Out: its texts; a line on stderr. Next: `embed.py`, `rerank.py`, `perplexity.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rlx.cli.reporting import is_terminal, remark
from rlx.errors import OptionError


class TextProgress:
    """A line on stderr that counts: in place at a terminal, every quarter elsewhere."""

    def __init__(self, what: str = "texts", write: Callable[[str], object] | None = None) -> None:
        self._what, self._write = what, write or sys.stderr.write
        self._quarter = 0

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` are done."""
        if is_terminal(sys.stderr):
            self._write(f"\r{done} of {total} {self._what}" + ("\n" if done == total else ""))
        elif 4 * done // total > self._quarter:
            self._quarter = 4 * done // total
            remark(f"{done} of {total} {self._what}")


def read_text(file: str) -> str:
    """A whole file, or stdin for `-`.

    Raises:
        OptionError: the file cannot be read, or is not UTF-8.
    """
    where = "stdin" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return raw.decode()
    except (OSError, AttributeError) as error:  # a closed stdin is None
        raise OptionError("the text cannot be read", where=where, found=str(error)) from None
    except UnicodeDecodeError as error:
        raise OptionError("the text is not UTF-8", where=where, found=str(error), fix="convert it") from None


def read_lines(file: str) -> list[str]:
    """The texts, one a line.

    Raises:
        OptionError: the file cannot be read, is not UTF-8, or has no line.
    """
    where, text = "stdin" if file == "-" else file, read_text(file)
    lines = text.removesuffix("\n").split("\n") if text else []
    if not lines:
        raise OptionError("there is no text", where=where, expected="one text a line")
    return [line.removesuffix("\r") for line in lines]
