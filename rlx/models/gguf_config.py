"""What the metadata of most decoders' GGUF files has in common.

In: `Fields` with the prefix of the architecture. Out: a `DecoderConfig`. Source: the keys of docs/gguf.md, and what
llama.cpp assumes where a file is silent. Next: `llama.py`, a family.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlx.core.storage import decode
from rlx.flow.blocks.moe_mlp import Routing
from rlx.flow.rope_scaling import RopeFrequencies, rope_frequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import (
    DEFAULT_ROPE,
    AttentionConfig,
    DecoderConfig,
    LayerConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
)
from rlx.models.fields import Fields

RMS_EPS, LAYER_NORM_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
# Fields that carry no computation: the vocabulary's size is that of the table, and the rest describes the training.
# `pooling_type` makes an embedding model of a decoder, which `encoders.py` sees to.
NO_COMPUTATION = frozenset({"vocab_size", "rope.scaling.finetuned", "attention.layer_norm_epsilon", "pooling_type"})
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "expert_count": (None, 0),
    "expert_used_count": (None, 0),
    "attention.clamp_kqv": (None, 0, 0.0),
    "attention.causal": (None, True),
    "attention.scale": (None,),
    "attention.sliding_window": (None, 0),
    "logit_scale": (None, 1, 1.0),
    "residual_scale": (None, 1, 1.0),
    "embedding_scale": (None, 1, 1.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "attn_logit_softcapping": (None, 0, 0.0),
    "use_parallel_residual": (None, False),
}


def refuse_unread_gguf(fields: Fields) -> None:
    """Refuse every field of the architecture that nobody asked for and that might ask for another computation."""
    fields.refuse_unread(lambda name: name in NO_COMPUTATION, NEUTRAL)


def gguf_attention(fields: Fields, checkpoint: Checkpoint, num_kv_heads: int | None = None) -> AttentionConfig:
    """Heads by the usual names; biases are there if their tensors are. `num_kv_heads` is given if layers differ."""
    num_heads = fields.integer("attention.head_count")
    head_dim = fields.integer("attention.key_length", fields.integer("embedding_length") // num_heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        fields.refuse("attention.value_length", f"{head_dim}, the length of the keys")
    tensors = checkpoint.tensors
    fused = "blk.0.attn_qkv.bias" in tensors
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        qkv_bias=fused or "blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
    )


def gguf_mlp(fields: Fields, checkpoint: Checkpoint, kind: str = "swiglu") -> MlpConfig:
    """The MLP by the usual names."""
    bias = "blk.0.ffn_up.bias" in checkpoint.tensors
    return MlpConfig(intermediate_size=fields.integer("feed_forward_length"), kind=kind, bias=bias)


def gguf_moe(fields: Fields, size: str = "expert_feed_forward_length") -> MoeConfig:
    """Experts by the usual names; llama.cpp divides the weights of the chosen ones by their sum."""
    return MoeConfig(
        num_experts=fields.integer("expert_count"),
        intermediate_size=fields.integer(size),
        routing=Routing(fields.integer("expert_used_count")),
    )


def gguf_uniform(fields: Fields, attention: AttentionConfig, mlp: MlpConfig | MoeConfig) -> tuple[LayerConfig, ...]:
    """`block_count` equal layers."""
    return (LayerConfig(attention=attention, mlp=mlp),) * fields.integer("block_count")


def gguf_decoder(
    fields: Fields,
    checkpoint: Checkpoint,
    layers: tuple[LayerConfig, ...],
    norm: NormConfig | None = None,
    rope_style: str = "half",
) -> DecoderConfig:
    """A decoder with the usual sizes and one RoPE table; a family adds what is special with `replace`."""
    table = checkpoint.tensors.get("token_embd.weight")
    known = table is not None and len(table.shape) == 2
    head_dim, length = layers[0].attention.head_dim, fields.integer("context_length")
    n_rot = fields.integer("rope.dimension_count", head_dim)
    return DecoderConfig(
        vocab_size=table.shape[0] if table is not None and known else fields.integer("vocab_size"),
        hidden_size=fields.integer("embedding_length"),
        layers=layers,
        norm=NormConfig(eps=fields.number(RMS_EPS)) if norm is None else norm,
        context_length=length,
        rope={DEFAULT_ROPE: gguf_rope(checkpoint, fields, n_rot, length)},
        rope_style=rope_style,
        tied="output.weight" not in checkpoint.tensors,
    )


def gguf_rope(checkpoint: Checkpoint, fields: Fields, n_rot: int, length: int) -> RopeFrequencies:
    """The RoPE table that the metadata and the tensor `rope_freqs.weight` ask for."""
    kind = fields.text("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        fields.refuse("rope.scaling.type", "none, linear or yarn")
    factor = fields.get("rope.scaling.factor")
    if factor is None and fields.get("rope.scale_linear") is not None:  # the key before scaling had a type
        kind, factor = "linear", fields.number("rope.scale_linear")
    elif kind != "none":
        factor = fields.number("rope.scaling.factor")
    parameters: dict[str, object] = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "factor": factor,
    }
    if kind == "yarn":
        if (weight := fields.optional_number("rope.scaling.yarn_log_multiplier")) is not None:
            parameters |= {"mscale": 1.0, "mscale_all_dim": weight}
        parameters["original_max_position_embeddings"] = fields.integer("rope.scaling.original_context_length", length)
        for name in ("beta_fast", "beta_slow"):
            parameters[name] = fields.get(f"rope.scaling.yarn_{name}")
    rope = rope_frequencies(parameters, n_rot, length)
    if kind == "yarn":  # GGUF's factor multiplies the one of the paper, transformers' replaces it
        scaling = rope.attention_scaling * fields.number("rope.scaling.attn_factor", 1.0)
        rope = RopeFrequencies(rope.inverse, scaling)
    info = checkpoint.tensors.get("rope_freqs.weight")
    if info is None:
        return rope
    return rope.divided_by(decode(info.dtype, checkpoint.data(info.name), info.shape).astype(np.float32))
