"""Progress on stderr: a bar for a model that is being fetched, a line for what is being measured.

In: calls `progress(what, done_bytes, total_bytes)`, from any thread. Out: a bar on a terminal, a line every quarter
elsewhere (a log). Nothing at all, and no import of rich, when the model is already there.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from rlx.cli.reporting import is_terminal, remark
from rlx.cli.units import bytes_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class FetchProgress:
    """The callback; a context manager, so that the bar goes away whatever happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` bytes of `total` (None: not known) of `what` are done."""
        with self._lock:
            if is_terminal(sys.stderr):
                self._draw(what, done, total)
            else:
                self._log(what, done, total)

    def _draw(self, what: str, done: int, total: int | None) -> None:
        if self._bars is None:
            self._bars = _start_bars()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def _log(self, what: str, done: int, total: int | None) -> None:
        quarter = 4 * done // total if total else 0
        if quarter > self._told.get(what, -1):
            self._told[what] = quarter
            remark(f"{what}: {bytes_text(done)}" + (f" of {bytes_text(total)}" if total else ""))

    def __enter__(self) -> FetchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _start_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bars.start()
    return bars


class StatusLine:
    """What is being done right now: one line that changes on a terminal, a line each elsewhere (a log)."""

    def __init__(self) -> None:
        self._is_shown = False

    def show(self, text: str) -> None:
        """Replace the line."""
        if is_terminal(sys.stderr):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._is_shown = True
        else:
            remark(text)

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
