"""Hypothesis strategies: symbolic sizes, and random well-typed graphs with inputs for them.

`graphs()` draws a graph over a few symbols, float and integer inputs, shared and dead nodes; `bound_inputs` gives
arrays for it. Values stay moderate (every growing op is followed by tanh), so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import rlx.ops  # noqa: F401  importing the families is what fills the registry
from rlx.core.bind import concrete_shape
from rlx.core.dim import Dim, Size
from rlx.core.dtype import DType, f32, i32
from rlx.core.graph import Graph, GraphBuilder, Location, Value
from rlx.core.type import tensor
from rlx.ops.op import Emitter

BATCH, SEQ, PAST = Dim("batch", max=8), Dim("seq", max=64), Dim("past", min=0, max=64)
SYMBOLS = (BATCH, SEQ, PAST)

values_of_symbols = st.fixed_dictionaries(
    {"batch": st.integers(1, 8), "seq": st.integers(1, 64), "past": st.integers(0, 64)}
)
"""A value within its bounds for each of `SYMBOLS`."""


@dataclass(frozen=True, slots=True)
class SizeTree:
    """A size together with the integer function it stands for."""

    size: Size
    number: Callable[[Mapping[str, int]], int]


def _constant(number: int) -> SizeTree:
    return SizeTree(number, lambda values: number)


def _symbol(dim: Dim) -> SizeTree:
    return SizeTree(dim, lambda values: values[dim.symbols[0].name])


def _combined(parts: tuple[str, SizeTree, SizeTree]) -> SizeTree:
    mark, a, b = parts
    if mark == "+":
        return SizeTree(a.size + b.size, lambda values: a.number(values) + b.number(values))
    if mark == "-":
        return SizeTree(a.size - b.size, lambda values: a.number(values) - b.number(values))
    return SizeTree(a.size * b.size, lambda values: a.number(values) * b.number(values))


sizes = st.recursive(
    st.one_of(st.integers(-9, 9).map(_constant), st.sampled_from(SYMBOLS).map(_symbol)),
    lambda inner: st.tuples(st.sampled_from("+-*"), inner, inner).map(_combined),
    max_leaves=8,
)
"""Polynomials built with +, - and *, each with the same computation on integers beside it."""

Draw = Callable[[Any], Any]


class _Grower:
    """Adds random ops to a builder; each method gives None if nothing in the pool suits it."""

    def __init__(self, draw: Draw, builder: GraphBuilder) -> None:
        self.draw, self.builder = draw, builder
        self.pool: list[Value] = []

    def pick(self, fits: Callable[[Value], bool]) -> Value | None:
        suitable = [value for value in self.pool if fits(value)]
        return self.draw(st.sampled_from(suitable)) if suitable else None

    def floats(self, rank: int = 0) -> Value | None:
        return self.pick(lambda value: value.type.dtype == f32 and value.type.rank >= rank)

    def unary(self, emit: Emitter) -> Value | None:
        x = self.floats()
        return emit(self.draw(st.sampled_from(["neg", "tanh", "sigmoid", "silu", "cos", "relu"])), x) if x else None

    def binary(self, emit: Emitter) -> Value | None:
        x = self.floats()
        y = x and self.pick(lambda value: value.type == x.type)
        if x is None or y is None:
            return None
        result = emit(self.draw(st.sampled_from(["add", "sub", "mul", "maximum"])), x, y)
        return emit("tanh", result) if self.draw(st.booleans()) else emit("sigmoid", result)

    def scaled(self, emit: Emitter) -> Value | None:
        x = self.floats()
        factor = self.draw(st.sampled_from([0.0, -0.0, 0.5, -1.25, 1e-30, float("inf")]))
        return emit("maximum", x, emit("constant", dtype=f32, shape=(), values=(factor,))) if x else None

    def selected(self, emit: Emitter) -> Value | None:
        x = self.floats()
        y = x and self.pick(lambda value: value.type == x.type)
        return emit("select", emit("less", x, y), y, x) if x and y else None

    def reduced(self, emit: Emitter) -> Value | None:
        x = self.floats(1)
        return emit("mul", x, emit("reduce_max", x)) if x else None

    def softmax(self, emit: Emitter) -> Value | None:
        x = self.floats(1)
        return emit("softmax", x) if x else None

    def transposed(self, emit: Emitter) -> Value | None:
        x = self.floats(2)
        return emit("transpose", x, axes=tuple(self.draw(st.permutations(range(x.type.rank))))) if x else None

    def flattened(self, emit: Emitter) -> Value | None:
        x = self.floats(2)
        return emit("reshape", x, shape=(x.type.num_elements,)) if x else None

    def joined(self, emit: Emitter) -> Value | None:
        x = self.floats(1)
        return emit("concat", x, x, axis=self.draw(st.integers(0, x.type.rank - 1))) if x and x.type.rank < 4 else None

    def product(self, emit: Emitter) -> Value | None:
        x = self.floats(2)
        if x is None:
            return None
        axes = [*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2]
        return emit("tanh", emit("matmul", x, emit("transpose", x, axes=tuple(axes))))

    def counted(self, emit: Emitter) -> Value | None:
        return emit("cast", emit("iota", size=self.draw(st.sampled_from([SEQ, BATCH, 3]))), dtype=f32)

    def normalised(self, emit: Emitter) -> Value | None:
        x = self.floats(1)
        if x is None or not isinstance(x.type.shape[-1], int) or x.type.shape[-1] > 16:
            return None
        width = x.type.shape[-1]
        weight = emit("constant", dtype=f32, shape=(width,), values=tuple(1.0 + i / 8 for i in range(width)))
        return emit("rms_norm", x, weight, eps=1e-5, plus_one=self.draw(st.booleans()))

    def rotated(self, emit: Emitter) -> Value | None:
        x = self.pick(lambda value: value.type.rank == 2 and value.type.shape[0] == SEQ and value.type.shape[1] == 8)
        if x is None:
            return None
        index = emit("iota", size=SEQ)
        frequencies = emit("constant", dtype=f32, shape=(2,), values=(1.0, 0.01))
        cos, sin = emit.many("rope_table", index, frequencies)
        return emit("rope", x, cos, sin, num_heads=2)

    STEPS = (
        unary, binary, scaled, selected, reduced, softmax, transposed, flattened, joined, product, counted,
        normalised, rotated,
    )  # fmt: skip


@st.composite
def graphs(draw: Draw, max_nodes: int = 12) -> Graph:
    """A well-typed graph: inputs `tokens` (i32[seq]), `x` (f32[seq, 8]), `y` (f32[batch, 3, seq]), some of the ops."""
    builder = GraphBuilder(draw(st.sampled_from(["g", "llama.step", "a-b/c"])))
    grower = _Grower(draw, builder)
    tokens = builder.input("tokens", tensor(i32, SEQ))
    grower.pool += [builder.input("x", tensor(f32, SEQ, 8)), builder.input("y", tensor(f32, BATCH, 3, SEQ))]
    table = Emitter(builder)("constant", dtype=f32, shape=(4, 8), values=tuple(i / 7 - 2 for i in range(32)))
    grower.pool.append(Emitter(builder)("take_rows", table, tokens))
    for step in range(draw(st.integers(1, max_nodes))):
        location = Location(f"layers.{step}", draw(st.sampled_from(["", "block.py:12", 'odd "name".py:3'])))
        made = draw(st.sampled_from(grower.STEPS))(grower, Emitter(builder, location))
        if made is not None:
            grower.pool.append(made)
    for i, value in enumerate(draw(st.lists(st.sampled_from(grower.pool), min_size=1, max_size=3))):
        builder.output(f"out{i}", value)
    return builder.build()


def bound_inputs(graph: Graph, seed: int, seq: int, batch: int) -> dict[str, NDArray[Any]]:
    """Inputs for a graph of `graphs()`."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in graph.inputs:
        shape = concrete_shape(value.type, {"seq": seq, "batch": batch})
        arrays[name] = _array(rng, value.type.dtype, shape)
    return arrays


