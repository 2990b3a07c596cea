"""The self-attention prefill stage, sentence by sentence, against what torch and transformers answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import Graph, Value
from rlx.core.type import TensorType
from rlx.errors import FlowError, MissingTensorError, RlxError, ShapeError, TensorShapeError
from rlx.flow import DictWeights, FlowCtx, FlowValue, ModelFlow, RopeFrequencies, rope_frequencies
from rlx.flow.blocks import (
    MaskKind,
    NamedRopeTablesStage,
    RopeTableData,
    RopeTablesStage,
    SelfAttnPrefillSpec,
    SelfAttnPrefillStage,
)
from rlx.ops.op import Emitter
from tests.references.cases import PREFIX, AttentionConfig
from tests.references.load import AttentionCase, attention_cases

# float32 arithmetic of the reference on values of size one: sums of up to 32 products and a softmax, some 10 ulp
TOLERANCE = 5e-6
STAGES = attention_cases("stage")
OPS = attention_cases("op")
BATCH, SEQ = Dim("batch"), Dim("seq", max=64)
PROPORTIONAL = "proportional"


class RecordingWeights(DictWeights):
    """Weights that remember which keys were asked for."""

    def __init__(self, tensors: dict[str, NDArray[Any]]) -> None:
        super().__init__(tensors)
        self.asked: list[str] = []

    def __contains__(self, key: object) -> bool:
        self.asked.append(str(key))
        return super().__contains__(key)


def mask_of(config: AttentionConfig) -> MaskKind:
    kinds = {"causal": MaskKind.causal(), "none": MaskKind.none(), "bias": MaskKind.bias("bias")}
    return MaskKind.sliding(config.window) if config.window is not None else kinds[config.mask]


def spec_of(config: AttentionConfig) -> SelfAttnPrefillSpec:
    spec = SelfAttnPrefillSpec.hf_layer(PREFIX, config.num_heads, config.head_dim, config.num_kv_heads)
    spec = spec.with_n_rot(config.n_rot).with_rope_table(config.rope_table).with_k_eq_v(config.k_eq_v)
    return replace(
        spec,
        mask=mask_of(config),
        score_scale=config.score_scale,
        attn_logit_softcap=config.softcap,
        rope_style=config.rope_style,
    )


def frequencies_of(config: AttentionConfig, theta: float) -> RopeFrequencies:
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": theta}
    head_dim = config.n_rot
    if config.rope == PROPORTIONAL:
        factor = config.partial_rotary_factor
        parameters |= {"rope_type": PROPORTIONAL, "partial_rotary_factor": factor}
        head_dim = config.head_dim
    return rope_frequencies(parameters, head_dim, 4096)


def flow_of(case: AttentionCase) -> ModelFlow:
    config = case.config
    flow = ModelFlow("attention").input("x", (BATCH, SEQ, config.hidden_size))
    if config.mask == "bias":
        flow.input("bias", (SEQ, SEQ), f32)
    flow.rope_tables(frequencies_of(config, config.default_rope_theta))
    if config.rope == "data":
        assert case.cos is not None
        assert case.sin is not None
        # as data the table is longer than the sequence may be; row = position
        padded = [np.concatenate([table, np.ones((64, table.shape[1]), np.float32)]) for table in (case.cos, case.sin)]
        flow.rope_tables(RopeTableData(padded[0], padded[1]))
    if config.rope_table is not None:
        flow.named_rope_tables(config.rope_table, frequencies_of(config, config.rope_theta))
    return flow.stage(SelfAttnPrefillStage(spec_of(config)))


def run_stage(case: AttentionCase, flow: ModelFlow) -> NDArray[Any]:
    weights = DictWeights(case.config.weights())
    inputs: dict[str, NDArray[Any]] = {"x": case.config.x()}
    if case.config.mask == "bias":
        inputs["bias"] = case.config.bias()
    return run_graph(flow.build(weights), inputs, weights)["output"]


@pytest.mark.parametrize("case", STAGES, ids=[case.name for case in STAGES])
def test_stage_is_what_transformers_computes(case: AttentionCase) -> None:
    output = run_stage(case, flow_of(case))
    assert output.shape == case.output.shape
    np.testing.assert_allclose(output, case.output, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", OPS, ids=[case.name for case in OPS])
def test_attention_alone_is_what_transformers_computes(case: AttentionCase) -> None:
    """Fewer queries than keys, cross attention, masked keys: what a whole stage cannot ask for, through its piece."""
    from rlx.flow.blocks.self_attn_prefill import attend

    config = case.config
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    class Attend:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
            return attend(ctx, spec_of(config), input, ctx.named["k"], ctx.named["v"])

    flow = ModelFlow("attention").input("q", (BATCH, config.queries, width))
    for name in "kv":
        flow.input(name, (BATCH, config.keys, kv_width))
    inputs = dict(zip("qkv", config.qkv(), strict=True))
    if config.mask == "bias":
        flow.input("bias", (config.queries, config.keys))
        inputs["bias"] = config.bias()
    output = run_graph(flow.stage(Attend()).build(), inputs)["output"]
    np.testing.assert_allclose(output, case.output, atol=TOLERANCE, rtol=0)


def test_hf_layer_sets_what_the_contract_says() -> None:
    spec = SelfAttnPrefillSpec.hf_layer("model.layers.3", 8, 16, 2)
    expected = [f"model.layers.3.self_attn.{letter}_proj.weight" for letter in "qkv"]
    assert [spec.q_key, spec.k_key, spec.v_key] == expected
    assert (spec.num_heads, spec.head_dim, spec.num_kv_heads, spec.n_rot) == (8, 16, 2, 16)
    assert (spec.rope_table, spec.k_eq_v, spec.mask) == (None, False, MaskKind.causal())
    assert (spec.score_scale, spec.attn_logit_softcap) == (None, None)


def test_changed_copies_leave_the_spec_alone() -> None:
    spec = SelfAttnPrefillSpec.hf_layer(PREFIX, 4, 8, 2)
    changed = spec.with_n_rot(4).with_rope_table("global").with_k_eq_v()
    assert (changed.n_rot, changed.rope_table, changed.k_eq_v) == (4, "global", True)
    assert spec == SelfAttnPrefillSpec.hf_layer(PREFIX, 4, 8, 2)
    with pytest.raises(AttributeError):
        spec.n_rot = 2  # pyright: ignore[reportAttributeAccessIssue]


SPEC = SelfAttnPrefillSpec.hf_layer(PREFIX, 4, 8, 2)
FREQUENCIES = rope_frequencies({"rope_theta": 10000.0}, 8, 64)


def small_weights() -> RecordingWeights:
    return RecordingWeights(AttentionConfig("small", "stage", 1, num_heads=4, num_kv_heads=2).weights())


def build(spec: SelfAttnPrefillSpec, weights: DictWeights | None = None, seq: Any = SEQ, **tables: Any) -> Graph:
    flow = ModelFlow("attention").input("x", (BATCH, seq, 32))
    for name, source in tables.items():
        flow.stage(RopeTablesStage(source) if name == "default" else NamedRopeTablesStage(name, source))
    return flow.stage(SelfAttnPrefillStage(spec)).build(weights or small_weights())


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        (SPEC, ["the default RoPE table is missing", "rope_cos", "RopeTablesStage"]),
        (
            SPEC.with_rope_table("global"),
            ['the RoPE table "global" is missing', 'named["global_cos"]', 'NamedRopeTablesStage("global", ...)'],
        ),
    ],
)
def test_a_missing_table_is_named_before_any_weight_is_touched(spec: SelfAttnPrefillSpec, facts: list[str]) -> None:
    weights = small_weights()
    with pytest.raises(FlowError) as error:
        build(spec, weights)
    for fact in [*facts, "self_attn"]:
        assert fact in str(error.value)
    assert weights.asked == []


def test_a_missing_half_of_a_table_names_its_slot() -> None:
    class OnlyCos:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
            ctx.named["global_cos"] = ctx.constant(np.ones((64, 4), np.float32))

    flow = ModelFlow("attention").input("x", (BATCH, SEQ, 32)).stage(OnlyCos())
    with pytest.raises(FlowError, match=r'named\["global_sin"\]'):
        flow.stage(SelfAttnPrefillStage(SPEC.with_rope_table("global"))).build(small_weights())


def test_a_named_table_does_not_stand_in_for_the_default_one() -> None:
    with pytest.raises(FlowError, match="the default RoPE table is missing"):
        build(SPEC, other=FREQUENCIES)


def test_with_k_eq_v_the_v_key_is_never_read() -> None:
    weights = small_weights()
    build(SPEC.with_k_eq_v(), weights, default=FREQUENCIES)
    assert any("k_proj" in key for key in weights.asked)
    assert not any("v_proj" in key for key in weights.asked)


def test_the_values_of_k_eq_v_are_the_keys_before_rope() -> None:
    graph = build(SPEC.with_k_eq_v(), default=FREQUENCIES)
    (attention,) = [node for node in graph.nodes if node.op == "attention"]
    made_by = graph.producers()
    k, v = made_by[attention.inputs[1]], made_by[attention.inputs[2]]
    assert k.op == "rope"
    assert made_by[k.inputs[0]] is v


def test_no_backend_is_made_to_repeat_kv_heads() -> None:
    graph = build(SPEC, default=FREQUENCIES)
    assert "repeat_kv" not in [node.op for node in graph.nodes]


def test_one_table_in_the_graph_serves_all_layers() -> None:
    stage = SelfAttnPrefillStage(replace(SPEC, num_heads=4))
    weights = small_weights()
    flow = ModelFlow("attention").input("x", (BATCH, SEQ, 32)).rope_tables(FREQUENCIES)
    graph = flow.sequence(stage, stage, stage).build(weights)
    ops = [node.op for node in graph.nodes]
    assert (ops.count("rope_table"), ops.count("attention"), ops.count("parameter")) == (1, 3, 3)


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        (replace(SPEC, num_heads=6, num_kv_heads=4), ["not divisible", "6 heads, 4 KV heads"]),
        (replace(SPEC, num_kv_heads=0), ["KV heads", "num_kv_heads = 0"]),
        (SPEC.with_n_rot(3), ["even", "n_rot = 3"]),
        (SPEC.with_n_rot(10), ["larger than head_dim", "n_rot = 10, head_dim = 8"]),
        (SPEC.with_mask(MaskKind("sliding")), ["sliding needs its operand", "window = None"]),
        (SPEC.with_mask(MaskKind.sliding(0)), ["sliding needs its operand", "window = 0"]),
        (SPEC.with_mask(MaskKind("bias")), ["bias needs its operand", "operand = None"]),
        (SPEC.with_mask(MaskKind.bias("absent")), ["bias needs its operand", "named['absent'] is missing", ".input("]),
        (SPEC.with_mask(MaskKind("diagonal")), ["unknown mask kind", "diagonal", "causal"]),
        (SPEC.with_rope_style("spiral"), ["unknown RoPE style", "spiral", "interleaved"]),
    ],
)
def test_a_spec_without_meaning_is_refused(spec: SelfAttnPrefillSpec, facts: list[str]) -> None:
    with pytest.raises(FlowError) as error:
        build(spec, default=FREQUENCIES)
    for fact in [*facts, "self_attn"]:
        assert fact in str(error.value)


@pytest.mark.parametrize("seq", [SEQ, 12], ids=["symbolic", "static"])
def test_a_table_with_fewer_rows_than_the_sequence_is_refused(seq: Any) -> None:
    table = np.ones((11, 4), np.float32)
    with pytest.raises(ShapeError) as error:
        build(SPEC, seq=seq, default=RopeTableData(table, table))
    for fact in ("fewer rows than the sequence", "11 rows", "64" if seq is SEQ else "12"):
        assert fact in str(error.value)


def test_a_table_put_into_the_side_state_by_hand_is_checked_too() -> None:
    class ByHand:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
            ctx.rope_cos = ctx.rope_sin = ctx.constant(np.ones((11, 4), np.float32))

    flow = ModelFlow("attention").input("x", (1, 12, 32)).stage(ByHand()).stage(SelfAttnPrefillStage(SPEC))
    with pytest.raises(ShapeError, match="fewer rows than the sequence"):
        flow.build(small_weights())


def test_a_longer_table_by_hand_is_read_at_the_positions() -> None:
    case = next(case for case in STAGES if case.name == "table_as_data")
    assert case.cos is not None
    assert case.sin is not None
    cos, sin = (np.concatenate([table, np.ones((60, 4), np.float32)]) for table in (case.cos, case.sin))

    class ByHand:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
            ctx.rope_cos, ctx.rope_sin = ctx.constant(cos), ctx.constant(sin)

    flow = ModelFlow("attention").input("x", (BATCH, SEQ, 32)).stage(ByHand())
    output = run_stage(case, flow.stage(SelfAttnPrefillStage(spec_of(case.config))))
    np.testing.assert_allclose(output, case.output, atol=TOLERANCE, rtol=0)
    with pytest.raises(ShapeError, match="one row for each token"):
        ModelFlow("last").input("x", (BATCH, SEQ, 32)).stage(ByHand()).last_token().stage(
            SelfAttnPrefillStage(SPEC)
        ).build(small_weights())


def test_a_table_of_all_tokens_does_not_fit_the_last_one() -> None:
    flow = ModelFlow("attention").input("x", (BATCH, SEQ, 32)).rope_tables(FREQUENCIES).last_token()
    with pytest.raises(ShapeError, match="one row for each token"):
        flow.stage(SelfAttnPrefillStage(SPEC)).build(small_weights())


def test_a_table_says_its_own_width() -> None:
    """A wider table serves a smaller n_rot with its first columns; a narrower one is refused."""
    case = next(case for case in STAGES if case.name == "partial_rotary")
    assert case.cos is not None
    assert case.sin is not None
    rows = 64 - len(case.cos)
    wide = [np.pad(table, ((0, rows), (0, 4)), constant_values=9.0) for table in (case.cos, case.sin)]
    flow = ModelFlow("attention").input("x", (BATCH, SEQ, 32)).rope_tables(RopeTableData(wide[0], wide[1]))
    output = run_stage(case, flow.stage(SelfAttnPrefillStage(spec_of(case.config))))
    np.testing.assert_allclose(output, case.output, atol=TOLERANCE, rtol=0)
    with pytest.raises(ShapeError, match="fewer columns than rotated pairs"):
        build(SPEC, default=RopeTableData(wide[0][:, :3], wide[1][:, :3]))


def test_a_table_is_a_pair_of_one_shape() -> None:
    with pytest.raises(ShapeError, match="pair of matrices of one shape"):
        build(SPEC, default=RopeTableData(np.ones((64, 4), np.float32), np.ones((64, 3), np.float32)))


def test_proportional_rope_is_not_a_smaller_n_rot() -> None:
    case = next(case for case in STAGES if case.name == "proportional")
    config = case.config
    smaller = int(config.head_dim * config.partial_rotary_factor)
    flow = ModelFlow("attention").input("x", (BATCH, SEQ, config.hidden_size))
    flow.rope_tables(rope_frequencies({"rope_theta": config.rope_theta}, smaller, 64))
    output = run_stage(case, flow.stage(SelfAttnPrefillStage(spec_of(config).with_n_rot(smaller))))
    assert np.abs(output - case.output).max() > 1e-3


def test_a_window_of_one_less_is_another_answer() -> None:
    answers = {case.config.window: case for case in STAGES if case.name in ("window_4", "window_3")}
    output = run_stage(answers[4], flow_of(answers[4]))
    assert np.abs(output - answers[3].output).max() > 1e-2


def test_a_weight_that_is_missing_or_misshapen_is_named_with_its_block() -> None:
    tensors = AttentionConfig("small", "stage", 1, num_heads=4, num_kv_heads=2).weights()
    key = f"{PREFIX}.self_attn.k_proj.weight"
    with pytest.raises(TensorShapeError) as shape_error:
        build(SPEC, DictWeights({**tensors, key: tensors[key][:-1]}), default=FREQUENCIES)
    for fact in (key, "[15, 32]", "[16, 32]", "self_attn"):
        assert fact in str(shape_error.value)
    del tensors[key]
    with pytest.raises(MissingTensorError) as error:
        build(SPEC, DictWeights(tensors), default=FREQUENCIES)
    assert key in str(error.value)
    assert "self_attn" in str(error.value)


def test_nothing_is_rotated_with_n_rot_zero() -> None:
    graph = build(SPEC.with_n_rot(0))
    assert "rope" not in [node.op for node in graph.nodes]


def test_an_additive_mask_of_another_shape_is_refused() -> None:
    def add_mask(emit: Emitter, value: Value) -> None:
        assert value.type == TensorType(f32, (BATCH, SEQ, 32))

    flow = ModelFlow("attention").input("x", (BATCH, SEQ, 32)).input("mask", (SEQ, 5)).custom(add_mask)
    flow.rope_tables(FREQUENCIES).stage(SelfAttnPrefillStage(SPEC.with_mask(MaskKind.bias("mask"))))
    with pytest.raises(RlxError, match=r"f32\[query, key\]"):
        flow.build(small_weights())
