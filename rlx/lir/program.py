"""The LIR: kernels x buffers x schedule. A small tree of its own, because it has addresses and no more types to infer.

    Program(name, inputs, outputs, kernels, buffers, steps, slots)
    Kernel(op, variant, config)           distinct code; steps with equal kernels share it
    Buffer(kind, type, ...)               input, output, weight, constant or arena
    Step(kernel, buffers, sizes, units)   one parallel loop over `units`; `sizes` are its scalar arguments

`slots` is the memory plan: each slot is a list of arena buffers that are never live together. Next: `text.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlx.core.dim import Size, Symbol, evaluate, symbols_of
from rlx.core.graph import UNKNOWN, Location
from rlx.core.type import TensorType

ALIGNMENT = 64  # bytes; a cache line, and the widest vector register
BUFFER_KINDS = ("input", "output", "weight", "constant", "arena")


@dataclass(frozen=True, slots=True)
class Kernel:
    """Code for one op with its static parameters. Equal kernels are compiled once."""

    op: str
    variant: str
    config: tuple[tuple[str, int | float | str | bool], ...]

    @property
    def settings(self) -> Mapping[str, int | float | str | bool]:
        """The static parameters by name."""
        return dict(self.config)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of one of `BUFFER_KINDS`.

    Weights have a key (as `name`) and a packing layout, constants their values, inputs and outputs a name. An input is
    `updated` if a step writes to it.
    """

    kind: str
    type: TensorType
    name: str = ""
    layout: str = ""
    values: tuple[float, ...] = ()
    updated: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call, split over threads along `units`.

    `written` are those of `buffers` that it writes to. A step `beside` the one before it needs nothing of it, and a
    thread that finds no work left there goes on to this one without waiting.
    """

    kernel: int
    buffers: tuple[int, ...]
    sizes: tuple[Size, ...]
    units: Size
    location: Location = UNKNOWN
    written: tuple[int, ...] = ()
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A whole schedule. `outputs` maps names to buffers; an in-place result names the buffer of its input."""

    name: str
    outputs: tuple[tuple[str, int], ...]
    kernels: tuple[Kernel, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    slots: tuple[tuple[int, ...], ...] = ()

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Every symbol, sorted."""
        return symbols_of(size for buffer in self.buffers for size in buffer.type.shape)

    @property
    def inputs(self) -> tuple[tuple[str, int], ...]:
        """Names and buffers of the inputs, in order."""
        return tuple((buffer.name, i) for i, buffer in enumerate(self.buffers) if buffer.kind == "input")

    @property
    def groups(self) -> tuple[int, ...]:
        """For each step the number of its group: steps that run beside each other."""
        numbers: list[int] = []
        for step in self.steps:
            numbers.append((numbers[-1] if numbers else 0) + (not step.beside))
        return tuple(numbers)

    def arena_offsets(self, dims: Mapping[str, int]) -> tuple[dict[int, int], int]:
        """The byte offset of every arena buffer for given sizes, and the size of the arena."""
        offsets: dict[int, int] = {}
        end = 0
        for slot in self.slots:
            for buffer in slot:
                offsets[buffer] = end
            largest = max(evaluate(self.buffers[buffer].type.nbytes, dims) for buffer in slot)
            end += -(-largest // ALIGNMENT) * ALIGNMENT
        return offsets, end
