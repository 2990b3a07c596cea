"""The file of packed weights: tensors as the kernels read them, behind a head that says what they are.

    _FIXED          magic, bytes of the table, bytes of the file, SHA-256 of the table and the two sizes
    table           JSON: key, source, place of each tensor, digests
    zeros           up to a page
    content         the tensors, each on a cache line

Reading checks the size of the file, the head, and one page of every `WINDOW` bytes, 0.4% of the content: 0.2 ms for
100 MB, where a whole SHA-256 takes 60 ms. So truncation, another size and a damaged head are always found, and so are
lost or zeroed ranges of two windows or more. A single flipped bit in the tensors is found with a chance of 1 in 256,
unless `is_whole` is asked, which reads everything; a model file is not checked at each start either.
Next: `weight_cache.py`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from rlx.lir.program import ALIGNMENT

Bytes = NDArray[np.uint8]

WINDOW = 1 << 20
PAGE = 4096
MAGIC = b"RLXPACK1"
_FIXED = struct.Struct("<8sQQ32s")
_PIECE = 8 << 20
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself.

    Attributes:
        key: the name of the entry.
        source: the name of the file the weights came from.
        places: first byte, counted from `start`, and length of each tensor.
        nbytes: of the whole file.
        start: first byte of the content.
        samples, content: SHA-256 of the sampled pages, and of everything from `start`.
    """

    key: str
    source: str
    places: tuple[tuple[int, int], ...]
    nbytes: int
    start: int
    samples: str
    content: str


class Samples:
    """SHA-256 of one page of every window of the content, each at another place in its window.

    The content may come in pieces of any length.
    """

    def __init__(self) -> None:
        self._digest, self._position = hashlib.sha256(), 0

    def update(self, piece: Bytes) -> None:
        """Take in the next bytes."""
        begin, end, data = self._position, self._position + piece.nbytes, piece.data
        pages: list[memoryview] = []
        for window in range(begin // WINDOW, end // WINDOW + 1):
            page = window * WINDOW + window * 97 % (WINDOW // PAGE) * PAGE
            first, last = max(page, begin), min(page + PAGE, end)
            if first < last:
                pages.append(data[first - begin : last - begin])
        # hashed at once: an update gives the interpreter to other threads, and each may keep it for 5 ms
        self._digest.update(b"".join(pages))
        self._position = end

    def hexdigest(self) -> str:
        """Hexadecimal, 64 characters."""
        return self._digest.hexdigest()


def write_file(
    file: IO[bytes], key: str, source: str, arrays: Sequence[Bytes], is_unwanted: Callable[[], bool]
) -> None:
    """Write a file from its first byte.

    Args:
        file: open for writing, empty.
        key: the name of the entry, also written into it.
        source: for people: the name of the file the weights came from.
        arrays: the packed tensors, in order.
        is_unwanted: asked before every few megabytes.

    Raises:
        OSError: it cannot be written.
        InterruptedError: `is_unwanted` said yes.
    """
    ends = np.cumsum([_round_up(array.nbytes, ALIGNMENT) for array in arrays], dtype=np.int64).tolist()
    places = [(end - _round_up(array.nbytes, ALIGNMENT), array.nbytes) for end, array in zip(ends, arrays, strict=True)]
    facts: dict[str, Any] = {"key": key, "source": source, "places": places}
    # digests have a fixed length, so the room of the head is known before them
    room = _round_up(len(_head(facts, _NO_DIGEST, _NO_DIGEST, 0)), PAGE)
    content, samples = hashlib.sha256(), Samples()
    file.write(bytes(room))
    for piece in _pieces(arrays):
        if is_unwanted():
            raise InterruptedError
        content.update(piece.data)
        samples.update(piece)
        file.write(piece.data)
    file.seek(0)
    file.write(_head(facts, samples.hexdigest(), content.hexdigest(), room + (ends[-1] if ends else 0)))


def read_head(data: Bytes, nbytes: int) -> Head | None:
    """The head of a file of `nbytes` bytes that begins with `data`, or None if the two do not fit or it is damaged."""
    if data.nbytes < _FIXED.size:
        return None
    magic, table_bytes, stated, checksum = _FIXED.unpack(data[: _FIXED.size].data)
    end = _FIXED.size + table_bytes
    if magic != MAGIC or stated != nbytes or end > data.nbytes:
        return None
    table = data[_FIXED.size : end].tobytes()
    if _checksum(table, nbytes) != checksum:
        return None
    facts = cast("dict[str, Any]", json.loads(table))
    places = tuple((int(offset), int(size)) for offset, size in facts["places"])
    return Head(facts["key"], facts["source"], places, nbytes, _round_up(end, PAGE), facts["samples"], facts["content"])


def file_head(path: Path) -> Head | None:
    """The head of a file, or None if it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        fixed = file.read(_FIXED.size)
        table_bytes = _FIXED.unpack(fixed)[1] if len(fixed) == _FIXED.size else 0
        nbytes = path.stat().st_size
        return read_head(np.frombuffer(fixed + file.read(min(table_bytes, nbytes)), np.uint8), nbytes)


def is_whole(path: Path) -> bool:
    """Whether every byte of a file is as it was written, its name included.

    Raises:
        OSError: it cannot be read.
    """
    head = file_head(path)
    if head is None or head.key != path.stem:
        return False
    with path.open("rb") as file:
        file.seek(head.start)
        return hashlib.file_digest(file, "sha256").hexdigest() == head.content


def _head(facts: dict[str, Any], samples: str, content: str, nbytes: int) -> bytes:
    table = json.dumps({**facts, "samples": samples, "content": content}).encode()
    return _FIXED.pack(MAGIC, len(table), nbytes, _checksum(table, nbytes)) + table


def _checksum(table: bytes, nbytes: int) -> bytes:
    return hashlib.sha256(f"{len(table)} {nbytes}\n".encode() + table).digest()


def _pieces(arrays: Sequence[Bytes]) -> Iterator[Bytes]:
    """The bytes of the content, in order."""
    for array in arrays:
        for first in range(0, array.nbytes, _PIECE):
            yield array[first : first + _PIECE]
        if array.nbytes % ALIGNMENT:
            yield np.zeros(-array.nbytes % ALIGNMENT, np.uint8)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
