"""Writing GGUF version 3: metadata, a table of tensors, and their bytes as they are made.

In go values and `TensorSource`s, out comes a file that appears under its name when it is whole (`new_file.py`).
 Source: docs/gguf.md of the ggml project; `gguf.py` is the reader. Used by `rlx/models/convert.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType
from rlx.errors import InputError
from rlx.io import ggml_types
from rlx.io.gguf import DEFAULT_ALIGNMENT, MAGIC
from rlx.io.new_file import new_file
from rlx.io.progress import Progress, silent
from rlx.io.string_array import StringArray

Bytes = NDArray[np.uint8]
_KINDS = {dtype.name: kind for kind, dtype in ggml_types.GGML_TYPES.items()}
_SCALARS = {dtype: kind for kind, dtype in ggml_types.SCALARS.items() if kind != ggml_types.BOOL}
_UINT32, _INT32, _FLOAT32, _UINT64, _INT64 = 4, 5, 6, 10, 11


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor to write.

    Attributes:
        name, shape, dtype: what the table says; the shape in NumPy order.
        make: its bytes, flat; called once, from a thread.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    make: Callable[[], Bytes]

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.dtype.nbytes(int(np.prod(self.shape, dtype=np.int64)))


def write_gguf(
    path: Path,
    metadata: Mapping[str, object],
    tensors: Sequence[TensorSource],
    *,
    threads: int = 1,
    progress: Progress = silent,
) -> None:
    """Write a GGUF file; what was there under the name is replaced.

    Args:
        path: the file.
        metadata: bool, int, float, str, a NumPy array of numbers, a list or `StringArray` of strings, lists of them.
            A whole number is written in 32 bits if it fits, a float in 32.
        tensors: in the order of the file.
        threads: tensors that are made at once; the file does not depend on it.
        progress: called with (name, bytes done, bytes in all).

    Raises:
        StorageError: the file cannot be written; nothing is left behind.
        InputError: a value or type that GGUF has no place for.
    """
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, payload = _value(key, value)
        head += [_string(key), struct.pack("<I", kind), payload]
    position = 0
    for tensor in tensors:
        if tensor.dtype.name not in _KINDS:
            raise InputError("GGUF has no such tensor type", where=tensor.name, found=tensor.dtype)
        sizes = tensor.shape[::-1]
        head += [_string(tensor.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        head.append(struct.pack("<IQ", _KINDS[tensor.dtype.name], position))
        position += _round_up(tensor.nbytes)
    start = b"".join(head)
    total = _round_up(len(start)) + position
    with new_file(path, total) as file:
        file.write(start.ljust(_round_up(len(start)), b"\0"))
        done = _round_up(len(start))
        for tensor, data in zip(tensors, _made(tensors, threads), strict=True):
            if data.nbytes != tensor.nbytes:
                raise InputError(
                    "a tensor has another length than its type", where=tensor.name, found=data.nbytes,
                    expected=tensor.nbytes,
                )  # fmt: skip
            file.write(data.data)
            file.write(bytes(_round_up(data.nbytes) - data.nbytes))
            done += _round_up(data.nbytes)
            progress(path.name, done, total)


def _made(tensors: Sequence[TensorSource], threads: int) -> Iterator[Bytes]:
    """The tensors in order, a few ahead of the one that is asked for."""
    waiting: list[Future[Bytes]] = []
    rest = iter(tensors)
    with ThreadPoolExecutor(threads, thread_name_prefix="rlx-convert") as executor:
        try:
            for tensor in islice(rest, 2 * threads):
                waiting.append(executor.submit(tensor.make))
            while waiting:
                yield waiting.pop(0).result()
                waiting += [executor.submit(tensor.make) for tensor in islice(rest, 1)]
        finally:
            for future in waiting:
                future.cancel()


def _round_up(count: int) -> int:
    return -(-count // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: object) -> tuple[int, bytes]:
    """The number of the value's type, and its bytes."""
    if isinstance(value, bool):
        return ggml_types.BOOL, struct.pack("<B", value)
    if isinstance(value, int):
        for kind, letter, low, bits in ((_UINT32, "I", 0, 32), (_INT32, "i", 31, 31), (_UINT64, "Q", 0, 64)):
            if -(1 << low if low else 0) <= value < 1 << bits:
                return kind, struct.pack(f"<{letter}", value)
        if -(1 << 63) <= value < 0:
            return _INT64, struct.pack("<q", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return ggml_types.STRING, _string(value)
    if isinstance(value, np.ndarray):
        numbers = cast("NDArray[Any]", value)
        element = _SCALARS.get(numbers.dtype.newbyteorder("<"))
        if element is not None and numbers.ndim == 1:
            return ggml_types.ARRAY, struct.pack("<IQ", element, len(numbers)) + numbers.tobytes()
    if isinstance(value, (StringArray, list)):
        return ggml_types.ARRAY, _array(key, list(cast("Sequence[object]", value)))
    raise InputError("GGUF has no place for this value", where=key, found=repr(cast(object, value))[:80])


def _array(key: str, items: list[object]) -> bytes:
    if items and not all(isinstance(item, str) for item in items):
        values = [_value(key, item) for item in items]
        if len({kind for kind, _ in values}) != 1:
            raise InputError("a list of GGUF holds values of one type", where=key, found=repr(items)[:80])
        return struct.pack("<IQ", values[0][0], len(values)) + b"".join(payload for _, payload in values)
    return struct.pack("<IQ", ggml_types.STRING, len(items)) + b"".join(_string(str(item)) for item in items)
