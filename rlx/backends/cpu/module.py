"""A program in memory: loaded code, packed weights, the arena, and the step table that one native call runs.

Coming in: an LIR program, the weights, a target, a number of threads. Going out: `CpuModule.run`. Sizes and addresses
of a call are computed with a few NumPy operations; nothing is done per op in Python.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu import weight_cache
from rlx.backends.cpu.native_code import NativeCode, function_name, load_code
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.threads import ThreadPool
from rlx.backends.cpu.words import STEP
from rlx.core.bind import concrete_shape
from rlx.core.type import TensorType, numpy_shape
from rlx.errors import InputError, TensorShapeError
from rlx.io.identity import Identity
from rlx.lir.program import ALIGNMENT, Buffer, Program
from rlx.lir.sizes import SizeTable

if TYPE_CHECKING:
    from rlx.backends.cpu.trace import Trace

Array = NDArray[Any]


class Weights(Protocol):
    """Where weights come from; see `rlx/flow/weights.py`."""

    def type_of(self, key: str) -> TensorType:
        """The element type or storage format of a tensor, and its shape."""
        ...

    def raw(self, key: str) -> NDArray[np.uint8]:
        """The bytes of a tensor."""
        ...

    def release(self, key: str) -> None:
        """The bytes are no longer needed."""
        ...

    def identity(self) -> Identity | None:
        """What the source is known by, or None if nothing of it may be kept on disk."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """What an earlier start of the same program left on disk, so that nothing is compiled or packed.

    Attributes:
        code: the loaded code.
        weights: the bytes of every weight by its buffer, as the kernels read them.
    """

    code: NativeCode
    weights: Mapping[int, NDArray[np.uint8]]


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that start on a cache line."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    return memory[skip : skip + nbytes]


class CpuModule:
    """One program, loaded and ready.

    Attributes:
        code: the loaded code.
        compile_seconds: time spent in code generation and LLVM, 0 with a warm cache.
        cached: whether the code came from the object cache.
        weights_cached: whether the packed weights came from the weight cache.
        weights_key: their key there; empty if they have none, or were given as `ready`.
    """

    def __init__(
        self,
        program: Program,
        weights: Weights | None,
        target: Target,
        threads: int,
        cache: Path | None,
        progress: Callable[[int, int], None] | None = None,
        cache_limit: int | None = None,
        ready: Ready | None = None,
    ) -> None:
        self.program, self.target = program, target
        self._lock = threading.Lock()  # one run at a time: the tables are shared
        self.code = ready.code if ready else load_code(program.kernels, target, cache, cache_limit)
        self.cached, self.compile_seconds = self.code.cached, self.code.seconds
        addresses = self.code.addresses
        self._pool = ThreadPool(addresses["rlx_run"], addresses["rlx_worker"], threads, self.code.library)
        self._fault = np.zeros(8, np.int64)
        self._held: dict[int, Array] = {}
        self._external = {i for i, buffer in enumerate(program.buffers) if buffer.kind in ("input", "output")}
        self.weight_bytes = 0
        self._build_tables([addresses[function_name(i, kernel)] for i, kernel in enumerate(program.kernels)])
        self._load_weights(weights, ready, progress, cache, cache_limit)
        self._arena: NDArray[np.uint8] = aligned(0)

    @property
    def threads(self) -> int:
        """Threads of a run."""
        return self._pool.threads

    # ---- set-up ----

    def _build_tables(self, functions: list[int]) -> None:
        steps = self.program.steps
        self._addresses = np.zeros(len(self.program.buffers), np.int64)
        self._operands = np.array([b for step in steps for b in step.buffers], np.int64)
        self._arguments = np.zeros(len(self._operands), np.int64)
        self._sizes_table = SizeTable([size for step in steps for size in step.sizes])
        self._units_table = SizeTable([step.units for step in steps])
        self._sizes = np.zeros(max(1, sum(len(step.sizes) for step in steps)), np.int64)
        self._steps = aligned(8 * len(steps) * STEP.count).view(np.int64).reshape(len(steps), STEP.count)
        groups = self.program.groups
        lengths = Counter(groups)
        first_operand = first_size = 0
        for index, (row, step) in enumerate(zip(self._steps, steps, strict=True)):
            last = index + 1 == len(steps) or groups[index + 1] != groups[index]
            row[STEP.group] = lengths[groups[index]] if last else 0
            row[STEP.function] = functions[step.kernel]
            row[STEP.buffers] = self._arguments.ctypes.data + 8 * first_operand
            row[STEP.sizes] = self._sizes.ctypes.data + 8 * first_size
            first_operand += len(step.buffers)
            first_size += len(step.sizes)
        members = [buffer for slot in self.program.slots for buffer in slot]
        starts = np.cumsum([0, *(len(slot) for slot in self.program.slots)])[:-1]
        self._arena_buffers, self._slot_starts = np.array(members, np.int64), starts.astype(np.int64)
        self._slot_lengths = np.array([len(slot) for slot in self.program.slots], np.int64)
        self._arena_table = SizeTable([self.program.buffers[buffer].type.nbytes for buffer in members])

    def _load_weights(
        self,
        weights: Weights | None,
        ready: Ready | None,
        progress: Callable[[int, int], None] | None,
        cache: Path | None,
        cache_limit: int | None,
    ) -> None:
        wanted = [(i, b) for i, b in enumerate(self.program.buffers) if b.kind in ("weight", "constant")]
        last_use = {buffer.name: i for i, buffer in wanted if buffer.kind == "weight"}
        packed = [(i, b) for i, b in wanted if b.kind == "weight" and b.layout]
        known = ready is not None or cache is None
        key, source = ("", "") if known else _weights_key(weights, [buffer for _, buffer in packed])
        arrays = weight_cache.load(cache, key, len(packed)) if cache and key else None
        found = ready.weights if ready else dict(zip((index for index, _ in packed), arrays or (), strict=False))
        self.weights_cached, self.weights_key = ready is not None or arrays is not None, key
        for done, (index, buffer) in enumerate(wanted):
            if index in found:
                array: Array = found[index]
            else:
                array = constant_array(buffer) if buffer.kind == "constant" else packed_weight(buffer, weights)
                if weights is not None and buffer.kind == "weight" and last_use[buffer.name] == index:
                    weights.release(buffer.name)
            self._held[index] = array
            self._addresses[index] = array.ctypes.data
            self.weight_bytes += array.nbytes
            if progress is not None:
                progress(done + 1, len(wanted))
        self._keeper = None
        if cache and key and arrays is None:
            kept = [self._held[index] for index, _ in packed]
            self._keeper = weight_cache.keep_in_background(cache, cache_limit, key, source, kept)

    # ---- running ----

    def run(self, dims: Mapping[str, int], memory: Mapping[int, Array]) -> None:
        """Run the program for given sizes, with `memory` for its inputs and outputs by buffer.

        Raises:
            InputError: an input or output has no memory, or an index in the inputs lies outside of its table.
        """
        with self._lock:
            self._prepare(dims, memory)
            self._pool.run(self._steps.ctypes.data, len(self._steps), self._fault.ctypes.data)
            fault = int(self._fault[0])
        self._raise_fault(fault)

    def seconds(self, dims: Mapping[str, int], memory: Mapping[int, Array], times: int) -> float:
        """Run the program `times` over in one native call; gives the seconds of one run.

        That is what the kernels take, without the Python that surrounds a run. Arguments and errors as for `run`.
        """
        with self._lock:
            self._prepare(dims, memory)
            steps = aligned(times * self._steps.nbytes).view(np.int64).reshape(times, *self._steps.shape)
            steps[:] = self._steps
            start = time.perf_counter()
            self._pool.run(steps.ctypes.data, times * len(self._steps), self._fault.ctypes.data)
            seconds = time.perf_counter() - start
            fault = int(self._fault[0])
        self._raise_fault(fault)
        return seconds / times

    def _prepare(self, dims: Mapping[str, int], memory: Mapping[int, Array]) -> None:
        """Fill the tables for a run."""
        if not self._external <= memory.keys():
            missing = [self.program.buffers[buffer].name for buffer in self._external - memory.keys()]
            raise InputError("inputs and outputs need memory", where=self.program.name, found=f"none for {missing}")
        if self._arena_buffers.size:
            self._place_arena(dims)
        for buffer, array in memory.items():
            self._addresses[buffer] = array.ctypes.data
        np.take(self._addresses, self._operands, out=self._arguments)
        if self._sizes_table.coefficients.size:
            self._sizes[:] = self._sizes_table.evaluate(dims)
        self._steps[:, STEP.units] = self._units_table.evaluate(dims)
        self._steps[:, STEP.claimed : STEP.done + 1] = 0
        self._fault[0] = 0

    def _raise_fault(self, fault: int) -> None:
        if fault:
            raise InputError(
                "an index lies outside of its table",
                where=self.program.name,
                expected="token ids below the vocabulary size, pages below the number of cache pages",
            )

    def _place_arena(self, dims: Mapping[str, int]) -> None:
        sizes = self._arena_table.evaluate(dims)
        slots = np.maximum.reduceat(sizes, self._slot_starts)
        slots = -(-slots // ALIGNMENT) * ALIGNMENT
        offsets = np.cumsum(slots) - slots
        needed = int(slots.sum())
        if needed > self._arena.nbytes:
            self._arena = aligned(0)  # give the old one back before asking for the new one
            self._arena = aligned(needed)
        self._addresses[self._arena_buffers] = self._arena.ctypes.data + np.repeat(offsets, self._slot_lengths)

    @contextmanager
    def traced(self, cache: Path | None) -> Generator[Trace]:
        """Within the block, runs leave time stamps in the trace that it gets (`trace.py`).

        It runs with other threads in another runtime, so that a module which nobody looks at has no trace of this.

        Args:
            cache: the folder of the caches, None to do without.

        Raises:
            RlxError: the processor's counter does not count.
        """
        from rlx.backends.cpu.trace import Trace

        trace = Trace(self.program, self.target, self.threads, cache)
        with self._lock:
            ordinary, self._pool = self._pool, trace.pool
        try:
            yield trace
        finally:
            with self._lock:
                self._pool = ordinary
            trace.close()

    def held(self, buffer: int) -> Array:
        """The array behind a weight or constant buffer."""
        return self._held[buffer]

    def close(self) -> None:
        """End the worker threads; a later run is the caller's alone."""
        self._pool.close()
        if self._keeper is not None:
            self._keeper.hurry()


