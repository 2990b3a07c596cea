"""GGUF version 2 and 3, little endian: a bounded reader over a memory map.

In goes a path, out comes a `GGUFFile`: metadata, tensor table, and views of the tensor bytes. Every length and count in
the file is compared with the bytes that are left before anything is built from it, so a damaged file costs no more
memory than a good one of its size. Source: docs/gguf.md of the ggml project. Next: `tokenizer.py`, `rlx/models/`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from rlx.errors import FileFormatError
from rlx.io import ggml_types
from rlx.io.checkpoint import TensorInfo, check_ranges, usable_tensor
from rlx.io.identity import Identity, identity_of
from rlx.io.mapped_file import MappedFile
from rlx.io.string_array import StringArray

MAGIC = b"GGUF"
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 65535  # the specification's limit for keys; tensor names are at most 64
MAX_ARRAY_DEPTH = 8
DEFAULT_ALIGNMENT = 32

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")


class GGUFFile:
    """An open GGUF file; implements `Checkpoint`.

    Attributes:
        path: the file.
        mapping: its bytes.
        version: 2 or 3.
        alignment: of the tensor data, in bytes.
        metadata: key to value: int, float, bool, str, a `StringArray`, a read-only NumPy array (numbers), or a list of
            arrays.
        tensors: name to entry, in the order of the file.
    """

    kind: Literal["gguf"] = "gguf"

    def __init__(
        self,
        file: MappedFile,
        version: int,
        alignment: int,
        metadata: Mapping[str, object],
        tensors: dict[str, TensorInfo],
    ) -> None:
        self.mapping = file
        self.path = file.path
        self.version, self.alignment = version, alignment
        self.metadata, self.tensors = metadata, tensors

    @property
    def file_size(self) -> int:
        """Length of the file in bytes."""
        return self.mapping.size

    def data(self, name: str) -> NDArray[np.uint8]:
        """See `Checkpoint.data`."""
        info = usable_tensor(self.tensors, name, self.path)
        return self.mapping.view(info.offset, info.nbytes)

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        info = usable_tensor(self.tensors, name, self.path)
        self.mapping.release(info.offset, info.nbytes)

    def identity(self) -> Identity:
        """See `Checkpoint.identity`."""
        return identity_of(self.path.name, [self.mapping], self.tensors.values())


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF file and read its metadata and tensor table, not its tensors.

    Raises:
        ModelNotFoundError: the path is not a readable file.
        FileFormatError: the file is truncated, damaged or not GGUF; the message gives the byte where it was noticed.
    """
    file = MappedFile(Path(path))
    return _Reader(file).read()


