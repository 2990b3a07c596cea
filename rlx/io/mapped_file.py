"""A file mapped read-only into memory: views without copies, and pages that can be given back.

In goes a path, out comes a `MappedFile`. Used by `gguf.py` and `safetensors_folder.py`.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlx.errors import FileFormatError, ModelNotFoundError


class MappedFile:
    """The bytes of a file.

    Attributes:
        path: the file.
        size: its length in bytes when it was opened, at least 1.
        modified_ns: the time of its last change when it was opened, in nanoseconds since 1970.
        buffer: the mapping; slicing it copies, `view` does not.
    """

    __slots__ = ("_array", "buffer", "modified_ns", "path", "size")

    def __init__(self, path: Path) -> None:
        """Map `path`.

        Raises:
            ModelNotFoundError: it does not exist, is not a regular file, or may not be read.
            FileFormatError: it is empty.
        """
        self.path = path
        try:
            if path.is_dir():
                raise ModelNotFoundError("a folder is not a model file", where=str(path), expected="a regular file")
            if not path.is_file():
                raise ModelNotFoundError(
                    "the model file does not exist", where=str(path), fix="check the path, or name a model reference"
                )
            with path.open("rb") as file:
                if path.stat().st_size == 0:
                    raise FileFormatError("the model file is empty", where=str(path), fix="fetch it again")
                self.modified_ns = os.fstat(file.fileno()).st_mtime_ns
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError("the model file cannot be read", where=str(path), found=str(error)) from None
        self.size = len(self.buffer)
        self._array: NDArray[np.uint8] = np.frombuffer(self.buffer, dtype=np.uint8)

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` bytes from `offset`: flat, read-only, not copied. The caller has checked the bounds."""
        return self._array[offset : offset + nbytes]

    def release(self, offset: int, nbytes: int) -> None:
        """Drop the whole pages inside the range from resident memory, where the platform can."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is None:
            return
        page = mmap.PAGESIZE
        start = -(-offset // page) * page
        length = (offset + nbytes) // page * page - start
        if length > 0:
            self.buffer.madvise(advice, start, length)
