"""Qwen3-MoE: Qwen3 with experts in some layers. Source: transformers' modeling_qwen3_moe. Next: `registry.py`."""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.blocks.moe_mlp import Routing
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig, LayerConfig, MoeConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_moe, gguf_uniform
from rlx.models.hf_config import GATED_KINDS, attention_of, decoder_of, mlp_of, windowed
from rlx.models.names import HF_NAMES, Experts


def qwen3_moe_from_hf(fields: Fields) -> DecoderConfig:
    """Qwen3-MoE's config.json; a layer has experts unless it is listed or skipped by `decoder_sparse_step`."""
    bias, count = fields.flag("attention_bias"), fields.integer("num_hidden_layers")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, qk_norm="head")
    if fields.flag("use_sliding_window") and fields.get("sliding_window") is not None:
        attention = windowed(fields, attention, "sliding_attention")
    fields.read.add("sliding_window")  # which without use_sliding_window is not in use
    fields.get("max_window_layers")  # which the model does not read
    dense, step = fields.indices("mlp_only_layers"), fields.integer("decoder_sparse_step")
    experts = "num_experts" if "num_experts" in fields.values else "num_local_experts"
    moe = MoeConfig(
        num_experts=fields.integer(experts),
        intermediate_size=fields.integer("moe_intermediate_size"),
        routing=Routing(fields.integer("num_experts_per_tok"), normalise=fields.flag("norm_topk_prob")),
        kind=fields.choice("hidden_act", GATED_KINDS, "silu"),
    )
    mlp = mlp_of(fields)
    layers = tuple(
        LayerConfig(attention=attention, mlp=mlp if i in dense or (i + 1) % step else moe) for i in range(count)
    )
    return decoder_of(fields, layers)


def qwen3_moe_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `qwen3moe`, whose every layer has experts; llama.cpp normalises the weights."""
    attention = replace(gguf_attention(fields, checkpoint), qk_norm="head")
    fields.get("feed_forward_length")
    return gguf_decoder(fields, checkpoint, gguf_uniform(fields, attention, gguf_moe(fields)))


QWEN3_MOE = Family(
    "qwen3_moe",
    ("Qwen3MoeForCausalLM",),
    qwen3_moe_from_hf,
    {
        "decoder_sparse_step": 1,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
    },
    names=HF_NAMES.with_layer(
        mlp__router="mlp.gate",
        **{f"mlp__experts__{part}_proj": Experts(f"mlp.experts.{{e}}.{part}_proj") for part in ("gate", "up", "down")},
    ),
    gguf="qwen3moe",
    from_gguf=qwen3_moe_from_gguf,
)
