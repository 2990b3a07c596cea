"""From the arrays a caller passes to a value for every symbol: the check that stands before any program runs.

In go the input types of a graph and NumPy arrays by name; out comes `{"seq": 17}`. Every backend calls it, so that bad
input is refused with one message everywhere. Next: `rlx/backends/reference/interpreter.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.dim import Size, Symbol, evaluate, substitute, symbols_of
from rlx.core.graph import Value
from rlx.core.type import TensorType
from rlx.errors import InputError

Axis = tuple[str, Size, int]
"""What an axis is called in a message, its symbolic size, and the number found there."""


def bind_inputs(
    inputs: Sequence[tuple[str, Value]], arrays: Mapping[str, NDArray[Any]], *, allow_wide: bool = False
) -> dict[str, int]:
    """Check arrays against the inputs of a graph and give the value of every symbol in their shapes.

    A packed input is a `uint8` array whose last axis counts bytes. A compound size (`past+seq`) is solved where it
    holds one unknown to the first power, and checked otherwise.

    Args:
        inputs: `graph.inputs`.
        arrays: one array for each input.
        allow_wide: also take float64 arrays where the graph says f32.

    Raises:
        InputError: a name is missing or unknown, a dtype or rank differs, two axes disagree about a symbol, or a
            symbol is out of its bounds.
    """
    names = [name for name, _ in inputs]
    _check_names(names, arrays)
    axes: list[Axis] = []
    for name, value in inputs:
        axes += _axes(name, value.type, arrays[name], allow_wide)
    return solve(axes)


def _check_names(names: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    expected = ", ".join(names) or "no inputs"
    for name in names:
        if name not in arrays:
            raise InputError(f"the input {name} is missing", found=", ".join(arrays) or "none", expected=expected)
    for name in arrays:
        if name not in names:
            raise InputError(f"there is no input called {name}", expected=expected)


def _axes(name: str, type_: TensorType, array: NDArray[Any], allow_wide: bool) -> list[Axis]:
    if not isinstance(array, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"the input {name} is not a NumPy array", found=type(array).__name__, expected=str(type_))
    wide = allow_wide and type_.dtype.name == "f32" and array.dtype == np.float64
    if array.dtype != type_.dtype.numpy and not wide:
        raise InputError(
            f"the input {name} has another dtype",
            found=array.dtype,
            expected=f"{type_.dtype.numpy}, for {type_}",
            fix=f"pass {name}.astype({type_.dtype.numpy})" if not type_.dtype.is_packed else "pass the packed bytes",
        )
    if array.ndim != type_.rank:
        raise InputError(f"the input {name} has another rank", found=f"shape {array.shape}", expected=str(type_))
    sizes = list(type_.shape)
    if type_.dtype.is_packed:
        sizes[-1] = type_.dtype.nbytes(evaluate(sizes[-1], {}))
    return [(f"axis {i} of {name}", size, n) for i, (size, n) in enumerate(zip(sizes, array.shape, strict=True))]


def solve(axes: Sequence[Axis]) -> dict[str, int]:
    """Values of the symbols for which every axis has the number found there.

    Raises:
        InputError: there are none, or a symbol is out of its bounds.
    """
    values: dict[str, int] = {}
    origin: dict[str, str] = {}
    waiting = list(axes)
    while True:
        later = [axis for axis in waiting if not _settle(axis, values, origin)]
        if len(later) == len(waiting):
            break
        waiting = later
    for symbol in symbols_of(size for _, size, _ in axes):
        _check_bounds(symbol, values, origin)
    for where, size, found in axes:
        if evaluate(size, values) != found:
            raise _conflict(where, size, found, values, origin)
    return values


def _settle(axis: Axis, values: dict[str, int], origin: dict[str, str]) -> bool:
    """Bind the one unknown of an axis; False while there are several, or it is not linear."""
    where, size, found = axis
    rest = substitute(size, values)
    if isinstance(rest, int):
        return True
    unknown = rest.symbols[0]
    if len(rest.symbols) > 1 or any(len(monomial) > 1 for monomial, _ in rest.terms):
        return False
    offset = evaluate(substitute(rest, {unknown.name: 0}), {})
    factor = evaluate(substitute(rest, {unknown.name: 1}), {}) - offset
    if (found - offset) % factor:
        raise InputError(f"no {unknown.name} gives {where} its size", found=found, expected=str(size))
    values[unknown.name], origin[unknown.name] = (found - offset) // factor, where
    return True


def _check_bounds(symbol: Symbol, values: Mapping[str, int], origin: Mapping[str, str]) -> None:
    if symbol.name not in values:
        raise InputError(f"the inputs do not determine {symbol.name}", fix="add an input with an axis of this size")
    if not symbol.min <= values[symbol.name] <= symbol.max:
        raise InputError(
            f"{symbol.name} is out of its bounds",
            where=origin[symbol.name],
            found=values[symbol.name],
            expected=f"{symbol.min} to {symbol.max}",
        )


def _conflict(where: str, size: Size, found: int, values: Mapping[str, int], origin: Mapping[str, str]) -> InputError:
    if isinstance(size, int):
        return InputError("an input has another shape", where=where, found=found, expected=size)
    known = ", ".join(f"{s.name} = {values[s.name]} from {origin[s.name]}" for s in size.symbols)
    return InputError(
        f"two axes disagree about {size}", where=where, found=found, expected=f"{evaluate(size, values)} ({known})"
    )


def concrete_shape(type_: TensorType, values: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a type in elements when each symbol has its value.

    Raises:
        InputError: a symbol has no value.
    """
    return tuple(evaluate(size, values) for size in type_.shape)
