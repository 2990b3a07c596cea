"""What an op is: every rule of it in one object.

`OpDef` holds the attributes, the shape rule, the NumPy reference, the decomposition into simpler ops, the rules of
differentiation and batching, the cost, and the samples the tests are generated from. A rule that does not exist is
`Missing(reason)`. `emit` adds an op to a graph. Next: any family, such as `linear.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlx.core.dim import Dim, Size, product
from rlx.core.graph import UNKNOWN, Attrs, AttrValue, GraphBuilder, Location, Value
from rlx.core.type import TensorType
from rlx.errors import InputError, ShapeError, UnsupportedOpError

Array: TypeAlias = NDArray[Any]
Types: TypeAlias = tuple[TensorType, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """A rule that does not exist, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of an op; without a default it has to be given."""

    name: str
    help: str
    default: AttrValue | type[Missing] = Missing


ATTENDED: Size = Dim("attended")
"""In a `Cost`: pairs of a query and a key that its mask lets it see, which depend on the data of a run."""
CACHED: Size = Dim("cached")
"""In a `Cost`: positions of a cache that are read, those of each sequence once."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating-point (or integer) operations and bytes moved, symbolic: also in `ATTENDED` and `CACHED`."""

    flops: Size
    bytes: Size


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated test: input types, attributes, sizes of the symbols, and the range of each random input.

    `ranges[i]` is `(low, high)`; integer inputs take whole numbers from it. `tolerance` is the largest difference
    allowed in float32, relative to the largest magnitude of the result.
    """

    name: str
    inputs: Types
    attrs: Attrs = field(default_factory=dict[str, AttrValue])
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    ranges: Mapping[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    arrays: Mapping[int, Callable[[], Array]] = field(default_factory=dict[int, Callable[[], Array]])
    tolerance: float = 2e-6


Infer: TypeAlias = Callable[[Types, Attrs], Types]
Reference: TypeAlias = Callable[[tuple[Array, ...], Mapping[str, Any]], tuple[Array, ...]]
Decompose: TypeAlias = Callable[["Emitter", tuple[Value, ...], Attrs], Sequence[Value]]
Vjp: TypeAlias = Callable[["Emitter", tuple[Value, ...], tuple[Value, ...], tuple[Value, ...], Attrs], Sequence[Value]]
Jvp: TypeAlias = Callable[["Emitter", tuple[Value, ...], tuple[Value | None, ...], Attrs], Sequence[Value]]
Batch: TypeAlias = Callable[["Emitter", tuple[Value, ...], tuple[bool, ...], Attrs], Sequence[Value]]

HIR = "hir"
MIR = "mir"
BOTH = frozenset({HIR, MIR})


@dataclass(frozen=True, slots=True)
class OpDef:
    """All the rules of an op.

    `reference` works on NumPy arrays of any float width (the oracle runs it in float64); a packed operand arrives
    dequantised, and sizes in attributes arrive as ints.
    """

    name: str
    help: str
    infer: Infer
    reference: Reference
    decompose: Decompose | Missing
    samples: Callable[[], Sequence[Sample]]
    attributes: tuple[Attribute, ...] = ()
    levels: frozenset[str] = BOTH
    cost: Callable[[Types, Types, Attrs], Cost] | None = None
    vjp: Vjp | Missing = Missing("no training yet")
    jvp: Jvp | Missing = Missing("no training yet")
    batch: Batch | Missing = Missing("no automatic batching yet")
    row_wise: bool = False  # every row (last axis) of the result depends on that row of the activations only
    source: str = ""  # file:line of the definition, for `rlx.inspect`

    def complete(self, attrs: Attrs, location: Location = UNKNOWN) -> dict[str, AttrValue]:
        """`attrs` with defaults filled in.

        Raises:
            ShapeError: an attribute is unknown, or one without a default is not given.
        """
        known = {attribute.name: attribute for attribute in self.attributes}
        for name in attrs:
            if name not in known:
                raise ShapeError(
                    f"{self.name} has no attribute {name}", where=str(location), expected=", ".join(known) or "none"
                )
        result: dict[str, AttrValue] = {}
        for attribute in self.attributes:
            value = attrs.get(attribute.name, attribute.default)
            if isinstance(value, type):
                raise ShapeError(f"{self.name} needs the attribute {attribute.name}", where=str(location))
            result[attribute.name] = value
        return result


REGISTRY: dict[str, OpDef] = {}


def register(op: OpDef) -> OpDef:
    """Enter an op into the registry under its name."""
    if op.name in REGISTRY:
        raise ShapeError(f"two ops are called {op.name}")
    frame = inspect.currentframe()
    caller = frame.f_back if frame else None
    if caller is not None:
        op = _with_source(op, f"{caller.f_code.co_filename.rsplit('/', 1)[-1]}:{caller.f_lineno}")
    REGISTRY[op.name] = op
    return op


def _with_source(op: OpDef, source: str) -> OpDef:
    object.__setattr__(op, "source", source)
    return op


def lookup(name: str) -> OpDef:
    """The op called `name`.

    Raises:
        UnsupportedOpError: there is none.
    """
    if name not in REGISTRY:
        raise UnsupportedOpError(f"there is no op called {name}", expected=", ".join(sorted(REGISTRY)))
    return REGISTRY[name]


def default_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """One operation per output element, every byte moved once."""
    moved: Size = 0
    for type_ in (*inputs, *outputs):
        moved = moved + type_.nbytes
    flops: Size = 0
    for type_ in outputs:
        flops = flops + product(type_.shape)
    return Cost(flops, moved)


def cost_of(op: OpDef, inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """The cost of one application."""
    return (op.cost or default_cost)(inputs, outputs, attrs)


@dataclass(slots=True)
class Emitter:
    """Adds ops to a builder, all at one location."""

    builder: GraphBuilder
    location: Location = UNKNOWN

    def __call__(self, op: str, *inputs: Value, **attrs: AttrValue) -> Value:
        """Add an op with one output."""
        (value,) = self.many(op, *inputs, **attrs)
        return value

    def many(self, op: str, *inputs: Value, **attrs: AttrValue) -> tuple[Value, ...]:
        """Add an op; gives all its outputs.

        Raises:
            ShapeError: the op refuses these operands; the message names the location.
        """
        definition = lookup(op)
        complete = definition.complete(attrs, self.location)
        try:
            types = definition.infer(tuple(value.type for value in inputs), complete)
        except ShapeError as error:
            if error.where is not None:
                raise
            raise ShapeError(
                f"{op}: {error.what}",
                where=str(self.location),
                found=error.found or ", ".join(str(value.type) for value in inputs),
                expected=error.expected,
                fix=error.fix,
            ) from None
        return self.builder.append(op, inputs, complete, types, self.location)


def check_arity(types: Types, *allowed: int) -> None:
    """Raise ShapeError unless the number of operands is allowed."""
    if len(types) not in allowed:
        raise ShapeError(
            "wrong number of operands", found=len(types), expected=" or ".join(str(count) for count in allowed)
        )


def rows_cost(table: TensorType, indices: TensorType, result: TensorType) -> Cost:
    """Of rows of a table that indices name: only those are read."""
    rows = table.with_shape((*indices.shape, *table.shape[1:])).nbytes
    return Cost(product(result.shape), indices.nbytes + rows + result.nbytes)


def static_axis(type_: TensorType, axis: int, what: str) -> int:
    """A size that has to be an int.

    Raises:
        ShapeError: it is symbolic, or the tensor has no such axis.
    """
    if type_.rank < (-axis if axis < 0 else axis + 1):
        raise ShapeError(f"{what} needs more axes", found=str(type_))
    size = type_.shape[axis]
    if not isinstance(size, int):
        raise ShapeError(f"{what} has to be a static size", found=str(type_))
    return size


def int_attr(attrs: Attrs, name: str) -> int:
    """An attribute that is a whole number."""
    value = attrs[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ShapeError(f"the attribute {name} has to be an integer", found=repr(value))
    return value


def float_attr(attrs: Attrs, name: str) -> float:
    """An attribute that is a number."""
    value = attrs[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ShapeError(f"the attribute {name} has to be a number", found=repr(value))
    return float(value)


def bool_attr(attrs: Attrs, name: str) -> bool:
    """An attribute that is true or false."""
    value = attrs[name]
    if not isinstance(value, bool):
        raise ShapeError(f"the attribute {name} has to be true or false", found=repr(value))
    return value


def optional_float(attrs: Attrs, name: str) -> float | None:
    """An attribute that is a number or none."""
    return None if attrs[name] is None else float_attr(attrs, name)


def size_tuple(value: AttrValue) -> tuple[Size, ...]:
    """An attribute that is a tuple of sizes."""
    from rlx.core.dim import Dim

    if not isinstance(value, tuple):
        raise ShapeError("a tuple of sizes is needed", found=repr(value))
    result: list[Size] = []
    for item in value:
        if not isinstance(item, (int, Dim)) or isinstance(item, bool):
            raise ShapeError("a tuple of sizes is needed", found=repr(value))
        result.append(item)
    return tuple(result)


def check_index(indices: Array, size: int, what: str) -> None:
    """Refuse indices that lead out of a table; references call it, since NumPy would count negative ones from the end.

    Raises:
        InputError: an index is not in 0..size-1.
    """
    bad = indices[(indices < 0) | (indices >= size)]
    if bad.size:
        raise InputError(f"{what} leads out of the table", found=int(bad.flat[0]), expected=f"0 to {size - 1}")


def floats(array: Array) -> Array:
    """An array as floats, float64 kept."""
    return array if array.dtype == np.float64 else array.astype(np.float32)
