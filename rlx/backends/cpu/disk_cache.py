"""What the caches of objects, weights and starts share: whole files or none, the time of last use, a bound on size.

    <cache>/objects/<key>.o      compiled code (`object_cache.py`)
    <cache>/weights/<key>.bin    packed weights (`weight_cache.py`)
    <cache>/starts/<key>.start   what a model's program is (`rlx/runtime/start_cache.py`)

An entry is written to a temporary file beside its place and renamed, so that a reader never sees half of one, whatever
ends the writer; what a killed writer leaves is swept away later. Removing an entry that another process has mapped is
safe: the file lives until it is unmapped (where the system refuses to remove it, it stays). The time of last use is the
file's access time, set by hand because most systems do not keep it; the time of last change says when it was written.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

Kind = Literal["objects", "weights", "starts"]
SUFFIXES: dict[Kind, str] = {"objects": ".o", "weights": ".bin", "starts": ".start"}

STALE_SECONDS = 3600
"""Age from which a temporary file is taken for that of a writer that was killed; none writes for an hour."""

WRITE_BYTES = 8 << 20
"""What is written at once. Large aligned writes let the system keep the file in huge pages, and map it so."""

_NAME = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\..+")


@dataclass(frozen=True, slots=True)
class DiskEntry:
    """A file of one of the caches. Times are seconds since 1970."""

    kind: Kind
    path: Path
    nbytes: int
    written: float
    last_used: float


def entry_path(cache: Path, kind: Kind, key: str) -> Path:
    """Where the entry of a key is, or would be."""
    return cache / kind / (key + SUFFIXES[kind])


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Generator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends, and is gone if the block does not end well.

    Args:
        path: the place; its folder is made if needed.
        durable: wait until the content is on the disk before it gets its name. Without it, a loss of power may leave an
            entry of zeros, which a reader that checks all of an entry finds.

    Raises:
        OSError: it cannot be written.
    """
    import tempfile  # 10 ms of a start that writes nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb", buffering=WRITE_BYTES) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove(Path(temporary))
        raise


def remove(path: Path) -> bool:
    """Remove a file; gives whether it is gone."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False


def mark_used(path: Path) -> None:
    """Set the time of last use to now, where that is allowed."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def entries(cache: Path) -> list[DiskEntry]:
    """All entries. A folder that is a link is left alone: what it leads to is not inside the cache."""
    found: list[DiskEntry] = []
    for kind, suffix in SUFFIXES.items():
        for file in _files(cache / kind):
            name, extension = os.path.splitext(file.name)
            if extension != suffix or not _NAME.fullmatch(name):
                continue
            with contextlib.suppress(OSError):  # removed by another process meanwhile
                stat = file.stat(follow_symlinks=False)
                used = max(stat.st_atime, stat.st_mtime)
                found.append(DiskEntry(kind, Path(file.path), stat.st_size, stat.st_mtime, used))
    return found


def leftovers(cache: Path) -> list[Path]:
    """Temporary files of writers that were killed."""
    old = time.time() - STALE_SECONDS
    found: list[Path] = []
    for kind in SUFFIXES:
        for file in _files(cache / kind):
            with contextlib.suppress(OSError):
                if _TEMPORARY.fullmatch(file.name) and file.stat(follow_symlinks=False).st_mtime < old:
                    found.append(Path(file.path))
    return found


def trim(cache: Path, limit: int) -> int:
    """Remove what was not used for longest until all entries together take at most `limit` bytes, and the leftovers.

    Returns:
        The bytes that were freed.
    """
    for path in leftovers(cache):
        remove(path)
    kept = sorted(entries(cache), key=lambda entry: entry.last_used)
    excess = total = sum(entry.nbytes for entry in kept) - limit
    for entry in kept:
        if excess <= 0:
            break
        if remove(entry.path):
            excess -= entry.nbytes
    return total - excess if total > 0 else 0


def _files(folder: Path) -> list[os.DirEntry[str]]:
    """The regular files of a folder; none if it is not there or is a link."""
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as scan:
            return [entry for entry in scan if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
