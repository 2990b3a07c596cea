"""Llama, Mistral (Llama with a sliding window). Source: transformers' modeling_llama and modeling_mistral.

The shortest family: everything it is made of has the usual names. Next: `qwen3.py`, which adds one thing.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_moe, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, mlp_of, uniform, windowed


def llama_from_hf(fields: Fields) -> DecoderConfig:
    """Llama's config.json."""
    bias = fields.flag("attention_bias")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias)
    return decoder_of(fields, uniform(fields, attention, mlp_of(fields, fields.flag("mlp_bias"))))


def mistral_from_hf(fields: Fields) -> DecoderConfig:
    """Mistral's config.json."""
    attention = attention_of(fields)
    if fields.get("sliding_window") is not None:
        attention = windowed(fields, attention, "sliding_attention")
    return decoder_of(fields, uniform(fields, attention, mlp_of(fields)))


def llama_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `llama`, which Mistral and Mixtral files use as well.

    GGUF files hold q and k with their rows permuted for the interleaved pairing of RoPE.
    """
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    attention = replace(gguf_attention(fields, checkpoint), window=window or None)
    has_experts = fields.integer("expert_count", 0, minimum=0) > 0
    mlp = gguf_moe(fields, "feed_forward_length") if has_experts else gguf_mlp(fields, checkpoint)
    layers = gguf_uniform(fields, attention, mlp)
    return gguf_decoder(fields, checkpoint, layers, rope_style="interleaved")


LLAMA = Family(
    "llama",
    ("LlamaForCausalLM",),
    llama_from_hf,
    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    gguf="llama",
    from_gguf=llama_from_gguf,
)
MISTRAL = Family(
    "mistral",
    ("MistralForCausalLM",),
    mistral_from_hf,
    {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8, "rms_norm_eps": 1e-6},
)
