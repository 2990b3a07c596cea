"""The arena: buffers that are live at the same time never share a byte, for any sizes; and the plan is worth having."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.core.dim import Dim, evaluate
from rlx.core.dtype import f32
from rlx.core.graph import GraphBuilder
from rlx.core.type import tensor
from rlx.lir.program import ALIGNMENT, Program
from rlx.lir.sizes import SizeTable
from rlx.ops.op import Emitter
from tests.lir.lowering import lowered, step_program
from tests.strategies import graphs, sizes, values_of_symbols


def check_arena(program: Program, dims: dict[str, int]) -> None:
    """From the order of the groups alone: in each, everything between first and last touch keeps its own bytes.

    Steps of a group run at the same time, so what one of them reads for the last time may not be written by another.
    """
    offsets, total = program.arena_offsets(dims)
    arena = [i for i, buffer in enumerate(program.buffers) if buffer.kind == "arena"]
    groups: list[set[int]] = []
    for step in program.steps:
        if not step.beside:
            groups.append(set())
        groups[-1].update(step.buffers)
    touched = {b: [g for g, buffers in enumerate(groups) if b in buffers] for b in arena}
    assert all(touched[b] for b in arena), "a buffer that no step touches"
    assert set(offsets) == set(arena)
    for group in range(len(groups)):
        live = [b for b in arena if touched[b][0] <= group <= touched[b][-1]]
        spans = sorted((offsets[b], offsets[b] + evaluate(program.buffers[b].type.nbytes, dims)) for b in live)
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start, "two live buffers overlap"
        assert all(start % ALIGNMENT == 0 and start >= 0 and end <= total for start, end in spans)


@given(graphs(max_nodes=20), values_of_symbols)
@settings(max_examples=60)
def test_live_buffers_do_not_overlap(graph, dims: dict[str, int]) -> None:
    check_arena(lowered(graph), dims)


def test_the_step_program_at_many_sizes() -> None:
    program, _ = step_program()
    for tokens in (1, 7, 512):
        for rows in (0, 1, tokens):
            check_arena(program, {"T": tokens, "R": rows, "S": 3, "P": 2, "N": 8})


def test_a_chain_needs_two_slots_however_long() -> None:
    """Each step reads one buffer and writes one; the output is the caller's."""
    n = Dim("n", max=64)
    builder = GraphBuilder("chain")
    emit = Emitter(builder)
    value = builder.input("x", tensor(f32, n, 8))
    for _ in range(10):
        value = emit("softmax", emit("transpose", value, axes=(1, 0)))
        value = emit("softmax", emit("transpose", value, axes=(1, 0)))
    builder.output("y", value)
    program = lowered(builder.build())
    arena = sum(buffer.kind == "arena" for buffer in program.buffers)
    assert arena > 20
    # a softmax keeps its input, its row maximum, the exponentials and their sum
    assert len(program.slots) <= 5
    check_arena(program, {"n": 64})


@given(st.lists(sizes, min_size=1, max_size=12), values_of_symbols)
def test_sizes_are_evaluated_at_once_as_one_by_one(trees, dims: dict[str, int]) -> None:
    table = SizeTable([tree.size for tree in trees])
    expected = np.array([tree.number(dims) for tree in trees])
    assert np.array_equal(table.evaluate(dims), expected)
