"""Tiny models as real files, and their compiled step programs.

In: the recorded cases of `tests/references`. Out: Hugging Face folders in three dtypes, GGUF files with packed weights,
and `Session`s of them. Next: `test_tiny_llama.py`, `test_bit_for_bit.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rlx.core.dtype import q4_0, q4_1, q8_0
from rlx.core.storage import encode
from rlx.io.reference import open_model
from rlx.models import ModelRecipe, recipe_for
from rlx.runtime.load import start_session
from rlx.runtime.session import Session
from tests.io.gguf_writer import Tensor, gguf_bytes
from tests.models.checkpoints import gguf_metadata, gguf_tensors
from tests.references.load import TinyLlamaCase, tiny_llama_cases

TINY = {case.name: case for case in tiny_llama_cases()}
# type numbers of ggml
F32 = 0
PACKED = {2: q4_0, 3: q4_1, 8: q8_0}


def recipe_of(path: Path, context_length: int | None = None) -> ModelRecipe:
    return recipe_for(open_model(path), context_length)


@contextmanager
def session_of(recipe: ModelRecipe, **options: Any) -> Iterator[Session]:
    """A step program with a small cache; `options` go to `start_session`."""
    session = start_session(
        recipe.flow,
        recipe.weights,
        recipe.vocab_size,
        recipe.context_length,
        **{"precision": "exact", "threads": 1, "num_pages": 64, **options},
    )
    try:
        yield session
    finally:
        session.close()


def write_packed_gguf(path: Path, case: TinyLlamaCase) -> Path:
    """The case with its matrices in Q4_0, Q4_1 and Q8_0 by turns (F32 where a row is no whole number of blocks)."""
    tensors: dict[str, Tensor] = {}
    for index, (name, array) in enumerate(gguf_tensors(case).items()):
        kind = list(PACKED)[index % len(PACKED)] if array.ndim == 2 and array.shape[-1] % 32 == 0 else F32
        tensors[name] = Tensor(array.shape[::-1], kind, _payload(kind, array))
    metadata = gguf_metadata(case.config)
    if case.config.get("sliding_window"):
        metadata["llama.attention.sliding_window"] = case.config["sliding_window"]
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def _payload(kind: int, array: NDArray[Any]) -> bytes:
    return array.tobytes() if kind == F32 else encode(PACKED[kind], array).tobytes()
