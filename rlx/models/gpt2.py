"""GPT-2: layer norms, learned positions, biases, a plain MLP; matrices are `[in, out]` in Hugging Face files.

Source: transformers' modeling_gpt2. Next: `gpt_neox.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import AttentionConfig, DecoderConfig, LayerConfig, MlpConfig, NormConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import LAYER_NORM_EPS, gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import PLAIN_KINDS
from rlx.models.names import GGUF_NAMES, Fused, NameMap, split_qkv

QKV = {f"self_attn.{letter}_proj": split_qkv(letter) for letter in "qkv"}


def gpt2_from_hf(fields: Fields) -> DecoderConfig:
    """GPT-2's config.json."""
    hidden_size, num_heads, length = (fields.integer(name) for name in ("n_embd", "n_head", "n_positions"))
    fields.get("n_ctx")  # an old name of n_positions
    head_dim = hidden_size // num_heads
    scale = head_dim**-0.5 if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx")
    attention = AttentionConfig(
        num_heads=num_heads, num_kv_heads=num_heads, head_dim=head_dim, rope=None, qkv_bias=True, o_bias=True
    )
    mlp = MlpConfig(
        intermediate_size=fields.integer("n_inner", 4 * hidden_size),
        kind=fields.choice("activation_function", PLAIN_KINDS, "gelu_new"),
        bias=True,
    )
    scales = [scale / (index + 1) if by_layer else scale for index in range(fields.integer("n_layer"))]
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        layers=tuple(LayerConfig(attention=replace(attention, scale=scale), mlp=mlp) for scale in scales),
        norm=NormConfig(eps=fields.number("layer_norm_epsilon", 1e-5), layer_norm=True),
        context_length=length,
        learned_positions=length,
        tied=fields.flag("tie_word_embeddings", True),
    )


def gpt2_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gpt2`."""
    attention = replace(gguf_attention(fields, checkpoint), rope=None)
    layers = gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint, "gelu_tanh"))
    norm = NormConfig(eps=fields.number(LAYER_NORM_EPS), layer_norm=True)
    config = gguf_decoder(fields, checkpoint, layers, norm)
    return replace(config, rope={}, learned_positions=config.context_length)


HF_LAYER: dict[str, str | Fused] = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    **{key: Fused("attn.c_attn", rows, transposed=True) for key, rows in QKV.items()},
    "self_attn.o_proj": Fused("attn.c_proj", transposed=True),
    "mlp.up_proj": Fused("mlp.c_fc", transposed=True),
    "mlp.down_proj": Fused("mlp.c_proj", transposed=True),
}
HF_WHOLE = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.position_embeddings.weight": "transformer.wpe.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "model.norm.bias": "transformer.ln_f.bias",
    "lm_head.weight": "lm_head.weight",
}
GPT2 = Family(
    "gpt2",
    ("GPT2LMHeadModel",),
    gpt2_from_hf,
    names=NameMap("transformer.h.{i}.", HF_LAYER, HF_WHOLE, unread=("*.attn.bias", "*.attn.masked_bias")),
    gguf="gpt2",
    from_gguf=gpt2_from_gguf,
    gguf_names=GGUF_NAMES.with_layer(**{key.replace(".", "__"): Fused("attn_qkv", rows) for key, rows in QKV.items()}),
)
