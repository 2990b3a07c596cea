"""What a token does to the cache never reaches a row that must not see it; taps come with every step."""

from __future__ import annotations

import numpy as np
import pytest

from rlx.core.dtype import i32
from rlx.errors import InputError, RlxError
from rlx.flow import ModelFlow
from rlx.flow.weights import DictWeights
from rlx.runtime.engine import Engine
from rlx.runtime.load import start_session
from tests.hir.test_derive_step import BATCH, CONFIG, IDS, SEQ, WEIGHTS, attention
from tests.models.small_llama import llama_flow
from tests.references.seeded import seeded_weight

KEYS = list(WEIGHTS.keys())


def poisoned_weights(size: float) -> DictWeights:
    """Token 7 alone makes a value of `size` in the first layer."""
    arrays = {key: seeded_weight(key, WEIGHTS.type_of(key).shape, 5) for key in KEYS}  # pyright: ignore[reportArgumentType]
    arrays["model.embed_tokens.weight"][:, 0] = 0
    arrays["model.embed_tokens.weight"][7, 0] = 1
    arrays["model.layers.0.self_attn.v_proj.weight"][:, 0] = size
    return DictWeights(arrays)


@pytest.mark.parametrize(
    ("precision", "size"),
    [("fast", 2e4), ("fast", 3e38), ("exact", 3e38)],  # beyond float16, and beyond float32
)
def test_an_overflowing_token_does_not_reach_earlier_rows_or_later_requests(precision: str, size: float) -> None:
    weights = poisoned_weights(size)
    with_token, without = [1, 2, 3, 4, 7, 5], [1, 2, 3]
    with start_session(llama_flow(CONFIG), weights, 50, 64, precision=precision, threads=1) as session:
        engine = Engine(session)
        expected = engine.logits(without)
        assert np.isfinite(expected).all()
        for chunk in (with_token, with_token[:5], [7] * 40):
            found = engine.logits(chunk)
            if chunk[0] == 1:
                assert np.array_equal(found[:3], expected), "a later token changed an earlier row"
            assert np.array_equal(engine.logits(without), expected), "an earlier request left something behind"


def test_taps_come_with_every_step() -> None:
    flow = ModelFlow("tapped").input("tokens", (BATCH, SEQ), i32).rope_tables(CONFIG.rope).token_embed()
    flow.stage(attention(0)).tap("hidden").lm_head(50, 32)
    plain = ModelFlow("plain").input("tokens", (BATCH, SEQ), i32).rope_tables(CONFIG.rope).token_embed()
    plain.stage(attention(0)).lm_head(50, 32)
    with (
        start_session(flow, WEIGHTS, 50, 64, threads=1, precision="exact") as tapped,
        start_session(plain, WEIGHTS, 50, 64, threads=1, precision="exact") as untapped,
    ):
        found = [Engine(session).logits(IDS[0].tolist()) for session in (tapped, untapped)]
        assert np.array_equal(found[0], found[1]), "looking changed the logits"
        assert tapped.taps["hidden"].shape == (len(IDS[0]), 32)
        assert tapped.taps["hidden"].any()
        assert untapped.taps == {}


def test_a_closed_session_and_arrays_of_another_rank_are_refused() -> None:
    row, table = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    session = start_session(llama_flow(CONFIG), WEIGHTS, 50, 64, threads=1)
    with pytest.raises(InputError, match="page_table"):
        session.run(row, row, row, np.int32(0), row)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="tokens"):
        session.run(table, row, row, table, row)
    session.close()
    with pytest.raises(RlxError, match="closed"):
        session.run(row, row, row, table, row)
