"""Every MIR pass keeps what a graph computes (the float64 interpreter, before and after), and does what it is for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.target import resolve
from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32, q4_0, q4_1, q8_0, q8_act, q8x2_act
from rlx.core.graph import Graph, GraphBuilder, Value
from rlx.core.rewrite import eliminate_dead, merge_common
from rlx.core.storage import encode
from rlx.core.text import print_graph
from rlx.core.type import TensorType, tensor
from rlx.core.verify import verify
from rlx.errors import UnsupportedOpError
from rlx.flow.weights import DictWeights
from rlx.hir.derive_step import derive_step
from rlx.mir.fuse_elementwise import MAX_OPERATIONS, fuse_elementwise
from rlx.mir.fuse_residual import fuse_residual
from rlx.mir.fuse_rope import fuse_rope
from rlx.mir.legalize import FREE, legalize
from rlx.mir.quantize_activations import fuse_quantize, quantize_activations
from rlx.mir.round_attention import round_attention
from rlx.ops.elementwise import parse_expression
from rlx.ops.op import Emitter
from tests.lir.lowering import BACKEND, ONE_LAYER, WEIGHTS, step_graph
from tests.models.small_llama import llama_flow
from tests.strategies import bound_inputs, graphs

Arrays = dict[str, NDArray[np.generic]]


def same_results(before: Graph, after: Graph, inputs: Arrays, weights: DictWeights | None = None) -> None:
    """float64 on both sides; 1e-6 covers scalars that a decomposition holds as float32 constants."""
    expected, found = (run_graph(graph, inputs, weights) for graph in (before, after))
    assert list(expected) == list(found)
    for name, array in expected.items():
        assert np.array_equal(np.isnan(array), np.isnan(found[name]))
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


def step_inputs() -> Arrays:
    """Five rows of two sequences, one of them in the middle of its text."""
    rng = np.random.default_rng(0)
    return {
        "tokens": np.array([3, 1, 4, 1, 5], np.int32),
        "positions": np.array([0, 1, 2, 33, 34], np.int32),
        "sequences": np.array([0, 0, 0, 1, 1], np.int32),
        "page_table": np.array([[2, 0], [3, 1]], np.int32),
        "logit_rows": np.array([2, 4], np.int32),
        "k_cache.0": rng.standard_normal((4, 2, 8, 32)).astype(np.float32),
        "v_cache.0": rng.standard_normal((4, 2, 32, 8)).astype(np.float32),
    }


@cache
def quantised_step() -> tuple[Graph, DictWeights]:
    """The step program with all linear weights packed; q4_0, q4_1 and q8_0 in turn."""
    formats = (q4_1, q4_0, q8_0)
    tensors: dict[str, tuple[TensorType, NDArray[np.uint8]]] = {}
    for number, key in enumerate(WEIGHTS.keys()):
        type_, raw = WEIGHTS.type_of(key), WEIGHTS.raw(key)
        last = type_.shape[-1]
        if type_.rank == 2 and isinstance(last, int) and last % 32 == 0:
            dtype = formats[number % 3]
            values = raw.view(np.float32).reshape([size for size in type_.shape if isinstance(size, int)])
            tensors[key] = (type_.with_dtype(dtype), encode(dtype, values))
        else:
            tensors[key] = (type_, raw)
    weights = DictWeights(tensors)
    return derive_step(llama_flow(ONE_LAYER).build(weights)).graph, weights


def legal(graph: Graph) -> Graph:
    return legalize(graph, BACKEND)


PASSES: dict[str, Callable[[Graph], Graph]] = {
    "simplify": lambda graph: eliminate_dead(merge_common(graph)),
    "legalize": legal,
    "fuse_residual": lambda graph: fuse_residual(legal(graph), BACKEND),
    "fuse_rope": lambda graph: fuse_rope(legal(graph), BACKEND),
    "fuse_elementwise": lambda graph: fuse_elementwise(legal(graph)),
    "quantize_activations": lambda graph: quantize_activations(fuse_elementwise(legal(graph)), BACKEND),
    "fuse_quantize": lambda graph: fuse_quantize(fuse_elementwise(legal(graph)), BACKEND),
}
"""Each pass behind those it needs. A random graph has no packed weight, so nothing is rounded in it."""


@pytest.mark.parametrize("name", PASSES)
@given(graph=graphs(max_nodes=16), seed=st.integers(0, 99), seq=st.integers(1, 20), batch=st.integers(1, 4))
@settings(max_examples=30)
def test_a_pass_keeps_the_results_of_random_graphs(name: str, graph: Graph, seed: int, seq: int, batch: int) -> None:
    after = PASSES[name](graph)
    verify(after, "mir")
    same_results(graph, after, bound_inputs(graph, seed, seq, batch))


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_keeps_the_results_of_a_step_program(name: str) -> None:
    after = PASSES[name](step_graph())
    verify(after, "mir")
    same_results(step_graph(), after, step_inputs(), WEIGHTS)


def test_locations_survive_every_pass() -> None:
    graph = step_graph()
    paths = {node.location.path for node in graph.nodes if node.op == "linear"}
    assert len(paths) > 1
    for rewrite in PASSES.values():
        after = rewrite(graph)
        assert {node.location.path for node in after.nodes if node.op == "linear"} == paths
        assert all(node.location.source for node in after.nodes if node.op in ("rms_norm", "elementwise"))


# ---- legalize ----


@given(graph=graphs(max_nodes=16))
@settings(max_examples=40)
def test_legalize_leaves_only_what_has_a_kernel(graph: Graph) -> None:
    after = legal(graph)
    weights = {node.output for node in after.nodes if node.op == "parameter"}
    for node in after.nodes:
        if node.op not in FREE:
            assert BACKEND.why_not(node) is None
            assert all(node.inputs[position] in weights for position in BACKEND.plan(node).layouts)
    assert print_graph(legal(after)) == print_graph(after), "a legal graph is left as it is"


def test_a_computed_weight_goes_to_the_general_product() -> None:
    """The linear kernels pack their weight when it is loaded; a computed one cannot be packed."""
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x, w = (builder.input(name, tensor(f32, *shape)) for name, shape in (("x", (3, 8)), ("w", (5, 8))))
    builder.output("y", emit("linear", x, emit("tanh", w)))
    graph = builder.build()
    after = legal(graph)
    assert {node.op for node in after.nodes} == {"elementwise", "transpose", "matmul"}
    rng = np.random.default_rng(0)
    inputs: Arrays = {"x": rng.standard_normal((3, 8)), "w": rng.standard_normal((5, 8))}
    same_results(graph, after, inputs)


@pytest.mark.parametrize(
    ("scale", "tied", "op"), [(1.0, False, "take_rows"), (2.0, False, "embedding"), (1.0, True, "embedding")]
)
def test_rows_are_copied_from_a_table_that_nothing_else_reads(scale: float, tied: bool, op: str) -> None:
    builder = GraphBuilder("lookup")
    emit = Emitter(builder)
    tokens = builder.input("tokens", tensor(i32, Dim("seq", max=8)))
    table = emit("parameter", key="table", dtype=f32, shape=(40, 32))
    rows = emit("embedding", tokens, table, scale=scale)
    builder.output("y", emit("linear", rows, table) if tied else rows)
    graph = builder.build()
    after = legal(graph)
    assert op in [node.op for node in after.nodes]
    weights = DictWeights({"table": np.random.default_rng(3).normal(size=(40, 32)).astype(np.float32)})
    same_results(graph, after, {"tokens": np.array([39, 0, 7], np.int32)}, weights)


@pytest.mark.parametrize(
    ("target", "mask", "products"), [("avx512", "none", "bf16"), ("avx512", "causal", "f32"), ("avx2", "none", "f32")]
)
def test_attention_within_texts_multiplies_bfloat16_where_it_can(target: str, mask: str, products: str) -> None:
    builder = GraphBuilder("texts")
    emit, rows = Emitter(builder), tensor(f32, Dim("T", max=64), 64)
    q, k, v = (builder.input(name, rows) for name in "qkv")
    bounds = builder.input("bounds", tensor(i32, Dim("S", max=8) + 1))
    attrs = {"num_heads": 2, "num_kv_heads": 2, "scale": 0.2, "mask": mask}
    builder.output("y", emit("packed_attention", q, k, v, bounds, **attrs))
    [node] = round_attention(builder.build(), CpuBackend(resolve(target))).nodes
    assert node.attrs["products"] == products


def test_an_operand_of_another_shape_is_broadcast_first() -> None:
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, 2, Dim("n"), 4))
    middle = builder.input("m", tensor(f32, 2, 1, 4))
    builder.output("y", emit("add", x, middle))
    after = legal(builder.build())
    assert [node.op for node in after.nodes] == ["broadcast", "elementwise"]


def test_what_has_neither_kernel_nor_decomposition_is_refused_with_both_reasons() -> None:
    builder = GraphBuilder("g")
    packed = builder.input("w", tensor(q4_0, 4, 32))
    builder.output("y", Emitter(builder)("dequantize", packed))
    with pytest.raises(UnsupportedOpError) as caught:
        legal(builder.build())
    message = caught.value.message
    assert "cpu backend cannot run dequantize" in message
    assert "operand 0 has to be a weight" in message
    assert "each format has its own unpacking" in message


# ---- fuse_elementwise ----


def chain() -> tuple[GraphBuilder, Emitter, Value]:
    builder = GraphBuilder("chain")
    return builder, Emitter(builder), builder.input("x", tensor(f32, Dim("n"), 8))


def loops(graph: Graph) -> list[str]:
    return [str(node.attrs["expression"]) for node in graph.nodes if node.op == "elementwise"]


def fused(builder: GraphBuilder) -> Graph:
    return fuse_elementwise(legal(builder.build()))


def test_a_chain_becomes_one_loop_with_literals() -> None:
    builder, emit, x = chain()
    two = emit("constant", dtype=f32, shape=(), values=(2.0,))
    value = emit("tanh", emit("mul", emit("add", x, x), two))
    builder.output("y", emit("mul", emit("silu", value), x))
    assert loops(fused(builder)) == ["mul(silu(tanh(mul(add($0, $0), 2.0))), $0)"]


def test_a_value_that_is_read_twice_is_computed_once() -> None:
    builder, emit, x = chain()
    shared = emit("tanh", x)
    builder.output(
        "y", emit("add", emit("neg", shared), emit("transpose", emit("transpose", shared, axes=(1, 0)), axes=(1, 0)))
    )
    assert loops(fused(builder))[0] == "tanh($0)"
    builder, emit, x = chain()
    shared = emit("tanh", x)
    builder.output("kept", shared)
    builder.output("y", emit("neg", shared))
    assert loops(fused(builder)) == ["tanh($0)", "neg($0)"]


def test_a_condition_is_computed_where_it_is_used() -> None:
    """A mask of bytes is dearer to write and read than a comparison to repeat."""
    builder, emit, x = chain()
    y = builder.input("y", tensor(f32, Dim("n"), 8))
    condition = emit("less", x, y)
    builder.output("a", emit("select", condition, x, y))
    builder.output("b", emit("select", condition, y, x))
    assert loops(fused(builder)) == ["select(less($0, $1), $0, $1)", "select(less($0, $1), $1, $0)"]


def test_a_smaller_value_is_not_computed_again_for_every_row() -> None:
    builder, emit, x = chain()
    row = emit("tanh", builder.input("row", tensor(f32, 8)))
    builder.output("y", emit("add", x, row))
    assert loops(fused(builder)) == ["tanh($0)", "add($0, $1)"]


def test_an_expression_stays_bounded() -> None:
    builder, emit, x = chain()
    value = x
    for _ in range(60):
        value = emit("tanh", value)
    builder.output("y", value)
    graph = fused(builder)
    assert 1 < len(loops(graph)) < 60
    assert all(str(parse_expression(text)).count("tanh") * 4 <= MAX_OPERATIONS for text in loops(graph))


# ---- fuse_residual ----


def summed(make: Callable[[Emitter, Value, Value], dict[str, Value]]) -> Graph:
    """A graph of x [n, 8], a product of it [n, 8], and what `make` adds; with fused sums."""
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, Dim("n"), 8))
    w = emit("parameter", key="w", dtype=f32, shape=(8, 8))
    for name, value in make(emit, x, emit("linear", x, w)).items():
        builder.output(name, value)
    before = legal(builder.build())
    after = fuse_residual(before, BACKEND)
    verify(after, "mir")
    values = np.random.default_rng(0).standard_normal((5, 8))
    rng = np.random.default_rng(1)
    kinds = {"w": (8, 8), "b": (8,)}
    weights = DictWeights(
        {k: (tensor(f32, *s), rng.standard_normal(s).astype(np.float32).view(np.uint8)) for k, s in kinds.items()}
    )
    same_results(before, after, {"x": values}, weights)
    return after


def operands_of(graph: Graph, op: str) -> list[int]:
    return [len(node.inputs) for node in graph.nodes if node.op == op]


@pytest.mark.parametrize("turned", [False, True])
def test_a_sum_goes_into_the_product(turned: bool) -> None:
    after = summed(lambda emit, x, product: {"y": emit("add", *((product, x) if turned else (x, product)))})
    assert operands_of(after, "linear") == [3]
    assert operands_of(after, "elementwise") == []


def test_of_two_products_the_later_one_takes_the_sum() -> None:
    def make(emit: Emitter, x: Value, product: Value) -> dict[str, Value]:
        later = emit("linear", emit("tanh", product), emit("parameter", key="w", dtype=f32, shape=(8, 8)))
        return {"y": emit("add", later, product), "product": product}

    after = summed(make)
    assert operands_of(after, "linear") == [2, 3]


def test_two_sums_of_two_products_leave_no_loop() -> None:
    """The parallel residual: x + attention + mlp."""

    def make(emit: Emitter, x: Value, product: Value) -> dict[str, Value]:
        w, b = emit("parameter", key="w", dtype=f32, shape=(8, 8)), emit("parameter", key="b", dtype=f32, shape=(8,))
        return {"y": emit("add", emit("add", x, product), emit("linear", x, w, b))}

    after = summed(make)
    assert operands_of(after, "linear") == [3, 4]
    assert operands_of(after, "elementwise") == []


@pytest.mark.parametrize(
    "make",
    [
        lambda emit, x, product: {"y": emit("add", x, product), "z": product},
        lambda emit, x, product: {"y": emit("sub", x, product)},
        lambda emit, x, product: {"y": emit("add", product, product)},
        lambda emit, x, product: {"y": emit("add", emit("tanh", product), x)},
        lambda emit, x, product: {"y": emit("add", product, emit("parameter", key="b", dtype=f32, shape=(8,)))},
    ],
    ids=["read_twice", "difference", "with_itself", "something_between", "row"],
)
def test_what_is_no_residual_stays(make: Callable[[Emitter, Value, Value], dict[str, Value]]) -> None:
    after = summed(make)
    assert operands_of(after, "linear") == [2]
    assert "elementwise" in {node.op for node in after.nodes}


def test_the_terms_of_an_ending_sum_of_products_do_not_depend_on_fusing() -> None:
    """The products of the last sum get two int8 terms whether or not a product makes the sum."""
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, Dim("n"), 32))
    w = [emit("parameter", key=key, dtype=q4_0, shape=(32, 32)) for key in "ab"]
    builder.output("y", emit("add", emit("add", x, emit("linear", x, w[0])), emit("linear", x, w[1])))
    graph = legal(builder.build())
    for before in (graph, fuse_residual(graph, BACKEND)):
        after = quantize_activations(before, BACKEND)
        assert [n.inputs[0].type.dtype for n in after.nodes if n.op == "linear"] == [q8x2_act, q8x2_act]


# ---- fuse_rope ----


def test_keys_are_rotated_as_they_are_written() -> None:
    after = fuse_rope(legal(step_graph()), BACKEND)
    assert operands_of(after, "cache_append") == [9]
    assert operands_of(after, "rope") == [3], "that of the queries"
    assert print_graph(fuse_rope(after, BACKEND)) == print_graph(after)


def test_keys_that_are_read_too_are_rotated_before() -> None:
    graph = step_graph()
    keys = next(node.inputs[2] for node in graph.nodes if node.op == "cache_append")
    tapped = Graph(graph.name, graph.inputs, graph.nodes, (*graph.outputs, ("keys", keys)))
    assert operands_of(fuse_rope(legal(tapped), BACKEND), "cache_append") == [7]


# ---- quantize_activations, fuse_quantize ----


def test_products_with_packed_weights_get_quantised_operands() -> None:
    graph, _ = quantised_step()
    mir = fuse_elementwise(legal(graph))
    after = quantize_activations(mir, BACKEND)
    for node in after.nodes:
        if node.op == "linear":
            packed = node.inputs[1].type.dtype in (q4_0, q4_1, q8_0)
            last = node.output is dict(after.outputs)["logits"]
            # the rounding of the last product goes into the answer as it is, so that it gets two terms
            expected = (q8x2_act if last else q8_act) if packed else f32
            assert node.inputs[0].type.dtype == expected
    added = [node for node in after.nodes if node.op == "quantize"]
    # q, k and v share one, gate and up another; o, down and the head have one each (down has 48 columns: not packed)
    sources = {node.inputs[0] for node in added}
    assert len(added) == len(sources)
    assert len(after.nodes) == len(mir.nodes) + len(added)


def test_fusing_the_quantisation_changes_nothing_else() -> None:
    graph, weights = quantised_step()
    before = quantize_activations(fuse_elementwise(legal(graph)), BACKEND)
    after = fuse_quantize(before, BACKEND)
    verify(after, "mir")
    assert sum(node.op == "quantize" for node in after.nodes) < sum(node.op == "quantize" for node in before.nodes)
    assert any(node.op == "rms_norm" and node.output.type.dtype == q8_act for node in after.nodes)
    same_results(before, after, step_inputs(), weights)


def test_quantised_activations_stay_near_the_float_result() -> None:
    """One rounding to 1/254 of a block's largest value per product; a mistake is off by the values themselves."""
    graph, weights = quantised_step()
    mir = fuse_elementwise(legal(graph))
    exact = run_graph(mir, step_inputs(), weights)["logits"]
    found = run_graph(quantize_activations(mir, BACKEND), step_inputs(), weights)["logits"]
    assert 0 < np.abs(found - exact).max() <= 0.05 * np.abs(exact).max()


