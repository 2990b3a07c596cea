"""Gemma, Gemma 2 and Gemma 3 (text). Sources: transformers' modeling_gemma, modeling_gemma2 and modeling_gemma3.

Over Llama: embeddings times sqrt(hidden), norms that scale by 1 + weight (in Hugging Face files; GGUF files have the 1
in the weight), GeGLU. Gemma 2 norms what blocks give as well, caps scores and logits, and alternates windows; Gemma 3
has no caps, norms q and k, and gives layers with a window a RoPE table of their own. Next: `phi3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.rope_scaling import rope_frequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import (
    DEFAULT_ROPE,
    LOCAL_ROPE,
    AttentionConfig,
    DecoderConfig,
    LayerConfig,
    LayerNorms,
    NormConfig,
)
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import (
    attention_of,
    decoder_of,
    kinds_of_layers,
    mlp_of,
    positions_of,
    rope_of,
    rope_parameters,
    uniform,
    windowed,
)
from rlx.models.names import GGUF_SANDWICH_NAMES

SANDWICH = LayerNorms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)


def _finished(config: DecoderConfig) -> DecoderConfig:
    return replace(config, embedding_scale=config.hidden_size**0.5)


def _norm(fields: Fields) -> NormConfig:
    return NormConfig(eps=fields.number("rms_norm_eps"), plus_one=True)


def gemma_from_hf(fields: Fields) -> DecoderConfig:
    """Gemma's config.json. The first files say "gelu" and mean the tanh form, as transformers takes it."""
    bias = fields.flag("attention_bias")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias)
    if fields.get("hidden_activation") not in (None, "gelu_pytorch_tanh"):
        fields.refuse("hidden_activation", "gelu_pytorch_tanh")
    mlp = mlp_of(fields, default="gelu_pytorch_tanh")
    mlp = replace(mlp, kind="geglu_tanh") if mlp.kind == "geglu" else mlp
    return _finished(decoder_of(fields, uniform(fields, attention, mlp), _norm(fields)))


def gemma2_from_hf(fields: Fields) -> DecoderConfig:
    """Gemma 2's config.json."""
    config = _finished(decoder_of(fields, _layers(fields, every=2), _norm(fields)))
    return replace(config, norms=SANDWICH, logits_softcap=fields.optional_number("final_logit_softcapping"))


def gemma3_from_hf(fields: Fields) -> DecoderConfig:
    """The config.json of Gemma 3's text model."""
    every = fields.integer("_sliding_window_pattern", fields.integer("sliding_window_pattern", 6))
    both = fields.flag("use_bidirectional_attention")
    layers = tuple(replace(layer, attention=_gemma3_attention(layer, both)) for layer in _layers(fields, every))
    head_dim, positions = layers[0].attention.head_dim, positions_of(fields)
    new = bool(fields.table("rope_parameters"))
    whole, length = rope_of(fields, head_dim, rope_parameters(fields, "full_attention" if new else None))
    local = rope_parameters(fields, "sliding_attention") if new else {"rope_theta": _local_theta(fields)}
    rope = {DEFAULT_ROPE: whole, LOCAL_ROPE: rope_frequencies(local, head_dim, positions, length)}
    config = DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=layers,
        norm=_norm(fields),
        norms=SANDWICH,
        context_length=length,
        rope=rope,
        logits_softcap=fields.optional_number("final_logit_softcapping"),
        tied=fields.flag("tie_word_embeddings"),
    )
    return _finished(config)


def _gemma3_attention(layer: LayerConfig, both: bool) -> AttentionConfig:
    """A layer's attention; one that looks both ways has half the window on either side."""
    window = layer.attention.window
    window = window // 2 + 1 if both and window is not None else window
    return replace(layer.attention, qk_norm="head", rope=_rope_name(layer), bidirectional=both, window=window)


def _local_theta(fields: Fields) -> float:
    return fields.number("rope_local_base_freq", 10000.0)


