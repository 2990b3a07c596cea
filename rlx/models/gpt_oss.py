"""gpt-oss: attention with sinks, windows in every other layer, experts with biases and a clamped gated unit.

Source: transformers' modeling_gpt_oss. Next: `registry.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.blocks.moe_mlp import Routing
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DEFAULT_ROPE, DecoderConfig, LayerConfig, MoeConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_moe, gguf_rope
from rlx.models.hf_config import attention_of, decoder_of, full_and_sliding, rope_parameters
from rlx.models.names import GGUF_PAIRED_EXPERTS_NAMES, HF_PAIRED_EXPERTS_NAMES

YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def gpt_oss_from_hf(fields: Fields) -> DecoderConfig:
    """gpt-oss's config.json; the experts' unit does not go by `hidden_act`."""
    bias, count = fields.flag("attention_bias"), fields.integer("num_hidden_layers")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, sinks=True)
    fields.choice("hidden_act", {"silu": None}, "silu")
    chosen = fields.integer("num_experts_per_tok")
    if fields.get("experts_per_token") not in (None, chosen):
        fields.refuse("experts_per_token", f"{chosen}, as num_experts_per_tok")
    _check_first_context(fields)
    moe = MoeConfig(
        num_experts=fields.integer("num_local_experts"),
        intermediate_size=fields.integer("intermediate_size"),
        routing=Routing(chosen),
        kind="swiglu_clamped",
        alpha=fields.number("swiglu_alpha"),
        limit=fields.number("swiglu_limit"),
        bias=True,
    )
    kinds = tuple("full_attention" if index % 2 else "sliding_attention" for index in range(count))
    return decoder_of(fields, full_and_sliding(fields, attention, moe, kinds))


def _check_first_context(fields: Fields) -> None:
    """The first configurations say the context before YaRN twice; transformers reads the one of `rope_scaling`."""
    initial = fields.get("initial_context_length")
    original = rope_parameters(fields).get("original_max_position_embeddings", initial)
    if initial not in (None, original):
        fields.refuse("initial_context_length", f"{original!r}, as original_max_position_embeddings")


def gpt_oss_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gpt-oss`; the bounds of its YaRN are not truncated, which GGUF cannot say."""
    whole = replace(gguf_attention(fields, checkpoint), sinks=True)
    local = replace(whole, window=fields.integer("attention.sliding_window"))
    moe = replace(gguf_moe(fields), kind="swiglu_clamped", bias=True)
    pair = [LayerConfig(attention=attention, mlp=moe) for attention in (local, whole)]
    config = gguf_decoder(fields, checkpoint, tuple(pair[i % 2] for i in range(fields.integer("block_count"))))
    rope = gguf_rope(checkpoint, fields, whole.head_dim, config.context_length, truncate=False)
    return replace(config, rope={DEFAULT_ROPE: rope})


GPT_OSS = Family(
    "gpt_oss",
    ("GptOssForCausalLM",),
    gpt_oss_from_hf,
    {
        "attention_bias": True,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "rms_norm_eps": 1e-5,
        "rope_scaling": YARN,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    names=HF_PAIRED_EXPERTS_NAMES,
    gguf="gpt-oss",
    from_gguf=gpt_oss_from_gguf,
    gguf_names=GGUF_PAIRED_EXPERTS_NAMES,
)
