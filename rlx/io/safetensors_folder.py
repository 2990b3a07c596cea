"""A Hugging Face folder: config.json beside model.safetensors or an index of shards.

In goes a folder, out comes a `SafetensorsFolder`. A safetensors file is a length, a JSON table and the bytes; the table
is checked against the file before any of it is used. Source: the format section of the safetensors README.
Next: `tokenizer.py`, `rlx/models/`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from rlx.core import dtype
from rlx.core.dtype import DType
from rlx.errors import FileFormatError, ModelNotFoundError
from rlx.io.checkpoint import TensorInfo, check_ranges, usable_tensor
from rlx.io.identity import Identity, identity_of
from rlx.io.json_file import parse_object, read_object
from rlx.io.mapped_file import MappedFile

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES: dict[str, DType] = {
    "F64": dtype.f64,
    "F32": dtype.f32,
    "F16": dtype.f16,
    "BF16": dtype.bf16,
    "I64": dtype.i64,
    "I32": dtype.i32,
    "I16": dtype.i16,
    "I8": dtype.i8,
    "U8": dtype.u8,
    "BOOL": dtype.boolean,
    # Listed; `quantized_folder.py` makes weights of the 8-bit floats.
    "U16": DType("u16", "uint", 1, 2),
    "U32": DType("u32", "uint", 1, 4),
    "U64": DType("u64", "uint", 1, 8),
    "F8_E4M3": DType("f8_e4m3", "float", 1, 1),
    "F8_E5M2": DType("f8_e5m2", "float", 1, 1),
    "F8_E8M0": DType("f8_e8m0", "float", 1, 1),
}


class SafetensorsFolder:
    """An open model folder; implements `Checkpoint`.

    Attributes:
        path: the folder.
        metadata: the parsed config.json.
        tensors: name to entry; offsets are within the tensor's own shard.
        file_size: bytes of all shards.
    """

    kind: Literal["safetensors"] = "safetensors"

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, object],
        tensors: dict[str, TensorInfo],
        shards: Mapping[str, MappedFile],
    ) -> None:
        self.path, self.metadata, self.tensors = path, metadata, tensors
        self._shards = shards
        self.file_size = sum(shard.size for shard in {id(shard): shard for shard in shards.values()}.values())

    @property
    def config(self) -> Mapping[str, object]:
        """The parsed config.json, under the name Hugging Face gives it."""
        return self.metadata

    def data(self, name: str) -> NDArray[np.uint8]:
        """See `Checkpoint.data`."""
        usable_tensor(self.tensors, name, self.path)
        return self.stored(name)

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        usable_tensor(self.tensors, name, self.path)
        self.release_stored(name)

    def stored(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor that is there, of any type: flat, read-only, not copied."""
        info = self.tensors[name]
        return self._shards[name].view(info.offset, info.nbytes)

    def release_stored(self, name: str) -> None:
        """`release` for a tensor of any type."""
        info = self.tensors[name]
        self._shards[name].release(info.offset, info.nbytes)

    def identity(self) -> Identity:
        """See `Checkpoint.identity`. A snapshot of the hub is a folder named by its commit; the name says which."""
        files = {shard.path: shard for shard in self._shards.values()}
        return identity_of(self.path.name, list(files.values()), self.tensors.values())


