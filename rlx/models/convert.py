"""Model files from model files: `convert` between Hugging Face folders and GGUF, `quantize` to GGUF of a type.

In: an open checkpoint and a place. Out: a file or folder there, whole or not at all. Tensors are read, reordered and
encoded one by one. A family that can be exchanged is an entry of `EXCHANGES`. Next: `llama_exchange.py`,
`quantization_types.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType, bf16, f16, f32
from rlx.core.quantize import quantize as quantized
from rlx.core.storage import decode
from rlx.errors import OptionError, UnsupportedModelError
from rlx.io.checkpoint import Checkpoint
from rlx.io.gguf_writer import TensorSource, write_gguf
from rlx.io.progress import Progress, silent
from rlx.io.safetensors_writer import write_safetensors
from rlx.io.tokenizer_export import gguf_tokenizer, write_tokenizer_folder
from rlx.models import llama_exchange
from rlx.models.decoder import DecoderConfig
from rlx.models.quantization_types import TYPES, Mixture

EXCHANGES: dict[str, ModuleType] = {"llama": llama_exchange, "mistral": llama_exchange}
"""`model_type` or `general.architecture` to the module that knows both formats of the family."""

_PLAIN = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def quantize(
    checkpoint: Checkpoint, path: Path, name: str, *, threads: int = 1, progress: Progress = silent
) -> dict[str, DType]:
    """Write a GGUF file of a type such as Q4_K_M.

    Args:
        checkpoint: a Hugging Face folder of a family that can be exchanged, or any GGUF file.
        path: the file to write; one that is there is replaced.
        name: a key of `TYPES`, in upper case.
        threads: tensors that are encoded at once; the file does not depend on it.
        progress: called with (file, bytes done, bytes in all).

    Returns:
        The type of each tensor.

    Raises:
        OptionError: there is no such type, or the file would replace its source.
        UnsupportedModelError: the family cannot be written to GGUF.
        StorageError: the file cannot be written.
    """
    if name not in TYPES:
        raise OptionError("RLX does not write this type", found=name, expected=f"one of {', '.join(TYPES)}")
    _refuse_same(checkpoint, path)
    metadata, sources = _gguf_parts(checkpoint)
    mixture = _mixture(name, metadata, {source.name: source for source in sources})
    types = mixture.types((source.name, source.shape) for source in sources)
    metadata["general.quantization_version"], metadata["general.file_type"] = 2, TYPES[name][1]
    tensors = [_as_type(source, types[source.name]) for source in sources]
    write_gguf(path, metadata, tensors, threads=threads, progress=progress)
    return types


def convert(checkpoint: Checkpoint, path: Path, *, threads: int = 1, progress: Progress = silent) -> None:
    """Write a folder as a GGUF file, or a GGUF file as a folder, with every value as it is.

    A packed tensor becomes float32 in a folder, which holds its values exactly. Vectors are float32 in GGUF; in a
    folder they get the type of the matrices again if that holds them exactly.

    Raises:
        OptionError, UnsupportedModelError, StorageError: as for `quantize`.
    """
    _refuse_same(checkpoint, path)
    if checkpoint.kind == "gguf":
        _write_folder(checkpoint, path, progress)
        return
    metadata, sources = _gguf_parts(checkpoint)
    tensors = [_as_type(source, f32) if len(source.shape) < 2 else source for source in sources]
    kinds = {tensor.dtype.name for tensor in tensors if len(tensor.shape) > 1}
    file_types = {"f16": 1, "bf16": 32}
    metadata["general.file_type"] = file_types.get(next(iter(kinds)), 0) if len(kinds) == 1 else 0
    write_gguf(path, metadata, tensors, threads=threads, progress=progress)


def _refuse_same(checkpoint: Checkpoint, path: Path) -> None:
    if path.exists() and os.path.samefile(path, checkpoint.path):
        raise OptionError("a model cannot be written over itself", found=str(path), fix="name another file")


def _exchange(checkpoint: Checkpoint) -> ModuleType:
    key = "general.architecture" if checkpoint.kind == "gguf" else "model_type"
    name = checkpoint.metadata.get(key)
    exchange = EXCHANGES.get(name) if isinstance(name, str) else None
    if exchange is None:
        raise UnsupportedModelError(
            "RLX does not convert this architecture between formats",
            where=str(checkpoint.path),
            found=f"{key} = {name!r}",
            expected=f"one of {', '.join(EXCHANGES)}",
        )
    return exchange


def _gguf_parts(checkpoint: Checkpoint) -> tuple[dict[str, object], list[TensorSource]]:
    """Metadata and tensors of a GGUF file with the values of the checkpoint."""
    if checkpoint.kind == "gguf":
        metadata = {key: value for key, value in checkpoint.metadata.items() if not key.startswith("split.")}
        return metadata, [_source(checkpoint, name, name) for name in checkpoint.tensors]
    exchange = _exchange(checkpoint)
    config: DecoderConfig = exchange.read_config(checkpoint)
    metadata, divisors = exchange.gguf_metadata(checkpoint, config)
    sources = _renamed(checkpoint, exchange, config, "gguf")
    if divisors is not None:
        raw = divisors.view(np.uint8)
        sources.append(TensorSource("rope_freqs.weight", divisors.shape, f32, lambda: raw))
    return metadata | gguf_tokenizer(checkpoint, config.vocab_size), sources


def _renamed(checkpoint: Checkpoint, exchange: ModuleType, config: DecoderConfig, kind: str) -> list[TensorSource]:
    """The tensors of the flow under their names in the other format, the rows in its order."""
    here: Mapping[str, str] = exchange.names(checkpoint.kind, config)
    there: Mapping[str, str] = exchange.names(kind, config)
    sources: list[TensorSource] = []
    for key, name in here.items():
        if name not in checkpoint.tensors or (key == "lm_head.weight" and config.tied):
            continue
        heads: int = exchange.heads_to_reorder(key, config)
        sources.append(
            _source(
                checkpoint,
                name,
                there[key],
                lambda rows, heads=heads: exchange.reordered(rows, heads, to_gguf=kind == "gguf"),
            )
        )
    return sources


def _source(
    checkpoint: Checkpoint,
    name: str,
    new_name: str,
    reorder: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> TensorSource:
    info = checkpoint.tensors[name]

    def make() -> NDArray[np.uint8]:
        data = checkpoint.data(name)
        if reorder is not None and info.shape:
            data = reorder(data.reshape(info.shape[0], -1)).reshape(-1)
        return data

    return TensorSource(new_name, info.shape, info.dtype, make)


def _as_type(source: TensorSource, dtype: DType) -> TensorSource:
    if source.dtype == dtype:
        return source
    return TensorSource(
        source.name,
        source.shape,
        dtype,
        lambda: quantized(dtype, decode(source.dtype, source.make(), source.shape)),
    )


def _mixture(name: str, metadata: Mapping[str, object], sources: Mapping[str, TensorSource]) -> Mixture:
    prefix = str(metadata.get("general.architecture"))

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{prefix}.{key}", default)
        return value if isinstance(value, int) and value > 0 else default

    heads = number("attention.head_count", 1)
    return Mixture(
        name,
        number("block_count", 1),
        heads // number("attention.head_count_kv", heads),
        "output.weight" not in sources,
    )


# ---- to a folder ----


def _write_folder(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError("the folder to write is there, and not empty", found=str(folder), fix="name another folder")
    exchange = _exchange(checkpoint)
    config: DecoderConfig = exchange.read_config(checkpoint)
    sources = [
        source if source.dtype.name in _PLAIN else _as_type(source, f32)
        for source in _renamed(checkpoint, exchange, config, "safetensors")
    ]
    kinds = {source.dtype for source in sources if len(source.shape) > 1}
    main = kinds.pop() if len(kinds) == 1 else f32
    settings: dict[str, object] = exchange.hf_config(checkpoint, config, _PLAIN[main.name])
    tensors = [_narrowed(source, main) for source in sources]
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_folder(checkpoint, folder)
    write_safetensors(folder / "model.safetensors", tensors, progress=progress)
    # last: a folder without config.json is no model yet
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _narrowed(source: TensorSource, dtype: DType) -> TensorSource:
    """A float32 vector in the type of the matrices, if no value changes."""
    if len(source.shape) != 1 or source.dtype != f32 or dtype not in (f16, bf16):
        return source
    narrow = quantized(dtype, decode(f32, source.make(), source.shape))
    if not np.array_equal(decode(dtype, narrow, source.shape), decode(f32, source.make(), source.shape)):
        return source
    return TensorSource(source.name, source.shape, dtype, lambda: narrow)