def test_an_output_that_the_graph_goes_on_with_is_no_end_of_it() -> None:
    """Looking at a value (a tap) must not change how it is computed."""
    for tapped in (False, True):
        builder = GraphBuilder("g")
        emit = Emitter(builder)
        x = builder.input("x", tensor(f32, Dim("n"), 32))
        w = [emit("parameter", key=key, dtype=q4_0, shape=(32, 32)) for key in "ab"]
        inner = emit("linear", x, w[0])
        end = emit("linear", emit("tanh", inner), w[1])
        builder.output("y", emit("reshape", emit("neg", end), shape=(Dim("n") * 32,)))
        if tapped:
            builder.output("tap", inner)
        after = quantize_activations(legal(builder.build()), BACKEND)
        formats = [node.inputs[0].type.dtype for node in after.nodes if node.op == "linear"]
        assert formats == [q8_act, q8x2_act]


def test_a_value_that_others_read_too_is_still_written_as_floats() -> None:
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, Dim("n"), 32))
    w = emit("parameter", key="w", dtype=q4_0, shape=(16, 32))
    value = emit("tanh", x)
    builder.output("y", emit("linear", value, w))
    builder.output("value", value)
    before = quantize_activations(legal(builder.build()), BACKEND)
    assert print_graph(fuse_quantize(before, BACKEND)) == print_graph(before)


