"""Cross attention in a step program against the plain flow, on the reference interpreter; what cannot be derived."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.text import parse_graph, print_graph
from rlx.core.verify import verify
from rlx.errors import FlowError
from rlx.flow import DictWeights, ModelFlow
from rlx.flow.blocks import (
    AddInputStage,
    AddResidualStage,
    CrossAttentionStage,
    SaveResidualStage,
    SelfAttentionStage,
    SelfAttnPrefillSpec,
)
from rlx.flow.stage import BlockStage
from rlx.hir import derive_step, simplify
from tests.references.seeded import seeded_weight

BATCH, SEQ, FRAMES = Dim("batch"), Dim("seq", max=32), Dim("frames", max=40)
WIDTH, SOURCE_WIDTH, VOCAB, PAGE = 24, 16, 31, 8


def weights() -> DictWeights:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
    for layer in range(2):
        shapes |= {f"{layer}.self.{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "o")}
        shapes |= {f"{layer}.cross.{part}_proj.weight": (WIDTH, WIDTH) for part in ("q", "out")}
        shapes |= {f"{layer}.cross.{part}_proj.weight": (WIDTH, SOURCE_WIDTH) for part in ("k", "v")}
        shapes |= {f"{layer}.cross.{part}_proj.bias": (WIDTH,) for part in ("q", "v", "out")}
    return DictWeights({key: seeded_weight(key, shape, 3) for key, shape in shapes.items()})


def stages(layer: int) -> list[BlockStage]:
    q_key, k_key, v_key = (f"{layer}.self.{part}.weight" for part in "qkv")
    spec = SelfAttnPrefillSpec(q_key, k_key, v_key, 3, 8, 3, n_rot=0)
    return [
        SaveResidualStage(),
        SelfAttentionStage(spec, f"{layer}.self.o.weight"),
        AddResidualStage(),
        SaveResidualStage(),
        CrossAttentionStage(f"{layer}.cross", 3, 8),
        AddResidualStage(),
    ]


def flow(*more: BlockStage) -> ModelFlow:
    made = ModelFlow("crossing").input("tokens", (BATCH, SEQ), i32).input("source", (BATCH, FRAMES, SOURCE_WIDTH), f32)
    made.token_embed()
    for stage in (*stages(0), *stages(1), *more):
        made.stage(stage)
    return made.lm_head(VOCAB, WIDTH)


def test_steps_give_what_the_plain_flow_gives() -> None:
    """Two sequences over one source and a third over another, of other lengths, in two chunks."""
    held = weights()
    graph = flow().build(held)
    step = derive_step(graph, PAGE)
    assert step.source is not None
    for derived in (step.graph, step.source):
        verify(derived, "hir", after="derive_step")
        assert print_graph(parse_graph(print_graph(derived))) == print_graph(derived)
    keys = [
        {str(node.attrs["key"]) for node in simplify(derived).nodes if node.op == "parameter"}
        for derived in (step.graph, step.source)
    ]
    assert keys[1] == {
        f"{layer}.cross.{name}" for layer in range(2) for name in ("k_proj.weight", "v_proj.weight", "v_proj.bias")
    }
    assert not keys[0] & keys[1], "keys and values of a source are computed once, not in the step"
    random = np.random.default_rng(0)
    sources = [random.standard_normal((frames, SOURCE_WIDTH)).astype(np.float32) for frames in (19, 7)]
    ids = [random.integers(0, VOCAB, 6).astype(np.int32) for _ in range(3)]
    reads = [0, 0, 1]
    caches = {
        name: np.full([size if isinstance(size, int) else 2 * 8 for size in value.type.shape], 1e3, np.float32)
        for name, value in step.graph.inputs
        if name[:2] in ("k_", "v_")
    }
    source_table = np.array([[5, 1, 3], [0, 7, 2]], np.int32)
    filled = run_graph(
        step.source,
        {
            "source": np.concatenate(sources),
            "positions": np.concatenate([np.arange(len(rows)) for rows in sources]).astype(np.int32),
            "sequences": np.repeat([0, 1], [len(rows) for rows in sources]).astype(np.int32),
            "page_table": source_table,
            **{name: array for name, array in caches.items() if "source" in name},
        },
        held,
    )
    caches |= filled
    found: list[np.ndarray] = []
    for start, stop in ((0, 4), (4, 6)):
        count = stop - start
        given = {
            "tokens": np.concatenate([row[start:stop] for row in ids]),
            "positions": np.tile(np.arange(start, stop), 3).astype(np.int32),
            "sequences": np.repeat(np.arange(3), count).astype(np.int32),
            "page_table": np.array([[4], [0], [6]], np.int32),
            "logit_rows": np.arange(3 * count, dtype=np.int32),
            "sources": np.repeat(reads, count).astype(np.int32),
            "source_last": np.repeat([len(sources[read]) - 1 for read in reads], count).astype(np.int32),
            "source_table": source_table,
        }
        results = run_graph(step.graph, {**given, **caches}, held)
        caches |= {name: results[name] for name in caches if "cache" in name}
        found.append(results["logits"].reshape(3, count, VOCAB))
    for index, read in enumerate(reads):
        plain = run_graph(graph, {"tokens": ids[index][None], "source": sources[read][None]}, held)["logits"][0]
        assert np.abs(np.concatenate([part[index] for part in found]) - plain).max() < 1e-5


def other_lead() -> ModelFlow:
    made = ModelFlow("other").input("tokens", (BATCH, SEQ), i32).input("source", (FRAMES, SOURCE_WIDTH), f32)
    return made.token_embed().lm_head(VOCAB, WIDTH)


def source_of_words() -> ModelFlow:
    made = ModelFlow("other").input("tokens", (BATCH, SEQ), i32).input("source", (BATCH, FRAMES, SOURCE_WIDTH), i32)
    return made.token_embed().lm_head(VOCAB, WIDTH)


def other_name() -> ModelFlow:
    made = ModelFlow("other").input("tokens", (BATCH, SEQ), i32).input("image", (BATCH, FRAMES, WIDTH), f32)
    return made.token_embed().lm_head(VOCAB, WIDTH)


def added_source() -> ModelFlow:
    made = ModelFlow("other").input("tokens", (BATCH, SEQ), i32).input("source", (BATCH, SEQ, WIDTH), f32)
    return made.token_embed().stage(AddInputStage("source")).lm_head(VOCAB, WIDTH)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (other_lead, "rows of numbers"),
        (source_of_words, "rows of numbers"),
        (other_name, "only input"),
        (added_source, "rows of the source meet values of the tokens"),
    ],
)
def test_what_cannot_be_derived(make: Callable[[], ModelFlow], says: str) -> None:
    with pytest.raises(FlowError, match=says):
        derive_step(make().build(weights()), PAGE)


def test_a_flow_without_a_source_for_cross_attention() -> None:
    made = ModelFlow("none").input("tokens", (BATCH, SEQ), i32).token_embed().stage(stages(0)[4])
    with pytest.raises(FlowError, match="nothing is named 'source'"):
        made.build(weights())
