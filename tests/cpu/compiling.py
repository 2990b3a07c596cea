"""Graphs compiled and run for the tests of the CPU backend, with the object code kept for the whole test session."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.module import CpuModule
from rlx.backends.cpu.target import available, resolve
from rlx.compiler import compile_graph
from rlx.core.dim import Size
from rlx.core.dtype import DType, f32
from rlx.core.graph import Graph, GraphBuilder, Value
from rlx.core.type import TensorType, tensor
from rlx.flow.weights import DictWeights
from rlx.ops.op import Emitter
from rlx.runtime.executable import Executable

Array = NDArray[Any]

TARGETS = available()
"""Every instruction set this machine runs: avx512, avx2 and portable on a recent x86."""


@cache
def object_folder() -> Path:
    """A folder that lives as long as the process, so that a kernel is compiled once for all tests."""
    holder = tempfile.TemporaryDirectory(prefix="rlx-test-objects-")
    _HOLDERS.append(holder)
    return Path(holder.name)


_HOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def compiled(
    graph: Graph, target: str, weights: DictWeights | None = None, *, threads: int = 1, precision: str = "exact"
) -> Executable:
    """`rlx.compile` for a named target, with the object cache of the tests."""
    chosen = resolve(target)
    program, stages = compile_graph(graph, CpuBackend(chosen), precision=precision)
    return Executable(graph, program, stages, CpuModule(program, weights, chosen, threads, object_folder()))


def one_op(
    op: str, inputs: Mapping[str, TensorType], weights: Mapping[str, TensorType] | None = None, **attrs: Any
) -> Graph:
    """A graph of one op: its inputs, then its weights, in the order given; outputs y0, y1, ..."""
    builder = GraphBuilder(op)
    values = [builder.input(name, type_) for name, type_ in inputs.items()]
    values += [parameter(builder, key, type_) for key, type_ in (weights or {}).items()]
    for i, value in enumerate(Emitter(builder).many(op, *values, **attrs)):
        builder.output(f"y{i}", value)
    return builder.build()


def summed_product(x: TensorType, weights: Mapping[str, TensorType]) -> Graph:
    """y0 = linear(x, weights...) + r, with r as an operand of the product."""
    builder = GraphBuilder("linear")
    row = builder.input("x", x)
    operands = [parameter(builder, key, type_) for key, type_ in weights.items()]
    residual = builder.input("r", TensorType(f32, (*x.shape[:-1], operands[0].type.shape[0])))
    builder.output("y0", Emitter(builder)("linear", row, *operands, residual))
    return builder.build()


def parameter(builder: GraphBuilder, key: str, type_: TensorType) -> Value:
    """A weight of a graph."""
    return Emitter(builder)("parameter", key=key, dtype=type_.dtype, shape=type_.shape)


def unary_graph(function: str, count: Size) -> Graph:
    """y = function(x) of a vector."""
    return one_op(function, {"x": tensor(f32, count)})


def as_bytes(array: Array) -> NDArray[np.uint8]:
    """The bytes of an array, flat."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def same_bits(left: Array, right: Array) -> bool:
    """Equality of every bit, not-a-number included."""
    return left.shape == right.shape and left.dtype == right.dtype and bool((as_bytes(left) == as_bytes(right)).all())


def stored(dtype: DType, values: NDArray[np.float32]) -> tuple[TensorType, NDArray[np.uint8]]:
    """Values in a storage format, as `DictWeights` takes them."""
    from rlx.core.storage import encode

    return TensorType(dtype, values.shape), encode(dtype, np.ascontiguousarray(values))
