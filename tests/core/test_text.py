"""Graphs as text: a fixpoint, the same results after reading back, and damaged text refused with a ParseError."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.backends.reference import run_graph
from rlx.core.dtype import f32
from rlx.core.graph import Graph, GraphBuilder, Location
from rlx.core.text import parse_graph, print_graph
from rlx.core.type import tensor
from rlx.core.verify import verify
from rlx.errors import ParseError, RlxError, VerifyError
from rlx.ops.op import Emitter
from tests.strategies import bound_inputs, damaged, graphs

TEXT = """graph step {
  dim seq in 1..64
  input x: f32[seq, 4]
  %0 = parameter() {dtype=q4_0, key="w \\"1\\"", shape=[8, 32]} : q4_0[8, 32]
  %1 = constant() {dtype=f32, shape=[2], values=[-inf, 1e-30]} : f32[2]
  %2 = soft_cap(%x) {cap=3.0} : f32[seq, 4]  loc("layers.0", "block.py:7")
  %3 = reshape(%2) {shape=[4*seq]} : f32[4*seq]
  %4, %5 = rope_table(%6, %1) {scaling=1.0} : f32[seq, 2], f32[seq, 2]
  output y = %3
}
""".replace("%4, %5 = rope_table(%6, %1)", "%4 = iota() {size=seq} : i32[seq]\n  %5, %6 = rope_table(%4, %1)")


@given(graphs(), st.integers(0, 9), st.integers(1, 6), st.integers(1, 3))
def test_print_and_parse_is_a_fixpoint_with_the_same_results(graph: Graph, seed: int, seq: int, batch: int) -> None:
    verify(graph, "hir")
    text = print_graph(graph)
    again = parse_graph(text)
    verify(again, "hir")
    assert print_graph(again) == text
    assert [node.location for node in again.nodes] == [node.location for node in graph.nodes]
    arrays = bound_inputs(graph, seed, seq, batch)
    expected, found = run_graph(graph, arrays), run_graph(again, arrays)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_written_text_reads_and_prints_as_it_stands() -> None:
    graph = parse_graph(TEXT)
    verify(graph, "hir")
    assert print_graph(graph) == TEXT
    assert graph.nodes[2].location == Location("layers.0", "block.py:7")
    assert graph.nodes[0].attrs["key"] == 'w "1"'


def test_locations_can_be_left_out() -> None:
    assert "loc(" not in print_graph(parse_graph(TEXT), locations=False)


@given(st.data())
def test_damaged_text_gives_a_parse_error_or_a_graph_that_prints(data: st.DataObject) -> None:
    source = data.draw(st.one_of(st.just(TEXT), graphs(6).map(print_graph)))
    try:
        graph = parse_graph(data.draw(damaged(source)))
    except ParseError:
        return
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text
    with contextlib.suppress(VerifyError):  # any other error fails the test
        verify(graph, "mir", after="damage")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("graph step {", "graph step", "not the text of a graph"),
        ("}\n", "\n", "not the text of a graph"),
        ("in 1..64", "in 9..3", "bounds that hold no size"),
        ("dim seq in 1..64", "dim f32 in 1..64", "identifier"),
        ("dim seq in 1..64", "dim seq in 1..64\n  dim seq in 1..64", "declared twice"),
        ("f32[seq, 4]", "f99[seq, 4]", "unknown dtype"),
        ("f32[seq, 4]", "f32[len, 4]", "unknown dim len"),
        ("input x: f32[seq, 4]", "input x: f32[seq, 4] tail", "after the end"),
        ("input x: f32[seq, 4]", "input x: f32[seq, -4]", "negative"),
        ("q4_0[8, 32]", "q4_0[8, 31]", "whole blocks"),
        ("soft_cap(%x)", "soft_cap(%z)", "before it is made"),
        ("%2 = soft", "%1 = soft", "name of its own"),
        ("cap=3.0", "cap=3.0, cap=4.0", "given twice"),
        ("cap=3.0", "cap=" + "[" * 30, "nested too deep"),
        ("cap=3.0", 'cap="\\q"', "not a quoted string"),
        ("%5, %6 =", "%5 =", "as many types"),
        ('loc("layers.0"', "loc(layers", "not a quoted string"),
        ("output y = %3", "output y = %9", "before it is made"),
    ],
)
def test_what_cannot_be_read_is_named(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ParseError, match=message):
        parse_graph(TEXT.replace(old, new, 1))


def test_the_line_is_in_the_message() -> None:
    with pytest.raises(ParseError, match="line 6"):
        parse_graph(TEXT.replace("%2 = soft_cap(%x)", "%2 = soft_cap(%zz)"))


def test_a_broken_graph_can_still_be_printed() -> None:
    builder = GraphBuilder("g")
    stranger = GraphBuilder("other").input("x", tensor(f32, 3))
    builder.output("y", Emitter(builder)("neg", stranger))
    text = print_graph(builder.build())
    assert "neg(%undefined)" in text
    with pytest.raises(RlxError):
        parse_graph(text)