def open_folder(path: str | Path) -> SafetensorsFolder:
    """Open a model folder and read its configuration and tensor tables, not its tensors.

    Raises:
        ModelNotFoundError: the folder, config.json, or a shard is missing.
        FileFormatError: a file is truncated, damaged or contradicts another.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFoundError("the model folder does not exist", where=str(folder), fix="check the path")
    config = read_object(folder / "config.json")
    index = _read_index(folder)
    tensors: dict[str, TensorInfo] = {}
    shards: dict[str, MappedFile] = {}
    for shard_name in [SINGLE_FILE] if index is None else sorted(set(index.values())):
        file = MappedFile(folder / shard_name)
        for name, info in read_table(file).items():
            if name in tensors:
                raise FileFormatError("two shards hold the same tensor", where=str(file.path), found=repr(name))
            tensors[name], shards[name] = info, file
    if index is not None:
        _check_index(folder, index, shards)
    return SafetensorsFolder(folder, config, tensors, shards)


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name to shard name, or None for a folder with a single file."""
    if (folder / SINGLE_FILE).exists():
        return None
    path = folder / INDEX_FILE
    if not path.exists():
        raise ModelNotFoundError(
            "the folder holds no safetensors weights",
            where=str(folder),
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            fix="fetch the model again, or convert its weights to safetensors",
        )
    weight_map: object = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError("the index has no weight_map", where=str(path))
    index: dict[str, str] = {}
    for name, shard in cast(dict[str, object], weight_map).items():
        # A shard lies beside the index: no separators, so that no file outside the folder is opened.
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise FileFormatError("the index names a shard that is not a file name", where=str(path), found=shard)
        index[name] = shard
    for shard in sorted(set(index.values())):
        if not (folder / shard).is_file():
            raise ModelNotFoundError(
                "the index names a shard that is missing", where=str(path), found=shard, fix="fetch the model again"
            )
    return index


def _check_index(folder: Path, index: Mapping[str, str], shards: Mapping[str, MappedFile]) -> None:
    for name, shard in index.items():
        if name not in shards or shards[name].path.name != shard:
            raise FileFormatError(
                "the index names a tensor that its shard does not hold", where=str(folder / shard), found=repr(name)
            )


def read_table(file: MappedFile) -> dict[str, TensorInfo]:
    """The tensor table of one safetensors file, checked against its length.

    Raises:
        FileFormatError: the table is malformed or points outside the file.
    """
    where = str(file.path)
    if file.size < 8:
        raise FileFormatError("the file is too short for safetensors", where=where, found=f"{file.size} bytes")
    length = int.from_bytes(file.buffer[:8], "little")
    if length > min(file.size - 8, MAX_HEADER_BYTES):
        raise FileFormatError(
            "the header of the safetensors file runs past its end",
            where=where,
            found=f"{length} bytes",
            expected=f"at most {min(file.size - 8, MAX_HEADER_BYTES)}",
            fix="the file is damaged or incomplete: fetch it again",
        )
    header = parse_object(file.buffer[8 : 8 + length], where)
    base = 8 + length
    tensors = {name: _entry(name, entry, base, where) for name, entry in header.items() if name != "__metadata__"}
    check_ranges(file.path, file.size, tensors)
    return tensors


def _entry(name: str, entry: Any, base: int, where: str) -> TensorInfo:
    def fail(what: str, found: object, expected: object = None) -> FileFormatError:
        return FileFormatError(f"{what} of tensor {name!r} cannot be used", where=where, found=found, expected=expected)

    if not isinstance(entry, dict):
        raise fail("the entry", json.dumps(entry)[:80], "an object")
    fields = cast(dict[str, Any], entry)
    element = _DTYPES.get(str(fields.get("dtype")))
    if element is None:
        raise fail("the type", fields.get("dtype"), f"one of {', '.join(_DTYPES)}")
    shape, offsets = _naturals(fields.get("shape")), _naturals(fields.get("data_offsets"))
    if shape is None:
        raise fail("the shape", str(fields.get("shape"))[:80], "a list of sizes")
    if offsets is None or len(offsets) != 2:
        raise fail("the place", str(fields.get("data_offsets"))[:80], "[begin, end]")
    nbytes = math.prod(shape) * element.block_bytes
    if offsets[1] - offsets[0] != nbytes:
        raise fail("the length", f"{offsets[1] - offsets[0]} bytes", f"{nbytes} bytes for {element}{list(shape)}")
    return TensorInfo(name, shape, element, base + offsets[0], nbytes)


def _naturals(value: Any) -> tuple[int, ...] | None:
    """A list of natural numbers below 2**63 and at most 64 long, or None."""
    if not isinstance(value, list) or len(cast(list[Any], value)) > 64:
        return None
    numbers = cast(list[Any], value)
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        return None
    return tuple(numbers)
