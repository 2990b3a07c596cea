"""Writing to stdout: pieces of text as they come, JSON for programs, tables for people.

In: text, plain values, rows. Out: UTF-8 on stdout, flushed. What goes wrong in writing is an OSError, which
`reporting.py` turns into an exit code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from io import TextIOWrapper
from typing import Any, cast

from rlx.cli.reporting import is_terminal

_PIPE_WIDTH = 240


def use_utf8() -> None:
    """Write UTF-8 whatever the locale says; generated text has every script in it."""
    stream: object = sys.stdout
    if isinstance(stream, TextIOWrapper):
        cast("TextIOWrapper[Any]", stream).reconfigure(encoding="utf-8", errors="replace")


def write_text(text: str) -> None:
    """Write text now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: object, *, indent: int | None = 2) -> None:
    """Write one JSON document and a new line; `indent` None puts it on one line."""
    write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_table(title: str, rows: Iterable[Sequence[str]], *, header: Sequence[str] | None = None) -> None:
    """Write a table; columns after the first are aligned to the right when there is a header."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=header is not None, box=None, pad_edge=False)
    lines = [list(row) for row in rows]
    for index in range(max(map(len, lines), default=0)):
        name = header[index] if header is not None and index < len(header) else ""
        right = header is not None and index > 0
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    # What goes into a file or a pipe is not folded to the width of a terminal.
    width = None if is_terminal(sys.stdout) else _PIPE_WIDTH
    console = Console(file=sys.stdout, highlight=False, width=width)
    with console.capture() as rendered:
        console.print(table)
    write_text(rendered.get())
