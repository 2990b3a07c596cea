"""Each rule of `verify` broken on purpose: the message names the node, its location and the pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given

from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Graph, GraphBuilder, Location, Node, Value
from rlx.core.type import tensor
from rlx.core.verify import verify
from rlx.errors import VerifyError
from rlx.ops.op import Emitter
from tests.strategies import graphs

SEQ = Dim("seq", max=64)
HERE = Location("layers.3.mlp", "swiglu.py:12")


def valid() -> Graph:
    builder = GraphBuilder("step")
    x = builder.input("x", tensor(f32, SEQ, 8))
    emit = Emitter(builder, HERE)
    weight = emit("parameter", key="w", dtype=f32, shape=(4, 8))
    builder.output("y", emit("soft_cap", emit("linear", x, weight), cap=3.0))
    return builder.build()


def changed(graph: Graph, position: int, **parts: object) -> Graph:
    """The graph with one node rebuilt."""
    node = graph.nodes[position]
    fields = {"op": node.op, "inputs": node.inputs, "attrs": node.attrs, "outputs": node.outputs, **parts}
    nodes = list(graph.nodes)
    nodes[position] = Node(**fields, location=node.location)  # type: ignore[arg-type]
    return Graph(graph.name, graph.inputs, tuple(nodes), graph.outputs)


def swapped(graph: Graph) -> Graph:
    return Graph(graph.name, graph.inputs, graph.nodes[::-1], graph.outputs)


def repeated(graph: Graph) -> Graph:
    return Graph(graph.name, graph.inputs, (*graph.nodes, graph.nodes[-1]), graph.outputs)


def renamed(graph: Graph, name: str, inputs: list[str], outputs: list[str]) -> Graph:
    x, y = graph.inputs[0][1], graph.outputs[0][1]
    spare = [Value(x.type) for _ in inputs[1:]]
    named = tuple(zip(inputs, [x, *spare], strict=True))
    return Graph(name, named, graph.nodes, tuple((output, y) for output in outputs))


def two_types_of_a_key(graph: Graph) -> Graph:
    builder = GraphBuilder("step", list(graph.inputs), list(graph.nodes), list(graph.outputs))
    Emitter(builder, HERE)("parameter", key="w", dtype=f32, shape=(8, 4))
    return builder.build()


def two_bounds_of_a_symbol(graph: Graph) -> Graph:
    builder = GraphBuilder("step", list(graph.inputs), list(graph.nodes), list(graph.outputs))
    Emitter(builder, HERE)("iota", size=Dim("seq", max=65))
    return builder.build()


BROKEN: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "order": (swapped, "operand 0 is read before it is made"),
    "stranger": (
        lambda g: changed(g, 1, inputs=(g.inputs[0][1], Value(tensor(f32, 4, 8)))),
        "operand 1 is read before",
    ),
    "twice": (repeated, "defined twice"),
    "unknown op": (lambda g: changed(g, 2, op="soft_hat"), "no op called soft_hat"),
    "missing attribute": (lambda g: changed(g, 2, attrs={}), "attributes are not those of the op"),
    "extra attribute": (lambda g: changed(g, 2, attrs={"cap": 3.0, "hat": 1}), "attributes are not those of the op"),
    "refused attribute": (lambda g: changed(g, 2, attrs={"cap": -3.0}), "has to be positive"),
    "wrong type": (lambda g: changed(g, 2, outputs=(Value(tensor(f32, SEQ, 5)),)), "types are not those the op infers"),
    "no output": (lambda g: changed(g, 2, outputs=()), "types are not those the op infers"),
    "arity": (lambda g: changed(g, 2, inputs=g.nodes[2].inputs * 2), "wrong number of operands"),
    "key": (two_types_of_a_key, "parameter w has two types"),
    "bounds": (two_bounds_of_a_symbol, "seq has two pairs of bounds"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named_with_node_location_and_pass(name: str) -> None:
    break_it, message = BROKEN[name]
    with pytest.raises(VerifyError, match=message) as error:
        verify(break_it(valid()), "mir", after="fuse_siblings")
    assert "layers.3.mlp (swiglu.py:12)" in str(error.value)
    assert "after the pass fuse_siblings" in str(error.value)
    assert "= " in str(error.value.where)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (renamed(valid(), "step", ["x", "x"], ["y"]), "two inputs are called x"),
        (renamed(valid(), "step", ["x"], ["y", "y"]), "two outputs are called y"),
        (renamed(valid(), "step", ["0"], ["y"]), "an input needs a printable name"),
        (renamed(valid(), "step", ["x"], ["y z"]), "an output needs a printable name"),
        (renamed(valid(), "a graph", ["x"], ["y"]), "a graph needs a printable name"),
        (Graph("g", (), (), (("y", Value(tensor(i32, 3))),)), "the output y is a value that no node makes"),
    ],
)
def test_names_are_unique_and_printable_and_outputs_are_made(graph: Graph, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(graph, "mir")


def test_levels_allow_their_own_ops_only() -> None:
    builder = GraphBuilder("g")
    tokens = builder.input("tokens", tensor(i32, SEQ))
    builder.output("y", Emitter(builder)("positions", tokens))
    verify(builder.build(), "hir")
    with pytest.raises(VerifyError, match="positions is not allowed on this level"):
        verify(builder.build(), "mir")
    builder = GraphBuilder("g")
    x = builder.input("x", tensor(f32, SEQ))
    builder.output("y", Emitter(builder)("elementwise", x, expression="neg($0)"))
    verify(builder.build(), "mir")
    with pytest.raises(VerifyError, match="elementwise is not allowed on this level"):
        verify(builder.build(), "hir")


def test_attributes_that_compare_equal_but_differ_in_kind_are_inferred_apart() -> None:
    """1, 1.0 and True are equal in Python: a cache keyed by value would accept the second because of the first."""
    builder = GraphBuilder("g")
    x = builder.input("x", tensor(f32, 3, 4))
    emit = Emitter(builder)
    builder.output("a", emit("transpose", x, axes=(1, 0)))
    graph = builder.build()
    twin = Node("transpose", (x,), {"axes": (True, 0)}, (Value(tensor(f32, 4, 3)),))
    verify(graph, "mir")
    broken = Graph("g", graph.inputs, (*graph.nodes, twin), (*graph.outputs, ("b", twin.output)))
    with pytest.raises(VerifyError, match="permutation"):
        verify(broken, "mir")


@given(graphs())
def test_every_built_graph_is_valid(graph: Graph) -> None:
    verify(graph, "hir")
    verify(graph, "mir")


def test_six_hundred_nodes_take_less_than_thirty_milliseconds() -> None:
    builder = GraphBuilder("deep")
    x = builder.input("x", tensor(f32, SEQ, 64))
    for layer in range(100):
        emit = Emitter(builder, Location(f"layers.{layer}", "block.py:1"))
        weights = [emit("parameter", key=f"{layer}.{i}", dtype=f32, shape=(64, 64)) for i in range(2)]
        up = emit("silu", emit("linear", x, weights[0]))
        x = emit("add", x, emit("linear", up, weights[1]))
    builder.output("y", x)
    graph = builder.build()
    assert len(graph.nodes) == 600
    seconds: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        verify(graph, "mir")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.03
