"""GPT-NeoX and Pythia: attention and MLP side by side, q, k and v head by head in one tensor, partly rotated heads.

Source: transformers' modeling_gpt_neox. Next: `granite.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig, LayerConfig, MlpConfig, NormConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import LAYER_NORM_EPS, gguf_attention, gguf_decoder, gguf_mlp
from rlx.models.hf_config import PLAIN_KINDS, attention_of, decoder_of
from rlx.models.names import GGUF_NAMES, Fused, NameMap, split_heads, split_qkv


def neox_from_hf(fields: Fields) -> DecoderConfig:
    """GPT-NeoX's config.json."""
    bias = fields.flag("attention_bias", True)
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias)
    kind = fields.choice("hidden_act", PLAIN_KINDS, "gelu")
    layer = LayerConfig(
        attention=attention,
        mlp=MlpConfig(intermediate_size=fields.integer("intermediate_size"), kind=kind, bias=True),
        parallel=fields.flag("use_parallel_residual", True),
    )
    if fields.get("rotary_pct") is not None:  # the name before partial_rotary_factor
        fields = replace(fields, defaults={**fields.defaults, "partial_rotary_factor": fields.number("rotary_pct")})
    if fields.get("rotary_emb_base") is not None:
        fields = replace(fields, defaults={**fields.defaults, "rope_theta": fields.number("rotary_emb_base")})
    norm = NormConfig(eps=fields.number("layer_norm_eps", 1e-5), layer_norm=True)
    return decoder_of(fields, (layer,) * fields.integer("num_hidden_layers"), norm)


def neox_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gptneox`, whose q, k and v lie one after another."""
    layer = LayerConfig(
        attention=gguf_attention(fields, checkpoint),
        mlp=gguf_mlp(fields, checkpoint, "gelu"),
        parallel=fields.flag("use_parallel_residual", True),
    )
    norm = NormConfig(eps=fields.number(LAYER_NORM_EPS), layer_norm=True)
    return gguf_decoder(fields, checkpoint, (layer,) * fields.integer("block_count"), norm)


HF_LAYER: dict[str, str | Fused] = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    **{f"self_attn.{part}_proj": Fused("attention.query_key_value", split_heads(part)) for part in "qkv"},
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
HF_WHOLE = {
    "model.embed_tokens.weight": "gpt_neox.embed_in.weight",
    "model.norm.weight": "gpt_neox.final_layer_norm.weight",
    "model.norm.bias": "gpt_neox.final_layer_norm.bias",
    "lm_head.weight": "embed_out.weight",
}
UNREAD = ("*.attention.rotary_emb.inv_freq", "*.attention.bias", "*.attention.masked_bias")
GPT_NEOX = Family(
    "gpt_neox",
    ("GPTNeoXForCausalLM",),
    neox_from_hf,
    {"max_position_embeddings": 2048, "partial_rotary_factor": 0.25},
    names=NameMap("gpt_neox.layers.{i}.", HF_LAYER, HF_WHOLE, unread=UNREAD),
    gguf="gptneox",
    from_gguf=neox_from_gguf,
    gguf_names=GGUF_NAMES.with_layer(
        **{f"self_attn__{part}_proj": Fused("attn_qkv", split_qkv(part)) for part in "qkv"}
    ),
)
