"""What a GGUF file says of its vocabulary: the metadata under `tokenizer.ggml.`, checked value by value.

In: an open file. Out: a `Description`. Next: `tokenizer_gguf.py` and `tokenizer_encoder.py`, which build of it.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import TokenizerError
from rlx.io.checkpoint import Checkpoint
from rlx.io.string_array import StringArray

# tokenizer.ggml.token_type
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


class Description:
    """The checked metadata under `tokenizer.ggml.`.

    Attributes:
        tokens, types: entry and kind of each id; `longest_token` is the longest entry in bytes.

    Raises:
        TokenizerError: the file has no vocabulary, or a value is not of its kind.
    """

    def __init__(self, file: Checkpoint) -> None:
        self.path, self.metadata = file.path, file.metadata
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, StringArray) or not tokens:
            raise self.error("tokens", "the file has no vocabulary")
        self.tokens: list[str] = tokens.decoded()
        self.longest_token = tokens.longest()  # in bytes
        types = self.numbers("token_type")
        self.types: NDArray[Any] = np.ones(len(self.tokens), np.int32) if types is None else types

    def error(self, key: str, what: str, found: object = None, expected: object = None) -> TokenizerError:
        """An error that names a key."""
        return TokenizerError(what, where=f"{self.path}, tokenizer.ggml.{key}", found=found, expected=expected)

    def text(self, key: str) -> str:
        """A string, empty if the file is silent."""
        value = self.metadata.get(f"tokenizer.ggml.{key}", "")
        if not isinstance(value, str):
            raise self.error(key, "the value is not a string", found=type(value).__name__)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self.error(key, "the value is not a truth value", found=repr(value))
        return value

    def token_id(self, key: str) -> int | None:
        """An id within the vocabulary; None if the file names none."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None or value == 0xFFFFFFFF:  # llama.cpp's "no such token"
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self.error(key, "a token id is outside the vocabulary", value, f"0 to {len(self.tokens) - 1}")
        return value

    def numbers(self, key: str) -> NDArray[Any] | None:
        """A number for each token; None if the file is silent."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray):
            raise self.error(key, "the value is not an array of numbers", found=type(value).__name__)
        numbers = cast(NDArray[Any], value)
        if len(numbers) != len(self.tokens):
            raise self.error(
                key, "there is not one value per token", f"{len(numbers)} values", f"{len(self.tokens)} values"
            )
        return numbers

    def ids_of_type(self, *types: int) -> list[int]:
        """Ids of these kinds, in order."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()
