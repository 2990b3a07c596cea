"""How a command tells what happened: errors and remarks on stderr, exit codes, Ctrl-C, a closed pipe.

In: an exception, or a remark. Out: text on stderr, and the exit code. Used by every command.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import IO, ParamSpec

from rlx.errors import RlxError, StorageError

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it
ISSUES = "the project's issue tracker"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

P = ParamSpec("P")


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: what a user can meet becomes one message and an exit code, never a traceback.

    Other exceptions are defects of RLX; they pass through to `main`.
    """

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except (RlxError, KeyboardInterrupt, BrokenPipeError) as error:
            raise SystemExit(report_failure(error, debug=False)) from error

    return wrapped


def report_failure(error: BaseException, *, debug: bool) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        discard_stdout()
        return BROKEN_PIPE
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        discard_stdout()
        error = StorageError("the output cannot be written", where=error.filename, found=error.strerror)
    if isinstance(error, KeyboardInterrupt):
        remark("interrupted")
        return INTERRUPTED
    if isinstance(error, RlxError):
        tell_error(error.message)
        return error.exit_code
    kind = type(error).__name__
    hint = (
        "" if debug else "\n  fix:      `rlx --debug COMMAND ...` shows where; RLX_DUMP=FOLDER keeps what was compiled"
    )
    tell_error(f"internal error: {kind}: {error}\n  report:   this is a defect of RLX; please tell {ISSUES}{hint}")
    return INTERNAL_ERROR


def discard_stdout() -> None:
    """Send what is left in the buffers nowhere: the reader is gone, and the interpreter flushes at its end."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
    except (OSError, ValueError):
        return


def open_missing_streams() -> None:
    """Python has no stdout or stderr when the descriptor is closed (`>&-`); writing then goes nowhere instead."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def tell_error(message: str) -> None:
    """`error: message` on stderr, the word in red on a terminal."""
    _write(_styled("error:", "1;31") + " " + message + "\n")


def remark(message: str) -> None:
    """A line of secondary importance on stderr, dim on a terminal."""
    _write(_styled(message, "2") + "\n")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person sees what is written there."""
    return stream is not None and not stream.closed and stream.isatty()


def _styled(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if is_terminal(sys.stderr) else text


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # nobody listens to stderr: no reason to fail
