"""Models with recurrent state on the CPU: the same bits in any chunks and company, slots, pauses, refusals, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.backends.cpu.target import available
from rlx.core.dtype import q8_0
from rlx.core.storage import encode
from rlx.errors import InputError
from rlx.models import ModelRecipe
from rlx.runtime.engine import Engine, Request
from rlx.runtime.sampler import SamplingOptions
from rlx.runtime.session import Session
from tests.integration.driving import Drive
from tests.integration.test_bit_for_bit import check_all_ways, some_ids
from tests.integration.tiny import F32, recipe_of, session_of
from tests.io.gguf_writer import Tensor, gguf_bytes
from tests.models.family_files import FAMILIES, LAYOUTS, folder, gguf_tensors

CASE = FAMILIES["qwen3_5"]
Q8_0 = 8
"""Its number in ggml."""


def packed_recipe(path: Path) -> ModelRecipe:
    """The GGUF file of the case with its matrices in Q8_0, but for the filters."""
    tensors: dict[str, Tensor] = {}
    for name, array in gguf_tensors(CASE).items():
        is_matrix = array.ndim == 2 and "conv1d" not in name
        data = encode(q8_0, array) if is_matrix else array
        tensors[name] = Tensor(array.shape[::-1], Q8_0 if is_matrix else F32, data.tobytes())
    path.write_bytes(gguf_bytes(LAYOUTS[CASE.name].metadata, tensors))
    return recipe_of(path)


def variants() -> list[Any]:
    quick = {("f32", "exact", available()[0]), ("packed", "fast", available()[0]), ("f32", "exact", available()[-1])}
    every = [(*kind, target) for kind in (("f32", "exact"), ("packed", "fast")) for target in available()]
    return [pytest.param(*variant, marks=() if variant in quick else pytest.mark.slow) for variant in every]


@pytest.mark.parametrize(("form", "precision", "target"), variants())
def test_the_logits_of_a_text_do_not_depend_on_how_it_was_run(
    form: str, precision: str, target: str, tmp_path: Path
) -> None:
    recipe = packed_recipe(tmp_path / "model.gguf") if form == "packed" else recipe_of(folder(CASE, tmp_path))
    options: dict[str, Any] = {"precision": precision, "target": target}
    ids = some_ids("ids", 101, recipe.vocab_size)
    others = [some_ids(f"other {i}", length, recipe.vocab_size) for i, length in enumerate((20, 40, 25, 33))]
    with session_of(recipe, **options) as alone, session_of(recipe, **options, threads=2) as pair:
        check_all_ways({1: alone, 2: pair}, ids, others)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    recipe = recipe_of(folder(CASE, tmp_path_factory.mktemp("hybrid")))
    with session_of(recipe, num_pages=5, num_slots=3) as made:
        yield made


def test_requests_that_pause_each_other_get_what_they_get_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four requests of 24 tokens and 32 more over three slots, and over pages for two and a half of them."""
    greedy = SamplingOptions(temperature=0.0, max_tokens=32)
    prompts = [CASE.ids.tolist(), *(some_ids(f"prompt {i}", 24, 160).tolist() for i in range(3))]
    alone = [Drive(session, [prompt], room=32).greedy(32)[0] for prompt in prompts]
    assert alone[0] == CASE.greedy.tolist()
    engine, paused = Engine(session, max_step_tokens=17), list[int]()
    pause = engine._pause
    monkeypatch.setattr(engine, "_pause", lambda sequence: (paused.append(sequence.arrival), pause(sequence)))
    handles = [engine.add(Request(prompt, greedy)) for prompt in prompts]
    for _ in range(6):
        engine.step()
    assert len(paused) == 0
    assert engine.logits(prompts[0])[-1].argmax() == alone[0][0]
    assert paused == [2], "the logits need a slot"
    while engine.num_requests:
        engine.step()
    assert len(paused) > 1, "and later pages are missing"
    assert [[sampled.token for sampled in handle.sampled] for handle in handles] == alone
    assert engine.num_free_pages == session.num_pages


Call = dict[str, list[int]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [5, 6, 7]}, "goes on where it stands"),
        ({"positions": [2, 3, 4]}, "goes on where it stands"),
        ({"positions": [3, 4, 6]}, "goes on where it stands"),
        ({"slots": [1]}, "goes on where it stands"),
        ({"slots": [3]}, "slots has a value out of range"),
        ({"slots": [0, 1]}, "a slot for each sequence"),
        ({"slots": [0, 1], "page_table": [0, 1]}, "rows of each sequence have to lie together"),
        ({"slots": [0, 0], "sequences": [0, 0, 1], "page_table": [0, 1]}, "rows of each sequence have to lie together"),
        ({"slots": [0, 1], "sequences": [1, 0, 0], "page_table": [0, 1]}, "rows of each sequence have to lie together"),
    ],
)
def test_a_state_that_stands_elsewhere_is_refused(session: Session, change: Call, message: str) -> None:
    def run(call: Call) -> None:
        arrays = {name: np.array(values, np.int32) for name, values in call.items()}
        arrays["page_table"] = arrays["page_table"][:, None]
        session.run(**arrays)

    first: Call = {"tokens": [1, 2, 3], "positions": [0, 1, 2], "sequences": [0] * 3, "page_table": [0]}
    run({**first, "logit_rows": [], "slots": [0]})
    then: Call = {**first, "positions": [3, 4, 5], "logit_rows": [], "slots": [0]}
    with pytest.raises(InputError, match=message):
        run({**then, **change})
    run(then)  # a refusal changes nothing


def test_slots_are_needed(session: Session) -> None:
    one = np.zeros(1, np.int32)
    with pytest.raises(InputError, match="a slot for each sequence"):
        session.run(one, one, one, one[:, None], one)


def test_memory_is_accounted_for(session: Session) -> None:
    # three linear layers: 3 rows of 128 channels, and 4 heads of 16 x 16; a full one: 2 heads of 32, keys and values
    state, page = 3 * (3 * 128 + 4 * 16 * 16) * 4, 2 * 2 * 32 * session.page_size * 4
    assert session.state_bytes == 3 * state
    assert session.cache_bytes == session.state_bytes + session.num_pages * page
    assert session.cache_format == "f32"