def _layers(fields: Fields, every: int) -> tuple[LayerConfig, ...]:
    """Layers with a window, but for each one in `every`."""
    count = fields.integer("num_hidden_layers")
    default = tuple("full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count))
    bias = fields.flag("attention_bias")
    attention = replace(
        attention_of(fields),
        qkv_bias=bias,
        o_bias=bias,
        scale=fields.number("query_pre_attn_scalar") ** -0.5,
        softcap=fields.optional_number("attn_logit_softcapping"),
    )
    mlp = mlp_of(fields, default="gelu_pytorch_tanh", name="hidden_activation")
    kinds = kinds_of_layers(fields, default)
    return tuple(LayerConfig(attention=windowed(fields, attention, kind), mlp=mlp) for kind in kinds)


def _rope_name(layer: LayerConfig) -> str:
    return DEFAULT_ROPE if layer.attention.window is None else LOCAL_ROPE


def gemma_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gemma`."""
    attention, mlp = gguf_attention(fields, checkpoint), gguf_mlp(fields, checkpoint, "geglu_tanh")
    return _finished(gguf_decoder(fields, checkpoint, gguf_uniform(fields, attention, mlp)))


def gemma2_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gemma2`."""
    layers = _gguf_layers(fields, checkpoint, every=2, largest=46, cap=fields.number("attn_logit_softcapping", 50.0))
    config = _finished(gguf_decoder(fields, checkpoint, layers))
    return replace(config, norms=SANDWICH, logits_softcap=fields.number("final_logit_softcapping", 30.0))


def gemma3_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gemma3`."""
    layers = tuple(
        replace(layer, attention=replace(layer.attention, qk_norm="head", rope=_rope_name(layer)))
        for layer in _gguf_layers(fields, checkpoint, every=6, largest=62, cap=None)
    )
    config = _finished(gguf_decoder(fields, checkpoint, layers))
    head_dim = layers[0].attention.head_dim
    local = rope_frequencies({"rope_theta": fields.number("rope.freq_base_swa", 10000.0)}, head_dim, 1)
    cap = fields.optional_number("final_logit_softcapping")
    return replace(config, norms=SANDWICH, rope={**config.rope, LOCAL_ROPE: local}, logits_softcap=cap)


def _gguf_layers(
    fields: Fields, checkpoint: Checkpoint, every: int, largest: int, cap: float | None
) -> tuple[LayerConfig, ...]:
    """As `_layers`. A file does not say the scale: as in llama.cpp, the 27B model is known by its number of layers."""
    count, hidden_size = fields.integer("block_count"), fields.integer("embedding_length")
    attention, mlp = gguf_attention(fields, checkpoint), gguf_mlp(fields, checkpoint, "geglu_tanh")
    scalar = hidden_size // attention.num_heads if count == largest else attention.head_dim
    attention = replace(attention, scale=scalar**-0.5, softcap=cap)
    window = fields.integer("attention.sliding_window")
    return tuple(
        LayerConfig(attention=replace(attention, window=None if (i + 1) % every == 0 else window), mlp=mlp)
        for i in range(count)
    )


GEMMA = Family(
    "gemma",
    ("GemmaForCausalLM",),
    gemma_from_hf,
    {"head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    gguf="gemma",
    from_gguf=gemma_from_gguf,
)
GEMMA2 = Family(
    "gemma2",
    ("Gemma2ForCausalLM",),
    gemma2_from_hf,
    {
        **GEMMA.defaults,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    gguf="gemma2",
    from_gguf=gemma2_from_gguf,
    gguf_names=GGUF_SANDWICH_NAMES,
)
GEMMA3 = Family(
    "gemma3_text",
    ("Gemma3ForCausalLM",),
    gemma3_from_hf,
    {
        **GEMMA.defaults,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "sliding_window": 4096,
    },
    gguf="gemma3",
    from_gguf=gemma3_from_gguf,
    gguf_names=GGUF_SANDWICH_NAMES,
)
