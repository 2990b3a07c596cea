"""The default precision on prose, against the float32 model: no further away than llama.cpp is on the same file.

`-s` shows the figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx.runtime.loaded_model import LoadedModel as Model
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