# ---- reasons and golden text ----


def node_of(op: str, *types: TensorType, **attrs: object) -> Graph:
    builder = GraphBuilder("g")
    inputs = [builder.input(f"x{i}", type_) for i, type_ in enumerate(types)]
    for i, value in enumerate(Emitter(builder).many(op, *inputs, **attrs)):  # type: ignore[arg-type]
        builder.output(f"y{i}", value)
    return builder.build()


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (node_of("softmax", tensor(f32, 3, 4)), ["there is no kernel for softmax"]),
        (
            node_of("linear", tensor(q8_act, 3, 32), tensor(f32, 4, 32)),
            ["f32 weight has no integer form", "x is q8_act"],
        ),
        (node_of("add", tensor(f32, 2, 3, 4), tensor(f32, 2, 1, 4)), ["no kernel for add"]),
        (
            node_of(
                "paged_attention",
                tensor(f32, 3, 16),
                tensor(f32, 4, 2, 8, 12),
                tensor(f32, 4, 2, 12, 8),
                tensor(i32, 3),
                tensor(i32, 3),
                tensor(i32, 1, 2),
                num_heads=2,
                num_kv_heads=2,
                scale=1.0,
            ),
            ["whole vectors of 16", "12"],
        ),
    ],
)
def test_a_backend_says_why_not(graph: Graph, words: list[str]) -> None:
    reason = BACKEND.why_not(graph.nodes[-1])
    assert reason is not None
    assert all(word in reason for word in words), reason
    with pytest.raises(UnsupportedOpError, match="cannot run"):
        BACKEND.plan(graph.nodes[-1])


def test_golden_text(golden: Callable[[str, str], None]) -> None:
    graph, _ = quantised_step()
    mir = fuse_elementwise(fuse_rope(fuse_residual(legal(graph), BACKEND), BACKEND))
    mir = fuse_quantize(quantize_activations(mir, BACKEND), BACKEND)
    golden("mir_llama_1_layer_step", print_graph(eliminate_dead(merge_common(mir)), locations=False))
