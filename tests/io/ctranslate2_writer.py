"""Files of CTranslate2, written for tests: the layout of `rlx/io/ctranslate2.py`, from arrays."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def ctranslate2_bytes(
    specification: str, tensors: Mapping[str, NDArray[Any]], aliases: Mapping[str, str], version: int = 6
) -> bytes:
    """A whole file."""
    parts = [struct.pack("<I", version), text(specification), struct.pack("<II", 3, len(tensors))]
    for name, array in tensors.items():
        parts += [text(name), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        parts += [struct.pack("<BI", CODES[array.dtype.name], array.nbytes), np.ascontiguousarray(array).tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(alias) + text(name) for alias, name in aliases.items()]
    return b"".join(parts)
