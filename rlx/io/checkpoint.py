"""What every model file offers, whatever its format: a configuration, a table of tensors, and their bytes.

`gguf.py`, `safetensors_folder.py` and `ctranslate2.py` implement it; `rlx/models/` turns it into a flow. Next:
`gguf.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, DType
from rlx.errors import FileFormatError, MissingTensorError, UnsupportedModelError
from rlx.io.identity import Identity


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: its name in the file.
        shape: sizes in NumPy order, so `(out, in)` for a linear weight.
        dtype: element type; it may be a type that RLX can list but not compute with (not in `DTYPES`).
        offset: first byte, counted from the start of the file that holds it.
        nbytes: length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    offset: int
    nbytes: int


class Checkpoint(Protocol):
    """A model file or folder, opened but not read."""

    @property
    def kind(self) -> Literal["gguf", "safetensors", "onnx", "ctranslate2"]:
        """The format."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder."""
        ...

    @property
    def metadata(self) -> Mapping[str, object]:
        """GGUF key-value pairs, or the parsed `config.json`."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        ...

    @property
    def file_size(self) -> int:
        """Bytes on disk of the files that hold the tensors."""
        ...

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: flat, read-only, not copied.

        Raises:
            MissingTensorError: there is no such tensor.
            UnsupportedModelError: RLX cannot compute with the tensor's type.
        """
        ...

    def release(self, name: str) -> None:
        """Let the operating system drop the tensor's pages from memory; a later `data` reads them again."""
        ...

    def identity(self) -> Identity:
        """What the files are known by, wherever they lie."""
        ...


def usable_tensor(tensors: Mapping[str, TensorInfo], name: str, path: Path) -> TensorInfo:
    """The entry of `name`, checked to exist and to have a type RLX computes with.

    Raises:
        MissingTensorError, UnsupportedModelError: see `Checkpoint.data`.
    """
    info = tensors.get(name)
    if info is None:
        raise MissingTensorError("the checkpoint does not hold this tensor", where=str(path), found=f"no {name!r}")
    if info.dtype.name not in DTYPES:
        raise UnsupportedModelError(
            f"tensor {name!r} has a type that RLX cannot compute with",
            where=str(path),
            found=info.dtype,
            expected=f"one of {', '.join(d for d in DTYPES if d not in ACTIVATION_TERMS)}",
            fix="use a file quantised to one of these types",
        )
    return info


def check_ranges(path: Path, size: int, tensors: Mapping[str, TensorInfo]) -> None:
    """Check that every tensor lies inside a file of `size` bytes and that no two share a byte.

    Raises:
        FileFormatError: one does not.
    """
    previous: TensorInfo | None = None
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset + info.nbytes > size:
            raise FileFormatError(
                f"tensor {info.name!r} runs past the end of the file",
                found=f"bytes {info.offset} to {info.offset + info.nbytes}",
                expected=f"at most {size}",
                where=str(path),
                fix="the file is incomplete: fetch it again",
            )
        if previous is not None and info.nbytes and info.offset < previous.offset + previous.nbytes:
            raise FileFormatError(
                f"tensors {previous.name!r} and {info.name!r} overlap",
                found=f"one ends at byte {previous.offset + previous.nbytes}, the next begins at {info.offset}",
                where=str(path),
                fix="the file is damaged: fetch it again",
            )
        previous = info if info.nbytes else previous
