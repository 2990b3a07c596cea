"""A GGUF writer for tests, as small as the format allows, which can also write what a correct writer never would."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Raw:
    """A value given as type number and bytes."""

    kind: int
    payload: bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it; `sizes` in the order of the file (innermost first)."""

    sizes: tuple[int, ...]
    kind: int
    payload: bytes
    offset: int | None = None


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, items: Sequence[bytes]) -> Raw:
    return Raw(ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))


def value(item: object) -> Raw:
    match item:
        case Raw():
            return item
        case bool():
            return Raw(BOOL, struct.pack("<B", item))
        case int():
            return Raw(UINT32, struct.pack("<I", item))
        case float():
            return Raw(FLOAT32, struct.pack("<f", item))
        case str():
            return Raw(STRING, string(item))
        case [str(), *_]:
            return array(STRING, [string(part) for part in item])
        case [bool(), *_]:
            return array(BOOL, [struct.pack("<B", part) for part in item])
        case [float(), *_]:
            return array(FLOAT32, [struct.pack("<f", part) for part in item])
        case [int(), *_]:
            return array(INT32, [struct.pack("<i", part) for part in item])
    raise TypeError(type(item).__name__)


def gguf_bytes(
    metadata: Mapping[str, object],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    tensors = tensors or {}
    head = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, item in metadata.items():
        raw = value(item)
        head += [string(key), struct.pack("<I", raw.kind), raw.payload]
    data = bytearray()
    for name, tensor in tensors.items():
        data += bytes(-len(data) % alignment)
        offset = len(data) if tensor.offset is None else tensor.offset
        head += [
            string(name),
            struct.pack("<I", len(tensor.sizes)),
            struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes),
        ]
        head += [struct.pack("<IQ", tensor.kind, offset)]
        data += tensor.payload
    joined = b"".join(head)
    return joined + bytes(-len(joined) % alignment) + bytes(data)


def write_gguf(path: Path, metadata: Mapping[str, object], tensors: Mapping[str, Tensor] | None = None) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path
