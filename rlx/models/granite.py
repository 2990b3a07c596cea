"""Granite 3: Llama with four multipliers. Source: transformers' modeling_granite. Next: `olmo2.py`."""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, mlp_of, uniform


def granite_from_hf(fields: Fields) -> DecoderConfig:
    """Granite's config.json."""
    bias = fields.flag("attention_bias")
    scale = fields.number("attention_multiplier", 1.0)
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, scale=scale)
    config = decoder_of(fields, uniform(fields, attention, mlp_of(fields, fields.flag("mlp_bias"))))
    return replace(
        config,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0),
    )


def granite_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `granite`."""
    attention = replace(gguf_attention(fields, checkpoint), scale=fields.optional_number("attention.scale"))
    layers = gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint))
    return replace(
        gguf_decoder(fields, checkpoint, layers, rope_style="interleaved"),
        embedding_scale=fields.optional_number("embedding_scale") or 1.0,
        residual_scale=fields.optional_number("residual_scale") or 1.0,
        logits_scale=1 / (fields.optional_number("logit_scale") or 1.0),
    )


GRANITE = Family(
    "granite",
    ("GraniteForCausalLM",),
    granite_from_hf,
    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    gguf="granite",
    from_gguf=granite_from_gguf,
)
