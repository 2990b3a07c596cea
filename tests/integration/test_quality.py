"""The default precision on prose, against the float32 model: no further away than llama.cpp is on the same file.

`-s` shows the figures.
"""

from __future__ import annotations

import numpy as np
import pytest

from rlx.runtime.model import Model
from tests.references.kl import compact_kl, log_softmax, perplexity
from tests.references.load import botchan_figures, botchan_windows


@pytest.mark.slow
def test_default_precision_is_as_near_to_float32_as_llama_cpp(smollm2_fast: Model) -> None:
    figures = botchan_figures()
    divergences: list[np.ndarray] = []
    log_probs: list[np.ndarray] = []
    for window in botchan_windows():
        logits = smollm2_fast.logits(window.ids)[window.scored]
        divergences.append(compact_kl(window.reference, logits))
        log_probs.append(np.take_along_axis(log_softmax(logits), window.targets[:, None].astype(np.int64), -1)[:, 0])
    mean_kl = float(np.mean(np.concatenate(divergences)))
    found = perplexity(np.concatenate(log_probs))
    difference = found / figures.reference_perplexity - 1
    print(
        f"\nbotchan, 2040 positions: mean compact KL {mean_kl:.6f}, llama.cpp {figures.llama_cpp_mean_compact_kl:.6f}"
    )
    print(
        f"perplexity {found:.4f} ({difference:+.3%}), float32 {figures.reference_perplexity:.4f}, "
        f"llama.cpp {figures.llama_cpp_perplexity:.4f}"
    )
    assert len(np.concatenate(divergences)) == 2040
    # the activations are rounded to 8 bits, so an exact zero would mean that this is not the default precision
    assert 1e-5 < mean_kl <= figures.llama_cpp_mean_compact_kl
    assert abs(difference) <= 0.005
