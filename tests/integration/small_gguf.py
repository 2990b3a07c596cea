"""A whole tiny model in one GGUF file: weights, vocabulary, chat template. 300 tokens, context 128.

In: changes to its metadata and tensors. Out: bytes of a file that RLX loads, or has to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import NDArray

from rlx.io.byte_level import BYTE_TO_CHARACTER
from tests.io.gguf_writer import Tensor, gguf_bytes
from tests.models.checkpoints import gguf_metadata, gguf_tensors
from tests.references.load import tiny_llama_cases

CASE = next(case for case in tiny_llama_cases() if case.name == "gqa_untied")


def metadata() -> dict[str, object]:
    """What the file says of the model; the vocabulary is the 256 bytes and 44 tokens more."""
    symbols = [BYTE_TO_CHARACTER[byte] for byte in range(256)]
    tokens = [*symbols, "<|endoftext|>", *(f"<|extra_{i}|>" for i in range(42)), "ab"]
    return {
        **gguf_metadata(CASE.config),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 43 + [1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}\n{% endfor %}",
    }


def tensors() -> dict[str, Tensor]:
    """Its tensors in float32."""
    return {name: tensor_of(array) for name, array in gguf_tensors(CASE).items()}


def tensor_of(array: NDArray) -> Tensor:
    """A float32 tensor as the file has it."""
    return Tensor(array.shape[::-1], 0, array.tobytes())


def small_gguf(
    changes: Mapping[str, object] | None = None, replaced: Mapping[str, Tensor | None] | None = None
) -> bytes:
    """The file, with metadata changed and tensors replaced (None: left out)."""
    content = {key: value for key, value in {**metadata(), **(changes or {})}.items() if value is not None}
    kept = {name: tensor for name, tensor in {**tensors(), **(replaced or {})}.items() if tensor is not None}
    return gguf_bytes(content, kept)
