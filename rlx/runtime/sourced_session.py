"""`SourcedSession`: the step program of a decoder with cross attention, the pages of its sources, and their program.

A source is what an encoder made of a window of audio. `add_source` fills the pages of a slot once; after that any
number of sequences may read it. Pages of the sequences' own cache can be shared and copied, for sequences that begin
alike (`forked_pages.py`). Next: `speech_decoder.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.module import CpuModule
from rlx.core.bind import concrete_shape
from rlx.errors import InputError, RlxError
from rlx.runtime.session import Ints, Session, aligned_zeros


class SourcedSession(Session):
    """One loaded step program and the program of its sources.

    Args:
        module, vocab_size, page_size, num_pages, max_context: as for `Session`.
        source_module: the loaded program that fills the pages of a source.
        source_rows: most rows of a source.
        slots: sources that are held at once.
    """

    def __init__(
        self,
        module: CpuModule,
        source_module: CpuModule,
        vocab_size: int,
        page_size: int,
        num_pages: int,
        max_context: int,
        *,
        source_rows: int,
        slots: int = 1,
    ) -> None:
        super().__init__(module, vocab_size, page_size, num_pages, max_context)
        self.source_module, self.source_rows, self.slots = source_module, source_rows, slots
        per_source = -(-source_rows // page_size)
        self._source_table = np.arange(slots * per_source, dtype=np.int32).reshape(slots, per_source)
        self._source_last = np.full(slots, -1, np.int32)
        self._source_inputs = dict(source_module.program.inputs)
        self._source_memory: dict[int, NDArray[Any]] = {}
        own = [*self._memory]
        for name, index in self._source_inputs.items():
            if name.startswith(("k_source.", "v_source.")):
                type_ = source_module.program.buffers[index].type
                array = aligned_zeros(type_.dtype, concrete_shape(type_, {"M": self._source_table.size}))
                self._source_memory[index] = self._memory[self._inputs[name]] = array
        self._own_pages = own

    def add_source(self, slot: int, rows: NDArray[np.float32]) -> None:
        """Keep the keys and values of a source, in place of what the slot held.

        Args:
            slot: which one.
            rows: float32 `[rows, width]`, at least one and at most `source_rows`.

        Raises:
            InputError: there is no such slot, or the rows have another shape.
        """
        memory = dict(self._source_memory)
        if self._is_closed:
            raise RlxError("the session is closed", fix="load the model again")
        width = self.source_module.program.buffers[self._source_inputs["source"]].type.shape[-1]
        if not 0 <= slot < self.slots:
            raise InputError("there is no such slot", found=slot, expected=f"0 to {self.slots - 1}")
        if (
            rows.dtype != np.float32
            or rows.ndim != 2
            or rows.shape[1] != width
            or not 1 <= len(rows) <= self.source_rows
        ):
            raise InputError(
                "a source has other rows", found=f"{rows.dtype} {list(rows.shape)}", expected=f"float32 [rows, {width}]"
            )
        count, table = len(rows), self._source_table[slot : slot + 1]
        given = {
            "source": np.ascontiguousarray(rows),
            "positions": np.arange(count, dtype=np.int32),
            "sequences": np.zeros(count, np.int32),
            "page_table": np.ascontiguousarray(table),
        }
        memory |= {self._source_inputs[name]: array for name, array in given.items()}
        self.source_module.run({"U": count, "W": 1, "Q": table.shape[1], "M": self._source_table.size}, memory)
        self._source_last[slot] = count - 1

    def run_from(
        self, tokens: Ints, positions: Ints, sequences: Ints, page_table: Ints, logit_rows: Ints, sources: Ints
    ) -> NDArray[np.float32]:
        """See `StepProgram.run`; `sources: int32[T]` is the slot that each token reads.

        Raises:
            InputError: as for `run`, or a token reads a slot that holds nothing.
        """
        known = sources.dtype == np.int32 and sources.shape == tokens.shape and sources.size > 0
        if not known or sources.min() < 0 or sources.max() >= self.slots or self._source_last[sources].min() < 0:
            raise InputError("a token reads a source that is not there", found=sources.tolist()[:8])
        more = {
            "sources": np.ascontiguousarray(sources),
            "source_last": self._source_last[sources],
            "source_table": self._source_table,
        }
        sizes = {"W": self.slots, "Q": self._source_table.shape[1], "M": self._source_table.size}
        return self._run(tokens, positions, sequences, page_table, logit_rows, None, more, sizes)

    def copy_page(self, source: int, target: int) -> None:
        """Make a page of the sequences' cache hold what another one does, in all layers.

        Raises:
            InputError: there is no such page.
        """
        if not (0 <= source < self.num_pages and 0 <= target < self.num_pages):
            raise InputError("there is no such page", found=f"{source}, {target}", expected=f"below {self.num_pages}")
        for index in self._own_pages:
            pages = self._memory[index].reshape(self.num_pages, -1)
            pages[target] = pages[source]

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        if not self._is_closed:
            self.source_module.close()
            self._source_memory.clear()
        super().close()
