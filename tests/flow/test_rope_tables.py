"""RoPE tables computed in the graph, against transformers' rotary modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.errors import FlowError, ShapeError, UnsupportedModelError
from rlx.flow import DictWeights, FlowCtx, FlowValue, ModelFlow, MRopeFrequencies, RopeFrequencies, rope_frequencies
from rlx.flow.blocks import NamedRopeTablesStage, RopeTableData, RopeTablesStage
from rlx.flow.blocks.rope_tables import RopeSource
from rlx.flow.rope_scaling import context_limit
from tests.references.load import MRopeCase, RopeCase, mrope_cases, rope_cases

CASES, MROPE_CASES = rope_cases(), mrope_cases()


def frequencies(case: RopeCase) -> RopeFrequencies:
    longest = int(case.positions.max()) + 1
    return rope_frequencies(case.rope_parameters, case.head_dim, case.max_position_embeddings, longest)


class Tables:
    """Give cos and sin side by side."""

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        assert ctx.rope_cos is not None
        assert ctx.rope_sin is not None
        return ctx.op("concat", ctx.rope_cos, ctx.rope_sin, axis=1)


def tables_at(source: RopeSource, rows: int, weights: DictWeights | None = None, **extra: Any) -> NDArray[Any]:
    flow = ModelFlow("tables").input("tokens", (Dim("batch"), Dim("seq", max=rows)), i32)
    for name, array in extra.items():
        flow.input(name, (3, Dim("seq", max=rows)), i32)
        assert array.dtype == np.int32
    graph = flow.rope_tables(source).stage(Tables()).build(weights)
    return run_graph(graph, {"tokens": np.zeros((1, rows), np.int32), **extra}, weights)["output"]


def assert_close(found: NDArray[Any], case: RopeCase | MRopeCase, positions: NDArray[Any]) -> None:
    # an inverse frequency may differ by an ulp or two of float32, and the angle carries that times the position
    limit = 1e-6 + 2.0**-21 * positions[:, None] * np.abs(case.inv_freq)[None, :]
    cos, sin = np.split(found, 2, axis=1)
    assert (np.abs(cos - case.cos) <= limit).all()
    assert (np.abs(sin - case.sin) <= limit).all()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_inverse_frequencies_and_scaling(case: RopeCase) -> None:
    found = frequencies(case)
    assert found.inverse.dtype == np.float32
    np.testing.assert_allclose(found.inverse, case.inv_freq, rtol=2.5e-7, atol=0)  # two ulp of float32
    assert found.attention_scaling == pytest.approx(case.attention_factor, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_tables_in_the_graph(case: RopeCase) -> None:
    kept = case.positions[case.positions < 4096]  # the interpreter builds every row
    assert len(kept) >= 2
    found = tables_at(frequencies(case), int(kept.max()) + 1)[kept]
    count = len(kept)
    shorter = RopeCase(**{**_fields(case), "cos": case.cos[:count], "sin": case.sin[:count]})
    assert_close(found, shorter, kept)


def _fields(case: RopeCase) -> dict[str, Any]:
    return {name: getattr(case, name) for name in RopeCase.__slots__}


@pytest.mark.parametrize("case", MROPE_CASES, ids=[case.name for case in MROPE_CASES])
def test_mrope(case: MRopeCase) -> None:
    parameters = {"rope_theta": case.rope_theta, "partial_rotary_factor": case.partial_rotary_factor}
    pairs = rope_frequencies(parameters, case.head_dim, 4096)
    source = MRopeFrequencies(pairs, case.sections, case.interleaved)
    found = tables_at(source, case.positions.shape[1], position_rows=case.positions)
    assert_close(found, case, case.positions.max(axis=0))


def test_mrope_over_rows_that_are_alike_is_plain_rope() -> None:
    """The positions of a text: models that see images rotate it as a plain model does, bit for bit."""
    pairs = rope_frequencies({"rope_theta": 1e4}, 16, 64)
    rows = np.tile(np.arange(9, dtype=np.int32), (3, 1))
    found = tables_at(MRopeFrequencies(pairs, (3, 3, 2), interleaved=True), 9, position_rows=rows)
    np.testing.assert_array_equal(found, tables_at(pairs, 9))


def test_mrope_refuses_sections_that_do_not_fit() -> None:
    pairs = rope_frequencies({}, 16, 64)
    for sections, interleaved in (((2, 3, 4), False), ((1, 3, 4), True)):
        with pytest.raises(FlowError, match="sections of MRoPE"):
            tables_at(MRopeFrequencies(pairs, sections, interleaved), 4, position_rows=np.zeros((3, 4), np.int32))
    with pytest.raises(FlowError, match="nothing is named 'position_rows'"):
        tables_at(MRopeFrequencies(pairs, (2, 3, 3)), 4)


def test_named_tables_lie_beside_the_default_ones() -> None:
    seen: dict[str, FlowValue] = {}

    class Look:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
            seen.update(ctx.named)
            assert ctx.rope_cos is not None
            assert ctx.rope_cos is not ctx.named["local_cos"]

    source = rope_frequencies({}, 8, 64)
    flow = ModelFlow("tables").input("tokens", (1, 4), i32)
    flow.stage(RopeTablesStage(source)).stage(NamedRopeTablesStage("local", source)).stage(Look()).build()
    assert set(seen) == {"tokens", "local_cos", "local_sin"}


def test_positions_are_one_node_shared_by_all_tables() -> None:
    source = rope_frequencies({}, 8, 64)
    flow = ModelFlow("tables").input("tokens", (1, 4), i32).rope_tables(source).named_rope_tables("local", source)
    assert [node.op for node in flow.build().nodes].count("positions") == 1


def test_tables_from_weights() -> None:
    table = np.arange(24, dtype=np.float32).reshape(6, 4)
    weights = DictWeights({"cos": table, "sin": -table})
    found = tables_at(RopeTableData("cos", "sin"), 5, weights)
    np.testing.assert_array_equal(found, np.concatenate([table[:5], -table[:5]], axis=1))
    with pytest.raises(ShapeError, match="fewer rows than the sequence"):
        tables_at(RopeTableData("cos", "sin"), 7, weights)


def test_factors_of_a_gguf_file_divide_the_frequencies() -> None:
    base = rope_frequencies({}, 8, 64)
    factors = np.array([1, 2, 4, 8], np.float32)
    np.testing.assert_array_equal(base.divided_by(factors).inverse, base.inverse / factors)
    with pytest.raises(UnsupportedModelError, match="3 factors"):
        base.divided_by(factors[:3])


def test_context_limit_is_where_the_angles_would_change() -> None:
    assert context_limit({"rope_type": "longrope", "original_max_position_embeddings": 64}, 256) == 64
    assert context_limit({"rope_type": "dynamic"}, 256) == 256
    assert context_limit({"type": "yarn", "original_max_position_embeddings": 64}, 256) == 256


@pytest.mark.parametrize(
    ("parameters", "fact"),
    [
        ({"rope_type": "spiral"}, "spiral"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": "two"}, "'two'"),
        ({"rope_type": "linear", "factor": 0}, "positive"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "short_factor has to be 4 positive numbers"),
        ({"rope_type": "default", "rope_theta": float("nan")}, "rope_theta"),
    ],
)
def test_parameters_that_make_no_table_are_refused(parameters: dict[str, object], fact: str) -> None:
    with pytest.raises(UnsupportedModelError, match=fact):
        rope_frequencies(parameters, 8, 64)
