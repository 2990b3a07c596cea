"""Lowering: what shares memory, what may be updated in place, and what is refused."""

from __future__ import annotations

import pytest

from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Graph, GraphBuilder, Value
from rlx.core.type import tensor
from rlx.errors import UnsupportedOpError, VerifyError
from rlx.lir.lower import lower
from rlx.ops.op import Emitter
from rlx.ops.paged_attention import cache_types
from tests.lir.lowering import BACKEND, lowered, step_program


class Appending:
    """A graph under construction that appends to a cache."""

    def __init__(self, cache: str = "input") -> None:
        self.builder = GraphBuilder("g")
        self.emit = Emitter(self.builder)
        k_type, v_type = cache_types(4, 1, 8, 16)
        tokens = Dim("T", max=16)
        if cache == "input":
            self.k, self.v = self.builder.input("k", k_type), self.builder.input("v", v_type)
        elif cache == "weight":
            self.k, self.v = (
                self.emit("parameter", key=key, dtype=f32, shape=type_.shape)
                for key, type_ in (("k", k_type), ("v", v_type))
            )
        else:
            self.k, self.v = (
                self.emit("neg", self.builder.input(key, type_)) for key, type_ in (("k", k_type), ("v", v_type))
            )
        self.row = self.builder.input("row", tensor(f32, tokens, 8))
        self.index = [self.builder.input(name, tensor(i32, tokens)) for name in ("positions", "sequences")]
        self.index.append(self.builder.input("table", tensor(i32, 1, 2)))

    def append(self, k: Value | None = None, v: Value | None = None) -> tuple[Value, ...]:
        return self.emit.many("cache_append", k or self.k, v or self.v, self.row, self.row, *self.index)

    def built(self, *outputs: Value) -> Graph:
        for i, value in enumerate(outputs):
            self.builder.output(f"y{i}", value)
        return self.builder.build()


def test_an_in_place_result_has_the_buffer_of_its_operand() -> None:
    g = Appending()
    program = lowered(g.built(*g.append()))
    assert dict(program.outputs) == {"y0": 0, "y1": 1}
    assert program.inputs[:2] == (("k", 0), ("v", 1))
    (step,) = program.steps
    assert len(step.buffers) == 7
    assert [buffer.name for buffer in program.buffers if buffer.updated] == ["k", "v"]


def test_a_chain_of_updates_and_a_computed_cache_are_allowed() -> None:
    g = Appending()
    first = g.append()
    program = lowered(g.built(*g.append(*first)))
    assert dict(program.outputs) == {"y0": 0, "y1": 1}
    lowered(Appending("computed").built())
    computed = Appending("computed")
    lowered(computed.built(*computed.append()))


READ_LATER = "read later"


def test_reading_the_old_value_later_is_refused() -> None:
    g = Appending()
    new = g.append()
    with pytest.raises(VerifyError, match=READ_LATER):
        lower(g.built(*new, g.emit("transpose", g.k, axes=(1, 0, 2, 3))), BACKEND)


def test_reading_the_old_value_through_a_reshape_is_refused() -> None:
    g = Appending()
    before = g.emit("reshape", g.k, shape=(4 * 8, 16))
    new = g.append()
    with pytest.raises(VerifyError, match=READ_LATER):
        lower(g.built(*new, g.emit("transpose", before, axes=(1, 0))), BACKEND)
    g = Appending()
    new = g.append()
    after = g.emit("reshape", g.k, shape=(4 * 8, 16))
    with pytest.raises(VerifyError, match=READ_LATER):
        lower(g.built(*new, g.emit("transpose", after, axes=(1, 0))), BACKEND)


def test_giving_out_the_old_value_is_refused() -> None:
    g = Appending()
    new = g.append()
    with pytest.raises(VerifyError, match=READ_LATER):
        lower(g.built(*new, g.k), BACKEND)


def test_updating_a_weight_is_refused() -> None:
    """The next run would start from the changed weight."""
    g = Appending("weight")
    with pytest.raises(VerifyError, match="weight or constant"):
        lower(g.built(*g.append()), BACKEND)


def test_a_reshape_is_another_name_for_the_same_buffer() -> None:
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, 6, 4))
    a = emit("transpose", emit("reshape", x, shape=(4, 6)), axes=(1, 0))
    builder.output("y", emit("reshape", emit("transpose", emit("reshape", a, shape=(3, 8)), axes=(1, 0)), shape=(24,)))
    program = lowered(builder.build())
    assert [buffer.kind for buffer in program.buffers] == ["input", "arena", "output"]
    # the caller sees the type of the output, not that of the kernel's result
    assert program.buffers[2].type == tensor(f32, 24)


def test_equal_kernels_are_one_and_a_weight_is_held_once_per_layout() -> None:
    program, _ = step_program()
    assert len(set(program.kernels)) == len(program.kernels)
    assert len(program.kernels) < len(program.steps)
    weights = [(buffer.name, buffer.layout) for buffer in program.buffers if buffer.kind == "weight"]
    assert len(set(weights)) == len(weights)
    builder = GraphBuilder("twice")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, 3, 16))
    for i in range(2):
        w = emit("parameter", key="w", dtype=f32, shape=(16, 16))
        builder.output(f"y{i}", emit("linear", emit("tanh", x) if i else x, w))
    assert sum(buffer.kind == "weight" for buffer in lowered(builder.build()).buffers) == 1


def test_a_graph_that_was_not_legalised_is_refused() -> None:
    builder = GraphBuilder("g")
    x = builder.input("x", tensor(f32, 3, 16))
    builder.output("y", Emitter(builder)("softmax", x))
    with pytest.raises(UnsupportedOpError, match="softmax"):
        lower(builder.build(), BACKEND)
