"""Steps beside each other need nothing of each other, and running them so changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import rlx
from rlx.core.dtype import f32
from rlx.core.graph import GraphBuilder
from rlx.core.type import tensor
from rlx.flow import Profile
from rlx.lir.program import Program
from rlx.ops.op import Emitter
from tests.lir.lowering import lowered, step_program
from tests.strategies import graphs


def check_groups(program: Program) -> None:
    """No step of a group touches what another step of it writes."""
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(program.groups):
        groups.setdefault(group, []).append(index)
    for members in groups.values():
        assert not program.steps[members[0]].beside
        for a in members:
            for b in members:
                if a != b:
                    assert not set(program.steps[a].written) & set(program.steps[b].buffers)


@given(graphs(max_nodes=20))
@settings(max_examples=60)
def test_no_step_waits_for_nothing_or_runs_too_early(graph) -> None:
    check_groups(lowered(graph))


def test_q_k_and_v_run_beside_each_other_and_so_do_gate_and_up() -> None:
    program, _ = step_program()
    check_groups(program)
    linear = [step for step in program.steps if program.kernels[step.kernel].op == "linear"]
    # q | k v, o, gate | up, down, head
    assert [step.beside for step in linear] == [False, True, True, False, False, True, False, False]
    # what every step writes is known: its results, and a cache in place
    assert all(step.written for step in program.steps)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_are_those_of_one_step_after_the_other(threads: int) -> None:
    n = rlx.Dim("n", max=4096)
    builder = GraphBuilder("wide")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, n, 48))
    parts = [
        emit("softmax", emit("mul", x, emit("constant", dtype=f32, shape=(), values=(float(i),)))) for i in range(9)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = emit("add", emit("tanh", total), part)
    builder.output("y", emit("reduce_sum", total))
    graph = builder.build()
    array = np.random.default_rng(3).standard_normal((517, 48)).astype(np.float32)
    plain = rlx.compile(graph, threads=1, profile=Profile(fusion=False))
    wide = rlx.compile(graph, threads=threads)
    expected = plain(x=array)["y"]
    for _ in range(50):
        assert np.array_equal(wide(x=array)["y"], expected)
    plain.close()
    wide.close()
