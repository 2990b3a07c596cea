"""Mixtral: Mistral with experts. Source: transformers' modeling_mixtral. Next: `qwen3_moe.py`."""

from __future__ import annotations

from rlx.flow.blocks.moe_mlp import Routing
from rlx.models.decoder import DecoderConfig, MoeConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.hf_config import GATED_KINDS, attention_of, decoder_of, uniform, windowed
from rlx.models.names import HF_NAMES, Experts

EXPERTS = {
    f"mlp__experts__{part}_proj": Experts(f"block_sparse_moe.experts.{{e}}.{short}")
    for part, short in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
}


def mixtral_from_hf(fields: Fields) -> DecoderConfig:
    """Mixtral's config.json."""
    attention = attention_of(fields)
    if fields.get("sliding_window") is not None:
        attention = windowed(fields, attention, "sliding_attention")
    moe = MoeConfig(
        num_experts=fields.integer("num_local_experts"),
        intermediate_size=fields.integer("intermediate_size"),
        routing=Routing(fields.integer("num_experts_per_tok")),
        kind=fields.choice("hidden_act", GATED_KINDS, "silu"),
    )
    return decoder_of(fields, uniform(fields, attention, moe))


MIXTRAL = Family(
    "mixtral",
    ("MixtralForCausalLM",),
    mixtral_from_hf,
    {
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
    },
    names=HF_NAMES.with_layer(mlp__router="block_sparse_moe.gate", **EXPERTS),
)
