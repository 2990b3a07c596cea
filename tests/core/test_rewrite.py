"""Dead code, common nodes, substitution, inlining and pattern rewriting: results stay, and what should go goes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Graph, GraphBuilder, Location, Node, Value
from rlx.core.rewrite import Rewriter, eliminate_dead, inline_graph, merge_common, rewrite, substitute_values
from rlx.core.text import print_graph
from rlx.core.type import tensor
from rlx.core.verify import verify
from rlx.errors import VerifyError
from rlx.ops.op import Emitter
from tests.strategies import bound_inputs, graphs

SEQ = Dim("seq", max=64)


def fuse_silu_mul(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
    """mul(silu(x), y), where nobody else reads the silu, becomes swiglu(x, y)."""
    if node.op != "mul" or node.inputs[0].type != node.inputs[1].type:
        return None
    gate = rewriter.only_use(node.inputs[0], "silu")
    return None if gate is None else [rewriter.emit("swiglu", gate.inputs[0], node.inputs[1])]


def drop_double_negation(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
    if node.op != "neg" or (inner := rewriter.producer(node.inputs[0], "neg")) is None:
        return None
    return inner.inputs


def spell_out_sigmoid(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
    """silu(x) becomes x * sigmoid(x), by way of a node that is not needed."""
    if node.op != "silu":
        return None
    x = node.inputs[0]
    rewriter.emit("exp", x)
    return [rewriter.emit("mul", x, rewriter.emit("sigmoid", x))]


def change_mind(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
    if node.op == "tanh":
        rewriter.emit("neg", rewriter.emit("tanh", node.inputs[0]))
    return None


PASSES = {
    "eliminate_dead": eliminate_dead,
    "merge_common": merge_common,
    "substitute_nothing": lambda graph: substitute_values(graph, {}),
    "fuse_silu_mul": lambda graph: rewrite(graph, fuse_silu_mul),
    "drop_double_negation": lambda graph: rewrite(graph, drop_double_negation),
    "spell_out_sigmoid": lambda graph: rewrite(graph, spell_out_sigmoid),
    "change_mind": lambda graph: rewrite(graph, change_mind),
}


@pytest.mark.parametrize("name", PASSES)
@given(graph=graphs(), seed=st.integers(0, 9))
def test_passes_preserve_results_and_are_valid_and_stable(name: str, graph: Graph, seed: int) -> None:
    before = print_graph(graph)
    after = PASSES[name](graph)
    assert print_graph(graph) == before, "a pass changed its operand"
    verify(after, "hir", after=name)
    assert [n for n, _ in after.inputs] == [n for n, _ in graph.inputs]
    arrays = bound_inputs(graph, seed, seq=3, batch=2)
    expected, found = run_graph(graph, arrays), run_graph(after, arrays)
    assert list(found) == list(expected)
    for key in expected:
        # silu and its two factors are the same float64 operations; nothing else is computed anew
        np.testing.assert_array_equal(found[key], expected[key])
    assert print_graph(PASSES[name](after)) == print_graph(after)


@given(graphs())
def test_use_counts_stay_exact_during_a_walk(graph: Graph) -> None:
    rewriters: list[Rewriter] = []

    def rule(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
        rewriters.append(rewriter)
        return (
            fuse_silu_mul(node, rewriter) or drop_double_negation(node, rewriter) or spell_out_sigmoid(node, rewriter)
        )

    result = rewrite(graph, rule)
    for value, count in result.uses().items():
        assert not rewriters or rewriters[-1].uses(value) == count


def chain(build: str) -> tuple[GraphBuilder, Emitter, Value, Value]:
    builder = GraphBuilder(build)
    x, y = builder.input("x", tensor(f32, SEQ, 8)), builder.input("y", tensor(f32, SEQ, 8))
    return builder, Emitter(builder, Location("layers.0.mlp", "mlp.py:9")), x, y


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_dead_nodes_go_and_inputs_stay() -> None:
    builder, emit, x, y = chain("g")
    emit("neg", emit("exp", y))
    builder.output("out", emit("tanh", x))
    graph = eliminate_dead(builder.build())
    assert ops(graph) == ["tanh"]
    assert len(graph.inputs) == 2


def test_common_nodes_are_computed_once() -> None:
    builder, emit, x, y = chain("g")
    first = emit("mul", emit("tanh", x), emit("neg", y))
    second = emit("mul", emit("tanh", x), emit("neg", y))
    builder.output("out", emit("add", first, second))
    assert ops(merge_common(builder.build())) == ["tanh", "neg", "mul", "add"]


def test_what_differs_in_value_or_kind_is_not_common() -> None:
    builder, emit, x, _ = chain("g")
    for i, literal in enumerate((0.0, -0.0, 1, 1.0)):
        constant = emit("constant", dtype=f32, shape=(), values=(literal,))
        builder.output(f"out{i}", emit("mul", x, constant))
    assert len(merge_common(builder.build()).nodes) == 8


def test_parameters_with_one_key_are_one() -> None:
    builder, emit, x, _ = chain("g")
    weights = [emit("parameter", key="w", dtype=f32, shape=(8, 8)) for _ in range(3)]
    other = emit("parameter", key="v", dtype=f32, shape=(8, 8))
    for i, weight in enumerate([*weights, other]):
        builder.output(f"out{i}", emit("linear", x, weight))
    merged = merge_common(builder.build())
    assert [key for key, _ in merged.parameters()] == ["w", "v"]
    assert ops(merged).count("linear") == 2


def test_merging_is_linear() -> None:
    def seconds(count: int) -> float:
        builder, emit, x, _ = chain("g")
        for _ in range(count):
            x = emit("tanh", x)
        builder.output("out", x)
        graph = builder.build()
        start = time.perf_counter()
        assert len(merge_common(graph).nodes) == count
        return time.perf_counter() - start

    seconds(100)
    # ten times the nodes: a quadratic pass would take a hundred times as long
    assert min(seconds(10_000) for _ in range(3)) < 40 * min(seconds(1_000) for _ in range(3))


def test_a_pattern_fuses_at_the_location_of_its_last_node() -> None:
    builder, emit, x, y = chain("g")
    gate = emit("silu", x)
    builder.output("out", Emitter(builder, Location("layers.0.gate", "swiglu.py:3"))("mul", gate, y))
    graph = rewrite(builder.build(), fuse_silu_mul)
    assert ops(graph) == ["swiglu"]
    assert graph.nodes[0].location == Location("layers.0.gate", "swiglu.py:3")


def test_a_value_read_twice_is_not_fused_away() -> None:
    builder, emit, x, y = chain("g")
    gate = emit("silu", x)
    builder.output("out", emit("mul", gate, y))
    builder.output("gate", gate)
    assert ops(rewrite(builder.build(), fuse_silu_mul)) == ["silu", "mul"]


def test_a_second_reader_that_was_fused_away_does_not_count() -> None:
    builder, emit, x, y = chain("g")
    gate = emit("silu", x)
    twice = emit("neg", emit("neg", gate))  # one reader of gate, which becomes gate itself
    builder.output("out", emit("mul", twice, y))

    def rule(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
        return drop_double_negation(node, rewriter) or fuse_silu_mul(node, rewriter)

    assert ops(rewrite(builder.build(), rule)) == ["swiglu"]


def test_a_chain_is_rewritten_in_one_walk() -> None:
    builder, emit, x, _ = chain("g")
    for _ in range(7):
        x = emit("neg", x)
    builder.output("out", x)
    assert ops(rewrite(builder.build(), drop_double_negation)) == ["neg"]


def test_a_rule_that_changes_a_type_is_refused_with_the_location() -> None:
    builder, emit, x, _ = chain("g")
    builder.output("out", emit("reduce_max", x))
    with pytest.raises(VerifyError, match="other types") as error:
        rewrite(builder.build(), lambda node, rewriter: node.inputs if node.op == "reduce_max" else None)
    assert "layers.0.mlp (mlp.py:9)" in str(error.value)


def test_several_outputs_are_replaced_together() -> None:
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    index = builder.input("index", tensor(i32, SEQ))
    frequencies = emit("constant", dtype=f32, shape=(2,), values=(1.0, 0.5))
    cos, sin = emit.many("rope_table", index, frequencies)
    builder.output("cos", cos)
    builder.output("sin", emit("neg", sin))

    def rule(node: Node, rewriter: Rewriter) -> Sequence[Value] | None:
        return rewriter.emit.many("rope_table", *node.inputs, scaling=2.0) if node.op == "rope_table" else None

    graph = rewrite(builder.build(), rule)
    array = np.array([0, 3], np.int32)
    np.testing.assert_allclose(run_graph(graph, {"index": array})["cos"], 2 * np.cos([[0, 0], [3, 1.5]]), rtol=1e-15)


def test_substitution_follows_chains_and_outputs() -> None:
    builder, emit, x, y = chain("g")
    a = emit("tanh", x)
    b = emit("neg", y)
    builder.output("out", emit("exp", b))
    builder.output("raw", b)
    graph = eliminate_dead(substitute_values(builder.build(), {b: a, a: x}))
    assert ops(graph) == ["exp"]
    assert graph.nodes[0].inputs == (x,)
    assert dict(graph.outputs)["raw"] is x


def test_a_graph_is_inlined_with_its_locations() -> None:
    inner_builder, emit, x, y = chain("inner")
    inner_builder.output("out", emit("mul", emit("silu", x), y))
    inner = inner_builder.build()
    builder = GraphBuilder("outer")
    a = builder.input("a", tensor(f32, SEQ, 8))
    once = inline_graph(builder, inner, {"x": a, "y": a})["out"]
    builder.output("out", inline_graph(builder, inner, {"x": once, "y": a})["out"])
    graph = builder.build()
    verify(graph, "hir")
    assert ops(graph) == ["silu", "mul"] * 2
    assert graph.nodes[0].location == Location("layers.0.mlp", "mlp.py:9")
    array = np.random.default_rng(0).standard_normal((3, 8))
    half = run_graph(inner, {"x": array, "y": array})["out"]
    expected = run_graph(inner, {"x": half, "y": array})["out"]
    np.testing.assert_array_equal(run_graph(graph, {"a": array})["out"], expected)
    with pytest.raises(VerifyError, match="input y does not fit"):
        inline_graph(builder, inner, {"x": a})
