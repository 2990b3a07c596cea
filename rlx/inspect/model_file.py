"""What a model file holds, without reading its weights.

In: an opened `Checkpoint` (GGUF file or Hugging Face folder). Out: a `ModelFileSummary` of plain values. Printed by
`rlx/cli/inspect.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlx.core.dtype import DTYPES
from rlx.errors import ChatTemplateError
from rlx.io.checkpoint import Checkpoint

MAX_SHOWN_ITEMS = 16  # of an array in the metadata; a vocabulary is told by its length


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor: sizes in NumPy order, bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class TypeSummary:
    """All tensors of one type. `is_computable` is False for a type that RLX can list only."""

    dtype: str
    tensors: int
    parameters: int
    nbytes: int
    is_computable: bool


@dataclass(frozen=True, slots=True)
class ModelFileSummary:
    """The facts of one model file.

    Attributes:
        path: the file or folder.
        kind: "gguf" or "safetensors".
        name, architecture: what the file calls itself, or None.
        file_bytes: size on disk of the files that hold the tensors.
        parameters: elements of all tensors.
        context_length: the longest text the model was trained on, or None if the file does not say.
        types: tensors by type, the largest share first.
        tokenizer: model, vocabulary size, special tokens: whatever the file says.
        chat_template: its source, or None.
        metadata: every key; long arrays as their length.
        tensors: every tensor, in the order of the file.
    """

    path: str
    kind: str
    name: str | None
    architecture: str | None
    file_bytes: int
    parameters: int
    context_length: int | None
    types: tuple[TypeSummary, ...]
    tokenizer: Mapping[str, object]
    chat_template: str | None
    metadata: Mapping[str, object]
    tensors: tuple[TensorSummary, ...]

    @property
    def bits_per_parameter(self) -> float:
        """Bits that the tensors take for each element; 0 for a file without tensors."""
        return 8 * sum(entry.nbytes for entry in self.types) / self.parameters if self.parameters else 0.0

    def to_json(self, *, tensors: bool) -> dict[str, object]:
        """Plain values; the list of tensors only if it is asked for."""
        value = asdict(self)
        value["bits_per_parameter"] = self.bits_per_parameter
        if not tensors:
            del value["tensors"]
        return value


def summarize(checkpoint: Checkpoint) -> ModelFileSummary:
    """The facts of an opened model file."""
    metadata = checkpoint.metadata
    is_gguf = checkpoint.kind == "gguf"
    architecture = _text(metadata.get("general.architecture" if is_gguf else "model_type"))
    context_key = f"{architecture}.context_length" if is_gguf else "max_position_embeddings"
    context_length = metadata.get(context_key)
    return ModelFileSummary(
        path=str(checkpoint.path),
        kind=checkpoint.kind,
        name=_text(metadata.get("general.name" if is_gguf else "_name_or_path")),
        architecture=architecture,
        file_bytes=checkpoint.file_size,
        parameters=sum(math.prod(info.shape) for info in checkpoint.tensors.values()),
        context_length=context_length if isinstance(context_length, int) else None,
        types=_types(checkpoint),
        tokenizer=_gguf_tokenizer(metadata) if is_gguf else _folder_tokenizer(checkpoint.path, metadata),
        chat_template=_chat_template(checkpoint),
        metadata={key: plain(value) for key, value in metadata.items()},
        tensors=tuple(
            TensorSummary(info.name, str(info.dtype), info.shape, info.nbytes) for info in checkpoint.tensors.values()
        ),
    )


def _types(checkpoint: Checkpoint) -> tuple[TypeSummary, ...]:
    names = sorted({str(info.dtype) for info in checkpoint.tensors.values()})
    summaries: list[TypeSummary] = []
    for name in names:
        members = [info for info in checkpoint.tensors.values() if str(info.dtype) == name]
        parameters = sum(math.prod(info.shape) for info in members)
        nbytes = sum(info.nbytes for info in members)
        summaries.append(TypeSummary(name, len(members), parameters, nbytes, name in DTYPES))
    return tuple(sorted(summaries, key=lambda entry: -entry.nbytes))


def _gguf_tokenizer(metadata: Mapping[str, object]) -> dict[str, object]:
    prefix = "tokenizer.ggml."
    facts: dict[str, object] = {}
    for key in ("model", "pre", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token"):
        if prefix + key in metadata:
            facts[key] = plain(metadata[prefix + key])
    for key, name in (("tokens", "vocab_size"), ("merges", "merges")):
        value = metadata.get(prefix + key)
        if isinstance(value, Sequence):
            facts[name] = len(cast(Sequence[object], value))
    return facts


def _folder_tokenizer(folder: Path, metadata: Mapping[str, object]) -> dict[str, object]:
    keys = ("vocab_size", "bos_token_id", "eos_token_id")
    facts: dict[str, object] = {key: metadata[key] for key in keys if key in metadata}
    facts["tokenizer.json"] = (folder / "tokenizer.json").is_file()
    return facts


def _chat_template(checkpoint: Checkpoint) -> str | None:
    from rlx.io.chat_template import chat_template_from

    try:
        return chat_template_from(checkpoint).source
    except ChatTemplateError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def plain(value: object) -> object:
    """A metadata value as JSON takes it; an array of more than `MAX_SHOWN_ITEMS` items as the words `[N items]`."""
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, np.dtype[Any]]", value)
        return array.tolist() if array.size <= MAX_SHOWN_ITEMS else f"[{array.size} items]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = cast(Sequence[object], value)
        return [plain(item) for item in items] if len(items) <= MAX_SHOWN_ITEMS else f"[{len(items)} items]"
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast(Mapping[object, object], value).items()}
    return value
