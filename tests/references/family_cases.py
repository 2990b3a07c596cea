"""Tiny random models of every family, several of each, with the unusual options on. Next: `families.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class FamilySource:
    """A model of transformers: names of its configuration's and its model's class, and the fields set."""

    config: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 160,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = 7  # shorter than the prompt
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
TEMPERATURE = {
    **YARN,
    "original_max_position_embeddings": 8,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [2.0 + 0.1 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 160}
NEOX = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LINEAR = "linear_attention"
HYBRID: dict[str, Any] = {
    **BASE,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA4 = {
    **BASE,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": WINDOW,
    "hidden_size_per_layer_input": 0,
}


def _of(name: str, causal: str | None = None, base: dict[str, Any] | None = None, **fields: Any) -> FamilySource:
    return FamilySource(f"{name}Config", causal or f"{name}ForCausalLM", {**(BASE if base is None else base), **fields})


CASES: dict[str, FamilySource] = {
    "llama_gelu": _of("Llama", hidden_act="gelu", rope_parameters=YARN),
    "mistral_full": _of("Mistral", sliding_window=None, head_dim=24, tie_word_embeddings=True),
    "qwen2": _of("Qwen2"),
    "qwen2_window": _of(
        "Qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": _of("Qwen3", head_dim=32, tie_word_embeddings=True),
    "qwen3_window_bias": _of(
        "Qwen3", head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "qwen3_yarn": _of("Qwen3", head_dim=16, rope_parameters=YARN),
    "qwen3_5": _of("Qwen3_5Text", "Qwen3_5ForCausalLM", HYBRID, tie_word_embeddings=True),
    # linear attention first and last, value heads of another width than keys, a shorter filter, biases, sections
    "qwen3_5_odd": _of(
        "Qwen3_5Text",
        "Qwen3_5ForCausalLM",
        HYBRID,
        num_hidden_layers=5,
        layer_types=[LINEAR, FULL, LINEAR, LINEAR, LINEAR],
        linear_key_head_dim=12,
        linear_value_head_dim=20,
        linear_num_value_heads=6,
        linear_conv_kernel_dim=3,
        attention_bias=True,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    ),
    "qwen3_5_image": FamilySource(
        "Qwen3_5Config",
        "Qwen3_5ForConditionalGeneration",
        {
            "text_config": {
                **HYBRID,
                "linear_num_value_heads": 2,
                "num_hidden_layers": 3,
                "full_attention_interval": 2,
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "patch_size": 4,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
            },
        },
    ),
    "qwen3_next_dense": _of("Qwen3Next", base=HYBRID, num_experts=0),
    "gemma": _of("Gemma", head_dim=24, tie_word_embeddings=True),
    "gemma_bias_untied": _of("Gemma", head_dim=16, attention_bias=True),
    "gemma2": _of("Gemma2", head_dim=24, sliding_window=WINDOW, query_pre_attn_scalar=20, tie_word_embeddings=True),
    "gemma2_plain": _of(
        "Gemma2", head_dim=24, sliding_window=WINDOW, query_pre_attn_scalar=24, tie_word_embeddings=True
    ),
    "gemma2_caps": _of(
        "Gemma2",
        head_dim=16,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        layer_types=[FULL, SLIDING, SLIDING],
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    "gemma3": _of(
        "Gemma3Text",
        "Gemma3ForCausalLM",
        head_dim=24,
        sliding_window=WINDOW,
        query_pre_attn_scalar=24,
        num_hidden_layers=4,
        layer_types=[SLIDING, SLIDING, FULL, SLIDING],
        tie_word_embeddings=True,
    ),
    "gemma3_plain": _of(
        "Gemma3Text",
        "Gemma3ForCausalLM",
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        num_hidden_layers=7,
        tie_word_embeddings=True,
    ),
    "gemma3_scaled": _of(
        "Gemma3Text",
        "Gemma3ForCausalLM",
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=10,
        final_logit_softcapping=5.0,
        layer_types=[FULL, SLIDING, FULL],
        rope_parameters={
            FULL: {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
            SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
        },
    ),
    "gemma4": _of("Gemma4Text", "Gemma4ForCausalLM", GEMMA4),
    "gemma4_shared": _of(
        "Gemma4Text",
        "Gemma4ForCausalLM",
        GEMMA4,
        num_hidden_layers=7,
        layer_types=[SLIDING, FULL, SLIDING, FULL, SLIDING, SLIDING, FULL],
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=160,
        tie_word_embeddings=True,
    ),
    "gemma4_k_eq_v": _of(
        "Gemma4Text",
        "Gemma4ForCausalLM",
        GEMMA4,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
        final_logit_softcapping=30.0,
    ),
    "gemma4_unusual": _of(
        "Gemma4Text",
        "Gemma4ForCausalLM",
        GEMMA4,
        num_hidden_layers=6,
        layer_types=[FULL, SLIDING, SLIDING, FULL, FULL, SLIDING],
        num_kv_shared_layers=2,
        attention_k_eq_v=True,
        attention_bias=True,
        hidden_activation="silu",
        hidden_size_per_layer_input=12,
        vocab_size_per_layer_input=170,
        rope_parameters={
            FULL: {"rope_type": "proportional", "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "factor": 2.0},
            SLIDING: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        },
    ),
    "ministral": _of("Ministral", sliding_window=WINDOW, layer_types=[SLIDING, FULL, SLIDING], head_dim=24),
    "ministral_windows": _of("Ministral", sliding_window=WINDOW, rope_parameters=YARN, head_dim=16),
    "ministral_full": _of(
        "Ministral",
        sliding_window=WINDOW,
        layer_types=[FULL] * 3,
        hidden_act="gelu",
        num_key_value_heads=1,
        head_dim=16,
    ),
    "ministral3": _of("Ministral3", rope_parameters=TEMPERATURE, head_dim=16),
    "ministral3_window": _of(
        "Ministral3",
        rope_parameters={**TEMPERATURE, "llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 5},
        sliding_window=WINDOW,
        head_dim=24,
    ),
    "ministral3_mscale": _of(
        "Ministral3",
        rope_parameters={
            **TEMPERATURE,
            "mscale": 0.7,
            "mscale_all_dim": 0.4,
            "factor": 8.0,
            "truncate": False,
            "original_max_position_embeddings": 20,
        },
        head_dim=32,
        num_key_value_heads=1,
    ),
    "phi3": _of("Phi3", num_key_value_heads=4),
    "phi3_partial_window": _of(
        "Phi3",
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        tie_word_embeddings=True,
    ),
    "phi3_longrope": _of("Phi3", original_max_position_embeddings=64, rope_parameters=LONG_ROPE),
    "phi3_longrope_long": _of(
        "Phi3",
        original_max_position_embeddings=16,
        rope_parameters={**LONG_ROPE, "original_max_position_embeddings": 16},
    ),
    "phi3_longrope_partial": _of(
        "Phi3",
        original_max_position_embeddings=20,
        sliding_window=WINDOW,
        rope_parameters={
            **LONG_ROPE,
            "original_max_position_embeddings": 20,
            "partial_rotary_factor": 0.75,
            "short_factor": LONG_ROPE["short_factor"][:6],
            "long_factor": LONG_ROPE["long_factor"][:6],
        },
    ),
    "gpt2": _of("GPT2", "GPT2LMHeadModel", {**GPT2, **NO_TOKENS}),
    "gpt2_inverse": _of(
        "GPT2",
        "GPT2LMHeadModel",
        {**GPT2, **NO_TOKENS},
        n_inner=80,
        scale_attn_by_inverse_layer_idx=True,
        scale_attn_weights=False,
        activation_function="gelu",
        tie_word_embeddings=False,
    ),
    "neox": _of("GPTNeoX", base=NEOX),
    "neox_sequential": _of(
        "GPTNeoX",
        base=NEOX,
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="gelu_new",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "granite": _of(
        "Granite",
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.3,
        logits_scaling=2.0,
        tie_word_embeddings=True,
    ),
    "granite_biases": _of("Granite", attention_bias=True, mlp_bias=True, attention_multiplier=0.25),
    "olmo2": _of("Olmo2"),
    "olmo2_gqa_tied": _of("Olmo2", num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True),
    "olmo3": _of("Olmo3", num_hidden_layers=5, sliding_window=WINDOW),
    "olmo3_unusual": _of(
        "Olmo3",
        sliding_window=WINDOW,
        layer_types=[FULL, SLIDING, FULL],
        attention_bias=True,
        num_key_value_heads=1,
        rope_parameters={FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 5000.0}},
    ),
    "olmo3_full": _of("Olmo3", sliding_window=WINDOW, layer_types=[FULL] * 3, hidden_act="gelu_pytorch_tanh"),
    "mixtral": _of("Mixtral", num_local_experts=5, num_experts_per_tok=2),
    "mixtral_window": _of("Mixtral", num_local_experts=4, num_experts_per_tok=3, sliding_window=WINDOW, head_dim=24),
    "mixtral_gelu": _of(
        "Mixtral",
        num_local_experts=6,
        num_experts_per_tok=1,
        hidden_act="gelu",
        head_dim=16,
        rope_parameters=YARN,
        tie_word_embeddings=True,
    ),
    "qwen3_moe_sums": _of("Qwen3Moe", num_experts=5, num_experts_per_tok=4, moe_intermediate_size=32, head_dim=32),
    "qwen3_moe": _of("Qwen3Moe", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=40, norm_topk_prob=True),
    "qwen3_moe_mixed": _of(
        "Qwen3Moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        num_hidden_layers=4,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
        head_dim=24,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=WINDOW,
        tie_word_embeddings=True,
    ),
    "smollm3": _of("SmolLM3", num_hidden_layers=5, tie_word_embeddings=True),
    "smollm3_window": _of(
        "SmolLM3",
        no_rope_layers=[0, 1, 1],
        use_sliding_window=True,
        sliding_window=WINDOW,
        attention_bias=True,
        mlp_bias=True,
    ),
}

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
MULTIMODAL_CASES: dict[str, FamilySource] = {
    "gemma4_whole": FamilySource(
        "Gemma4Config",
        "Gemma4ForConditionalGeneration",
        {
            "text_config": {**CASES["gemma4_shared"].fields, "model_type": "gemma4_text", "pad_token_id": 0},
            "vision_config": {**VISION, "num_key_value_heads": 2, "model_type": "gemma4_vision"},
            "audio_config": None,
            "tie_word_embeddings": True,
        },
    ),
    "mistral3_whole": FamilySource(
        "Mistral3Config",
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {**CASES["ministral3"].fields, "model_type": "ministral3"},
            "vision_config": {**VISION, "image_size": 28, "patch_size": 14, "model_type": "pixtral"},
            "image_token_index": 10,
            "tie_word_embeddings": False,
        },
    ),
}
"""Models of images of which the language model alone is used."""
