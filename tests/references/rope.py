# pyright: basic, reportMissingImports=false
"""Record RoPE tables of transformers for every scaling it knows.

In: the configurations below. Out: rope.json and rope.npz. Run `python -m tests.references.rope` with the `references`
extra installed. Next: `load.py`.

cos and sin come from the forward pass of a rotary module (Llama's, Gemma 4's for proportional), float32 angles, so that
the module's own choice by sequence length (dynamic NTK, LongRoPE) is part of the answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Gemma4TextConfig, LlamaConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from tests.references.recording import write

SHORT = [1.0, 1.02, 1.05, 1.1, 1.2, 1.4, 1.7, 2.0]
LONG = [1.0, 1.5, 2.3, 4.0, 7.5, 12.0, 20.0, 32.0]


def _case(name: str, head_dim: int, limit: int, positions: list[int], **rope: Any) -> dict[str, Any]:
    rope.setdefault("rope_theta", 10000.0)
    return {
        "name": name,
        "head_dim": head_dim,
        "max_position_embeddings": limit,
        "positions": positions,
        "rope_parameters": rope,
    }


CASES: list[dict[str, Any]] = [
    _case("default", 16, 2048, [0, 1, 2, 17, 100, 1000, 2047], rope_type="default"),
    _case("default_theta_5e5", 64, 8192, [0, 1, 63, 4095, 8191], rope_type="default", rope_theta=5e5),
    _case("linear", 16, 8192, [0, 1, 5, 100, 8191], rope_type="linear", factor=4.0),
    _case("dynamic_within", 16, 64, [0, 1, 30, 63], rope_type="dynamic", factor=2.0),
    _case("dynamic_beyond", 16, 64, [0, 1, 30, 63, 100, 149], rope_type="dynamic", factor=2.0),
    _case("yarn", 32, 32768, [0, 1, 10, 1000, 4095, 32767], rope_type="yarn", factor=4.0,
          original_max_position_embeddings=8192),
    _case("yarn_factor_set", 32, 16384, [0, 3, 1000, 16383], rope_type="yarn", factor=16.0, beta_fast=16.0,
          beta_slow=2.0, attention_factor=1.25, original_max_position_embeddings=1024),
    _case("yarn_mscale", 32, 163840, [0, 3, 1000, 16383], rope_type="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.8,
          original_max_position_embeddings=4096),
    _case("yarn_no_truncate", 32, 131072, [0, 3, 1000, 16383], rope_type="yarn", factor=32.0, truncate=False,
          rope_theta=150000.0, original_max_position_embeddings=4096),
    _case("longrope_short", 16, 256, [0, 1, 20, 63], rope_type="longrope", short_factor=SHORT, long_factor=LONG,
          original_max_position_embeddings=64),
    _case("longrope_long", 16, 256, [0, 1, 20, 63, 64, 200], rope_type="longrope", short_factor=SHORT, long_factor=LONG,
          original_max_position_embeddings=64),
    _case("longrope_attention_factor", 16, 256, [0, 1, 63], rope_type="longrope", short_factor=SHORT, long_factor=LONG,
          attention_factor=1.5, original_max_position_embeddings=64),
    _case("llama3_8b", 128, 131072, [0, 1, 100, 8191, 8192, 131071], rope_type="llama3", rope_theta=5e5, factor=8.0,
          low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    _case("llama3_1b", 64, 131072, [0, 1, 100, 8191, 131071], rope_type="llama3", rope_theta=5e5, factor=32.0,
          low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    _case("proportional", 16, 131072, [0, 1, 100, 8191], rope_type="proportional", rope_theta=1e6,
          partial_rotary_factor=0.25),
]  # fmt: skip


# Two words, an image of 2 rows and 3 columns, two words: time, height, width.
GRID = [
    [0, 1, 2, 2, 2, 2, 2, 2, 5, 60],
    [0, 1, 2, 2, 2, 3, 3, 3, 5, 60],
    [0, 1, 2, 3, 4, 2, 3, 4, 5, 60],
]
MROPE_CASES: list[dict[str, Any]] = [
    {"name": "mrope_contiguous", "head_dim": 16, "rope_theta": 1e6, "partial_rotary_factor": 1.0,
     "sections": [2, 3, 3], "interleaved": False, "positions": GRID},
    {"name": "mrope_interleaved", "head_dim": 32, "rope_theta": 5e6, "partial_rotary_factor": 1.0,
     "sections": [6, 5, 5], "interleaved": True, "positions": GRID},
    {"name": "mrope_interleaved_uneven", "head_dim": 16, "rope_theta": 5e6, "partial_rotary_factor": 1.0,
     "sections": [4, 2, 2], "interleaved": True, "positions": GRID},
    {"name": "mrope_interleaved_partial", "head_dim": 32, "rope_theta": 1e7, "partial_rotary_factor": 0.5,
     "sections": [3, 3, 2], "interleaved": True, "positions": GRID},
]  # fmt: skip
MROPE_MODULES = {
    "mrope_contiguous": (Qwen2_5_VLTextConfig, Qwen2_5_VLRotaryEmbedding),
    "mrope_interleaved": (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding),
    "mrope_interleaved_uneven": (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding),
    "mrope_interleaved_partial": (Qwen3_5TextConfig, Qwen3_5TextRotaryEmbedding),
}


def mrope_answer(case: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """inv_freq [pairs], cos and sin [tokens, pairs], float32."""
    config_class, module_class = MROPE_MODULES[case["name"]]
    rope = {
        "rope_type": "default",
        "rope_theta": case["rope_theta"],
        "mrope_section": case["sections"],
        "partial_rotary_factor": case["partial_rotary_factor"],
    }
    size = 4 * case["head_dim"]
    config = config_class(
        hidden_size=size, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=4, rope_parameters=rope
    )
    config.head_dim = case["head_dim"]
    module: Any = module_class(config)
    cos, sin = module(torch.zeros(1), torch.tensor(case["positions"])[:, None])
    pairs = len(module.inv_freq)
    return {"inv_freq": module.inv_freq.numpy(), "cos": cos[0, :, :pairs].numpy(), "sin": sin[0, :, :pairs].numpy()}


def answer(case: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """inv_freq [pairs], cos and sin [positions, pairs] float32, attention_factor float64 (already in cos and sin)."""
    positions = torch.tensor([case["positions"]])
    shape = {"hidden_size": 4 * case["head_dim"], "num_attention_heads": 4, "num_hidden_layers": 1}
    fields = shape | {"head_dim": case["head_dim"], "max_position_embeddings": case["max_position_embeddings"]}
    if case["rope_parameters"]["rope_type"] == "proportional":
        layer = "full_attention"
        config = Gemma4TextConfig(**fields, global_head_dim=case["head_dim"], layer_types=[layer],
                                  rope_parameters={layer: dict(case["rope_parameters"])})  # fmt: skip
        module: Any = Gemma4TextRotaryEmbedding(config)
        cos, sin = module(torch.zeros(1), positions, layer)
        inverse, factor = getattr(module, f"{layer}_inv_freq"), getattr(module, f"{layer}_attention_scaling")
    else:
        module = LlamaRotaryEmbedding(LlamaConfig(**fields, rope_parameters=dict(case["rope_parameters"])))
        cos, sin = module(torch.zeros(1), positions)
        inverse, factor = module.inv_freq, module.attention_scaling
    pairs = case["head_dim"] // 2
    return {
        "inv_freq": inverse.numpy().astype(np.float32),
        "cos": cos[0, :, :pairs].numpy(),
        "sin": sin[0, :, :pairs].numpy(),
        "attention_factor": np.array(factor, np.float64),
    }


def main() -> None:
    """Record every case."""
    arrays = {f"{case['name']}.{key}": value for case in CASES for key, value in answer(case).items()}
    arrays |= {f"{case['name']}.{key}": value for case in MROPE_CASES for key, value in mrope_answer(case).items()}
    write("rope", {"cases": CASES, "mrope_cases": MROPE_CASES}, arrays, ["torch", "transformers"])


if __name__ == "__main__":
    main()
