"""A loaded step program driven by hand: any chunks, any mix of sequences, pages in any order.

In: a `Session` and token ids. Out: logits of every row, or a greedy continuation. The engine schedules in one way only;
here a test chooses. Next: `test_bit_for_bit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlx.runtime.loaded_model import LoadedModel as Model
from rlx.runtime.session import Session

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Chunk = tuple[int, int]
"""Which sequence, and how many of its next tokens."""


def session_of_model(model: Model) -> Session:
    """The step program inside a loaded model."""
    program = model._program
    assert isinstance(program, Session)
    return program


class Drive:
    """Sequences and their pages.

    Args:
        session: the program; nobody else may use its cache meanwhile.
        sequences: token ids of each sequence.
        room: positions to have pages for beyond those of the tokens.
        seed: decides which physical pages each sequence gets; None takes them in order.
    """

    def __init__(
        self, session: Session, sequences: Sequence[Sequence[int] | Ints], *, room: int = 0, seed: int | None = None
    ) -> None:
        self.session = session
        self.tokens = [[int(token) for token in sequence] for sequence in sequences]
        self.done = [0] * len(sequences)
        pages = -(-(max(map(len, self.tokens)) + room) // session.page_size)
        order = np.arange(session.num_pages)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(session.num_pages)
        self.page_table = order[: pages * len(sequences)].reshape(len(sequences), pages).astype(np.int32)

    def step(self, chunks: Sequence[Chunk], *, last_only: bool = False) -> list[Floats]:
        """One step of the program; the logits of every row (or the last row) of each chunk."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        sequences: list[int] = []
        for sequence, count in chunks:
            start = self.done[sequence]
            tokens += self.tokens[sequence][start : start + count]
            positions += range(start, start + count)
            sequences += [sequence] * count
            rows += range(len(tokens) - (1 if last_only else count), len(tokens))
            self.done[sequence] += count
        logits = self.session.run(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            *self._owners(chunks, sequences),
            np.array(rows, np.int32),
            slots=np.array([sequence for sequence, _ in chunks], np.int32) if self.session.num_slots else None,
        )
        ends = np.cumsum([1 if last_only else count for _, count in chunks])
        return np.split(logits, ends[:-1])

    def _owners(self, chunks: Sequence[Chunk], sequences: list[int]) -> tuple[Ints, Ints]:
        """`sequences` and `page_table`; where a sequence has a state it is numbered by its place in this step."""
        if not self.session.num_slots:
            return np.array(sequences, np.int32), self.page_table
        counts = [count for _, count in chunks]
        return np.repeat(np.arange(len(chunks), dtype=np.int32), counts), self.page_table[[i for i, _ in chunks]]

    def greedy(self, count: int) -> list[list[int]]:
        """The `count` most likely tokens after each sequence, all of them in the same steps; no token ends one."""
        logits = self.step([(i, len(tokens)) for i, tokens in enumerate(self.tokens)], last_only=True)
        for step in range(count):
            for sequence, rows in enumerate(logits):
                self.tokens[sequence].append(int(rows[-1].argmax()))
            if step + 1 < count:
                logits = self.step([(i, 1) for i in range(len(self.tokens))])
        return [tokens[-count:] for tokens in self.tokens]


def in_chunks(session: Session, ids: Sequence[int] | Ints, size: int, *, seed: int | None = None) -> Floats:
    """Logits `[len(ids), vocab]` of one sequence read alone in chunks of `size` tokens."""
    drive = Drive(session, [ids], seed=seed)
    parts: list[Floats] = []
    for start in range(0, len(ids), size):
        parts += drive.step([(0, min(size, len(ids) - start))])
    return np.concatenate(parts)
