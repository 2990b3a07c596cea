"""Packed weights on disk, mapped into memory by the next start: `<cache>/weights/<key>.bin`.

In: the identity of a weight source, and the tensors that are packed. Out: read-only arrays over a mapping whose memory
all processes share. There is one file per model and layout; its key is a digest of

- the identity of the source (`rlx/io/identity.py`), with the names its tensors have there;
- each tensor's name, type, shape and layout, in order;
- `packing_version`: the version of the file format, and what the packing code makes of fixed bytes. So a change of a
  layout counts wherever it is written, and a change of a kernel does not.

The file is written by a thread, since writing would delay the first token; `background.py` says when. A cache that
cannot be written is done without. Next: `weight_file.py` for the format and what is checked, `disk_cache.py` for how
entries are replaced and bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu import disk_cache
from rlx.backends.cpu.background import Background
from rlx.backends.cpu.page_in import bring_in
from rlx.backends.cpu.weight_file import MAGIC, Samples, read_head, write_file
from rlx.core.dtype import DTYPES, DType
from rlx.io.identity import Identity

Bytes = NDArray[np.uint8]
Pack = Callable[[DType, Bytes, tuple[int, ...]], Bytes]

MIN_BYTES = 8_000_000
"""Less is packed in a few milliseconds, about as fast as a file is opened and checked."""


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One tensor of an entry: its key in the flow, its type and shape in the source, the layout it is packed into."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str


def entry_key(identity: Identity, tensors: Sequence[PackedTensor], pack: Pack) -> str:
    """The content address of the packed tensors: 32 hexadecimal characters."""
    digest = hashlib.sha256(identity.digest.encode())
    for tensor in tensors:
        digest.update(f"\n{tensor.name!r} {tensor.dtype} {tensor.shape} {tensor.layout}".encode())
    for dtype in sorted({tensor.dtype for tensor in tensors}):
        digest.update(packing_version(dtype, pack).encode())
    return digest.hexdigest()[:32]


@cache
def packing_version(dtype: str, pack: Pack) -> str:
    """A digest of what `pack` makes of fixed bytes: 35 rows (the last group is not full) of 8 blocks or more."""
    element = DTYPES[dtype]
    rows, columns = 35, max(64, 8 * element.block_size)
    # Knuth's multiplicative hash of the position: importing NumPy's random numbers costs 5 ms of every start
    raw = (np.arange(element.nbytes(rows * columns), dtype=np.uint32) * np.uint32(2654435761) >> 24).astype(np.uint8)
    packed = pack(element, raw, (rows, columns))
    return hashlib.sha256(f"{MAGIC!r} {dtype}\n".encode() + packed.tobytes()).hexdigest()


def load(folder: Path, key: str, count: int) -> list[Bytes] | None:
    """The `count` tensors of that key, read-only; None if the entry is not there, or was damaged and is now removed."""
    path = disk_cache.entry_path(folder, "weights", key)
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("a file of no bytes has no mapping")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    except ValueError:
        disk_cache.remove(path)
        return None
    _ask_for_huge_pages(mapping)
    data: Bytes = np.frombuffer(mapping, np.uint8)
    head = read_head(data, data.nbytes)
    if head is not None and head.key == key and len(head.places) == count:
        bring_in(data)
        content, samples = data[head.start :], Samples()
        samples.update(content)
        if samples.hexdigest() == head.samples:
            disk_cache.mark_used(path)
            return [content[offset : offset + nbytes] for offset, nbytes in head.places]
    disk_cache.remove(path)
    return None


def save(
    folder: Path, key: str, source: str, arrays: Sequence[Bytes], is_unwanted: Callable[[], bool] = lambda: False
) -> bool:
    """Keep packed tensors; gives whether that worked. It is not tried unless as much space again stays free.

    Args:
        folder: the cache.
        key: from `entry_key`.
        source: for people: the name of the file the weights came from.
        arrays: the packed tensors, in order.
        is_unwanted: asked now and then; the writing stops when it says yes.
    """
    path = disk_cache.entry_path(folder, "weights", key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        import shutil  # 5 ms of a start that writes nothing

        if shutil.disk_usage(path.parent).free < 2 * sum(array.nbytes for array in arrays):
            return False
        # only samples are checked at load, so that the content must be on the disk before its name is
        with disk_cache.replacing(path, durable=True) as file:
            write_file(file, key, source, arrays, is_unwanted)
        return True
    except OSError:  # an InterruptedError is one
        return False


def keep_in_background(folder: Path, limit: int | None, key: str, source: str, arrays: Sequence[Bytes]) -> Background:
    """Write an entry from a thread of its own; `Background` says when.

    A full disk gives it up, and what ends the process at once leaves no entry either: the next start packs again.
    """
    held = list(arrays)

    def write(is_unwanted: Callable[[], bool]) -> None:
        if os.path.exists(disk_cache.entry_path(folder, "weights", key)):  # another process was faster
            return
        if limit is not None and sum(array.nbytes for array in held) > limit:
            return
        if save(folder, key, source, held, is_unwanted) and limit is not None:
            disk_cache.trim(folder, limit)

    return Background("rlx-weight-cache", write)


def _ask_for_huge_pages(mapping: mmap.mmap) -> None:
    """Pages that are read from disk now come in large ones, where the file system can."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):
            mapping.madvise(advice)
