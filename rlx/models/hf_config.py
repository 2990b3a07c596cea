"""What the config.json of most decoders has in common, and the fields that carry no computation.

In: `Fields`. Out: parts of a `DecoderConfig`. The arbiter is transformers (`configuration_*.py`, defaults included).
Next: `gguf_config.py`, the same for GGUF metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from rlx.flow.rope_scaling import RopeFrequencies, context_limit, rope_frequencies
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

GATED_KINDS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "gelu_fast": "geglu_tanh",
}
"""`hidden_act` of an MLP with a gate. `gelu_new` and `gelu_fast` are ways to write the tanh form."""
PLAIN_KINDS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""`hidden_act` of an MLP of two matrices."""

# Fields that carry no computation: what a checkpoint is called, how it was trained, how it is sampled from.
NO_COMPUTATION = frozenset(
    [
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "model_type",
        "mtp_num_hidden_layers",  # layers for speculative decoding, which no logits depend on
        "mtp_use_dedicated_embeddings",
        "output_attentions",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "output_hidden_states",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "reorder_and_upcast_attn",
        "sep_token_id",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "torchscript",
    ]
)

# Fields of relatives, with the values that change nothing. Any other value asks for another computation.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_decoder": (None, False, True),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "use_bidirectional_attention": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "final_logit_softcapping": (None, 0, 0.0),
    "attn_logit_softcapping": (None, 0, 0.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "no_rope_layers": (None,),
    "mlp_only_layers": (None, []),
    "enable_moe_block": (None, False),
    "top_k_experts": (None,),
    "moe_intermediate_size": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "rope_scaling": (None,),
    "original_max_position_embeddings": (None,),
    "pruned_heads": (None, {}),
    "head_dim": (None,),
    "layer_types": (None,),
}


def refuse_unread_hf(fields: Fields) -> None:
    """Refuse every field that nobody asked for and that might ask for another computation."""
    fields.refuse_unread(lambda name: name in NO_COMPUTATION, NEUTRAL)


def attention_of(fields: Fields) -> AttentionConfig:
    """Heads by the usual names; a family adds what is special with `replace`."""
    num_heads = fields.integer("num_attention_heads")
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", fields.integer("hidden_size") // num_heads),
    )


def mlp_of(fields: Fields, bias: bool = False, default: str = "silu", name: str = "hidden_act") -> MlpConfig:
    """An MLP with a gate by the usual names."""
    kind = fields.choice(name, GATED_KINDS, default)
    return MlpConfig(intermediate_size=fields.integer("intermediate_size"), kind=kind, bias=bias)


def kinds_of_layers(fields: Fields, default: tuple[str, ...]) -> tuple[str, ...]:
    """`layer_types`, or what the family assumes for a file without it.

    Raises:
        UnsupportedModelError: a kind is neither full nor sliding attention, or there is not one for each layer.
    """
    kinds = fields.words("layer_types", len(default)) or default
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        fields.refuse("layer_types", "full_attention or sliding_attention")
    if "use_sliding_window" in fields.read and "sliding_attention" in kinds and not fields.flag("use_sliding_window"):
        fields.refuse("layer_types", "full_attention alone, since use_sliding_window is false")
    return kinds


def windowed(fields: Fields, attention: AttentionConfig, kind: str) -> AttentionConfig:
    """The attention of a layer of this kind."""
    if kind != "sliding_attention":
        return attention
    return replace(attention, window=fields.integer("sliding_window"))


def rope_parameters(fields: Fields, kind: str | None = None) -> dict[str, object]:
    """The RoPE parameters in the form of transformers 5, from that form or from `rope_theta` and `rope_scaling`.

    Args:
        fields: the configuration.
        kind: a kind of layers, where each kind has a table of its own.
    """
    table = fields.table("rope_parameters")
    nested = any(isinstance(value, Mapping) for value in table.values())
    if nested != (kind is not None and bool(table)):
        fields.refuse("rope_parameters", "one table for each kind of layers" if kind else "one table for all layers")
    if nested and not isinstance(table.get(str(kind)), Mapping):
        fields.refuse("rope_parameters", f"a table for {kind}")
    rope = dict(cast("Mapping[str, object]", table[str(kind)])) if nested else table or fields.table("rope_scaling")
    rope.setdefault("rope_type", rope.get("type") or "default")
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = fields.number("rope_theta", 10000.0)
    for name in ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor"):
        if name in fields.values and fields.get(name) is not None:
            if rope.setdefault(name, fields.number(name)) != fields.number(name):
                fields.refuse(name, f"{rope[name]!r}, as in the RoPE parameters")
        elif fields.get(name) is not None:
            rope.setdefault(name, fields.get(name))
    return rope


def positions_of(fields: Fields) -> int:
    """`max_position_embeddings`."""
    return fields.integer("max_position_embeddings")


def rope_of(fields: Fields, head_dim: int, rope: dict[str, object] | None = None) -> tuple[RopeFrequencies, int]:
    """The RoPE table that all layers share, and the longest sequence it is exact for."""
    rope = rope_parameters(fields) if rope is None else rope
    positions = positions_of(fields)
    length = context_limit(rope, positions)
    return rope_frequencies(rope, head_dim, positions, length), length


def decoder_of(
    fields: Fields,
    layers: tuple[LayerConfig, ...],
    norm: NormConfig | None = None,
    rope: dict[str, object] | None = None,
) -> DecoderConfig:
    """A decoder with the usual sizes and one RoPE table; a family adds what is special with `replace`."""
    rope = rope_parameters(fields) if rope is None else rope
    head_dim, positions = layers[0].attention.head_dim, positions_of(fields)
    frequencies, length = rope_of(fields, head_dim, rope)
    longer = {DEFAULT_ROPE: rope_frequencies(rope, head_dim, positions, positions)}
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=layers,
        norm=NormConfig(eps=fields.number("rms_norm_eps")) if norm is None else norm,
        context_length=length,
        rope={DEFAULT_ROPE: frequencies},
        tied=fields.flag("tie_word_embeddings"),
        longer=(longer, positions) if length < positions else None,
    )


def uniform(fields: Fields, attention: AttentionConfig, mlp: MlpConfig | MoeConfig) -> tuple[LayerConfig, ...]:
    """`num_hidden_layers` equal layers."""
    return (LayerConfig(attention=attention, mlp=mlp),) * fields.integer("num_hidden_layers")


def full_and_sliding(
    fields: Fields, attention: AttentionConfig, mlp: MlpConfig, default: tuple[str, ...]
) -> tuple[LayerConfig, ...]:
    """A layer for each entry of `layer_types`."""
    kinds = kinds_of_layers(fields, default)
    return tuple(LayerConfig(attention=windowed(fields, attention, kind), mlp=mlp) for kind in kinds)
