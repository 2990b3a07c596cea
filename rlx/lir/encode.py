"""A program as plain values that JSON holds, and back: `decode(encode(p)) == p`, in a few milliseconds.

The text of a program (`text.py`) is for people, and takes twenty times as long to read. What repeats (types, sizes,
locations) is written once and named by its position. Used by `rlx/runtime/start_cache.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from rlx.core.dim import Dim, Size, Symbol, from_terms
from rlx.core.dtype import DTYPES
from rlx.core.graph import Location
from rlx.core.type import TensorType
from rlx.errors import ParseError
from rlx.lir.program import BUFFER_KINDS, Buffer, Kernel, Program, Step

Plain = dict[str, Any]
T = TypeVar("T", bound=Hashable)


def encode(program: Program) -> Plain:
    """A program as lists, numbers and strings."""
    symbols, sizes = _Table[Symbol](), _Table[Size]()
    types, locations = _Table[TensorType](), _Table[Location]()
    buffers = [[b.kind, types.add(b.type), b.name, b.layout, list(b.values), b.updated] for b in program.buffers]
    steps = [
        [
            step.kernel,
            list(step.buffers),
            [sizes.add(size) for size in step.sizes],
            sizes.add(step.units),
            locations.add(step.location),
            list(step.written),
            step.beside,
        ]
        for step in program.steps
    ]
    plain_types = [[t.dtype.name, [sizes.add(size) for size in t.shape]] for t in types.items]
    plain_sizes = [_plain_size(size, symbols) for size in sizes.items]
    return {
        "name": program.name,
        "symbols": [[s.name, s.min, s.max] for s in symbols.items],
        "sizes": plain_sizes,
        "types": plain_types,
        "locations": [[location.path, location.source] for location in locations.items],
        "kernels": [[k.op, k.variant, [list(pair) for pair in k.config]] for k in program.kernels],
        "buffers": buffers,
        "steps": steps,
        "slots": [list(slot) for slot in program.slots],
        "outputs": [list(output) for output in program.outputs],
    }


def decode(plain: Mapping[str, Any]) -> Program:
    """The program that `encode` was given.

    Raises:
        ParseError: the values are not those of a program.
    """
    try:
        return _decoded(plain)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ParseError("not a program in plain values", found=f"{type(error).__name__}: {error}") from None


def _decoded(plain: Mapping[str, Any]) -> Program:
    symbols: list[Symbol] = [Symbol(*fields) for fields in plain["symbols"]]
    sizes: list[Size] = [_size(size, symbols) for size in plain["sizes"]]
    types = [TensorType(DTYPES[dtype], _chosen(sizes, shape)) for dtype, shape in plain["types"]]
    locations: list[Location] = [Location(*fields) for fields in plain["locations"]]
    kernels = tuple(
        Kernel(op, variant, tuple((name, value) for name, value in config)) for op, variant, config in plain["kernels"]
    )
    buffers = tuple(_buffer(fields, types) for fields in plain["buffers"])
    steps = tuple(_step(fields, sizes, locations) for fields in plain["steps"])
    slots, outputs = plain["slots"], plain["outputs"]
    program = Program(
        plain["name"],
        tuple((name, buffer) for name, buffer in outputs),
        kernels,
        buffers,
        steps,
        tuple(tuple(slot) for slot in slots),
    )
    _check(program)
    return program


def _buffer(fields: list[Any], types: list[TensorType]) -> Buffer:
    kind, number, name, layout, values, updated = fields
    (type_,) = _chosen(types, [number])
    return Buffer(kind, type_, name, layout, tuple(values), updated)


def _step(fields: list[Any], sizes: list[Size], locations: list[Location]) -> Step:
    kernel, operands, arguments, units, place, written, beside = fields
    *scalars, extent = _chosen(sizes, [*arguments, units])
    (location,) = _chosen(locations, [place])
    return Step(kernel, tuple(operands), tuple(scalars), extent, location, tuple(written), beside)


def _chosen(items: list[T], numbers: Sequence[int]) -> tuple[T, ...]:
    return tuple([items[number] for number in numbers])


def _check(program: Program) -> None:
    """Native code goes by these numbers.

    Raises:
        ValueError: one of them names something that is not there.
    """
    used = [b for step in program.steps for b in step.buffers] + [b for slot in program.slots for b in slot]
    used += [b for _, b in program.outputs]
    kernels = [step.kernel for step in program.steps]
    if used and not 0 <= min(used) <= max(used) < len(program.buffers):
        raise ValueError("a buffer that is not there")
    if kernels and not 0 <= min(kernels) <= max(kernels) < len(program.kernels):
        raise ValueError("a kernel that is not there")
    if any(buffer.kind not in BUFFER_KINDS for buffer in program.buffers):
        raise ValueError("an unknown kind of buffer")


def _plain_size(size: Size, symbols: _Table[Symbol]) -> int | list[Any]:
    if not isinstance(size, Dim):
        return size
    return [[[symbols.add(symbol) for symbol in monomial], coefficient] for monomial, coefficient in size.terms]


def _size(plain: int | list[Any], symbols: list[Symbol]) -> Size:
    if isinstance(plain, int):
        return plain
    return from_terms({_chosen(symbols, monomial): coefficient for monomial, coefficient in plain})


class _Table(Generic[T]):
    """Distinct values in the order in which they were first met."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._positions: dict[T, int] = {}

    def add(self, item: T) -> int:
        """The position of a value."""
        if item not in self._positions:
            self._positions[item] = len(self.items)
            self.items.append(item)
        return self._positions[item]