class _Reader:
    """A cursor over the head of the file."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.buffer, self.size, self.position = file, file.buffer, file.size, 0

    def fail(self, what: str, *, found: object = None, expected: object = None) -> NoReturn:
        raise FileFormatError(
            what,
            where=f"{self.file.path} at byte {self.position}",
            found=found,
            expected=expected,
            fix="the file is damaged or incomplete: fetch it again",
        )

    def require(self, nbytes: int, what: str) -> None:
        """Refuse to go on unless `nbytes` bytes are left."""
        left = self.size - self.position
        if nbytes > left:
            self.fail(f"{what} runs past the end of the file", found=f"{left} bytes left", expected=f"{nbytes} bytes")

    def uint32(self, what: str) -> int:
        self.require(4, what)
        (value,) = _UINT32.unpack_from(self.buffer, self.position)
        self.position += 4
        return value

    def uint64(self, what: str) -> int:
        self.require(8, what)
        (value,) = _UINT64.unpack_from(self.buffer, self.position)
        self.position += 8
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.uint64(f"the length of {what}")
        if limit is not None and length > limit:
            self.fail(f"{what} is too long", found=f"{length} bytes", expected=f"at most {limit}")
        self.require(length, what)
        raw = self.buffer[self.position : self.position + length]
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", found=repr(raw[:40]))
        self.position += length
        return text

    def read(self) -> GGUFFile:
        version = self.header()
        tensor_count = self.uint64("the number of tensors")
        value_count = self.uint64("the number of metadata values")
        # The smallest entries: key length, value type and one byte; name length, rank, type and offset.
        self.require(value_count * 13, f"a table of {value_count} metadata values")
        metadata: dict[str, object] = {}
        for _ in range(value_count):
            key = self.string("a metadata key", MAX_NAME_BYTES)
            if key in metadata:
                self.fail("a metadata key appears twice", found=repr(key))
            metadata[key] = self.value(self.uint32(f"the type of {key!r}"), f"the value of {key!r}", 0)
        self.require(tensor_count * 24, f"a table of {tensor_count} tensors")
        alignment = self.alignment(metadata)
        tensors = self.tensor_table(tensor_count, alignment)
        return GGUFFile(self.file, version, alignment, metadata, tensors)

    def header(self) -> int:
        magic = bytes(self.buffer[:4])
        if magic != MAGIC:
            self.fail("this is not a GGUF file", found=repr(magic), expected=repr(MAGIC))
        self.position = 4
        version = self.uint32("the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in (2, 3):
                self.fail("this GGUF file is big-endian", found="big-endian numbers", expected="little-endian")
            self.fail("RLX does not read this GGUF version", found=version, expected="2 or 3")
        return version

    def value(self, kind: int, what: str, depth: int) -> object:
        if kind == ggml_types.STRING:
            return self.string(what)
        if kind == ggml_types.ARRAY:
            return self.array(what, depth)
        dtype = ggml_types.SCALARS.get(kind)
        if dtype is None:
            self.fail(f"{what} has an unknown type", found=kind, expected="0 to 12")
        self.require(dtype.itemsize, what)
        value = np.frombuffer(self.buffer, dtype=dtype, count=1, offset=self.position)[0].item()
        if kind == ggml_types.BOOL:
            if value > 1:
                self.fail(f"{what} is not a truth value", found=value, expected="0 or 1")
            value = bool(value)
        self.position += dtype.itemsize
        return value

    def array(self, what: str, depth: int) -> object:
        kind = self.uint32(f"the element type of {what}")
        count = self.uint64(f"the length of {what}")
        if kind == ggml_types.STRING:
            return self.strings(what, count)
        if kind == ggml_types.ARRAY:
            if depth >= MAX_ARRAY_DEPTH:
                self.fail(f"{what} is nested too deeply", expected=f"at most {MAX_ARRAY_DEPTH} levels")
            self.require(count * 12, what)
            return [self.array(what, depth + 1) for _ in range(count)]
        dtype = ggml_types.SCALARS.get(kind)
        if dtype is None:
            self.fail(f"{what} has elements of an unknown type", found=kind, expected="0 to 12")
        self.require(count * dtype.itemsize, what)
        values = np.frombuffer(self.buffer, dtype=dtype, count=count, offset=self.position)
        if kind == ggml_types.BOOL:
            if count and int(values.max()) > 1:
                self.fail(f"{what} holds something that is not a truth value", expected="0 or 1")
            values = values.astype(np.bool_)
        self.position += count * dtype.itemsize
        return values

    def strings(self, what: str, count: int) -> StringArray:
        """Find the end of an array of strings. This loop is most of the time of opening a file, hence its form."""
        self.require(count * 8, what)
        start = position = self.position
        buffer, read_length = self.buffer, _UINT64.unpack_from
        try:
            for _ in range(count):
                position += read_length(buffer, position)[0] + 8
        except (struct.error, OverflowError):
            position = self.size + 1
        if position > self.size:
            self.fail(f"{what} holds a string that runs past the end of the file", found=f"{count} strings")
        self.position = position
        return StringArray(self.file, start, position, count)

    def alignment(self, metadata: Mapping[str, object]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            self.fail("general.alignment is not usable", found=repr(alignment), expected="a power of two")
        return alignment

    def tensor_table(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            info = self.tensor_entry(alignment)
            if info.name in tensors:
                self.fail("a tensor appears twice", found=repr(info.name))
            tensors[info.name] = info
        base = -(-self.position // alignment) * alignment
        placed = {
            name: TensorInfo(name, info.shape, info.dtype, base + info.offset, info.nbytes)
            for name, info in tensors.items()
        }
        check_ranges(self.file.path, self.size, placed)
        return placed

    def tensor_entry(self, alignment: int) -> TensorInfo:
        name = self.string("a tensor name", MAX_NAME_BYTES)
        rank = self.uint32(f"the rank of {name!r}")
        if rank > MAX_DIMS:
            self.fail(f"tensor {name!r} has too many dimensions", found=rank, expected=f"at most {MAX_DIMS}")
        sizes = tuple(self.uint64(f"a size of {name!r}") for _ in range(rank))
        kind = self.uint32(f"the type of {name!r}")
        offset = self.uint64(f"the offset of {name!r}")
        dtype = ggml_types.GGML_TYPES.get(kind)
        if dtype is None:
            self.fail(f"tensor {name!r} has an unknown type", found=kind, expected="a type number of ggml")
        elements = math.prod(sizes)
        if elements >= 1 << 63:
            self.fail(f"tensor {name!r} has impossible sizes", found=sizes)
        if (sizes[0] if sizes else 1) % dtype.block_size:
            self.fail(
                f"the rows of tensor {name!r} are not whole {dtype} blocks",
                found=sizes[0] if sizes else 1,
                expected=f"a multiple of {dtype.block_size}",
            )
        if offset % alignment:
            self.fail(f"tensor {name!r} is not aligned", found=offset, expected=f"a multiple of {alignment}")
        return TensorInfo(name, sizes[::-1], dtype, offset, dtype.nbytes(elements))
