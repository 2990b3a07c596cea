"""Phi-3 and Phi-4: Llama with q, k and v in one tensor, gate and up in another. Source: transformers' modeling_phi3.

LongRoPE has two tables: one for sequences within the first context, which is the context length unless a longer one is
asked for, and one for all sequences of a model that was opened with a longer one. Next: `gpt2.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlx.core.storage import decode
from rlx.flow.rope_scaling import RopeFrequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DEFAULT_ROPE, DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, mlp_of, uniform, windowed
from rlx.models.names import GGUF_NAMES, HF_NAMES, Fused, split_gate_up, split_qkv

PARTS = {f"self_attn__{letter}_proj": split_qkv(letter) for letter in "qkv"}
GATES = {f"mlp__{part}_proj": split_gate_up(part) for part in ("gate", "up")}


def phi3_from_hf(fields: Fields) -> DecoderConfig:
    """Phi-3's config.json."""
    attention = attention_of(fields)
    if fields.get("sliding_window") is not None:
        attention = windowed(fields, attention, "sliding_attention")
    fields.get("attention_bias")  # written by old code, read by none: there are no biases
    return decoder_of(fields, uniform(fields, attention, mlp_of(fields)))


def phi3_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `phi3`."""
    attention = replace(
        gguf_attention(fields, checkpoint), window=fields.integer("attention.sliding_window", 0, 0) or None
    )
    layers = gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint))
    config = gguf_decoder(fields, checkpoint, layers)
    original = fields.integer("rope.scaling.original_context_length", config.context_length)
    scaling = fields.number("rope.scaling.attn_factor", 1.0)
    tables = [_divided(config, checkpoint, f"rope_factors_{which}.weight", scaling) for which in ("short", "long")]
    if tables[0] is None or tables[1] is None:
        return config
    length = min(original, config.context_length)
    longer = ({DEFAULT_ROPE: tables[1]}, config.context_length) if length < config.context_length else None
    return replace(config, rope={DEFAULT_ROPE: tables[0]}, context_length=length, longer=longer)


def _divided(config: DecoderConfig, checkpoint: Checkpoint, name: str, scaling: float) -> RopeFrequencies | None:
    info = checkpoint.tensors.get(name)
    if info is None:
        return None
    factors = decode(info.dtype, checkpoint.data(name), info.shape).astype(np.float32)
    return RopeFrequencies(config.rope[DEFAULT_ROPE].divided_by(factors).inverse, scaling)


PHI3 = Family(
    "phi3",
    ("Phi3ForCausalLM",),
    phi3_from_hf,
    {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    names=HF_NAMES.with_layer(
        **{key: Fused("self_attn.qkv_proj", rows) for key, rows in PARTS.items()},
        **{key: Fused("mlp.gate_up_proj", rows) for key, rows in GATES.items()},
    ),
    gguf="phi3",
    from_gguf=phi3_from_gguf,
    gguf_names=replace(
        GGUF_NAMES.with_layer(
            **{key: Fused("attn_qkv", rows) for key, rows in PARTS.items()},
            **{key: Fused("ffn_up", rows) for key, rows in GATES.items()},
        ),
        unread=("rope_factors_long.weight", "rope_factors_short.weight"),
    ),
)
