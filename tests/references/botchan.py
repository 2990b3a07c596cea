# pyright: basic, reportMissingImports=false
"""Record next-token distributions on prose: the float32 reference, and how far llama.cpp is from it on the same file.

In: SmolLM2's GGUF file and botchan.txt. Out: botchan.json and botchan.npz. Run
`python -m tests.references.botchan FILE.gguf botchan.txt` with the `references` extra installed. Next: `load.py`.

The text is tokenised in one piece by llama.cpp; the first 8 * 512 tokens are 8 windows, each read from an empty
context without a token in front. Positions 256 to 510 of a window are scored (they have at least 256 tokens of context
and a next token in the window), as llama.cpp's own perplexity tool does: 255 per window, 2040 in all. The compact
reference is 64 tokens and a tail per position.

llama.cpp decides by itself whether to use flash attention; on a CPU it does (logits with "auto" are bit for bit those
with "on"), but its Python binding switches it off unless asked. So "llama_cpp" is on, llama.cpp's default, and "off" is
recorded beside it to show how much such a choice moves the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tests.references.botchan_text import read_text
from tests.references.kl import compact_distribution, compact_kl, full_kl, log_softmax, perplexity
from tests.references.recording import write
from tests.references.smollm2_model import SHA256, THREADS, load_llama_cpp, load_reference, logits_of, tokenize

WINDOWS, WINDOW_TOKENS, TOP = 8, 512, 64
FIRST_SCORED, LAST_SCORED = 256, 510
SETTINGS = {"llama_cpp": True, "llama_cpp_no_flash_attention": False}


def llama_logits(llama: llama_cpp.Llama, ids: list[int]) -> NDArray[np.float32]:
    """llama.cpp's logits of one window from an empty context, float32 [tokens, vocab]."""
    llama.reset()
    llama.eval(ids)
    return llama.scores[: len(ids)].copy()


def _targets(logits: NDArray[np.float32], ids: list[int]) -> NDArray[np.float64]:
    following = np.array(ids[FIRST_SCORED + 1 : LAST_SCORED + 2])
    return log_softmax(logits)[np.arange(len(following)), following]


def main() -> None:
    """Score every window with each system, and write the arrays and the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("botchan", type=Path)
    options = parser.parse_args()
    model = load_reference(options.gguf)
    systems = {name: load_llama_cpp(options.gguf, flash_attention=flash) for name, flash in SETTINGS.items()}
    ids = tokenize(systems["llama_cpp"], read_text(options.botchan))[: WINDOWS * WINDOW_TOKENS]
    kept: dict[str, list[NDArray[Any]]] = {}

    def keep(name: str, array: NDArray[Any], dtype: Any = np.float32) -> None:
        kept.setdefault(name, []).append(array.astype(dtype))

    for window in range(WINDOWS):
        tokens = ids[window * WINDOW_TOKENS : (window + 1) * WINDOW_TOKENS]
        scored = slice(FIRST_SCORED, LAST_SCORED + 1)
        reference = logits_of(model, tokens)[scored]
        keep("ids", np.array(tokens), np.uint16)
        keep("reference.target_log_probs", _targets(reference, tokens))
        compact = compact_distribution(reference, TOP)
        keep("top_ids", compact.ids, np.uint16)
        keep("top_log_probs", compact.log_probs)
        keep("tail_log_probs", compact.tail_log_probs)
        for name, llama in systems.items():
            logits = llama_logits(llama, tokens)[scored]
            keep(f"{name}.target_log_probs", _targets(logits, tokens))
            keep(f"{name}.kl", full_kl(reference, logits))
            keep(f"{name}.compact_kl", compact_kl(compact, logits))
    arrays = {name: np.stack(list_of_windows) for name, list_of_windows in kept.items()}
    write("botchan", _summary(arrays), arrays, ["torch", "transformers", "gguf", "llama-cpp-python"])


def _summary(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"reference": {"perplexity": perplexity(arrays["reference.target_log_probs"])}}
    for name, flash in SETTINGS.items():
        full, compact = (arrays[f"{name}.{key}"].astype(np.float64) for key in ("kl", "compact_kl"))
        figures[name] = {
            "flash_attention": flash,
            "threads": THREADS,
            "perplexity": perplexity(arrays[f"{name}.target_log_probs"]),
            "mean_kl": full.mean(),
            "mean_kl_by_window": full.mean(axis=1).tolist(),
            "mean_compact_kl": compact.mean(),
            "mean_compact_kl_by_window": compact.mean(axis=1).tolist(),
        }
    return {
        "model_sha256": SHA256,
        "windows": WINDOWS,
        "window_tokens": WINDOW_TOKENS,
        "first_scored": FIRST_SCORED,
        "last_scored": LAST_SCORED,
        "figures": figures,
    }


if __name__ == "__main__":
    main()
