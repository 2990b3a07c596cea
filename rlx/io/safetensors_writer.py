"""Writing a safetensors file: a table, then the tensors one after the other.

In go `TensorSource`s of plain types, out comes a file that appears when it is whole. Source: the format section of the
safetensors README; `safetensors_folder.py` is the reader. Used by `rlx/models/convert.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlx.io.gguf_writer import TensorSource
from rlx.io.new_file import new_file
from rlx.io.progress import Progress, silent

_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def write_safetensors(path: Path, tensors: Sequence[TensorSource], *, progress: Progress = silent) -> None:
    """Write tensors of type f32, f16 or bf16; what was there under the name is replaced.

    Raises:
        StorageError: the file cannot be written; nothing is left behind.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    total = 8 + len(text) + position
    with new_file(path, total) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        done = 8 + len(text)
        for tensor in tensors:
            file.write(tensor.make().data)
            done += tensor.nbytes
            progress(path.name, done, total)
