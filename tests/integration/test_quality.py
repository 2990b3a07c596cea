"""The default precision on prose, against the float32 model: no further away than llama.cpp is on the same file.

`-s` shows the figures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx.runtime.loaded_model import LoadedModel as Model
from tests.integration.command import rlx as command
from tests.references.kl import compact_kl, log_softmax, perplexity
from tests.references.load import botchan_figures, botchan_windows


def distance(model: Model) -> tuple[float, float]:
    """Mean KL divergence from the float32 model over the 2040 positions, and the perplexity."""
    divergences: list[np.ndarray] = []
    log_probs: list[np.ndarray] = []
    for window in botchan_windows():
        logits = model.logits(window.ids)[window.scored]
        divergences.append(compact_kl(window.reference, logits))
        log_probs.append(np.take_along_axis(log_softmax(logits), window.targets[:, None].astype(np.int64), -1)[:, 0])
    assert len(np.concatenate(divergences)) == 2040
    return float(np.mean(np.concatenate(divergences))), perplexity(np.concatenate(log_probs))


@pytest.mark.slow
def test_default_precision_is_as_near_to_float32_as_llama_cpp(smollm2_fast: Model) -> None:
    figures = botchan_figures()
    mean_kl, found = distance(smollm2_fast)
    difference = found / figures.reference_perplexity - 1
    print(
        f"\nbotchan, 2040 positions: mean compact KL {mean_kl:.6f}, llama.cpp {figures.llama_cpp_mean_compact_kl:.6f}"
    )
    print(
        f"perplexity {found:.4f} ({difference:+.3%}), float32 {figures.reference_perplexity:.4f}, "
        f"llama.cpp {figures.llama_cpp_perplexity:.4f}"
    )
    # the activations are rounded to 8 bits, so an exact zero would mean that this is not the default precision
    assert 1e-5 < mean_kl <= figures.llama_cpp_mean_compact_kl
    assert abs(difference) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("kv_cache", ["f16", "bf16", "q8_0"])
def test_a_smaller_cache_alone_costs_less_than_the_default_precision(smollm2_path: Path, kv_cache: str) -> None:
    """Products in float32, so that what is left is the rounding of keys and values."""
    with rlx.load(smollm2_path, precision="exact", kv_cache=kv_cache, threads=2, context=512) as model:
        mean_kl, found = distance(model)
    print(f"\n{kv_cache} cache: mean compact KL {mean_kl:.6f}, perplexity {found:.4f}")
    assert mean_kl <= botchan_figures().llama_cpp_mean_compact_kl / 2


@pytest.mark.slow
def test_perplexity_in_float32_is_that_of_transformers(smollm2_exact: Model) -> None:
    """The bar is 0.1%; sums of float32 in another order move a loss by about 1e-5."""
    windows = botchan_windows()
    result = smollm2_exact.perplexity(np.concatenate([window.ids for window in windows]).tolist())
    assert (result.windows, result.tokens, result.left_over) == (len(windows), 255 * len(windows), 0)
    assert result.perplexity == pytest.approx(botchan_figures().reference_perplexity, rel=1e-4)


def test_the_command_measures_a_text_and_the_distance_from_float32(smollm2_path: Path, tmp_path: Path) -> None:
    text = " ".join(f"Line {index}: the quick brown fox jumps over the lazy dog." for index in range(30))
    (tmp_path / "text.txt").write_text(text)
    arguments = ("--file", str(tmp_path / "text.txt"), "--window", "128", "--windows", "1", "--reference")
    done = command("perplexity", str(smollm2_path), *arguments, str(smollm2_path), "--json")
    found = json.loads(done.stdout)
    assert 1 < found["perplexity"] < 20, "most of the text repeats"
    assert 1e-6 < found["divergence"]["mean_kl"] < 0.01, "8 bits are near float32, and not equal to it"
    assert found["tokens"] == 63
    assert "1 of 1 windows" in done.stderr
