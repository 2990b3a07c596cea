"""The machine under the engine, as a protocol: one cached, ragged, batched step of a language model.

In: the new tokens of any mix of sequences and where their keys and values live. Out: logits of the rows that want them.
The compiler derives such a program from a plain causal forward pass; the engine never sees more of it than this file.
Next: `kv_cache.py` for the pages, `engine.py` for who calls it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class StepProgram(Protocol):
    """Any mix of prefill chunks and decode rows of several sequences, in one call.

    The program owns the memory of the paged KV cache, `num_pages` pages of `page_size` positions each, and of the
    recurrent states of a model that has such layers, `num_slots` of them. Which page and which slot belongs to which
    sequence is said anew in every call. Pages may be read from any position on; a slot holds the state after the tokens
    that were run, so a sequence with one goes on where it stands, or begins at position 0.
    """

    @property
    def vocab_size(self) -> int:
        """Number of logits of a row."""
        ...

    @property
    def page_size(self) -> int:
        """Positions held by one page."""
        ...

    @property
    def num_pages(self) -> int:
        """Pages of the cache; physical pages are numbered from 0."""
        ...

    @property
    def num_slots(self) -> int:
        """Slots of recurrent state, and so the most sequences in flight; 0 for a model without."""
        ...

    @property
    def max_context(self) -> int:
        """Most positions one sequence may have."""
        ...

    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        page_table: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
        slots: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        """Append the keys and values of every row to the cache and return the logits that are wanted.

        Args:
            tokens: `[T]` token ids, T >= 1.
            positions: `[T]` position of each row in its own sequence, counted from 0.
            sequences: `[T]` the row of `page_table` each row belongs to. Rows of one sequence are adjacent and their
                positions ascend by one.
            page_table: `[S, P]` physical page of each logical page of each sequence; unused entries are 0.
            logit_rows: `[R]` rows whose logits are wanted, ascending; R may be 0.
            slots: `[S]` the slot of each sequence, needed if there are slots; `sequences` then ascends.

        Returns:
            `[R, vocab_size]` raw logits. A row's values depend on its own sequence only, never on what else is in the
            call or on how the sequence was cut into calls.
        """
        ...

    def close(self) -> None:
        """Give back memory and threads. Calling it twice is allowed."""
        ...
