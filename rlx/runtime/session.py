"""`Session`: the compiled step program of a language model together with its paged KV cache and recurrent states.

It is the `StepProgram` (`step.py`) that the engine drives. Everything an index could go wrong with is checked here,
before native code runs. Next: `engine.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.background import Background
from rlx.backends.cpu.module import CpuModule, empty
from rlx.core.bind import concrete_shape
from rlx.core.dtype import DType
from rlx.errors import InputError, RlxError
from rlx.lir.program import ALIGNMENT

Ints = NDArray[np.int32]
STATE = "state"
"""The input of a step program that holds all recurrent states."""


class Session:
    """One loaded step program.

    Args:
        module: the loaded step program.
        vocab_size: logits of a row.
        page_size: positions of a page.
        num_pages: pages of the cache.
        max_context: most positions of one sequence.
        num_slots: slots of recurrent state; 0 for a model without.

    Attributes:
        taps: the other outputs of the flow in the last run, a row for each of its tokens.
    """

    def __init__(
        self, module: CpuModule, vocab_size: int, page_size: int, num_pages: int, max_context: int, num_slots: int = 0
    ) -> None:
        self.module, self.vocab_size, self.page_size = module, vocab_size, page_size
        self.num_pages, self.max_context, self.num_slots = num_pages, max_context, num_slots
        self._inputs = dict(module.program.inputs)
        buffers = module.program.buffers
        self._results = {name: index for name, index in module.program.outputs if buffers[index].kind == "output"}
        self.taps: dict[str, NDArray[Any]] = {}
        # zeros, so that masked slots of a page hold finite numbers; the system maps them when they are first written
        self._memory: dict[int, NDArray[Any]] = {}
        for name, index in self._inputs.items():
            if name == STATE or name.startswith(("k_cache.", "v_cache.")):
                type_ = buffers[index].type
                shape = concrete_shape(type_, {"N": num_pages, "C": num_slots})
                self._memory[index] = aligned_zeros(type_.dtype, shape)
        # the position that the state in each slot stands at
        self._stands = np.zeros(num_slots, np.int64)
        self._is_closed = False
        self._later: Background | None = None

    def keep_later(self, work: Background | None) -> None:
        """Work that waits until this session is closed, at the latest."""
        self._later = work

    @property
    def cache_format(self) -> str:
        """Element type of the KV cache; "none" for a flow without attention."""
        types = [self.module.program.buffers[index].type for index in self._memory if index != self._inputs.get(STATE)]
        return str(types[0].dtype) if types else "none"

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole KV cache and all recurrent states."""
        return sum(array.nbytes for array in self._memory.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of all recurrent states; the system gives memory to those that are used."""
        return self._memory[self._inputs[STATE]].nbytes if STATE in self._inputs else 0

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that made it, apart from the program, by name."""
        return {
            "vocab_size": self.vocab_size,
            "page_size": self.page_size,
            "num_pages": self.num_pages,
            "max_context": self.max_context,
            "num_slots": self.num_slots,
        }

    def run(
        self,
        tokens: Ints,
        positions: Ints,
        sequences: Ints,
        page_table: Ints,
        logit_rows: Ints,
        slots: Ints | None = None,
    ) -> NDArray[np.float32]:
        """See `StepProgram.run`.

        Raises:
            InputError: an array has a wrong shape, or a value that points outside of the program's tables.
        """
        return self._run(tokens, positions, sequences, page_table, logit_rows, slots, {}, {})

    def _run(
        self,
        tokens: Ints,
        positions: Ints,
        sequences: Ints,
        page_table: Ints,
        logit_rows: Ints,
        slots: Ints | None,
        more: Mapping[str, Ints],
        sizes: Mapping[str, int],
    ) -> NDArray[np.float32]:
        """`run` of a program with more inputs, checked by the caller, and the sizes that they need."""
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
        states = self._states(checked["positions"], checked["sequences"], page_table, slots)
        for name, array in {"tokens": tokens, "page_table": page_table, **checked, **states, **more}.items():
            if name in self._inputs:
                memory[self._inputs[name]] = array
        dims = {
            "T": len(tokens),
            "S": page_table.shape[0],
            "P": page_table.shape[1],
            "R": len(logit_rows),
            "N": self.num_pages,
            "C": self.num_slots,
            **sizes,
        }
        results = {name: empty(self.module.program.buffers[buffer], dims) for name, buffer in self._results.items()}
        memory |= {self._results[name]: array for name, array in results.items()}
        if states:
            self._stands[states["slots"]] = -1  # until the run is over, it is at no position
        self.module.run(dims, memory)
        if states:
            last = states["bounds"][1:] - 1
            self._stands[states["slots"]] = checked["positions"][last] + 1
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

    def _states(self, positions: Ints, sequences: Ints, page_table: Ints, slots: Ints | None) -> dict[str, Ints]:
        """The inputs `bounds` and `slots` of a program with recurrent state; none for another.

        Raises:
            InputError: the sequences do not lie one after another, two have one slot, or a sequence does not go on
                where its state stands.
        """
        if not self.num_slots:
            return {}
        if slots is None or len(slots) != len(page_table):
            raise InputError("a model with recurrent state needs a slot for each sequence", found=slots)
        slots = _checked("slots", slots, 1, self.num_slots, "slots of recurrent state")
        starts = np.searchsorted(sequences, np.arange(len(slots) + 1, dtype=np.int32)).astype(np.int32)
        inner = np.diff(sequences) == 0
        first = positions[starts[:-1]] if (np.diff(starts) > 0).all() else None
        if first is None or (np.diff(sequences) < 0).any() or len(np.unique(slots)) != len(slots):
            raise InputError(
                "the rows of each sequence have to lie together, in the order of the sequences, each with its own slot",
                found=f"sequences {sequences.tolist()[:16]}, slots {slots.tolist()[:16]}",
            )
        if (np.diff(positions)[inner] != 1).any() or ((first != 0) & (first != self._stands[slots])).any():
            raise InputError(
                "a sequence with recurrent state goes on where it stands, or begins at position 0",
                found=f"first positions {first.tolist()[:16]}",
                expected=f"0 or {self._stands[slots].tolist()[:16]}, each next row one more",
                fix="run the sequence from its beginning",
            )
        return {"bounds": starts, "slots": slots}

    def __enter__(self) -> Self:
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


def aligned_zeros(dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
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
