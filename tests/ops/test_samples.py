"""Tests generated from `OpDef.samples`: types, widths, decompositions, rows, costs, and no silence about rules."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.backends.reference.interpreter import evaluate_attrs
from rlx.core.bind import concrete_shape
from rlx.core.dim import evaluate
from rlx.core.graph import Graph, GraphBuilder
from rlx.core.text import parse_graph, print_graph
from rlx.core.verify import verify
from rlx.errors import ShapeError
from rlx.ops.op import REGISTRY, Emitter, Missing, OpDef, Sample, cost_of
from tests.ops.sample_inputs import (
    CASE_NAMES,
    CASES,
    add_inputs,
    held_inputs,
    largest_difference,
    other_dims,
    sample_graph,
    sample_inputs,
)

every_sample = pytest.mark.parametrize(("op", "sample"), CASES, ids=CASE_NAMES)
every_op = pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)
DECOMPOSED = [(op, sample) for op, sample in CASES if not isinstance(op.decompose, Missing)]


@every_sample
@pytest.mark.parametrize("changed", [False, True], ids=["own_dims", "other_dims"])
def test_inferred_types_are_those_of_the_reference(op: OpDef, sample: Sample, changed: bool) -> None:
    dims = other_dims(sample) if changed else dict(sample.dims)
    arrays = sample_inputs(op, sample, dims=dims)
    attrs = evaluate_attrs(op.complete(sample.attrs), dims)
    results = op.reference(held_inputs(op, sample, arrays, dims), attrs)
    types = op.infer(sample.inputs, op.complete(sample.attrs))
    assert len(results) == len(types)
    for result, type_ in zip(results, types, strict=True):
        assert result.shape == concrete_shape(type_, dims)
        kinds = {"packed": "f", "float": "f", "bool": "b", "int": "i", "uint": "u"}
        assert result.dtype.kind == kinds[type_.dtype.kind]


@every_sample
def test_float32_is_within_the_tolerance_of_float64(op: OpDef, sample: Sample) -> None:
    graph = sample_graph(op, sample)
    for seed in range(3):
        arrays = sample_inputs(op, sample, seed)
        wide, narrow = (run_graph(graph, arrays, dtype=dtype) for dtype in (np.float64, np.float32))
        for name, expected in wide.items():
            assert np.isfinite(expected).all()
            assert largest_difference(narrow[name], expected) <= sample.tolerance


def decomposed(op: OpDef, sample: Sample) -> Graph:
    assert not isinstance(op.decompose, Missing)
    builder = GraphBuilder(f"{op.name}_decomposed")
    inputs = add_inputs(builder, sample)
    for i, value in enumerate(op.decompose(Emitter(builder), inputs, op.complete(sample.attrs))):
        builder.output(f"y{i}", value)
    return builder.build()


@pytest.mark.parametrize(("op", "sample"), DECOMPOSED, ids=[f"{op.name}-{s.name}" for op, s in DECOMPOSED])
@pytest.mark.parametrize("changed", [False, True], ids=["own_dims", "other_dims"])
def test_decomposition_means_the_same(op: OpDef, sample: Sample, changed: bool) -> None:
    dims = other_dims(sample) if changed else dict(sample.dims)
    whole, parts = sample_graph(op, sample), decomposed(op, sample)
    verify(parts, "mir", after=f"decompose {op.name}")
    assert op.name not in {node.op for node in parts.nodes}
    assert [value.type for _, value in parts.outputs] == [value.type for _, value in whole.outputs]
    arrays = sample_inputs(op, sample, dims=dims)
    expected, found = run_graph(whole, arrays), run_graph(parts, arrays)
    for name in expected:
        # both in float64: only the order of a few dozen operations differs, 1e-9 leaves six digits of room
        assert largest_difference(found[name], expected[name]) <= 1e-9


@every_sample
def test_sample_graph_is_valid_and_prints_and_parses(op: OpDef, sample: Sample) -> None:
    graph = sample_graph(op, sample)
    for level in op.levels:
        verify(graph, level)
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    arrays = sample_inputs(op, sample)
    for name, expected in run_graph(graph, arrays).items():
        np.testing.assert_array_equal(run_graph(again, arrays)[name], expected)


ROW_WISE = [(op, s) for op, s in CASES if op.row_wise and any("seq" in map(str, t.shape[:-1]) for t in s.inputs)]


@pytest.mark.parametrize(("op", "sample"), ROW_WISE, ids=[f"{op.name}-{s.name}" for op, s in ROW_WISE])
def test_row_wise_means_that_a_row_depends_on_its_own_row(op: OpDef, sample: Sample) -> None:
    dims = {**sample.dims, "seq": 5}
    graph = sample_graph(op, sample)
    before, other = (sample_inputs(op, sample, seed, dims) for seed in (1, 2))
    after = dict(before)
    for i, type_ in enumerate(sample.inputs):
        axes = [axis for axis, size in enumerate(type_.shape[:-1]) if str(size) == "seq"]
        if axes:
            row = (slice(None),) * axes[0] + (2,)
            after[f"x{i}"] = before[f"x{i}"].copy()
            after[f"x{i}"][row] = other[f"x{i}"][row]
        else:
            after[f"x{i}"] = before[f"x{i}"]
    first, second = run_graph(graph, before), run_graph(graph, after)
    for name, value in graph.outputs:
        axis = [str(size) for size in value.type.shape].index("seq")
        keep = [row for row in range(5) if row != 2]
        same = [np.take(result[name], keep, axis) for result in (first, second)]
        # float64 products of another row may be summed in another order by BLAS
        assert largest_difference(*same) <= 1e-14
        changed = [np.take(result[name], 2, axis) for result in (first, second)]
        assert not np.array_equal(*changed) or value.type.dtype.kind == "bool"


@every_sample
def test_cost_is_a_count(op: OpDef, sample: Sample) -> None:
    types = op.infer(sample.inputs, op.complete(sample.attrs))
    cost = cost_of(op, sample.inputs, types, op.complete(sample.attrs))
    dims = {**sample.dims, "attended": 9, "cached": 3}
    # a cache is written in place: a few rows of it
    written = sum(evaluate(type_.nbytes, dims) for type_ in types if op.name != "cache_append")
    assert evaluate(cost.flops, dims) >= 0
    assert evaluate(cost.bytes, dims) >= written


@every_op
def test_every_rule_is_there_or_declared_missing_with_a_reason(op: OpDef) -> None:
    for name in ("decompose", "vjp", "jvp", "batch"):
        rule = getattr(op, name)
        if isinstance(rule, Missing):
            assert len(rule.reason) >= 8, f"{op.name}.{name} is missing without a reason"
        else:
            assert callable(rule), f"{op.name}.{name}"
    assert op.samples() or op.name == "parameter", f"{op.name} has no samples"
    assert op.help.endswith(".")
    assert op.levels <= {"hir", "mir"}
    assert op.levels
    assert op.source.partition(":")[2].isdecimal()
    assert len({sample.name for sample in op.samples()}) == len(op.samples())


@every_op
def test_attributes_are_documented_and_checked(op: OpDef) -> None:
    assert all(attribute.help for attribute in op.attributes)
    with pytest.raises(ShapeError, match="has no attribute"):
        op.complete({"no_such_attribute": 1})
    required = [attribute.name for attribute in op.attributes if attribute.default is Missing]
    if required:
        with pytest.raises(ShapeError, match=f"needs the attribute {required[0]}"):
            op.complete({})


@every_op
def test_wrong_operands_are_refused_with_the_location(op: OpDef) -> None:
    """No op takes nine operands of nine types, and the refusal is an error of RLX."""
    from rlx.core.dtype import f32, i32
    from rlx.core.graph import Location
    from rlx.core.type import tensor

    if not op.samples():
        return
    builder = GraphBuilder("wrong")
    values = [builder.input(f"x{i}", tensor(i32 if i % 2 else f32, i + 2)) for i in range(9)]
    with pytest.raises(ShapeError) as error:
        Emitter(builder, Location("layers.3.mlp", "block.py:7")).many(op.name, *values, **op.samples()[0].attrs)
    assert "layers.3.mlp" in str(error.value)


def test_samples_reach_every_attribute_default_and_family() -> None:
    """Every family of ops has a sample, so that a new one is not forgotten in the generated tests."""
    import rlx.ops

    sampled = {op.source.partition(":")[0] for op, _ in CASES}
    files = {inspect.getfile(family).rsplit("/", 1)[-1] for family in rlx.ops.FAMILIES}
    assert files <= sampled
