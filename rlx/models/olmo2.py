"""OLMo 2: norms of what blocks give, not of what they take, and of all heads of q and k together.

Source: transformers' modeling_olmo2. Next: `smollm3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig, LayerNorms
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, mlp_of, uniform
from rlx.models.names import GGUF_SANDWICH_NAMES

AFTER = LayerNorms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)


def olmo2_from_hf(fields: Fields) -> DecoderConfig:
    """OLMo 2's config.json."""
    bias = fields.flag("attention_bias")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, qk_norm="width")
    return replace(decoder_of(fields, uniform(fields, attention, mlp_of(fields))), norms=AFTER)


def olmo2_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `olmo2`."""
    attention = replace(gguf_attention(fields, checkpoint), qk_norm="width")
    layers = gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint))
    return replace(gguf_decoder(fields, checkpoint, layers), norms=AFTER)


OLMO2 = Family(
    "olmo2",
    ("Olmo2ForCausalLM",),
    olmo2_from_hf,
    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    gguf="olmo2",
    from_gguf=olmo2_from_gguf,
    gguf_names=GGUF_SANDWICH_NAMES,
)
