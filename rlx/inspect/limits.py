"""The limits of this machine, measured: bytes a second from each level of memory, operations a second from registers.

Out: `Limits`. The kernels that measure are made with RLX's own emitter and run by its own threads, so that no compiler
is needed and a limit counts what a kernel of RLX could reach. Each figure is the best of several runs: a limit that
was disturbed is no limit. Next: `roofline.py`, which compares steps with them; `bench/lab/cases.py` does so with
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rlx.backends.cpu.dot import dot4
from rlx.backends.cpu.emit import I8, I32, I64, VF, VI, Emit, Val, vec
from rlx.backends.cpu.kernels.registry import KERNELS, Body, KernelDef, Setting, always
from rlx.backends.cpu.module import CpuModule, aligned
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i64, u8
from rlx.core.type import tensor
from rlx.lir.program import Buffer, Kernel, Program, Step

REPEATS = 5
RUN_SECONDS = 0.02
DRAM_BYTES = 512 << 20
LINE = 64  # bytes of one load
MOST_ROUNDS = 1 << 30
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
CHAINS_512 = 12  # independent sums that keep two pipes of latency 4 busy, within the registers there are


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine reaches with `threads` threads. None where it has no such instructions.

    Attributes:
        dram, l3, l2: GB/s of reads; l3 from 8 MiB in all, l2 from 512 KiB for each thread.
        f32, bf16: GFLOP/s of multiply-adds.
        int8: GOP/s of products of bytes, summed in 32 bits.
    """

    threads: int
    target: str
    dram: float
    l3: float
    l2: float
    f32: float
    int8: float
    bf16: float | None

    def better(self, other: Limits) -> Limits:
        """The better of each figure: what slowed one of two measurements is no limit."""
        bf16 = None if self.bf16 is None or other.bf16 is None else max(self.bf16, other.bf16)
        best = {name: max(getattr(self, name), getattr(other, name)) for name in ("dram", "l3", "l2", "f32", "int8")}
        return replace(self, bf16=bf16, **best)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure_limits(
    target: Target,
    threads: int,
    *,
    dram_bytes: int = DRAM_BYTES,
    run_seconds: float = RUN_SECONDS,
    repeats: int = REPEATS,
) -> Limits:
    """Measure all of them; a run takes about `run_seconds`, and there are a dozen times `repeats`.

    Short runs and many of them find the limits of a machine that does other work as well.
    """
    with _registered():

        def bandwidth(nbytes: int) -> float:
            return max(_bandwidth(target, threads, nbytes, streams, run_seconds, repeats) for streams in (1, 4))

        def peak(target: Target, kind: str, operations: int) -> float:
            return _peak(target, threads, kind, operations, run_seconds, repeats)

        return Limits(
            threads,
            target.name,
            dram=bandwidth(dram_bytes),
            l3=bandwidth(8 << 20),
            l2=bandwidth(threads * (512 << 10)),
            f32=peak(target, "f32", 32),
            int8=peak(target, "int8", 128),
            bf16=peak(target, "bf16", 64) if target.bf16 else None,
        )


class DramProbe:
    """GB/s of reads from memory just now, in a tenth of a second: on a shared machine it moves within seconds."""

    def __init__(self, target: Target, threads: int, nbytes: int = DRAM_BYTES) -> None:
        self._unit = _unit(nbytes, threads)
        self._bytes = threads * self._unit
        data = _touched(self._bytes)
        with _registered():
            self._meters = [_Meter(target, threads, "read", {"streams": n}, data, self._unit) for n in (1, 4)]

    def read(self) -> float:
        """Measure once."""
        return self._bytes / min(meter.least_seconds(0.0) for meter in self._meters) / 1e9

    def close(self) -> None:
        """End the threads."""
        for meter in self._meters:
            meter.close()


def _bandwidth(target: Target, threads: int, nbytes: int, streams: int, run_seconds: float, repeats: int) -> float:
    unit = _unit(nbytes, threads)
    meter = _Meter(target, threads, "read", {"streams": streams}, _touched(threads * unit), unit)
    try:
        return threads * unit / meter.least_seconds(run_seconds, repeats) / 1e9
    finally:
        meter.close()


