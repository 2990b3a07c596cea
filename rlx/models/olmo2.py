"""OLMo 2 and OLMo 3: norms of what blocks give, not of what they take, and of all heads of q and k together.

OLMo 3 gives three layers of four a window and a RoPE table without scaling. Sources: transformers' modeling_olmo2,
modeling_olmo3 and configuration_olmo3; llama.cpp's olmo2, which has both. Next: `smollm3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.rope_scaling import rope_frequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DEFAULT_ROPE, LOCAL_ROPE, DecoderConfig, LayerConfig, LayerNorms
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, full_and_sliding, mlp_of, rope_of, rope_parameters, uniform
from rlx.models.names import GGUF_SANDWICH_NAMES

AFTER = LayerNorms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)

THETA = 500000.0  # of OLMo 3 where a file is silent


def olmo2_from_hf(fields: Fields) -> DecoderConfig:
    """OLMo 2's config.json."""
    bias = fields.flag("attention_bias")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, qk_norm="width")
    return replace(decoder_of(fields, uniform(fields, attention, mlp_of(fields))), norms=AFTER)


def olmo3_from_hf(fields: Fields) -> DecoderConfig:
    """OLMo 3's config.json; before transformers 5 the RoPE parameters are those of layers without a window."""
    new, bias = bool(fields.table("rope_parameters")), fields.flag("attention_bias")
    full = rope_parameters(fields, "full_attention" if new else None)
    plain: dict[str, object] = {"rope_theta": THETA}
    local = rope_parameters(fields, "sliding_attention") if new else plain
    fields.integer("sliding_window")  # there as well where no layer has one
    pattern = _pattern(fields.integer("num_hidden_layers"))
    default = tuple("sliding_attention" if is_local else "full_attention" for is_local in pattern)
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, qk_norm="width")
    layers = _with_tables(full_and_sliding(fields, attention, mlp_of(fields), default))
    config = decoder_of(fields, layers, rope=full)
    table, length = rope_of(fields, attention.head_dim, local)
    length = min(length, config.context_length)
    return replace(config, norms=AFTER, rope={**config.rope, LOCAL_ROPE: table}, context_length=length, longer=None)


def _pattern(count: int) -> tuple[bool, ...]:
    """Which layers have a window: all but every fourth."""
    return tuple((index + 1) % 4 != 0 for index in range(count))


def _with_tables(layers: tuple[LayerConfig, ...]) -> tuple[LayerConfig, ...]:
    local = (None if layer.attention.window is None else LOCAL_ROPE for layer in layers)
    return tuple(
        replace(layer, attention=replace(layer.attention, rope=table or DEFAULT_ROPE))
        for layer, table in zip(layers, local, strict=True)
    )


def olmo2_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `olmo2`, which is OLMo 3 where it has a window."""
    attention = replace(gguf_attention(fields, checkpoint), qk_norm="width")
    layers = gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint))
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    if not window:
        return replace(gguf_decoder(fields, checkpoint, layers), norms=AFTER)
    name = "attention.sliding_window_pattern"
    own = None if fields.get(name) is None else fields.for_layers(name, len(layers), minimum=0)
    layers = _with_tables(
        tuple(
            replace(layer, attention=replace(attention, window=window if is_local else None))
            for layer, is_local in zip(layers, own or _pattern(len(layers)), strict=True)
        )
    )
    theta = fields.number("rope.freq_base_swa", fields.number("rope.freq_base", 10000.0))
    local = rope_frequencies({"rope_theta": theta}, attention.head_dim, 1)
    config = gguf_decoder(fields, checkpoint, layers)
    return replace(config, norms=AFTER, rope={**config.rope, LOCAL_ROPE: local})


OLMO2 = Family(
    "olmo2",
    ("Olmo2ForCausalLM",),
    olmo2_from_hf,
    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    gguf="olmo2",
    from_gguf=olmo2_from_gguf,
    gguf_names=GGUF_SANDWICH_NAMES,
)
OLMO3 = Family(
    "olmo3",
    ("Olmo3ForCausalLM",),
    olmo3_from_hf,
    {**OLMO2.defaults, "rope_theta": THETA, "sliding_window": 4096},
)
