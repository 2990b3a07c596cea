"""A model folder of CTranslate2: one binary file of named tensors, model.bin, beside config.json and the vocabulary.

In goes a folder, out comes a `CTranslate2Folder`. The file begins with its version and the name of its specification
(u32, text, u32); a table without offsets follows, each entry with its bytes behind it (name, u8 rank, u32 sizes, u8
type, u32 bytes), then pairs of names that stand for the same tensor. A text is a u16 length, its bytes, and a zero
that the length counts. All numbers are little-endian. Every length is compared with the bytes that are left before
anything is made of it. Source: CTranslate2's specs/model_spec.py, binary version 6. Next: `rlx/models/speech.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType, bf16, f16, f32, i8, i16, i32
from rlx.errors import FileFormatError, UnsupportedModelError
from rlx.io.checkpoint import TensorInfo, usable_tensor
from rlx.io.identity import Identity, identity_of
from rlx.io.json_file import read_object_if_present
from rlx.io.mapped_file import MappedFile

MODEL_FILE = "model.bin"
BINARY_VERSION = 6
MAX_TENSORS = 100_000
MAX_RANK = 8

_DTYPES: dict[int, DType] = {
    0: f32,
    1: i8,
    2: i16,
    3: i32,
    4: f16,
    5: bf16,
}


class CTranslate2Folder:
    """An open model folder; implements `Checkpoint`.

    Attributes:
        path: the folder.
        specification: the name of what the file describes, such as "WhisperSpec".
        metadata: the parsed config.json, and `specification` under that name.
        tensors: name to entry; a second name of a tensor is an entry of its own.
        file_size: bytes of model.bin.
    """

    kind: Literal["ctranslate2"] = "ctranslate2"

    def __init__(
        self,
        path: Path,
        specification: str,
        config: Mapping[str, object],
        tensors: dict[str, TensorInfo],
        file: MappedFile,
    ) -> None:
        self.path, self.specification, self.tensors = path, specification, tensors
        self.metadata: Mapping[str, object] = {**config, "specification": specification}
        self._file, self.file_size = file, file.size

    def data(self, name: str) -> NDArray[np.uint8]:
        """See `Checkpoint.data`."""
        info = usable_tensor(self.tensors, name, self.path)
        return self._file.view(info.offset, info.nbytes)

    def number(self, name: str) -> int | None:
        """A tensor of one whole number, of any width; None if there is none of that name.

        Raises:
            FileFormatError: it holds something else.
        """
        info = self.tensors.get(name)
        if info is None:
            return None
        if info.dtype.kind != "int" or math.prod(info.shape) != 1:
            raise FileFormatError(
                f"{name!r} is not a number", where=str(self.path), found=f"{info.dtype}{list(info.shape)}"
            )
        return int.from_bytes(self._file.view(info.offset, info.nbytes).tobytes(), "little", signed=True)

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        info = usable_tensor(self.tensors, name, self.path)
        self._file.release(info.offset, info.nbytes)

    def identity(self) -> Identity:
        """See `Checkpoint.identity`."""
        return identity_of(self.path.name, [self._file], self.tensors.values())


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder holds a model of CTranslate2."""
    return (folder / MODEL_FILE).is_file()


def open_ctranslate2(path: str | Path) -> CTranslate2Folder:
    """Open a folder and read its configuration and the table of tensors, not the tensors.

    Raises:
        ModelNotFoundError: the folder or model.bin is missing or cannot be read.
        FileFormatError: model.bin is truncated or damaged.
        UnsupportedModelError: it is of another binary version.
    """
    folder = Path(path)
    file = MappedFile(folder / MODEL_FILE)
    cursor = _Cursor(file)
    version = cursor.number(4, "the version")
    if version != BINARY_VERSION:
        raise UnsupportedModelError(
            "RLX reads one version of CTranslate2's files",
            where=str(file.path),
            found=f"version {version}",
            expected=f"version {BINARY_VERSION}",
            fix="convert the model again with a current ctranslate2, or use its Hugging Face folder",
        )
    specification = cursor.text("the specification")
    cursor.number(4, "the revision")
    tensors = _tensors(cursor)
    for alias, name in _aliases(cursor):
        if name not in tensors or alias in tensors:
            raise cursor.damaged("a second name stands for no tensor", repr(alias))
        tensors[alias] = tensors[name]
    if cursor.left:
        raise cursor.damaged("bytes follow the last entry", f"{cursor.left} bytes")
    return CTranslate2Folder(folder, specification, read_object_if_present(folder / "config.json"), tensors, file)


class _Cursor:
    """Reads one file from front to back; every length is checked against what is left."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.offset = file, 0

    @property
    def left(self) -> int:
        return self.file.size - self.offset

    def skip(self, count: int, what: str) -> int:
        """Pass over `count` bytes; gives where they begin."""
        if count > self.left:
            raise self.damaged(f"{what} runs past the end of the file", f"{count} bytes at byte {self.offset}")
        start, self.offset = self.offset, self.offset + count
        return start

    def number(self, width: int, what: str) -> int:
        start = self.skip(width, what)
        return int.from_bytes(self.file.buffer[start : start + width], "little")

    def text(self, what: str) -> str:
        length = self.number(2, what)
        start = self.skip(length, what)
        raw = self.file.buffer[start : start + length]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8", repr(raw[:40])) from None
        if not text.endswith("\0") or "\0" in text[:-1]:
            raise self.damaged(f"{what} does not end where it says", repr(text[:40]))
        return text[:-1]

    def damaged(self, what: str, found: object) -> FileFormatError:
        return FileFormatError(
            what, where=str(self.file.path), found=found, fix="the file is damaged or incomplete: fetch it again"
        )


def _tensors(cursor: _Cursor) -> dict[str, TensorInfo]:
    count = cursor.number(4, "the number of tensors")
    if count > MAX_TENSORS:
        raise cursor.damaged("the number of tensors cannot be right", count)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = cursor.text("the name of a tensor")
        rank = cursor.number(1, "a rank")
        if rank > MAX_RANK or name in tensors:
            raise cursor.damaged("an entry of the table cannot be right", f"{name!r} with {rank} axes")
        shape = tuple(cursor.number(4, "a size") for _ in range(rank))
        code, nbytes = cursor.number(1, "a type"), cursor.number(4, "a length")
        dtype = _DTYPES.get(code)
        if dtype is None or math.prod(shape) * dtype.block_bytes != nbytes:
            raise cursor.damaged(
                f"the entry of tensor {name!r} contradicts itself", f"type {code}, {list(shape)}, {nbytes} bytes"
            )
        tensors[name] = TensorInfo(name, shape, dtype, cursor.skip(nbytes, f"tensor {name!r}"), nbytes)
    return tensors


def _aliases(cursor: _Cursor) -> list[tuple[str, str]]:
    if not cursor.left:
        return []
    count = cursor.number(4, "the number of second names")
    if count > MAX_TENSORS:
        raise cursor.damaged("the number of second names cannot be right", count)
    return [(cursor.text("a second name"), cursor.text("its tensor's name")) for _ in range(count)]
