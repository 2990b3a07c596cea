# pyright: basic, reportMissingImports=false
"""Run attention cases through whole transformers modules, as a second opinion on `attention.py`.

In: stage cases for which some published model has exactly that attention. Out: what the module hands to its output
projection, taken by a hook. Next: `test_rederive.py`, which compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CohereConfig, Gemma2Config, Gemma4TextConfig, GlmConfig, LlamaConfig, MistralConfig, PhiConfig
from transformers.models.cohere.modeling_cohere import CohereAttention, CohereRotaryEmbedding
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2RotaryEmbedding
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextAttention, Gemma4TextRotaryEmbedding
from transformers.models.glm.modeling_glm import GlmAttention, GlmRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding
from transformers.models.phi.modeling_phi import PhiAttention, PhiRotaryEmbedding

from tests.references.attention import attention_mask
from tests.references.cases import PREFIX, AttentionConfig

Family = tuple[type, Callable[..., torch.nn.Module], Callable[..., torch.nn.Module]]

LLAMA: Family = (LlamaConfig, LlamaAttention, LlamaRotaryEmbedding)
MISTRAL: Family = (MistralConfig, MistralAttention, MistralRotaryEmbedding)
GEMMA2: Family = (Gemma2Config, Gemma2Attention, Gemma2RotaryEmbedding)
PHI: Family = (PhiConfig, PhiAttention, PhiRotaryEmbedding)
COHERE: Family = (CohereConfig, CohereAttention, CohereRotaryEmbedding)
GLM: Family = (GlmConfig, GlmAttention, GlmRotaryEmbedding)

MODULES: dict[str, Family] = {
    "mha": LLAMA,
    "gqa_4_over_2": LLAMA,
    "gqa_6_over_2": LLAMA,
    "mqa": LLAMA,
    "single_token": LLAMA,
    "wide_heads": LLAMA,
    "narrow_heads": LLAMA,
    "batch_3": LLAMA,
    "theta_1e6": LLAMA,
    "named_table": LLAMA,
    "window_4": MISTRAL,
    "window_3": MISTRAL,
    "window_1": MISTRAL,
    "batch_2_window": MISTRAL,
    "score_scale": GEMMA2,
    "small_soft_cap": GEMMA2,
    "soft_cap_with_scale": GEMMA2,
    "window_4_soft_cap": GEMMA2,
    "partial_rotary": PHI,
    "interleaved": COHERE,
    "interleaved_partial": GLM,
}


def _config(case: AttentionConfig, config_class: type) -> Any:
    rope = {"rope_type": "default", "rope_theta": case.rope_theta, "partial_rotary_factor": case.n_rot / case.head_dim}
    fields: dict[str, Any] = {
        "hidden_size": case.hidden_size,
        "num_attention_heads": case.num_heads,
        "num_key_value_heads": case.num_kv_heads,
        "head_dim": case.head_dim,
        "num_hidden_layers": 2,
        "rope_parameters": rope,
        "pad_token_id": 0,
    }
    if config_class is Gemma2Config:
        scale = case.score_scale or case.head_dim**-0.5
        layer = "sliding_attention" if case.window else "full_attention"
        fields |= {
            "query_pre_attn_scalar": round(scale**-2),
            "attn_logit_softcapping": case.softcap,
            "layer_types": [layer] * 2,
        }
    if case.window:
        fields["sliding_window"] = case.window
    config = config_class(**fields)
    config._attn_implementation = "eager"
    return config


def module_answer(case: AttentionConfig) -> NDArray[np.float32]:
    """What the module of the case's family feeds its output projection, float32 [batch, queries, heads * head_dim]."""
    config_class, attention_class, rotary_class = MODULES[case.name]
    config = _config(case, config_class)
    attention = attention_class(config, layer_idx=0).eval()
    state = attention.state_dict()
    for name, tensor in state.items():
        state[name] = torch.zeros_like(tensor)
    for key, array in case.weights().items():
        state[key.removeprefix(f"{PREFIX}.self_attn.")] = torch.from_numpy(array)
    attention.load_state_dict(state)
    seen: list[torch.Tensor] = []
    projection = next(child for name, child in attention.named_children() if name in ("o_proj", "dense"))
    projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.from_numpy(case.x())
    positions = torch.arange(case.queries)[None].expand(case.batch, -1)
    with torch.no_grad():
        attention(x, position_embeddings=rotary_class(config)(x, positions), attention_mask=attention_mask(case))
    return seen[0].numpy()


GEMMA4_CASE = "k_eq_v_proportional_wide"


def gemma4_answer(case: AttentionConfig) -> NDArray[np.float32]:
    """What Gemma 4's full attention (K as V, proportional RoPE) feeds its output projection, its norms left out.

    The norms of q, k and v are no part of the prefill stage, so they are replaced by nothing.
    """
    layer = "full_attention"
    rope = {
        "rope_type": "proportional",
        "rope_theta": case.rope_theta,
        "partial_rotary_factor": case.partial_rotary_factor,
    }
    config = Gemma4TextConfig(
        hidden_size=case.hidden_size,
        num_attention_heads=case.num_heads,
        num_key_value_heads=case.num_kv_heads,
        num_global_key_value_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        global_head_dim=case.head_dim,
        num_hidden_layers=1,
        layer_types=[layer],
        attention_k_eq_v=True,
        rope_parameters={layer: rope},
    )
    config._attn_implementation = "eager"
    attention = Gemma4TextAttention(config, layer_idx=0).eval()
    attention.q_norm = attention.k_norm = attention.v_norm = torch.nn.Identity()
    for letter in "qk":
        weight = case.weights()[f"{PREFIX}.self_attn.{letter}_proj.weight"]
        getattr(attention, f"{letter}_proj").weight.data.copy_(torch.from_numpy(weight))
    seen: list[torch.Tensor] = []
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.from_numpy(case.x())
    tables = Gemma4TextRotaryEmbedding(config)(x, torch.arange(case.queries)[None], layer)
    with torch.no_grad():
        attention(x, position_embeddings=tables, attention_mask=attention_mask(case), shared_kv_states={})
    return seen[0].numpy()
