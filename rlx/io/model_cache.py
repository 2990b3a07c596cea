"""The folder of fetched models: entries that appear whole or not at all.

An entry is built in a partial folder beside its place and renamed when it is complete; a lock per name lets one process
build while others wait; a receipt lists the files and their sizes. Used by `pypi.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rlx.errors import StorageError

RECEIPT = "receipt.json"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A complete entry: its folder, and the model's file or folder in it."""

    folder: Path
    model: Path


def find_entry(folder: Path) -> CacheEntry | None:
    """The entry in `folder` if it is complete: every file of its receipt is there with its size."""
    try:
        receipt = cast(dict[str, Any], json.loads((folder / RECEIPT).read_bytes()))
        files = cast(dict[str, int], receipt["files"])
        if any((folder / name).stat().st_size != size for name, size in files.items()):
            return None
        return CacheEntry(folder, folder / str(receipt["model"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def model_folders(cache: Path) -> list[Path]:
    """The folders of all entries; those with a dot in front are of a fetch that goes on, or was killed.

    A cache that is a link is left alone: what it leads to belongs to somebody else.
    """
    if cache.is_symlink():
        return []
    try:
        found = [place for place in cache.iterdir() if not place.is_symlink() and place.is_dir()]
    except OSError:
        return []
    return sorted(found)


def remove_entry(folder: Path) -> bool:
    """Remove an entry; gives whether it is gone. It is renamed first, so that nobody finds half of it."""
    doomed = folder.with_name(f".partial-{folder.name.lstrip('.')}-removed-{os.getpid()}")
    try:
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError:
        return False
    return True


def write_receipt(folder: Path, model: str, files: Mapping[str, int]) -> None:
    """Write the receipt of a folder whose files are in place.

    Args:
        folder: the entry, still partial.
        model: the model's file or folder, relative to it.
        files: relative path to size in bytes.
    """
    (folder / RECEIPT).write_text(json.dumps({"model": model, "files": dict(files)}, indent=1), encoding="utf-8")


@contextmanager
def partial_entry(cache: Path, name: str) -> Generator[Path]:
    """A fresh partial folder for the entry `name`, removed at the end unless it was renamed into place.

    Leftovers of a process that was killed are removed first. The caller holds the lock of `name`.

    Raises:
        StorageError: the cache cannot be written, or the disk is full.
    """
    import tempfile

    with storage_errors(cache):
        for leftover in cache.glob(f".partial-{name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".partial-{name}-", dir=cache))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, place: Path) -> None:
    """Put a complete partial folder into its place, instead of a damaged entry that may be there."""
    if place.exists():
        shutil.rmtree(place)
    partial.rename(place)


@contextmanager
def locked(cache: Path, name: str) -> Generator[None]:
    """Hold the lock of an entry's name among all processes; waits for the holder.

    Raises:
        StorageError: the cache cannot be written.
    """
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(cache / f".lock-{name}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)  # closing releases the lock


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            with suppress(OSError):  # gives up after ten seconds of waiting
                msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
                return
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` has `needed` bytes left.

    Raises:
        StorageError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise disk_full(folder, needed, free)


def disk_full(folder: Path, needed: int | None, free: int) -> StorageError:
    """The error for a full disk."""
    return StorageError(
        "there is not enough disk space",
        where=str(folder),
        found=f"{free:,} bytes free",
        expected=f"{needed:,} bytes" if needed is not None else None,
        fix="free some space, or point RLX_CACHE_DIR at another disk",
    )


@contextmanager
def storage_errors(folder: Path, needed: int | None = None) -> Generator[None]:
    """Turn the operating system's refusals to write into `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, needed, _free(folder)) from None
        raise StorageError(
            "the model cache cannot be written",
            where=str(error.filename or folder),
            found=error.strerror or str(error),
            fix="check the permissions, or point RLX_CACHE_DIR at another folder",
        ) from None


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
