"""The recorded answers hold together: the generator's bits, the distances' arithmetic, the files' consistency."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.references.kl import (
    CompactDistribution,
    compact_distribution,
    compact_kl,
    full_kl,
    log_softmax,
    log_sum_exp,
    perplexity,
)
from tests.references.load import (
    FOLDER,
    attention_cases,
    botchan_figures,
    botchan_windows,
    mrope_cases,
    rope_cases,
    smollm2_prompts,
    tiny_llama_cases,
)
from tests.references.seeded import seeded_tensor

MEGABYTE = 1 << 20


def test_seeded_tensors_keep_their_bits() -> None:
    # Fixed once; a change here makes every recorded answer worthless.
    found = seeded_tensor("model.embed_tokens.weight", (2, 3), 7, 0.5)
    assert found.dtype == np.float32
    assert found.tobytes().hex() == "7121a43dabdd31bd7523313f8d30b03d7df0d53e276b223e"


def test_seeded_tensors_differ_by_name_and_seed_and_have_the_scale_asked_for() -> None:
    one, other_name, other_seed = (seeded_tensor(n, (10000,), s, 3.0) for n, s in (("a", 1), ("b", 1), ("a", 2)))
    assert one.std() == pytest.approx(3.0, rel=0.03)  # 10000 draws: the standard deviation is known to about 0.5%
    assert abs(one.mean()) < 0.15  # five standard errors of the mean
    assert abs(np.corrcoef(one, other_name)[0, 1]) < 0.05
    assert abs(np.corrcoef(one, other_seed)[0, 1]) < 0.05


def test_kl_of_distributions_worked_by_hand() -> None:
    p, q = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.25, 0.25, 0.25, 0.25])
    by_hand = 0.5 * math.log(2) + 2 * 0.125 * math.log(0.5)
    assert full_kl(np.log(p)[None], np.log(q)[None])[0] == pytest.approx(by_hand, abs=1e-15)
    # With one token kept the rest are one bucket of 0.5 against 0.75.
    bucket = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    compact = compact_distribution(np.log(p)[None], 1)
    assert compact.ids.tolist() == [[0]]
    assert compact_kl(compact, np.log(q)[None])[0] == pytest.approx(bucket, abs=1e-7)


def test_kl_does_not_depend_on_an_offset_and_survives_large_logits() -> None:
    logits = seeded_tensor("logits", (5, 100), 1, 10.0).astype(np.float64)
    other = logits + seeded_tensor("noise", (5, 100), 1, 0.1)
    compact = compact_distribution(logits, 16)
    np.testing.assert_allclose(compact_kl(compact, other), compact_kl(compact, other + 5000.0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(log_sum_exp(logits + 5000.0), log_sum_exp(logits) + 5000.0, rtol=1e-12)
    assert (compact_kl(compact, other) <= full_kl(logits, other) + 1e-6).all()
    assert (compact_kl(compact, logits) < 1e-6).all()


def test_perplexity_of_a_uniform_guess_is_the_vocabulary_size() -> None:
    assert perplexity(log_softmax(np.zeros((3, 50)))[:, 7]) == pytest.approx(50.0, rel=1e-12)


def test_answers_are_finite_and_shaped_as_said() -> None:
    for case in attention_cases():
        config = case.config
        assert case.output.shape == (config.batch, config.queries, config.num_heads * config.head_dim)
        assert np.isfinite(case.output).all()
        if case.cos is not None:
            assert case.cos.shape == (config.queries, config.n_rot // 2)
    for case in tiny_llama_cases():
        assert case.logits.shape == (len(case.ids), case.config["vocab_size"])
        assert case.greedy[0] == case.logits[-1].argmax()
    for case in rope_cases():
        assert case.cos.shape == case.sin.shape == (len(case.positions), len(case.inv_freq))
    for case in mrope_cases():
        pairs = sum(case.sections)
        assert case.cos.shape == case.sin.shape == (case.positions.shape[1], pairs)
    for case in smollm2_prompts():
        assert case.greedy[0] == case.last_logits.argmax() == case.top_ids[-1, 0]
        np.testing.assert_array_equal(case.last_logits[case.top_ids[-1].astype(np.int64)], case.top_logits[-1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("window_4", "window_3"),
        ("op_fewer_queries_window_4", "op_fewer_queries_window_3"),
        ("op_small_soft_cap", "op_soft_cap_zero_is_off"),
    ],
)
def test_cases_that_differ_in_one_field_have_different_answers(one: str, other: str) -> None:
    outputs = {case.name: case.output for case in attention_cases()}
    assert np.abs(outputs[one] - outputs[other]).max() > 0.1


def test_compact_references_sum_to_one_and_agree_with_the_targets() -> None:
    for window in botchan_windows():
        reference: CompactDistribution = window.reference
        total = np.exp(reference.log_probs.astype(np.float64)).sum(axis=-1) + np.exp(
            reference.tail_log_probs.astype(np.float64)
        )
        np.testing.assert_allclose(total, 1.0, rtol=0, atol=2e-6)  # float32 logarithms of up to 15: 15 * 2**-24
        kept = reference.ids == window.targets[:, None]
        rows = kept.any(axis=-1)
        assert rows.mean() > 0.5
        np.testing.assert_array_equal(reference.log_probs[kept], window.reference_target_log_probs[rows])


def test_figures_are_those_of_the_arrays() -> None:
    windows, figures = botchan_windows(), botchan_figures()
    compact = np.concatenate([window.llama_cpp_compact_kl for window in windows]).astype(np.float64)
    assert compact.mean() == pytest.approx(figures.llama_cpp_mean_compact_kl, rel=1e-9)
    assert compact.mean() <= figures.llama_cpp_mean_kl
    reference = np.concatenate([window.reference_target_log_probs for window in windows])
    llama = np.concatenate([window.llama_cpp_target_log_probs for window in windows])
    assert perplexity(reference) == pytest.approx(figures.reference_perplexity, rel=1e-9)
    assert perplexity(llama) == pytest.approx(figures.llama_cpp_perplexity, rel=1e-9)


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.np*")) < 8 * MEGABYTE
