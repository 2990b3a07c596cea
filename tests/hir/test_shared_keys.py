"""Layers that attend to the keys and values of an earlier layer: no pages, no appends, and no rows nobody asks for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.core.graph import Graph, Value
from rlx.core.verify import verify
from rlx.flow import DictWeights, ModelFlow
from rlx.hir import LayerCache, derive_step
from rlx.ops.op import Emitter
from tests.hir.stepping import Stepper
from tests.references.seeded import seeded_weight

BATCH, SEQ = Dim("batch"), Dim("seq", max=64)
WEIGHTS = DictWeights(
    {key: seeded_weight(key, (50, 32), 5) for key in ("model.embed_tokens.weight", "lm_head.weight")},
)
IDS = [np.random.default_rng(seed).integers(0, 50, length).astype(np.int32) for seed, length in enumerate((11, 6))]
SCHEDULE = [[(0, 4), (1, 6)], [(0, 1)], [(0, 6)]]


def graph_of(heads: tuple[tuple[int, int], ...], tap: str | None = None) -> Graph:
    """A layer with keys of its own, then one with a window for each (query heads, KV heads) that reads the same."""

    def layers(emit: Emitter, x: Value) -> Value:
        k, v = emit("tanh", x), emit("sin", x)
        x = emit("add", x, emit("attention", x, k, v, num_heads=4, num_kv_heads=4, scale=0.3))
        for count, kv_count in heads:
            q = emit("cos", x)
            attrs = {"num_heads": count, "num_kv_heads": kv_count, "scale": 0.2, "mask": "sliding", "window": 3}
            x = emit("add", x, emit("attention", q, k, v, **attrs))
        return x

    flow = ModelFlow("shared").input("tokens", (BATCH, SEQ), i32).token_embed().custom(layers)
    return (flow if tap is None else flow.tap(tap)).lm_head(50, 32).build(WEIGHTS)


def plain_logits(graph: Graph, ids: np.ndarray) -> np.ndarray:
    return run_graph(graph, {"tokens": ids[None]}, WEIGHTS)["logits"][0]


@pytest.mark.parametrize("tap", [None, "hidden"])
def test_one_layer_has_pages_and_all_read_them(tap: str | None) -> None:
    graph = graph_of(((4, 4), (4, 4)), tap)
    step = derive_step(graph, page_size=4)
    verify(step.graph, "hir")
    assert step.layers == (LayerCache(4, 8, None),)
    assert step.bytes_per_page == 2 * 4 * 32 * 4
    ops = Counter(node.op for node in step.graph.nodes)
    assert (ops["cache_append"], ops["paged_attention"]) == (1, 3)
    found = Stepper(step, WEIGHTS, IDS).all_logits(SCHEDULE)
    for ids, logits in zip(IDS, found, strict=True):
        # float64 in another order of sums
        np.testing.assert_allclose(logits, plain_logits(graph, ids), atol=1e-12)


def rows_of(op: str, graph: Graph) -> list[str]:
    return [str(node.output.type.shape[0]) for node in graph.nodes if node.op == op]


def test_readers_run_for_the_logit_rows_alone_unless_a_tap_needs_all() -> None:
    alone, tapped = (derive_step(graph_of(((4, 4), (4, 4)), tap)).graph for tap in (None, "hidden"))
    assert rows_of("paged_attention", alone) == ["T", "R", "R"]
    assert rows_of("cos", alone) == ["R", "R"]
    assert rows_of("paged_attention", tapped) == ["T", "T", "T"]
    graph = graph_of(((4, 4),))
    stepper = Stepper(derive_step(graph, page_size=4), WEIGHTS, IDS)
    stepper.run([(0, 5), (1, 2)], [])
    found = stepper.run([(0, 6), (1, 4)], [1, 5, 7])["logits"]
    expected = plain_logits(graph, IDS[0])[[6, 10]], plain_logits(graph, IDS[1])[[3]]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-12)


def test_the_same_keys_under_other_heads_are_appended_once_more() -> None:
    graph = graph_of(((2, 2),))
    step = derive_step(graph, page_size=4)
    assert step.layers == (LayerCache(4, 8, None), LayerCache(2, 16, 3))
    (found, _) = Stepper(step, WEIGHTS, IDS).all_logits(SCHEDULE)
    np.testing.assert_allclose(found, plain_logits(graph, IDS[0]), atol=1e-12)
