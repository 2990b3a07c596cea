"""Which file is this? A digest that says so without the path and without reading all of it.

In: open files and their tensor table. Out: an `Identity`. What is kept on disk about a model's weights goes by it
(`rlx/backends/cpu/weight_cache.py`), so two files with one identity must hold the same weights.

The digest takes in

- the tensor table (names, types, shapes, places): another model or another quantisation;
- the size and the time of the last change, to the nanosecond: an edit in place, however small;
- `SAMPLES` pages spread over each file: another fine-tune of the same shapes whose time was copied from an archive.

The path and the inode are left out: a file that is renamed, linked, or copied with its time is the same model. What is
not seen is an edit of a few bytes between the samples that also puts the old time back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.io.checkpoint import TensorInfo
    from rlx.io.mapped_file import MappedFile

SAMPLES = 16
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """What a source of weights is known by.

    Attributes:
        digest: hexadecimal, 64 characters.
        name: for people: the name of the file or folder.
    """

    digest: str
    name: str


def identity_of(name: str, files: Sequence[MappedFile], tensors: Iterable[TensorInfo]) -> Identity:
    """The identity of a model in one or several files."""
    parts: list[bytes] = []
    for file in files:
        parts.append(f"{file.size} {file.modified_ns}\n".encode())
        for offset in sample_offsets(file.size):
            parts.append(file.buffer[offset : offset + SAMPLE_BYTES])
            file.release(offset, SAMPLE_BYTES)
    parts += [f"{info.name!r} {info.dtype} {info.shape} {info.offset}\n".encode() for info in tensors]
    # hashed at once: an update gives the interpreter to other threads, and each may keep it for 5 ms
    return Identity(hashlib.sha256(b"".join(parts)).hexdigest(), name)


def sample_offsets(size: int) -> list[int]:
    """Places from the first page to the last, evenly apart."""
    last = (size - 1) // SAMPLE_BYTES
    return sorted({last * index // (SAMPLES - 1) * SAMPLE_BYTES for index in range(SAMPLES)})
