"""The packed program against the plain forward pass of each text, and flows that cannot be packed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Value
from rlx.errors import FlowError, InputError
from rlx.flow.blocks import (
    AddResidualStage,
    GatherAddStage,
    LayerNormStage,
    LearnedPositionsStage,
    LinearStage,
    MaskKind,
    NormalizeStage,
    PoolStage,
    SaveResidualStage,
    SelfAttentionStage,
    SelfAttnPrefillSpec,
)
from rlx.flow.flow import ModelFlow
from rlx.flow.weights import DictWeights
from rlx.hir.derive_packed import derive_packed
from rlx.ops.op import Emitter
from rlx.ops.pooling import POOLINGS

BATCH, SEQ = Dim("batch"), Dim("seq", max=16)
RNG = np.random.default_rng(0)
WEIGHTS = DictWeights(
    {
        name: RNG.standard_normal(shape).astype(np.float32) * 0.3
        for name, shape in {
            "words.weight": (50, 24),
            "types.weight": (2, 24),
            "positions.weight": (18, 24),
            "norm.weight": (24,),
            "norm.bias": (24,),
            "a.self_attn.q_proj.weight": (24, 24),
            "a.self_attn.k_proj.weight": (12, 24),
            "a.self_attn.v_proj.weight": (12, 24),
            "a.self_attn.o_proj.weight": (24, 24),
            "head.weight": (5, 24),
        }.items()
    }
)
LENGTHS = (4, 1, 9, 16)


def attention(mask: MaskKind) -> SelfAttentionStage:
    spec = SelfAttnPrefillSpec.hf_layer("a", 4, 6, 2).with_n_rot(0).with_mask(mask)
    return SelfAttentionStage(spec, "a.self_attn.o_proj.weight")


def flow(mask: MaskKind) -> ModelFlow:
    return (
        ModelFlow("texts")
        .input("tokens", (BATCH, SEQ), i32)
        .input("token_types", (BATCH, SEQ), i32)
        .token_embed("words.weight")
        .stage(GatherAddStage("token_types", "types.weight"))
        .stage(LearnedPositionsStage("positions.weight", 18, first=2))
        .sequence(SaveResidualStage(), attention(mask), AddResidualStage(), LayerNormStage("norm.weight", 1e-6))
        .tap("rows")
    )


MASKS = (MaskKind.none(), MaskKind.causal(), MaskKind.sliding(3), MaskKind.around(3))


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: m.kind)
@pytest.mark.parametrize("mode", [*POOLINGS, "last_token"])
def test_each_text_is_what_it_is_alone(mask: MaskKind, mode: str) -> None:
    whole = flow(mask)
    whole = whole.last_token() if mode == "last_token" else whole.stage(PoolStage(mode))
    plain = whole.stage(NormalizeStage()).stage(LinearStage("head.weight")).build(WEIGHTS)
    texts = [(RNG.integers(0, 50, n).astype(np.int32), RNG.integers(0, 2, n).astype(np.int32)) for n in LENGTHS]
    packed = run_graph(
        derive_packed(plain),
        {
            "tokens": np.concatenate([tokens for tokens, _ in texts]),
            "token_types": np.concatenate([types for _, types in texts]),
            "positions": np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32),
            "bounds": np.cumsum((0, *LENGTHS)).astype(np.int32),
        },
        WEIGHTS,
    )
    assert packed["output"].shape == (4, 5)
    start = 0
    for index, (tokens, types) in enumerate(texts):
        alone = run_graph(plain, {"tokens": tokens[None], "token_types": types[None]}, WEIGHTS)
        # float64 on both sides: only the shapes of the products differ
        assert np.abs(packed["rows"][start : start + len(tokens)] - alone["rows"][0]).max() < 1e-12
        assert np.abs(packed["output"][index] - alone["output"][0, 0]).max() < 1e-12
        start += len(tokens)


def over_tokens(emit: Emitter, value: Value) -> Value:
    return emit("transpose", value, axes=(0, 2, 1))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda f: f.input("mask", (SEQ, SEQ)).stage(attention(MaskKind("bias", operand="mask"))), ["mask: f32"]),
        (lambda f: f.custom(over_tokens, "mixer"), ["transpose moves or cuts the token axis", "mixer"]),
        (lambda f: f.stage(PoolStage("mean")).stage(PoolStage("first")), ["pool tokens is taken twice"]),
    ],
)
def test_flows_that_cannot_be_packed_name_the_node(change: Callable[[ModelFlow], ModelFlow], facts: list[str]) -> None:
    with pytest.raises(FlowError) as error:
        derive_packed(change(flow(MaskKind.none())).build(WEIGHTS))
    for fact in facts:
        assert fact in str(error.value)


def test_a_bias_over_all_texts_cannot_be_packed() -> None:
    def biased(emit: Emitter, value: Value) -> Value:
        bias = emit("constant", dtype=f32, shape=(4, 4), values=(0.0,) * 16)
        return emit("attention", value, value, value, bias, num_heads=4, num_kv_heads=4, scale=1.0, mask="bias")

    whole = ModelFlow("biased").input("tokens", (BATCH, 4), i32).token_embed("words.weight").custom(biased)
    with pytest.raises(FlowError, match="mask kind bias"):
        derive_packed(whole.build(WEIGHTS))


@pytest.mark.parametrize("bounds", [(0, 3), (1, 5), (0, 4, 3, 5), (0, 6)])
def test_bounds_that_do_not_divide_the_rows_are_refused(bounds: tuple[int, ...]) -> None:
    import rlx

    plain = flow(MaskKind.none()).stage(PoolStage("mean")).build(WEIGHTS)
    inputs = {
        "tokens": np.ones(5, np.int32),
        "token_types": np.zeros(5, np.int32),
        "positions": np.arange(5, dtype=np.int32),
        "bounds": np.array(bounds, np.int32),
    }
    with pytest.raises(InputError):
        run_graph(derive_packed(plain), inputs, WEIGHTS)
    exe = rlx.compile(derive_packed(plain), WEIGHTS, threads=1)
    with pytest.raises(InputError):
        exe(**inputs)
    exe.close()
