"""AArch64 programs run on this machine: linked with a small C driver, and run by qemu's user mode.

In: an LIR program for a target of `describe`. Out: `emulated(...)`, called like any `Executable`. Every call is a
process of its own, which is given all buffers and gives back those that the program writes to. Next: `driver.c`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.codegen import compile_module, function_name
from rlx.backends.cpu.module import constant_array, packed_weight
from rlx.backends.cpu.native import LINE, STEP, WORDS
from rlx.backends.cpu.target import Target, describe
from rlx.compiler import compile_graph
from rlx.core.dim import Size
from rlx.core.graph import Graph
from rlx.errors import InputError
from rlx.flow.weights import DictWeights
from rlx.lir.program import Program
from rlx.lir.sizes import SizeTable
from rlx.runtime.executable import Executable
from tests.cpu.compiling import Array, as_bytes

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PACKAGES = {COMPILER: ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"), EMULATOR: ("qemu-user",)}
PROCESSORS = {"neon": "cortex-a76", "i8mm": "max", "apple": "max"}
"""What qemu is to be: a processor of Armv8.2 ends a program of the target `neon` that has a later instruction in it."""


@cache
def tool(name: str) -> str:
    """The path of a program, installed from Debian's packages where it is missing and the user may do that."""
    if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "-qq", "update"], check=False)
        subprocess.run(["apt-get", "-qq", "-y", "install", *PACKAGES[name]], check=True, stdout=subprocess.DEVNULL)
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"AArch64 programs need {name}: install the packages {', '.join(PACKAGES[name])}")
    return path


@cache
def _driver() -> Path:
    """The driver, compiled once for all tests."""
    folder = tempfile.TemporaryDirectory(prefix="rlx-emulator-")
    _HOLDERS.append(folder)
    macros = {"LINE": LINE, "STEP_FUNCTION": STEP.function, "STEP_BUFFERS": STEP.buffers, "STEP_SIZES": STEP.sizes}
    macros |= {"STEP_UNITS": STEP.units, "STEP_GROUP": STEP.group, "STEP_CLAIMED": STEP.claimed}
    macros |= {"STEP_DONE": STEP.done, "WORDS_WORKERS": WORDS.workers, "WORDS_YIELD": WORDS.yield_now}
    macros |= {"WORDS_STEPS": WORDS.steps, "WORDS_COUNT": WORDS.count, "WORDS_FAULT": WORDS.fault}
    macros |= {"WORDS_STOP": WORDS.stop}
    source, result = Path(__file__).with_name("driver.c"), Path(folder.name) / "driver.o"
    options = ["-O1", "-Wall", "-Werror", "-pthread", *(f"-D{name}={value}" for name, value in macros.items())]
    subprocess.run([tool(COMPILER), *options, "-c", "-o", str(result), str(source)], check=True)
    return result


_HOLDERS: list[tempfile.TemporaryDirectory[str]] = []


class EmulatedModule:
    """A program that runs under qemu; in place of a `CpuModule`.

    Attributes:
        took_part: most threads that worked on a run of the last call.
    """

    def __init__(self, program: Program, weights: DictWeights | None, target: Target, threads: int, runs: int) -> None:
        self.program, self.target, self.threads, self.runs, self.took_part = program, target, threads, runs, 0
        self._held: dict[int, Array] = {}
        for index, buffer in enumerate(program.buffers):
            if buffer.kind in ("weight", "constant"):
                held = constant_array(buffer) if buffer.kind == "constant" else packed_weight(buffer, weights)
                self._held[index] = held
        self._folder = tempfile.TemporaryDirectory(prefix="rlx-emulated-")
        self._place = Path(self._folder.name)
        self._link()

    def _link(self) -> None:
        names = [function_name(index, kernel) for index, kernel in enumerate(self.program.kernels)]
        (self._place / "kernels.o").write_bytes(compile_module(self.program.kernels, self.target))
        declarations = "".join(f"extern char {name}[];\n" for name in names)
        table = f"{declarations}void *kernels[] = {{{', '.join([*names, '0'])}}};\n"
        (self._place / "table.c").write_text(table, encoding="utf-8")
        command = [tool(COMPILER), "-static", "-pthread", "-o", str(self._place / "program"), str(_driver())]
        subprocess.run([*command, *(str(self._place / name) for name in ("table.c", "kernels.o"))], check=True)

    def run(self, dims: Mapping[str, int], memory: Mapping[int, Array]) -> None:
        """As `CpuModule.run`."""
        job, result = self._place / "job", self._place / "result"
        given = {**self._held, **memory}
        with job.open("wb") as file:
            file.write(self._head(dims, given, memory))
            for index in sorted(given):
                file.write(as_bytes(given[index]).tobytes())
        command = [tool(EMULATOR), "-cpu", PROCESSORS[self.target.name], str(self._place / "program")]
        subprocess.run([*command, str(job), str(result)], check=True, timeout=600)
        data = np.fromfile(result, np.uint8)
        self.took_part, fault, beside = (int(number) for number in data[:24].view(np.int64))
        assert not beside, "a kernel wrote beside a buffer"
        if fault:
            raise InputError("an index lies outside of its table", where=self.program.name)
        start = 24
        for index in sorted(memory):
            array = memory[index]
            flat = array.reshape(-1).view(np.uint8)
            if array.flags.writeable:
                flat[:] = data[start : start + flat.size]
            start += flat.size

    def _head(self, dims: Mapping[str, int], given: Mapping[int, Array], wanted: Mapping[int, Array]) -> bytes:
        program = self.program
        numbers = [len(program.buffers), len(program.steps), self.threads, self.runs]
        for index, buffer in enumerate(program.buffers):
            size = given[index].nbytes if index in given else _evaluate([buffer.type.nbytes], dims)[0]
            numbers += [size, index in given, index in wanted]
        groups, lengths = program.groups, Counter(program.groups)
        for index, step in enumerate(program.steps):
            last = index + 1 == len(program.steps) or groups[index + 1] != groups[index]
            units = _evaluate([step.units], dims)[0]
            numbers += [step.kernel, units, lengths[groups[index]] if last else 0, len(step.buffers), len(step.sizes)]
            numbers += [*step.buffers, *_evaluate(step.sizes, dims)]
        return np.array(numbers, np.int64).tobytes()

    def held(self, buffer: int) -> Array:
        """The array behind a weight or constant buffer."""
        return self._held[buffer]

    def close(self) -> None:
        """Remove the program."""
        self._folder.cleanup()


def _evaluate(sizes: tuple[Size, ...] | list[Size], dims: Mapping[str, int]) -> list[int]:
    return SizeTable(list(sizes)).evaluate(dims).tolist()


def emulated(
    graph: Graph,
    target: str,
    weights: DictWeights | None = None,
    *,
    threads: int = 1,
    runs: int = 1,
    precision: str = "exact",
) -> Executable:
    """`compiled` for another machine; every call runs the program `runs` times over."""
    chosen = describe(target)
    program, stages = compile_graph(graph, CpuBackend(chosen), precision=precision)
    module = EmulatedModule(program, weights, chosen, threads, runs)
    return Executable(graph, program, stages, module)  # type: ignore[arg-type]
