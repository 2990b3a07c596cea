"""The sampler against llama.cpp and transformers (recorded, see tests/references/sampling.py), and its promises."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.errors import OptionError, RlxError
from rlx.runtime.sampler import Sampler, SamplingOptions, draw
from tests.references.seeded import seeded_tensor

FOLDER = Path(__file__).parent.parent / "references"
RECORDED: dict[str, Any] = json.loads((FOLDER / "sampling.json").read_text(encoding="utf-8"))
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
GRID = 20000
RECORDED_DRAWS = [245, 632, 524, 77, 155, 856, 307, 93]


def case_options(case: dict[str, Any]) -> SamplingOptions:
    names = set(case) - {"name", "history", "vocab", "scale"}
    return SamplingOptions.from_keywords(NEUTRAL | {name: case[name] for name in names})


def case_logits(case: dict[str, Any]) -> NDArray[np.float32]:
    shape = (case.get("vocab", RECORDED["vocab"]),)
    return seeded_tensor(case["name"], shape, RECORDED["seed"], case.get("scale", 2.0))


def answer(name: str) -> NDArray[np.float32]:
    with np.load(FOLDER / "sampling.npz") as arrays:
        return arrays[name]


def distribution(sampler: Sampler, logits: NDArray[np.float32], points: int = GRID) -> NDArray[np.float64]:
    """The distribution draws come from, seen through an even grid of uniform numbers: exact to 1 / points."""
    scores = sampler.scores(logits)
    drawn = [draw(scores, sampler.options, (point + 0.5) / points) for point in range(points)]
    return np.bincount(drawn, minlength=logits.size) / points


def check_distribution(case: dict[str, Any], *, as_generated: bool, points: int) -> None:
    logits, expected = case_logits(case), answer(case["name"])
    history = case.get("history", [])
    sampler = Sampler(case_options(case), logits.size, () if as_generated else history)
    for token in history if as_generated else ():
        sampler.accept(token)
    found = distribution(sampler, logits, points)
    # An interval of length p holds p * points grid points, give or take one; 1e-6 is llama.cpp's float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1 / points + 1e-6)
    assert not found[expected == 0].any()


@pytest.mark.parametrize("case", RECORDED["chain"], ids=lambda case: case["name"])
def test_distribution_is_that_of_llama_cpp(case: dict[str, Any]) -> None:
    check_distribution(case, as_generated=True, points=3000 if "vocab" in case else 20000)


@pytest.mark.parametrize("case", RECORDED["processors"], ids=lambda case: case["name"])
def test_processors_are_those_of_transformers(case: dict[str, Any]) -> None:
    if "repetition_penalty" in case:
        logits = case_logits(case)
        sampler = Sampler(case_options(case), logits.size, case["history"])
        np.testing.assert_array_equal(sampler.scores(logits), answer(case["name"]))
    else:
        check_distribution(case, as_generated=False, points=GRID)


def logits_of(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_prompt_counts_for_repetition_only() -> None:
    options = SamplingOptions(repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=0.5)
    sampler = Sampler(options, 4, [0, 1])
    np.testing.assert_array_equal(sampler.scores(logits_of([4, -4, 4, 4])), [2, -8, 4, 4])
    sampler.accept(2)
    sampler.accept(2)
    np.testing.assert_array_equal(sampler.scores(logits_of([4, -4, 4, 4])), [2, -8, 4 / 2 - 2.5, 4])


def test_penalty_window() -> None:
    row = logits_of([4, 4, 4, 4])
    assert Sampler(SamplingOptions(repetition_penalty=2.0, penalty_window=0), 4, [0]).scores(row) is row
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0, penalty_window=2), 4, [0, 1])
    np.testing.assert_array_equal(sampler.scores(row), [2, 2, 4, 4])
    sampler.accept(2)
    np.testing.assert_array_equal(sampler.scores(row), [4, 2, 2, 4])
    np.testing.assert_array_equal(row, [4, 4, 4, 4])


def test_greedy_takes_the_lowest_id_of_the_largest() -> None:
    assert Sampler(SamplingOptions(temperature=0.0), 5).sample(logits_of([1, 3, 2, 3, 3])).token == 1


def test_greedy_sees_bias_and_bans() -> None:
    row = logits_of([1, 3, 2])
    assert Sampler(SamplingOptions(temperature=0, logit_bias={0: 5.0}), 3).sample(row).token == 0
    assert Sampler(SamplingOptions(temperature=0, logit_bias={1: -math.inf}), 3).sample(row).token == 2
    assert Sampler(SamplingOptions(temperature=0), 3, banned=[1, 99]).sample(row).token == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_banned_is_an_error(temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature), 2, banned=[0, 1])
    with pytest.raises(RlxError, match="bans every one"):
        sampler.sample(logits_of([0, 0]))


def test_banned_token_is_never_drawn() -> None:
    options = SamplingOptions.from_keywords(NEUTRAL | {"logit_bias": {1: -math.inf}})
    found = distribution(Sampler(options, 3), logits_of([0, 50, 0]), 100)
    np.testing.assert_array_equal(found, [0.5, 0, 0.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    row = np.zeros(100, np.float32)
    row[37] = bad
    with pytest.raises(RlxError, match="not finite") as caught:
        Sampler(SamplingOptions(temperature=temperature), 100).sample(row)
    assert "1 of 100" in str(caught.value)
    assert "id 37" in str(caught.value)


def test_penalties_beyond_float32_are_refused() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=1e-45), 2, [0])
    with pytest.raises(OptionError, match="beyond float32"):
        sampler.sample(logits_of([5, 0]))
    with pytest.raises(OptionError, match="beyond float32"):
        Sampler(SamplingOptions(logit_bias={0: 1e300}), 2).sample(logits_of([5, 0]))


def test_wrong_length_is_refused() -> None:
    with pytest.raises(RlxError, match="wrong shape"):
        Sampler(SamplingOptions(), 3).sample(logits_of([1, 2]))


def test_edges_of_a_draw() -> None:
    """A token owns its interval from the lower edge on, and minus zero is a tie with zero."""
    options = SamplingOptions.from_keywords(NEUTRAL)
    row = logits_of([0.0, -0.0])
    assert [draw(row, options, uniform) for uniform in (0.0, 0.49, 0.5, 1 - 2.0**-53)] == [0, 0, 1, 1]
    assert draw(logits_of([-0.0, 0.0]), options, 0.0) == 0


def test_tiny_temperature_is_greedy() -> None:
    sampler = Sampler(SamplingOptions(temperature=1e-300, seed=1), 4)
    assert sampler.sample(logits_of([1, 2, 3, 2.999])).token == 2


@given(seed=st.integers(0, 2**64 - 1), tries=st.integers(1, 3))
def test_sample_changes_nothing_and_seed_decides(seed: int, tries: int) -> None:
    row = seeded_tensor("row", (200,), 3)
    first, second = (Sampler(SamplingOptions.from_keywords(NEUTRAL | {"seed": seed}), 200) for _ in range(2))
    for _ in range(3):
        expected = first.sample(row)
        assert [second.sample(row) for _ in range(tries)] == [expected] * tries
        first.accept(expected.token)
        second.accept(expected.token)


def test_recorded_draws() -> None:
    """The tokens of a seed are a promise to users: they must not change between versions of RLX."""
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=42), 1000)
    row = seeded_tensor("recorded", (1000,), 5)
    tokens: list[int] = []
    for _ in range(8):
        tokens.append(sampler.sample(row).token)
        sampler.accept(tokens[-1])
    assert tokens == RECORDED_DRAWS


def test_draws_are_uniform() -> None:
    """Chi-square of 4000 draws over 8 equally likely tokens; 24.3 is the 0.1% point for 7 degrees of freedom."""
    sampler = Sampler(SamplingOptions.from_keywords(NEUTRAL | {"seed": 7}), 8)
    row = np.zeros(8, np.float32)
    counts = np.zeros(8)
    for _ in range(4000):
        token = sampler.sample(row).token
        counts[token] += 1
        sampler.accept(token)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3


def test_unseeded_requests_differ_and_can_be_repeated() -> None:
    samplers = [Sampler(SamplingOptions(), 10) for _ in range(3)]
    assert len({sampler.seed for sampler in samplers}) == 3
    row = seeded_tensor("row", (500,), 3)
    again = Sampler(SamplingOptions(seed=samplers[0].seed, top_k=0), 500)
    assert Sampler(SamplingOptions(top_k=0), 500, seed=samplers[0].seed).sample(row) == again.sample(row)


@settings(max_examples=60)
@given(
    size=st.integers(1, 5000),
    options=st.fixed_dictionaries(
        {
            "temperature": st.floats(0.05, 5),
            "top_k": st.sampled_from([0, 1, 3, 40, 2000]),
            "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.3]),
            "min_p": st.sampled_from([0.0, 0.001, 0.1]),
        }
    ),
    uniform=st.floats(0, 1, exclude_max=True),
    levels=st.sampled_from([3, 1000, 10**6]),
)
def test_draw_equals_the_textbook(size: int, options: dict[str, Any], uniform: float, levels: int) -> None:
    """Against a full sort; few levels make many ties."""
    scores = np.round(seeded_tensor("draw", (size,), 1) * levels).astype(np.float32) / np.float32(levels)
    parsed = SamplingOptions.from_keywords(options)
    order = np.lexsort((np.arange(size), -scores))[: parsed.top_k or size]
    logits = scores[order].astype(np.float64)
    likely = np.exp(logits - logits[0])
    before = (np.cumsum(likely) - likely) / likely.sum()  # probability of all that are likelier
    keep = np.ones(order.size, bool)
    if parsed.top_p < 1:
        keep &= before < parsed.top_p
    keep &= likely >= parsed.min_p
    weights = np.where(keep, np.exp((logits - logits[0]) / parsed.temperature), 0)
    edges = np.cumsum(weights) / weights.sum()
    place = int(np.flatnonzero(order == draw(scores, parsed, uniform))[0])
    # The draw lies in its token's interval; 1e-9 is far above the rounding of 5000 additions in float64.
    assert edges[place] - weights[place] / weights.sum() - 1e-9 <= uniform <= edges[place] + 1e-9
    assert before[place] < parsed.top_p + 1e-9
    assert likely[place] >= parsed.min_p - 1e-9


def test_logprobs_are_of_the_raw_distribution() -> None:
    row = seeded_tensor("logprobs", (64,), 3, 3.0)
    wide = row.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum())
    options = SamplingOptions(temperature=0.1, top_k=2, logprobs=5, seed=1, repetition_penalty=1.7)
    sampled = Sampler(options, 64, range(10)).sample(row)
    assert sampled.logprob == pytest.approx(expected[sampled.token], abs=1e-12)
    assert [token for token, _ in sampled.top] == np.argsort(-row, kind="stable")[:5].tolist()
    assert [value for _, value in sampled.top] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-12)
    assert Sampler(SamplingOptions(logprobs=0), 64).sample(row).top == ()
    assert Sampler(SamplingOptions(), 64).sample(row).logprob is None
    ties = Sampler(SamplingOptions(logprobs=3), 8).sample(np.zeros(8, np.float32)).top
    assert [token for token, _ in ties] == [0, 1, 2]


BAD: list[tuple[str, object]] = [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
    ("temperature", None), ("temperature", True), ("temperature", 10**400),
    ("top_k", -1), ("top_k", 1.5), ("top_k", True), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.01),
    ("repetition_penalty", 0.0), ("repetition_penalty", -1), ("frequency_penalty", math.inf),
    ("presence_penalty", "1"), ("penalty_window", -2), ("seed", -1), ("seed", 2**64), ("seed", 1.0),
    ("logprobs", -1), ("stop", ""), ("stop", ["a", ""]), ("stop", 3), ("stop", [3]), ("stop", {"a": 1}),
    ("max_tokens", 0), ("max_tokens", -5), ("ignore_eos", 1), ("logit_bias", [1]), ("logit_bias", {"a": 1.0}),
    ("logit_bias", {1: "x"}), ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda item: str(item)[:12])
def test_bad_values_are_named(name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        SamplingOptions.from_keywords({name: value})
    assert caught.value.where == name
    assert caught.value.found is not None
    assert caught.value.expected is not None


def test_values_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(OptionError, match="logit_bias"):
        Sampler(SamplingOptions(logit_bias={5: 1.0}), 5)
    with pytest.raises(OptionError, match="logprobs"):
        Sampler(SamplingOptions(logprobs=6), 5)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean temperature") as caught:
        SamplingOptions.from_keywords({"temprature": 1})
    assert "temprature" in str(caught.value)
    with pytest.raises(OptionError, match="top_p"):
        SamplingOptions.from_keywords({"xyzzy": 1})


def test_values_are_normalised() -> None:
    options = SamplingOptions.from_keywords({"stop": "\n", "top_k": np.int64(3), "temperature": np.float32(0.5)})
    assert options.stop == ("\n",)
    assert type(options.top_k) is int
    assert type(options.temperature) is float
    base = SamplingOptions(top_k=7)
    assert SamplingOptions.from_keywords({"seed": 2}, base) == SamplingOptions(top_k=7, seed=2)


def test_speed() -> None:
    """A large vocabulary costs well under a millisecond; the full sort that a naive top-k needs costs ten."""
    row = seeded_tensor("speed", (151936,), 3, 3.0)
    sampler = Sampler(SamplingOptions(seed=1), row.size)
    best = math.inf
    for _ in range(20):
        start = time.perf_counter()
        sampler.sample(row)
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3
