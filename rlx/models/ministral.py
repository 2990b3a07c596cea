"""Ministral (Mistral whose layers differ in their windows) and Ministral 3, whose queries grow with their position.

Sources: transformers' modeling_ministral and modeling_ministral3; llama.cpp's mistral3. Next: `phi3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, full_and_sliding, mlp_of, rope_parameters
from rlx.models.llama import MISTRAL, mistral_from_hf


def ministral_from_hf(fields: Fields) -> DecoderConfig:
    """Ministral's config.json."""
    kind = "full_attention" if fields.get("sliding_window") is None else "sliding_attention"
    default = (kind,) * fields.integer("num_hidden_layers")
    return decoder_of(fields, full_and_sliding(fields, attention_of(fields), mlp_of(fields), default))


def ministral3_from_hf(fields: Fields) -> DecoderConfig:
    """Ministral 3's config.json; the growth of the queries stands among the RoPE parameters."""
    rope = Fields(rope_parameters(fields), f"{fields.where}, rope_parameters")
    beta = rope.optional_number("llama_4_scaling_beta")
    scale = None if beta is None else (beta, rope.integer("original_max_position_embeddings"))
    return replace(mistral_from_hf(fields), query_scale=scale)


def ministral3_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `mistral3`."""
    layers = gguf_uniform(fields, gguf_attention(fields, checkpoint), gguf_mlp(fields, checkpoint))
    beta = fields.optional_number("attention.temperature_scale")
    scale = None if beta is None else (beta, fields.integer("rope.scaling.original_context_length"))
    return replace(gguf_decoder(fields, checkpoint, layers, rope_style="interleaved"), query_scale=scale)


MINISTRAL = Family("ministral", ("MinistralForCausalLM",), ministral_from_hf, MISTRAL.defaults)
MINISTRAL3 = Family(
    "ministral3",
    ("Ministral3ForCausalLM",),
    ministral3_from_hf,
    {
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    gguf="mistral3",
    from_gguf=ministral3_from_gguf,
)
