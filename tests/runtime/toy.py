"""A toy language model and tokenizer for the tests of the runtime.

`ToyStep` keeps every token in a paged cache and computes the logits of a row from what it reads back through the page
table, so that a wrong page, a wrong position or a stale value gives other tokens. With slots it also keeps every token
in the state of its sequence, which it does not let stand at another position. `alone` is the same model without cache,
batch or engine: the answer each request must get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlx.runtime.sampler import SampledToken, Sampler, SamplingOptions

VOCAB = 40
UNWRITTEN = -7


def toy_logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    """`[VOCAB]` logits after a sequence of tokens, a function of every token and its place."""
    state = 1
    for place, token in enumerate(tokens):
        state = (state * 6364136223846793005 + (token + 1) * 1442695040888963407 + place) % 2**64
    raw = np.random.Philox(key=state).random_raw(VOCAB)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(8 * 2.0**-24) - 4).astype(np.float32)


@dataclass
class ToyStep:
    """A `StepProgram` that also checks what it is promised. `before_return` may raise, to play an interrupt."""

    num_pages: int = 64
    page_size: int = 4
    max_context: int = 64
    max_rows: int = 512
    vocab_size: int = VOCAB
    num_slots: int = 0
    before_return: Callable[[], None] = lambda: None
    calls: list[int] = field(default_factory=list[int])
    closed: int = 0

    def __post_init__(self) -> None:
        self.cache = np.full((self.num_pages, self.page_size), UNWRITTEN, np.int64)
        self.states = [[UNWRITTEN] for _ in range(self.num_slots)]

    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        page_table: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
        slots: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        self._check(tokens, positions, sequences, page_table, logit_rows)
        states = self._states(sequences, page_table, slots)
        for token, position, sequence in zip(tokens, positions, sequences, strict=True):
            page = page_table[sequence, position // self.page_size]
            self.cache[page, position % self.page_size] = token
            if states:
                if position == 0:
                    states[sequence].clear()
                assert len(states[sequence]) == position, "a state is not where its sequence goes on"
                states[sequence].append(int(token))
        result = np.empty((len(logit_rows), VOCAB), np.float32)
        for index, row in enumerate(logit_rows):
            place = np.arange(int(positions[row]) + 1)
            seen = self.cache[page_table[sequences[row], place // self.page_size], place % self.page_size]
            assert (seen != UNWRITTEN).all()
            assert not states or states[sequences[row]][: len(seen)] == seen.tolist()
            result[index] = toy_logits([int(token) for token in seen])
        self.calls.append(len(tokens))
        self.before_return()
        return result

    def close(self) -> None:
        self.closed += 1

    def _states(
        self, sequences: NDArray[np.int32], page_table: NDArray[np.int32], slots: NDArray[np.int32] | None
    ) -> list[list[int]]:
        """The state of each sequence of a call; none without slots."""
        assert (slots is not None) == bool(self.num_slots)
        if slots is None:
            return []
        assert slots.shape == page_table.shape[:1]
        assert len(set(slots.tolist())) == len(slots), "two sequences share a slot"
        assert (np.diff(sequences) >= 0).all()
        return [self.states[slot] for slot in slots]

    def _check(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        page_table: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
    ) -> None:
        arrays = (tokens, positions, sequences, page_table, logit_rows)
        assert all(array.dtype == np.int32 for array in arrays)
        assert tokens.shape == positions.shape == sequences.shape
        assert 1 <= tokens.size <= self.max_rows
        assert (positions < self.max_context).all()
        steps = np.diff(positions)
        same = np.diff(sequences) == 0
        assert (steps[same] == 1).all()
        assert (np.diff(sequences)[~same] > 0).all()
        assert (np.diff(logit_rows) > 0).all()
        assert (logit_rows < tokens.size).all()
        used: list[int] = []
        for sequence in np.unique(sequences):
            length = int(positions[sequences == sequence].max()) + 1
            used += page_table[sequence, : -(-length // self.page_size)].tolist()
        assert len(set(used)) == len(used), "two sequences share a page"


def alone(
    prompt: Sequence[int], options: SamplingOptions, context: int = 64, eos_ids: frozenset[int] = frozenset()
) -> list[SampledToken]:
    """What a request must get: the model and the sampler in a plain loop."""
    sampler = Sampler(options, VOCAB, prompt, eos_ids if options.ignore_eos else ())
    tokens = list(prompt)
    result: list[SampledToken] = []
    while len(tokens) < context and len(result) != options.max_tokens:
        sampled = sampler.sample(toy_logits(tokens))
        sampler.accept(sampled.token)
        tokens.append(sampled.token)
        result.append(sampled)
        if sampled.token in eos_ids:
            break
    return result


BYTES = [bytes([letter]) for letter in b"abcdefghijklmnoprstuvwy "] + [b"\xe2", b"\x82", b"\xac", b"\xc3", b"\xa9"]


class ToyDecoder:
    """Bytes to text, complete characters only; without `continuation` a space at the start is left out."""

    def __init__(self, continuation: bool) -> None:
        self._left = b""
        self._is_start = not continuation

    def push(self, id: int) -> str:
        text = self._push(id)
        if self._is_start and text:
            text, self._is_start = text.removeprefix(" "), False
        return text

    def _push(self, id: int) -> str:
        self._left += BYTES[id % len(BYTES)]
        for cut in range(len(self._left), max(-1, len(self._left) - 4), -1):
            head, tail = self._left[:cut], self._left[cut:]
            try:
                text = head.decode("utf-8")
            except UnicodeDecodeError:
                continue
            if cut or len(tail) < 3:
                self._left = tail
                return text
        text = self._left.decode("utf-8", errors="replace")
        self._left = b""
        return text

    def flush(self) -> str:
        text, self._left = self._left.decode("utf-8", errors="replace"), b""
        return text


class ToyTokenizer:
    """Token i is the i-th of `BYTES` (again from the start beyond); encoding knows the letters and the space."""

    def __init__(self, bos_id: int | None = 30, eos_ids: frozenset[int] = frozenset()) -> None:
        self.bos_id = bos_id
        self.eos_ids = eos_ids

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        ids = [BYTES.index(letter.encode()) for letter in text]
        return ([self.bos_id] if add_special and self.bos_id is not None else []) + ids

    def stream(self, *, continuation: bool = False) -> ToyDecoder:
        return ToyDecoder(continuation)


def toy_text(tokens: Sequence[int], *, continuation: bool = True) -> str:
    """The text of tokens, decoded one by one."""
    decoder = ToyDecoder(continuation)
    return "".join(decoder.push(token) for token in tokens) + decoder.flush()
