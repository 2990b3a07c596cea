"""The logits of a token depend on its own text alone, bit for bit: not on chunks, batch, threads or pages.

Whatever is compared is computed twice by the same program in two ways; that it is right is shown by the other tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlx
from rlx.backends.cpu.target import available
from rlx.io.reference import resolve
from rlx.runtime.loaded_model import LoadedModel as Model
from rlx.runtime.session import Session
from tests.integration.driving import Drive, Floats, Ints, in_chunks, session_of_model
from tests.integration.tiny import TINY, recipe_of, session_of, write_packed_gguf
from tests.models.checkpoints import write_folder
from tests.references.load import botchan_windows
from tests.references.seeded import seeded_tensor

CHUNKS = (1, 7, 64)


def assert_same_bits(found: Floats, expected: Floats, why: str) -> None:
    assert found.dtype == expected.dtype == np.float32
    same = found.view(np.uint32) == expected.view(np.uint32)
    assert same.all(), f"{why}: {np.count_nonzero(~same)} of {same.size} logits differ in their bits"


def in_company(session: Session, ids: Ints, others: list[Ints], seed: int) -> Floats:
    """Logits of `ids` as one of five: others are ahead and decode while it is read in uneven chunks, then it decodes
    while others are read."""
    drive = Drive(session, [others[0], others[1], ids, others[2], others[3]], seed=seed)
    parts: list[Floats] = []

    def step(*chunks: tuple[int, int]) -> None:
        results = drive.step(chunks)
        parts.extend(rows for (sequence, _), rows in zip(chunks, results, strict=True) if sequence == 2)

    left = len(ids) - 13
    step((0, 9), (3, 5))
    step((0, 1), (2, 1), (3, 1), (4, 3))
    step((1, 2), (0, 1), (2, left), (4, 1), (3, 1))
    for _ in range(5):
        step((0, 1), (4, 2), (2, 1), (1, 3), (3, 1))
    step((2, 7), (1, 1))
    assert drive.done[2] == len(ids)
    return np.concatenate(parts)


def check_all_ways(sessions: dict[int, Session], ids: Ints, others: list[Ints]) -> Floats:
    """Every way of computing the logits of `ids`; `sessions` by number of threads."""
    expected = in_chunks(sessions[1], ids, len(ids))
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 1, "not a program that gives the same for everything"
    for threads, session in sessions.items():
        assert session.module.threads == threads
        # pages are taken by others first: what they leave behind must not matter
        for other in others:
            in_chunks(session, other, len(other))
        for size in (*CHUNKS, len(ids)):
            assert_same_bits(in_chunks(session, ids, size), expected, f"chunks of {size}, {threads} threads")
        shuffled = in_chunks(session, ids, 64, seed=threads)
        assert_same_bits(shuffled, expected, f"shuffled pages, {threads} threads")
        for seed in range(2):
            together = in_company(session, ids, others, seed)
            assert_same_bits(together, expected, f"in a batch of 5, {threads} threads, pages {seed}")
    return expected


def some_ids(name: str, length: int, vocab_size: int) -> Ints:
    return (np.abs(seeded_tensor(name, (length,), 5)) * 1e6).astype(np.int64).__mod__(vocab_size).astype(np.int32)


def tiny_variants() -> list[Any]:
    """Every model, form of weights, precision and target; those that a quick run takes cover each of them once."""
    variants: list[Any] = []
    for target in available():
        for name in ("gqa_untied", "mistral_window", "wide_heads"):
            for form, precision in (("f32", "exact"), ("packed", "exact"), ("packed", "fast")):
                quick = (name, precision) == ("mistral_window", "fast") or (name, form) == ("wide_heads", "f32")
                marks = () if quick else pytest.mark.slow
                variants.append(pytest.param(name, form, precision, target, marks=marks))
    return variants


@pytest.mark.parametrize(("name", "form", "precision", "target"), tiny_variants())
def test_tiny_models(name: str, form: str, precision: str, target: str, tmp_path: Path) -> None:
    case = TINY[name]
    path = (
        write_folder(tmp_path, case.config, case.weights())
        if form == "f32"
        else write_packed_gguf(tmp_path / "model.gguf", case)
    )
    recipe = recipe_of(path)
    options: dict[str, Any] = {"precision": precision, "target": target}
    vocab_size = recipe.vocab_size
    ids = some_ids("ids", 101, vocab_size)
    others = [some_ids(f"other {i}", length, vocab_size) for i, length in enumerate((20, 40, 25, 33))]
    with session_of(recipe, **options) as alone, session_of(recipe, **options, threads=2) as pair:
        logits = check_all_ways({1: alone, 2: pair}, ids, others)
    if form == "packed":
        with session_of(recipe, precision={"exact": "fast", "fast": "exact"}[precision], target=target) as other:
            assert not np.array_equal(in_chunks(other, ids, 64), logits), "the two precisions are two programs"


@pytest.fixture(scope="module", params=["exact", "fast"])
def smollm2_sessions(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[dict[int, Session]]:
    models: dict[int, Model] = {
        threads: rlx.load(smollm2_path, precision=request.param, threads=threads, context=512) for threads in (1, 2)
    }
    yield {threads: session_of_model(model) for threads, model in models.items()}
    for model in models.values():
        model.close()


@pytest.mark.slow
def test_smollm2(smollm2_sessions: dict[int, Session]) -> None:
    windows = botchan_windows()
    ids = windows[0].ids[:100]
    others = [window.ids[:length] for window, length in zip(windows[1:5], (20, 40, 25, 33), strict=True)]
    check_all_ways(smollm2_sessions, ids, others)


@pytest.mark.slow
def test_the_instruction_set_may_change_bits_but_not_the_answer(smollm2_path: Path, tmp_path: Path) -> None:
    """Exact logits of each target on the real weights lie together; bits differ where a target lacks the fused
    multiply-add, which is why the promise holds for one target."""
    ids = botchan_windows()[0].ids[:12]
    results: list[Floats] = []
    for target in available():
        with rlx.load(resolve(smollm2_path), precision="exact", threads=2, context=64, target=target) as model:
            results.append(model.logits(ids))
    for other in results[1:]:
        assert np.abs(other - results[0]).max() <= 5e-4  # see TOLERANCE in test_smollm2.py


@pytest.mark.parametrize("target", available())
def test_generated_in_a_batch_equals_generated_alone(target: str, tmp_path: Path) -> None:
    """Through the engine's own schedule, with pages and rows so few that requests wait and are paused."""
    from rlx.runtime.engine import Engine, Request
    from rlx.runtime.options import SamplingOptions

    case = TINY["mistral_window"]
    recipe = recipe_of(write_packed_gguf(tmp_path / "model.gguf", case))
    prompts = [some_ids(f"prompt {i}", 3 + 11 * i, recipe.vocab_size).tolist() for i in range(5)]
    options = SamplingOptions(temperature=0, max_tokens=24)
    with session_of(recipe, precision="fast", target=target, num_pages=6) as session:

        def run(chosen: list[list[int]], rows: int) -> list[list[int]]:
            engine = Engine(session, max_step_tokens=rows, max_sequences=4)
            handles = [engine.add(Request(prompt, options)) for prompt in chosen]
            while engine.num_requests:
                engine.step()
            return [[sampled.token for sampled in handle.sampled] for handle in handles]

        alone = [run([prompt], 64)[0] for prompt in prompts]
        assert [len(tokens) for tokens in alone] == [24] * 5
        assert run(prompts, 64) == alone
        assert run(prompts, 5) == alone
