"""Ops with a state per sequence in a step program, against the plain flow; what the program asks for, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.core.text import parse_graph, print_graph
from rlx.core.verify import verify
from rlx.errors import FlowError
from rlx.flow import DictWeights, ModelFlow, rope_frequencies
from rlx.flow.blocks import GatedDeltaStage, SelfAttentionStage, SelfAttnPrefillSpec
from rlx.hir import derive_step, simplify
from rlx.hir.derive_packed import derive_packed
from tests.hir.stepping import Stepper
from tests.hir.test_derive_step import SCHEDULES
from tests.references.seeded import seeded_weight

HIDDEN, VOCAB = 16, 30
LINEAR = {"key_heads": 2, "key_dim": 6, "value_heads": 4, "value_dim": 5, "taps": 3, "eps": 1e-6}
CHANNELS = 2 * 2 * 6 + 4 * 5
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "lm_head.weight": (VOCAB, HIDDEN),
    **{f"a.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"},
    **{
        f"{prefix}.{name}": shape
        for prefix in ("first", "last")
        for name, shape in {
            "in_proj_qkv.weight": (CHANNELS, HIDDEN),
            "in_proj_z.weight": (20, HIDDEN),
            "in_proj_b.weight": (4, HIDDEN),
            "in_proj_a.weight": (4, HIDDEN),
            "conv1d.weight": (CHANNELS, 1, 3),
            "A_log": (4,),
            "dt_bias": (4,),
            "norm.weight": (5,),
            "out_proj.weight": (HIDDEN, 20),
        }.items()
    },
}
WEIGHTS = DictWeights({key: seeded_weight(key, shape, 3) for key, shape in SHAPES.items()})
IDS = [np.random.default_rng(i).integers(0, VOCAB, length).astype(np.int32) for i, length in enumerate((23, 9, 14))]


def flow() -> ModelFlow:
    tokens = (Dim("batch"), Dim("seq", max=64))
    made = ModelFlow("hybrid").input("tokens", tokens, i32).rope_tables(rope_frequencies({"rope_theta": 1e4}, 4, 64))
    spec = SelfAttnPrefillSpec.hf_layer("a", 4, 4, 4)
    made.token_embed().stage(GatedDeltaStage(prefix="first", **LINEAR))
    made.stage(SelfAttentionStage(spec, "a.self_attn.o_proj.weight"))
    return made.stage(GatedDeltaStage(prefix="last", **LINEAR)).lm_head(VOCAB, HIDDEN)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_in_any_chunks_are_the_plain_forward_pass(schedule: str) -> None:
    graph = simplify(flow().build(WEIGHTS))
    found = Stepper(derive_step(graph, 4), WEIGHTS, IDS).all_logits(SCHEDULES[schedule])
    for ids, logits in zip(IDS, found, strict=True):
        expected = run_graph(graph, {"tokens": ids[None]}, WEIGHTS)["logits"][0]
        np.testing.assert_allclose(logits, expected, atol=1e-12)  # the same float64 operations


def test_signature_and_text_of_the_step() -> None:
    step = derive_step(simplify(flow().build(WEIGHTS)), 4)
    inputs = {name: str(value.type) for name, value in step.graph.inputs}
    # a filter's two rows of 44 channels, and four heads of 6 x 16 (5 of them value dims), both in whole cache lines
    width = 2 * (96 + 4 * 6 * 16)
    state = {name: inputs[name] for name in ("bounds", "slots", "state")}
    assert state == {"bounds": "i32[S+1]", "slots": "i32[S]", "state": f"f32[C, {width}]"}
    assert dict(step.graph.outputs)["state"].type == dict(step.graph.inputs)["state"].type
    assert (step.state_width, step.bytes_per_slot) == (width, 4 * width)
    offsets = [node.attrs["offset"] for node in step.graph.nodes if "offset" in node.attrs]
    assert offsets == [0, 96, 480, 576]
    verify(step.graph, "hir")
    assert print_graph(parse_graph(print_graph(step.graph))) == print_graph(step.graph)


def test_a_flow_without_states_has_none() -> None:
    made = ModelFlow("bag").input("tokens", (Dim("batch"), Dim("seq", max=64)), i32).token_embed()
    step = derive_step(made.lm_head(VOCAB, HIDDEN).build(WEIGHTS))
    assert step.state_width == step.bytes_per_slot == 0
    assert not {"bounds", "slots", "state"} & set(dict(step.graph.inputs))


def test_texts_side_by_side_have_no_place_for_a_state() -> None:
    with pytest.raises(FlowError, match="causal_conv carries a state from row to row"):
        derive_packed(flow().build(WEIGHTS))


def test_a_state_after_the_last_token_is_refused() -> None:
    made = ModelFlow("late").input("tokens", (Dim("batch"), Dim("seq", max=64)), i32).token_embed().last_token()
    with pytest.raises(FlowError, match="causal_conv has to run over all tokens"):
        derive_step(made.stage(GatedDeltaStage(prefix="last", **LINEAR)).lm_head(VOCAB, HIDDEN).build(WEIGHTS))