def _weights_key(weights: Weights | None, packed: Sequence[Buffer]) -> tuple[str, str]:
    """The key of the packed weights and the name of their source; empty if they are not worth a file or unknown."""
    nbytes = sum(size for buffer in packed if isinstance(size := buffer.type.nbytes, int))
    identity = weights.identity() if weights is not None and nbytes >= weight_cache.MIN_BYTES else None
    if identity is None:
        return "", ""
    tensors = [
        weight_cache.PackedTensor(buffer.name, buffer.type.dtype.name, static_shape(buffer.type), buffer.layout)
        for buffer in packed
    ]
    from rlx.backends.cpu.kernels.formats import pack_rows16

    return weight_cache.entry_key(identity, tensors, pack_rows16), identity.name


def constant_array(buffer: Buffer) -> Array:
    """The values of a constant buffer."""
    return np.array(buffer.values, buffer.type.dtype.numpy).reshape(static_shape(buffer.type))


def packed_weight(buffer: Buffer, weights: Weights | None) -> Array:
    """The bytes of a weight in the layout of its buffer.

    Raises:
        InputError: there are no weights.
        TensorShapeError: the weight is not of the buffer's type.
    """
    if weights is None:
        raise InputError("the program has weights, and none were given", found=buffer.name)
    if (found := weights.type_of(buffer.name)) != buffer.type:
        raise TensorShapeError(f"the weight {buffer.name} has another type", found=found, expected=buffer.type)
    raw, shape = weights.raw(buffer.name), static_shape(buffer.type)
    if buffer.layout == "rows16":
        from rlx.backends.cpu.kernels.formats import pack_rows16

        return pack_rows16(buffer.type.dtype, raw, shape)
    return np.array(raw)  # a copy: the file may be unmapped, and small vectors are not worth keeping a page for


def empty(buffer: Buffer, dims: Mapping[str, int]) -> Array:
    """An uninitialised array for a buffer."""
    return np.empty(numpy_shape(buffer.type, concrete_shape(buffer.type, dims)), buffer.type.dtype.numpy)


def static_shape(type_: TensorType) -> tuple[int, ...]:
    """The shape of a type without symbols."""
    return tuple(size for size in type_.shape if isinstance(size, int))