def _peak(target: Target, threads: int, kind: str, operations: int, run_seconds: float, repeats: int) -> float:
    chains = max(2, CHAINS_512 * target.vector_bits // 512)
    meter = _Meter(target, threads, "peak", {"chains": chains, "kind": kind}, np.zeros(4096, np.uint8), 0)
    try:
        return threads * chains * operations / meter.least_seconds(run_seconds, repeats) / 1e9
    finally:
        meter.close()


def _unit(nbytes: int, threads: int) -> int:
    """Bytes of each thread, in whole rounds of the loop."""
    return nbytes // threads // (8 * LINE) * (8 * LINE)


def _touched(nbytes: int) -> Bytes:
    data = aligned(nbytes)
    data[:] = 1  # pages that were never written share one page of zeros
    return data


class _Meter:
    """A program of one step that has a unit for each thread and does its work a number of rounds over."""

    def __init__(
        self, target: Target, threads: int, variant: str, config: Mapping[str, Setting], data: Bytes, unit: int
    ) -> None:
        sums = tensor(i64 if variant == "read" else f32, threads * 16)
        buffers = (Buffer("input", tensor(u8, data.nbytes), "data"), Buffer("output", sums, "sums"))
        steps = (Step(0, (0, 1), (unit, Dim("rounds", max=1 << 40)), threads, written=(1,)),)
        kernels = (Kernel("limit", variant, tuple(config.items())),)
        self._module = CpuModule(Program("limit", (("sums", 1),), kernels, buffers, steps), None, target, threads, None)
        self._memory = {0: data, 1: np.zeros(threads * 16, np.int64)}

    def least_seconds(self, run_seconds: float, repeats: int = REPEATS) -> float:
        """Least seconds of a round, in runs of as many rounds as take about `run_seconds`, and of one at least."""
        count, once = 1, self._seconds(1)  # the first run wakes the threads and says little about the time
        while (once := min(self._seconds(count) for _ in range(2))) * count < run_seconds / 4:
            count *= 4
        while True:
            count = max(count, round(run_seconds / once))
            once = min(self._seconds(count) for _ in range(repeats))
            # a thread that came late made the first runs long, and their number of rounds too small
            if once * count >= run_seconds / 2 or count >= MOST_ROUNDS:
                return once

    def close(self) -> None:
        """End the threads."""
        self._module.close()

    def _seconds(self, rounds: int) -> float:
        return self._module.seconds({"rounds": rounds}, self._memory, 1) / rounds


def _build_read(body: Body, config: Mapping[str, Setting]) -> None:
    """Every thread sums its part of `data`, `rounds` times, in 64-byte loads from one or several places at once.

    Several streams with prefetches fill the queue of misses of a core that one stream does not.
    """
    e, (unit, rounds) = body.e, (body.size(i) for i in range(2))
    streams, line = int(config["streams"]), vec(I64, 8)
    wide = e.target.vector_bits == 512
    per_stream = (8 if wide else 4) // streams
    with e.loop(body.begin, body.end) as index:
        start, part = e.at(body.buffer(0), index * unit), unit // streams
        sums = [e.var(0, line) for _ in range(streams * per_stream)]
        with e.loop(0, rounds), e.loop(0, part, per_stream * LINE) as offset:
            for stream in range(streams):
                place = e.at(start, part * stream + offset)
                if streams > 1:
                    _prefetch(e, e.at(place, 2048))
                for i in range(per_stream):
                    total = sums[stream * per_stream + i]
                    total.set(total.get() + e.load(place, line, 8 * i))
        total = sums[0].get()
        for other in sums[1:]:
            total = total + other.get()
        e.store(total, body.buffer(1), index * 8)


def _prefetch(e: Emit, address: Val) -> None:
    read, keep, data = (e.typed(value, I32) for value in (0, 3, 1))
    e.void_call("llvm.prefetch.p0", address, read, keep, data)


def _build_peak(body: Body, config: Mapping[str, Setting]) -> None:
    """Independent chains of one instruction, operands in registers."""
    e, rounds, kind = body.e, body.size(1), str(config["kind"])
    operation = _OPERATIONS[kind]
    with e.loop(body.begin, body.end) as index:
        data = body.buffer(0)
        sums = [e.var(0, VI if kind == "int8" else VF) for _ in range(int(config["chains"]))]
        left, right = (e.load(e.at(data, place), VI) for place in (0, 64))
        with e.loop(0, rounds) as count:
            for i, total in enumerate(sums):
                if kind == "int8" and not e.target.vnni:
                    # several instructions, of which LLVM would move those with constant operands out of the loop
                    left = e.load(e.at(data, ((count + i) & 31) * 64), VI)
                total.set(operation(e, total.get(), left, right))
        total = sums[0].get()
        for other in sums[1:]:
            total = total + other.get()
        e.store(total, e.at(body.buffer(1), index * 64, I8))


_OPERATIONS: dict[str, Callable[[Emit, Val, Val, Val], Val]] = {
    # total * left + right with zeros: not total + left * right, whose product LLVM would compute once
    "f32": lambda e, total, left, right: e.fma(total, left.bitcast(VF), right.bitcast(VF)),
    "int8": lambda e, total, left, right: dot4(e, total, left, right, small=True),
    "bf16": lambda e, total, left, right: e.dot_bf16(total, left, right),
}


@contextmanager
def _registered() -> Generator[None]:
    """The kernels of this file in the table of kernels, for as long as they are needed: they belong to no op."""
    plan = KernelPlan("limit", {}, (), 1)
    KERNELS["limit"] = [
        KernelDef("limit", name, "", always, lambda node, target: plan, build)
        for name, build in (("read", _build_read), ("peak", _build_peak))
    ]
    try:
        yield
    finally:
        del KERNELS["limit"]
