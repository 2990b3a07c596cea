"""A file that appears under its name when it is whole, and not at all if the writing fails.

In: the path and how many bytes will come. Out: a file open for writing. Used by the writers of model files.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rlx.errors import StorageError

_WRITE_BYTES = 1 << 20


@contextmanager
def new_file(path: Path, nbytes: int) -> Generator[IO[bytes]]:
    """Write beside `path`, and rename at the end of the block; a file of that name is replaced.

    Raises:
        StorageError: there is no room for `nbytes`, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < nbytes:
            raise _full(path, nbytes, free)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb", buffering=_WRITE_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(path, nbytes, shutil.disk_usage(path.parent).free) from None
        raise StorageError(
            "the file cannot be written",
            where=str(path),
            found=error.strerror or str(error),
            fix="check the path and its permissions",
        ) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _full(path: Path, nbytes: int, free: int) -> StorageError:
    return StorageError(
        "there is not enough disk space",
        where=str(path),
        found=f"{free:,} bytes free",
        expected=f"{nbytes:,} bytes",
        fix="free some space, or write to another disk",
    )
