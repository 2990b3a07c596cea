"""SmolLM3: Llama that leaves q and k unrotated in every fourth layer. Source: transformers' modeling_smollm3.

Next: `registry.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, full_and_sliding, mlp_of


def smollm3_from_hf(fields: Fields) -> DecoderConfig:
    """SmolLM3's config.json; `no_rope_layers` has a 1 for each layer that is rotated."""
    bias, count = fields.flag("attention_bias"), fields.integer("num_hidden_layers")
    every = fields.integer("no_rope_layer_interval", 4)
    rotated = fields.numbers("no_rope_layers", count) or tuple(int((i + 1) % every != 0) for i in range(count))
    uses_window = fields.flag("use_sliding_window") and fields.get("sliding_window") is not None
    if not uses_window:
        fields.read.add("sliding_window")  # a window that is not in use
    kinds = tuple("sliding_attention" if uses_window and not rope else "full_attention" for rope in rotated)
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias)
    layers = full_and_sliding(fields, attention, mlp_of(fields, fields.flag("mlp_bias")), kinds)
    return decoder_of(
        fields,
        tuple(
            layer if rope else replace(layer, attention=replace(layer.attention, rope=None))
            for layer, rope in zip(layers, rotated, strict=True)
        ),
    )


def smollm3_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `smollm3`, for which llama.cpp knows that every fourth layer is not rotated."""
    layers = gguf_uniform(fields, gguf_attention(fields, checkpoint), gguf_mlp(fields, checkpoint))
    layers = tuple(
        replace(layer, attention=replace(layer.attention, rope=None)) if (index + 1) % 4 == 0 else layer
        for index, layer in enumerate(layers)
    )
    return gguf_decoder(fields, checkpoint, layers, rope_style="interleaved")


SMOLLM3 = Family(
    "smollm3",
    ("SmolLM3ForCausalLM",),
    smollm3_from_hf,
    {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
    },
    gguf="smollm3",
    from_gguf=smollm3_from_gguf,
)