def _array(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.integers(0, 4, shape).astype(np.int32) if dtype == i32 else rng.standard_normal(shape, np.float32)


MARKS = [*'0129-+*.,:=%"\\{}()[] \n\t', "\0", "²", "seq", "none", "f32", "q4_0", "1e999", "9" * 40, "[" * 40]


@st.composite
def damaged(draw: Draw, text: str) -> str:
    """A text with a few characters or lines removed, doubled, swapped or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        kind = draw(st.sampled_from(["delete", "insert", "replace", "cut", "drop_line", "double_line", "swap_lines"]))
        at, row = draw(st.integers(0, len(text))), draw(st.integers(0, len(lines) - 1))
        other = draw(st.integers(0, len(lines) - 1))
        mark = draw(st.sampled_from(MARKS))
        if kind == "delete":
            text = text[:at] + text[at + draw(st.integers(1, 6)) :]
        elif kind == "insert":
            text = text[:at] + mark + text[at:]
        elif kind == "replace":
            text = text[:at] + mark + text[at + 1 :]
        elif kind == "cut":
            text = text[:at]
        else:
            if kind == "drop_line":
                del lines[row]
            elif kind == "double_line":
                lines.insert(row, lines[row])
            else:
                lines[row], lines[other] = lines[other], lines[row]
            text = "\n".join(lines)
    return text
