# pyright: basic, reportMissingImports=false
"""Record what llama.cpp's sampler chain and transformers' logits processors leave of a distribution.

In: the options below. Out: sampling.json and sampling.npz. Run `python -m tests.references.sampling` with the
`references` extra and llama-cpp-python installed (its LLAMA_CPP_LIB_PATH names the folder of a libllama built apart).

Every answer is `[vocab]` float32. llama.cpp: the probability of each token after penalties, top-k, top-p, min-p and
temperature, 0 for what was filtered. transformers: scores after the repetition penalty, or probabilities after top-k,
top-p and min-p, temperature 1, where both projects agree on the order.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from tests.references.recording import write
from tests.references.seeded import seeded_tensor

SEED = 11
VOCAB = 48
WIDE = 3000  # more than what RLX looks at first

CHAIN: list[dict[str, Any]] = [
    {"name": "plain"},
    {"name": "hot", "temperature": 1.7},
    {"name": "cold", "temperature": 0.3},
    {"name": "top_k", "top_k": 5},
    {"name": "top_p", "top_p": 0.7},
    {"name": "top_p_cold", "top_p": 0.9, "temperature": 0.5},
    {"name": "top_p_tiny", "top_p": 0.01},
    {"name": "min_p", "min_p": 0.2},
    {"name": "defaults", "top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    {"name": "all", "top_k": 12, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
    {"name": "repetition", "repetition_penalty": 1.5, "history": [0, 1, 2, 3, 3, 7]},
    {"name": "repetition_window", "repetition_penalty": 2.0, "history": [0, 1, 2, 3, 3, 7], "penalty_window": 3},
    {"name": "frequency", "frequency_penalty": 0.6, "history": [4, 4, 4, 9, 11]},
    {"name": "presence", "presence_penalty": 1.5, "history": [4, 4, 4, 9, 11]},
    {"name": "penalties", "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.4,
     "history": [5, 5, 6, 8, 13, 13, 13, 2], "penalty_window": 6, "top_k": 20, "top_p": 0.9, "min_p": 0.02,
     "temperature": 0.7},
    {"name": "wide", "vocab": WIDE, "scale": 1.0, "top_p": 0.9},
    {"name": "wide_min_p", "vocab": WIDE, "scale": 2.0, "min_p": 0.01, "temperature": 1.2},
]  # fmt: skip

PROCESSORS: list[dict[str, Any]] = [
    {"name": "hf_repetition", "repetition_penalty": 1.3, "history": [0, 1, 2, 3, 3, 7, 20]},
    {"name": "hf_top_k", "top_k": 7},
    {"name": "hf_top_p", "top_p": 0.85},
    {"name": "hf_min_p", "min_p": 0.1},
    {"name": "hf_all", "top_k": 25, "top_p": 0.9, "min_p": 0.05},
]


def _logits(case: dict[str, Any]) -> NDArray[np.float32]:
    size = case.get("vocab", VOCAB)
    return seeded_tensor(case["name"], (size,), SEED, case.get("scale", 2.0))


def chain(case: dict[str, Any]) -> NDArray[np.float32]:
    """Probabilities that llama.cpp would draw from."""
    logits = _logits(case)
    history = case.get("history", [])
    samplers = [
        llama_cpp.llama_sampler_init_penalties(
            logits.size,
            case.get("penalty_window", len(history)),
            case.get("repetition_penalty", 1.0),
            case.get("frequency_penalty", 0.0),
            case.get("presence_penalty", 0.0),
        ),
        llama_cpp.llama_sampler_init_top_k(case.get("top_k", 0)),
        llama_cpp.llama_sampler_init_top_p(case.get("top_p", 1.0), 1),
        llama_cpp.llama_sampler_init_min_p(case.get("min_p", 0.0), 1),
        llama_cpp.llama_sampler_init_temp(case.get("temperature", 1.0)),
    ]
    data = (llama_cpp.llama_token_data * logits.size)()
    for token, logit in enumerate(logits):
        data[token].id, data[token].logit, data[token].p = token, float(logit), 0.0
    row = llama_cpp.llama_token_data_array(data=data, size=logits.size, selected=-1, sorted=False)
    for sampler in samplers:
        for token in history:
            llama_cpp.llama_sampler_accept(sampler, token)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(row))
        llama_cpp.llama_sampler_free(sampler)
    scores = np.full(logits.size, -np.inf)
    for place in range(row.size):
        scores[row.data[place].id] = row.data[place].logit
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()).astype(np.float32)


def processors(case: dict[str, Any]) -> NDArray[np.float32]:
    """What transformers' processors make of the logits."""
    history = torch.tensor([case.get("history", [0])])
    scores = torch.from_numpy(_logits(case))[None, :]
    if "repetition_penalty" in case:
        return RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(history, scores)[0].numpy()
    if "top_k" in case:
        scores = TopKLogitsWarper(case["top_k"])(history, scores)
    if "top_p" in case:
        scores = TopPLogitsWarper(case["top_p"])(history, scores)
    if "min_p" in case:
        scores = MinPLogitsWarper(case["min_p"])(history, scores)
    return scores.softmax(dim=-1)[0].numpy()


def main() -> None:
    """Record everything."""
    arrays: dict[str, NDArray[Any]] = {}
    for case in CHAIN:
        arrays[case["name"]] = chain(case)
    for case in PROCESSORS:
        arrays[case["name"]] = processors(case)
    write("sampling", {"seed": SEED, "vocab": VOCAB, "chain": CHAIN, "processors": PROCESSORS}, arrays,
          ["llama_cpp_python", "transformers", "torch"])  # fmt: skip


if __name__ == "__main__":
    main()
