"""`Session`: the compiled step program of a language model together with its paged KV cache.

It is the `StepProgram` (`step.py`) that the engine drives. Everything an index could go wrong with is checked here,
before native code runs. Next: `engine.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.background import Background
from rlx.backends.cpu.module import CpuModule, empty
from rlx.core.bind import concrete_shape
from rlx.core.dtype import DType
from rlx.errors import InputError, RlxError
from rlx.lir.program import ALIGNMENT

Ints = NDArray[np.int32]


class Session:
    """One loaded step program.

    Args:
        module: the loaded step program.
        vocab_size: logits of a row.
        page_size: positions of a page.
        num_pages: pages of the cache.
        max_context: most positions of one sequence.

    Attributes:
        taps: the other outputs of the flow in the last run, a row for each of its tokens.
    """

    def __init__(self, module: CpuModule, vocab_size: int, page_size: int, num_pages: int, max_context: int) -> None:
        self.module, self.vocab_size, self.page_size = module, vocab_size, page_size
        self.num_pages, self.max_context = num_pages, max_context
        self._inputs = dict(module.program.inputs)
        buffers = module.program.buffers
        self._results = {name: index for name, index in module.program.outputs if buffers[index].kind == "output"}
        self.taps: dict[str, NDArray[Any]] = {}
        # zeros, so that masked slots of a page hold finite numbers; the system maps them when they are first written
        self._memory: dict[int, NDArray[Any]] = {}
        for name, index in self._inputs.items():
            if name.startswith(("k_cache.", "v_cache.")):
                type_ = buffers[index].type
                self._memory[index] = _aligned_zeros(type_.dtype, concrete_shape(type_, {"N": num_pages}))
        self._is_closed = False
        self._later: Background | None = None

    def keep_later(self, work: Background | None) -> None:
        """Work that waits until this session is closed, at the latest."""
        self._later = work

    @property
    def cache_format(self) -> str:
        """Element type of the KV cache; "none" for a flow without attention."""
        types = [self.module.program.buffers[index].type for index in self._memory]
        return str(types[0].dtype) if types else "none"

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole KV cache."""
        return sum(array.nbytes for array in self._memory.values())

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that made it, apart from the program, by name."""
        return {
            "vocab_size": self.vocab_size,
            "page_size": self.page_size,
            "num_pages": self.num_pages,
            "max_context": self.max_context,
        }

    def run(
        self, tokens: Ints, positions: Ints, sequences: Ints, page_table: Ints, logit_rows: Ints
    ) -> NDArray[np.float32]:
        """See `StepProgram.run`.

        Raises:
            InputError: an array has a wrong shape, or a value that points outside of the program's tables.
        """
        # taken before the check: a close in another thread sets the flag first and lets go of the caches afterwards
        memory = dict(self._memory)
        if self._is_closed:
            raise RlxError("the session is closed", fix="load the model again")
        page_table = _checked("page_table", page_table, 2, self.num_pages, "pages of the cache")
        tokens = _checked("tokens", tokens, 1, self.vocab_size, "token ids below the vocabulary size")
        given = {
            "positions": (positions, self.max_context, "positions below the context length"),
            "sequences": (sequences, page_table.shape[0], "rows of the page table"),
            "logit_rows": (logit_rows, len(tokens), "rows of this step"),
        }
        checked = {name: _checked(name, array, 1, limit, meaning) for name, (array, limit, meaning) in given.items()}
        self._check_rows(tokens, positions, sequences, page_table)
        for name, array in {"tokens": tokens, "page_table": page_table, **checked}.items():
            if name in self._inputs:
                memory[self._inputs[name]] = array
        dims = {
            "T": len(tokens),
            "S": page_table.shape[0],
            "P": page_table.shape[1],
            "R": len(logit_rows),
            "N": self.num_pages,
        }
        results = {name: empty(self.module.program.buffers[buffer], dims) for name, buffer in self._results.items()}
        memory |= {self._results[name]: array for name, array in results.items()}
        self.module.run(dims, memory)
        self.taps = {name: array for name, array in results.items() if name != "logits"}
        return results["logits"]

    def _check_rows(self, tokens: Ints, positions: Ints, sequences: Ints, page_table: Ints) -> None:
        if not len(tokens) or len(positions) != len(tokens) or len(sequences) != len(tokens):
            raise InputError(
                "tokens, positions and sequences have one entry for each row",
                found=f"{len(tokens)}, {len(positions)} and {len(sequences)}",
                expected="the same number, at least 1",
            )
        room = page_table.shape[1] * self.page_size
        if int(positions.max()) >= room:
            raise InputError(
                "a position lies outside of the page table", found=int(positions.max()), expected=f"below {room}"
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        if not self._is_closed:
            self._is_closed = True
            self.module.close()
            self._memory.clear()
            if self._later is not None:
                self._later.hurry()


def _aligned_zeros(dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
    """Zeros that start on a cache line; packed elements as their bytes."""
    nbytes = dtype.nbytes(math.prod(shape))
    memory = np.zeros(nbytes + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    if dtype.is_packed:
        shape = (*shape[:-1], dtype.nbytes(shape[-1]))
    return memory[skip : skip + nbytes].view(dtype.numpy).reshape(shape)


def _checked(name: str, array: Ints, rank: int, limit: int, meaning: str) -> Ints:
    if array.dtype != np.int32 or array.ndim != rank:
        raise InputError(
            f"{name} has another dtype or rank",
            found=f"{array.dtype}, {array.ndim} axes",
            expected=f"int32, {rank} axes",
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) >= limit):
        bad = array[(array < 0) | (array >= limit)].flat[0]
        raise InputError(f"{name} has a value out of range", found=int(bad), expected=f"{meaning} ({limit})")
    return np.ascontiguousarray(array)
