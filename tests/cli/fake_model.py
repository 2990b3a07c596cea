"""A model without weights behind the real engine, sampler and text stream: it writes a fixed text.

Its tokens are bytes. `SCRIPT[p % len(SCRIPT)]` follows position p, so what it says after a prompt of n tokens is known:
`expected(n, count)`.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.runtime.model import Model

SCRIPT = "Paris, naïve café – ".encode()
VOCAB_SIZE = 257
EOS = 256
CONTEXT = 1024


def expected(prompt_tokens: int, count: int) -> bytes:
    """The `count` bytes that follow a prompt of so many tokens."""
    return bytes(SCRIPT[(prompt_tokens - 1 + i) % len(SCRIPT)] for i in range(count))


class FakeStep:
    """A `StepProgram`. It can interrupt itself at step `interrupt_at`, and take `seconds` a step."""

    vocab_size, page_size, num_pages, num_slots, max_context = VOCAB_SIZE, 16, 64, 0, CONTEXT

    def __init__(self, *, interrupt_at: int | None = None, seconds: float = 0.0) -> None:
        self.steps: list[int] = []
        self.is_closed = False
        self._interrupt_at, self._seconds = interrupt_at, seconds

    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        page_table: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
        slots: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        if len(self.steps) == self._interrupt_at:
            raise KeyboardInterrupt
        self.steps.append(len(tokens))
        time.sleep(self._seconds)
        logits = np.zeros((len(logit_rows), VOCAB_SIZE), np.float32)
        for row, index in enumerate(logit_rows):
            logits[row, SCRIPT[positions[index] % len(SCRIPT)]] = 9.0
        return logits

    def close(self) -> None:
        self.is_closed = True


class FakeTokenizer:
    """One token per byte of UTF-8."""

    bos_id: int | None = None
    eos_ids = frozenset({EOS})

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def stream(self, *, continuation: bool = False) -> FakeDecoder:
        return FakeDecoder()


class FakeDecoder:
    """Bytes to text, whole characters only."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int, /) -> str:
        return self._decoder.decode(bytes([id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeTemplate:
    """`role: content` lines."""

    def render(self, messages: Sequence[Any], **extra: object) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


INFO = {
    "architecture": "fake",
    "parameters": 1_000_000,
    "file_bytes": 2_000_000,
    "precision": "fast",
    "threads": 1,
    "path": "fake.gguf",
    "target": "portable",
    "load_seconds": 0.25,
    "compile_seconds": 0.125,
    "cache": "cold",
}


def make_model(step: FakeStep) -> Model:
    """A model around the step program."""
    return Model("fake", step, FakeTokenizer(), FakeTemplate(), INFO)


def run_main(arguments: list[str], *, seconds: float = 0.0) -> int:
    """The command line with the fake model; for a process of its own."""
    import rlx
    from rlx.cli.main import main

    step = FakeStep(seconds=seconds)
    setattr(rlx, "load", lambda *_args, **_kwargs: make_model(step))  # noqa: B010
    return main(arguments)
