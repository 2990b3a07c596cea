"""Decoders whose layers are linear attention by the gated delta rule, or full attention with an output gate.

In: a configuration in the words of Qwen3-Next and Qwen3.5. Out: a `DecoderConfig`. In a text the position rows of MRoPE
are all alike, which makes it plain RoPE: its sections are checked and then change nothing. Source: transformers'
modeling_qwen3_next and modeling_qwen3_5. Next: `qwen3_5.py`, `qwen3_next.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from rlx.errors import FlowError
from rlx.flow.mrope import MRopeFrequencies
from rlx.flow.rope_scaling import RopeFrequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import (
    DEFAULT_ROPE,
    AttentionConfig,
    DecoderConfig,
    LayerConfig,
    LinearAttentionConfig,
    MlpConfig,
    NormConfig,
)
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp
from rlx.models.hf_config import attention_of, decoder_of, mlp_of

LINEAR, FULL = "linear_attention", "full_attention"
DEFAULTS: dict[str, object] = {
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
"""What transformers assumes for both families."""
FIXED = {"attn_output_gate": True, "mamba_ssm_dtype": "float32"}
"""Fields that say what the models are anyway."""


def hybrid_from_hf(fields: Fields) -> DecoderConfig:
    """The text model of a config.json."""
    for name, value in FIXED.items():
        if fields.get(name) not in (None, value):
            fields.refuse(name, repr(value))
    mlp = mlp_of(fields)
    if mlp.kind != "swiglu":
        fields.refuse("hidden_act", "silu, which the short convolution has too")
    bias = fields.flag("attention_bias")
    attention = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, qk_norm="head", output_gate=True)
    linear = LinearAttentionConfig(
        key_heads=fields.integer("linear_num_key_heads"),
        key_dim=fields.integer("linear_key_head_dim"),
        value_heads=fields.integer("linear_num_value_heads"),
        value_dim=fields.integer("linear_value_head_dim"),
        taps=fields.integer("linear_conv_kernel_dim"),
    )
    if linear.value_heads % linear.key_heads:
        fields.refuse("linear_num_value_heads", f"a multiple of linear_num_key_heads, {linear.key_heads}")
    layers = hybrid_layers([kind == LINEAR for kind in _kinds(fields)], attention, linear, mlp)
    config = decoder_of(fields, layers, NormConfig(eps=fields.number("rms_norm_eps"), plus_one=True))
    rope = fields.table("rope_parameters") or fields.table("rope_scaling")
    if rope.get("mrope_interleaved", True) is not True:
        fields.refuse("rope_parameters", "mrope_interleaved true")
    if "mrope_section" in rope:
        _check_sections(fields, rope["mrope_section"], config.rope[DEFAULT_ROPE])
    return config


def _kinds(fields: Fields) -> Sequence[str]:
    count, every = fields.integer("num_hidden_layers"), fields.integer("full_attention_interval", 4)
    kinds = fields.words("layer_types", count)
    if kinds is None:
        return [FULL if (index + 1) % every == 0 else LINEAR for index in range(count)]
    if not set(kinds) <= {LINEAR, FULL}:
        fields.refuse("layer_types", f"{LINEAR} or {FULL}")
    return kinds


def hybrid_layers(
    is_linear: Sequence[bool], attention: AttentionConfig, linear: LinearAttentionConfig, mlp: MlpConfig
) -> tuple[LayerConfig, ...]:
    """A layer for each truth value."""
    return tuple(LayerConfig(attention=attention, mlp=mlp, linear=linear if yes else None) for yes in is_linear)


def _check_sections(fields: Fields, sections: object, frequencies: RopeFrequencies) -> None:
    """Refuse sections of interleaved MRoPE that cannot be dealt out to the pairs."""
    name = "rope_parameters"
    expected = f"three sections of {frequencies.inverse.size} pairs in all, dealt out in turn"
    values = cast("Sequence[object]", sections) if isinstance(sections, list | tuple) else ()
    numbers = [value for value in values if isinstance(value, int)]
    if len(values) != 3 or len(numbers) != 3:
        fields.refuse(name, expected)
    try:
        MRopeFrequencies(frequencies, (numbers[0], numbers[1], numbers[2]), interleaved=True).row_of_pair()
    except FlowError:
        fields.refuse(name, expected)


def hybrid_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `qwen35`; blocks for speculative decoding at the end are left out."""
    extra = fields.integer("nextn_predict_layers", 0, minimum=0)
    count = fields.integer("block_count") - extra
    heads = fields.integer("ssm.time_step_rank")
    inner = fields.integer("ssm.inner_size")
    if inner % heads or heads % fields.integer("ssm.group_count"):
        fields.refuse("ssm.time_step_rank", f"a divisor of {inner}, and a multiple of ssm.group_count")
    linear = LinearAttentionConfig(
        key_heads=fields.integer("ssm.group_count"),
        key_dim=fields.integer("ssm.state_size"),
        value_heads=heads,
        value_dim=inner // heads,
        taps=fields.integer("ssm.conv_kernel"),
        tiled=True,
        log_rate=False,
    )
    has_bias = any(name.endswith("attn_q.bias") for name in checkpoint.tensors)
    attention = replace(
        gguf_attention(fields, checkpoint), qkv_bias=has_bias, o_bias=has_bias, qk_norm="head", output_gate=True
    )
    layers = hybrid_layers(_recurrent(fields, count, extra), attention, linear, gguf_mlp(fields, checkpoint))
    config = replace(gguf_decoder(fields, checkpoint, layers), unread_layers=extra)
    fields.read.add("rope.dimension_sections")  # of positions that are all alike
    return config


def _recurrent(fields: Fields, count: int, extra: int) -> list[bool]:
    every = fields.integer("full_attention_interval", 4)
    value = fields.get("attention.recurrent_layers")
    if value is None:
        return [(index + 1) % every != 0 for index in range(count)]
    flags = cast("list[object]", np.asarray(cast(Any, value)).tolist())
    if not isinstance(flags, list) or len(flags) != count + extra:  # pyright: ignore[reportUnnecessaryIsInstance]
        fields.refuse("attention.recurrent_layers", f"{count + extra} truth values, one for each block")
    return [bool(flag) for flag in flags[:count]]
