# pyright: basic, reportMissingImports=false
"""Record what tiny random Llamas of transformers answer.

In: the configurations below; weights grow from a seed (`seeded.seeded_weight`). Out: tiny_llama.json and
tiny_llama.npz. Run `python -m tests.references.tiny_llama` with the `references` extra installed. Next: `load.py`.

The configuration kept is the one `save_pretrained` wrote, and the weight names and shapes are those of the
safetensors file it wrote (so a tied model has no `lm_head.weight`).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from tests.references.recording import write
from tests.references.seeded import seeded_tensor, seeded_weight

PROMPT_TOKENS = 24
GREEDY_TOKENS = 16
SMALLEST_MARGIN = 1e-3  # between the two best logits of a greedy step: ten times the bar of 1e-4 on a logit

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "gqa_untied": (101, {"vocab_size": 300, "num_hidden_layers": 3}),
    "tied": (102, {"tie_word_embeddings": True, "vocab_size": 131}),
    "rope_llama3": (103, {"rope_parameters": LLAMA3}),
    "biases": (104, {"attention_bias": True, "mlp_bias": True, "vocab_size": 128}),
    "wide_heads": (105, {"head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "mha": (106, {"num_key_value_heads": 4, "intermediate_size": 128}),
    "mistral_window": (107, {"sliding_window": 7, "num_hidden_layers": 3, "vocab_size": 160}),
}


def _classes(name: str) -> tuple[Any, Any]:
    return (MistralConfig, MistralForCausalLM) if name.startswith("mistral") else (LlamaConfig, LlamaForCausalLM)


def legacy_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as transformers before version 5 wrote it: rope_theta, rope_scaling, torch_dtype."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    rope = dict(config["rope_parameters"])
    old["torch_dtype"] = config["dtype"]
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return old


def _fill(model: PreTrainedModel, seed: int) -> None:
    state = model.state_dict()
    tied = model.config.tie_word_embeddings
    filled = {
        name: torch.from_numpy(seeded_weight(name, tuple(tensor.shape), seed))
        for name, tensor in state.items()
        if not (tied and name == "lm_head.weight")
    }
    model.load_state_dict(filled, strict=not tied)


def greedy(model: PreTrainedModel, ids: NDArray[np.int64], count: int) -> tuple[list[int], float]:
    """The `count` most likely next tokens, one after another without a cache, and the smallest margin met."""
    sequence = torch.from_numpy(ids)[None]
    smallest = float("inf")
    for _ in range(count):
        best = model(sequence, use_cache=False).logits[0, -1].topk(2)
        smallest = min(smallest, float(best.values[0] - best.values[1]))
        sequence = torch.cat((sequence, best.indices[None, :1]), dim=1)
    return sequence[0, len(ids) :].tolist(), smallest


def answer(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays (`ids` [tokens], `logits` [tokens, vocab], `greedy` [16]) of one case.

    Raises:
        RuntimeError: a greedy step is too close to call for a test, or the old form of the configuration gives other
            logits.
    """
    seed, fields = CASES[name]
    config_class, model_class = _classes(name)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = model_class(config_class(**(BASE | fields))).eval().float()
        _fill(model, seed)
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        uniform = seeded_tensor("ids", (PROMPT_TOKENS,), seed) / np.sqrt(3.0) / 2 + 0.5
        ids = np.clip(uniform * config["vocab_size"], 0, config["vocab_size"] - 1).astype(np.int64)
        logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        continuation, margin = greedy(model, ids, GREEDY_TOKENS)
        old = legacy_config(config)
        old_model = model_class(config_class.from_dict(dict(old), attn_implementation="eager")).eval().float()
        old_model.load_state_dict(model.state_dict())
        if not np.array_equal(old_model(torch.from_numpy(ids)[None]).logits[0].numpy(), logits):
            raise RuntimeError(f"{name}: the old form of the configuration gives other logits")
    if margin < SMALLEST_MARGIN:
        raise RuntimeError(f"{name}: a greedy step is decided by {margin}; change the seed")
    description = {
        "name": name,
        "seed": seed,
        "config": config,
        "legacy_config": old,
        "shapes": shapes,
        "smallest_greedy_margin": margin,
    }
    arrays = {"ids": ids.astype(np.int32), "logits": logits, "greedy": np.array(continuation, np.int32)}
    return description, arrays


def main() -> None:
    """Record every case."""
    answers = {name: answer(name) for name in CASES}
    arrays = {f"{name}.{key}": value for name, (_, found) in answers.items() for key, value in found.items()}
    descriptions = [description for description, _ in answers.values()]
    write("tiny_llama", {"cases": descriptions}, arrays, ["torch", "transformers", "safetensors"])


if __name__ == "__main__":
    main()
