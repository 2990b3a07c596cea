"""A model in several GGUF files: `name-00001-of-00003.gguf` and its siblings, as one checkpoint.

In goes the path of any of them, out comes a `SplitGGUF`, which implements `Checkpoint`: the metadata of the first file,
the tensors of all. The names and the keys `split.no`, `split.count` and `split.tensors.count` have to agree. Source:
llama.cpp's gguf-split and its loader. Used by `reference.py`; the files themselves are read by `gguf.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlx.errors import FileFormatError, ModelNotFoundError
from rlx.io.checkpoint import TensorInfo, usable_tensor
from rlx.io.gguf import GGUFFile, open_gguf
from rlx.io.identity import Identity, identity_of

MAX_FILES = 10_000
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


class SplitGGUF:
    """Open GGUF files that are one model; implements `Checkpoint`.

    Attributes:
        path: the first file.
        metadata: of the first file.
        tensors: of all files; offsets are within the tensor's own file.
        file_size: bytes of all files.
    """

    kind: Literal["gguf"] = "gguf"

    def __init__(self, files: Sequence[GGUFFile]) -> None:
        self.path, self.metadata = files[0].path, files[0].metadata
        self.file_size = sum(file.file_size for file in files)
        self._files = tuple(files)
        self._owners: dict[str, GGUFFile] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in self._owners:
                    raise FileFormatError(
                        "two files of a split model hold the same tensor", where=str(file.path), found=repr(name)
                    )
                self._owners[name], self.tensors[name] = file, info

    def data(self, name: str) -> NDArray[np.uint8]:
        """See `Checkpoint.data`."""
        return self._owner(name).data(name)

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        self._owner(name).release(name)

    def identity(self) -> Identity:
        """See `Checkpoint.identity`."""
        return identity_of(self.path.name, [file.mapping for file in self._files], self.tensors.values())

    def _owner(self, name: str) -> GGUFFile:
        usable_tensor(self.tensors, name, self.path)
        return self._owners[name]


def split_names(name: str) -> list[str] | None:
    """The names of all files of the split model that a file of this name belongs to, or None for a whole model.

    A name such as `model-00001-of-00001.gguf` is a whole model.
    """
    match = _NAME.fullmatch(name)
    count = int(match["count"]) if match is not None else 1
    if match is None or not 1 < count <= MAX_FILES or not 1 <= int(match["number"]) <= count:
        return None
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def is_a_model(name: str) -> bool:
    """Whether a file of this name is a language model, or the first file of one.

    The later files of a split model are not, nor is the image encoder that llama.cpp keeps beside a model (mmproj), nor
    the statistics that quantisers use (imatrix).
    """
    names = split_names(name)
    is_helper = re.search("mmproj|imatrix", name.lower()) is not None
    return name.lower().endswith(".gguf") and not is_helper and (names is None or name == names[0])


def open_split(path: Path) -> GGUFFile | SplitGGUF:
    """Open a GGUF file, together with its siblings if it is one of several.

    Raises:
        ModelNotFoundError: a file is missing.
        FileFormatError: a file is damaged, or the files do not belong together.
    """
    names = split_names(path.name)
    if names is None:
        file = open_gguf(path)
        if _number(file, "split.count", 1) > 1:
            raise FileFormatError(
                "the file is one of a split model, and its name does not say which",
                where=str(path),
                found=f"split.count = {file.metadata['split.count']}",
                expected="a name that ends in -00001-of-00002.gguf",
                fix="give the files the names they were published with",
            )
        return file
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing and path.is_file():
        raise ModelNotFoundError(
            "files of a split model are missing",
            where=str(path.parent),
            found=", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else ""),
            expected=f"all of the {len(names)} files beside each other",
            fix="fetch the model again",
        )
    files = [open_gguf(path.parent / name) for name in names]
    for index, file in enumerate(files):
        _check(file, "split.no", index, f"number {index}: the name says {index + 1} of {len(files)}")
        _check(file, "split.count", len(files), f"{len(files)}, as the name says")
    total = _number(files[0], "split.tensors.count", -1)
    model = SplitGGUF(files)
    if total not in (-1, len(model.tensors)):
        raise FileFormatError(
            "the files of a split model do not hold all of its tensors",
            where=str(path.parent),
            found=f"{len(model.tensors)} tensors",
            expected=f"{total}, as split.tensors.count of {names[0]} says",
            fix="the files are of different models, or damaged: fetch them again",
        )
    return model


def _check(file: GGUFFile, key: str, value: int, expected: str) -> None:
    if _number(file, key, value) != value:
        raise FileFormatError(
            "a file of a split model is not the one that its name says",
            where=str(file.path),
            found=f"{key} = {file.metadata[key]}",
            expected=expected,
            fix="give the files the names they were published with, or fetch them again",
        )


def _number(file: GGUFFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int):
        raise FileFormatError(f"{key} is not a number", where=str(file.path), found=type(value).__name__)
    return value
