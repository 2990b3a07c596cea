"""Qwen3: Llama with a norm of each head of q and k. Source: transformers' modeling_qwen3. Next: `qwen2.py`."""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, full_and_sliding, mlp_of
from rlx.models.qwen2 import kinds_by_number


def qwen3_from_hf(fields: Fields) -> DecoderConfig:
    """Qwen3's config.json."""
    bias = fields.flag("attention_bias")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, qk_norm="head")
    return decoder_of(fields, full_and_sliding(fields, attention, mlp_of(fields), kinds_by_number(fields)))


def qwen3_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `qwen3`."""
    attention = replace(gguf_attention(fields, checkpoint), qk_norm="head")
    return gguf_decoder(fields, checkpoint, gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint)))


QWEN3 = Family(
    "qwen3",
    ("Qwen3ForCausalLM",),
    qwen3_from_hf,
    {
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
    gguf="qwen3",
    from_gguf=qwen3_from_gguf,
)
