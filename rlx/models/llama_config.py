"""Reading Llama's sizes from a Hugging Face config.json or from GGUF metadata, and refusing what RLX would get wrong.

In: an open checkpoint. Out: a `LlamaConfig`, or UnsupportedModelError naming the field and its value. Sources:
transformers' LlamaConfig and MistralConfig (defaults included), and the keys of docs/gguf.md. Next: `registry.py`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from rlx.core.storage import decode
from rlx.errors import UnsupportedModelError
from rlx.flow.rope_scaling import RopeFrequencies, context_limit, rope_frequencies
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.models.fields import Fields
from rlx.models.llama import LlamaConfig, gguf_names, hf_names, llama_flow
from rlx.models.recipe import ModelRecipe

# What transformers assumes where config.json is silent.
DEFAULTS: Mapping[str, Mapping[str, int | None]] = {
    "llama": {"num_key_value_heads": None, "max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
}

# Fields of relatives of Llama, with the values that change nothing. Any other value asks for another computation.
NEUTRAL_FIELDS: Mapping[str, tuple[object, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "attn_logit_softcapping": (None, 0, 0.0),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "no_rope_layers": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
}
GGUF_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "expert_count": (None, 0),
    "attention.clamp_kqv": (None, 0, 0.0),
    "attention.causal": (None, True),
    "attention.scale": (None,),
    "logit_scale": (None, 1, 1.0),
    "residual_scale": (None, 1, 1.0),
    "embedding_scale": (None, 1, 1.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "attn_logit_softcapping": (None, 0, 0.0),
    "use_parallel_residual": (None, False),
}
# Tensors that some files carry and the computation does not read.
UNREAD_TENSORS = ("*.rotary_emb.inv_freq", "lm_head.weight", "rope_freqs.weight")


def llama_recipe(checkpoint: Checkpoint, context_length: int | None = None) -> ModelRecipe:
    """The recipe of a Llama or Mistral checkpoint.

    Args:
        checkpoint: the open file or folder.
        context_length: most positions of a sequence; None for what the model was made for.

    Raises:
        UnsupportedModelError: the checkpoint asks for something RLX does not implement.
    """
    is_gguf = checkpoint.kind == "gguf"
    config = config_from_gguf(checkpoint) if is_gguf else config_from_hf(checkpoint)
    if context_length is not None:
        config = _with_context(config, context_length, str(checkpoint.path))
    names = gguf_names(config.num_layers) if is_gguf else hf_names(config.num_layers)
    weights = MappedWeights(checkpoint, names)
    _refuse_unread_tensors(checkpoint, config, names.values(), weights.keys())
    key = "general.architecture" if is_gguf else "model_type"
    architecture = str(checkpoint.metadata.get(key))
    return ModelRecipe(
        architecture=architecture,
        flow=llama_flow(config, architecture),
        weights=weights,
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )


def _with_context(config: LlamaConfig, context_length: int, where: str) -> LlamaConfig:
    if not 1 <= context_length <= config.context_length:
        raise UnsupportedModelError(
            "the context length asked for is beyond what this model is exact for",
            where=where,
            found=context_length,
            expected=f"1 to {config.context_length}",
        )
    return replace(config, context_length=context_length)


def _refuse_unread_tensors(
    checkpoint: Checkpoint, config: LlamaConfig, names: Iterable[str], found: Iterable[str]
) -> None:
    """A tensor that the flow would not read means that the model computes something else."""
    known = set(names)
    kept = {key for key in found if not key.endswith(".bias") or _has_bias(config, key)}
    unread = [name for name in checkpoint.tensors if name not in known]
    unread += [key for key in found if key not in kept]
    for name in unread:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in UNREAD_TENSORS):
            raise UnsupportedModelError(
                "the checkpoint holds a tensor that a Llama does not have",
                where=str(checkpoint.path),
                found=name,
                fix="check that the configuration is the one of these weights",
            )


def _has_bias(config: LlamaConfig, key: str) -> bool:
    if ".self_attn.o_proj." in key:
        return config.o_bias
    if ".self_attn." in key:
        return config.qkv_bias
    return config.mlp_bias if ".mlp." in key else False


# ---- config.json ----


def config_from_hf(checkpoint: Checkpoint) -> LlamaConfig:
    """The sizes of a Hugging Face folder, with a configuration as transformers 4 or 5 writes it.

    Raises:
        UnsupportedModelError: a field is missing, malformed, or asks for another computation.
    """
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
    kind = fields.text("model_type", "llama")
    defaults = DEFAULTS.get(kind, DEFAULTS["llama"])
    _refuse_other_fields(fields, NEUTRAL_FIELDS)
    _refuse_other_heads(fields)
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", hidden_size // num_heads)
    positions = fields.integer("max_position_embeddings", defaults["max_position_embeddings"])
    rope = _hf_rope(fields, positions)
    length = context_limit(rope, positions)
    is_mistral = kind == "mistral"
    window = fields.get("sliding_window") if "sliding_window" in fields.values else defaults["sliding_window"]
    bias = not is_mistral and fields.flag("attention_bias")
    return LlamaConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", defaults["num_key_value_heads"] or num_heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        context_length=length,
        rope=rope_frequencies(rope, head_dim, positions, length),
        sliding_window=fields.integer("sliding_window", defaults["sliding_window"]) if is_mistral and window else None,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=not is_mistral and fields.flag("mlp_bias"),
        tied=fields.flag("tie_word_embeddings"),
    )


def _refuse_other_fields(fields: Fields, neutral: Mapping[str, tuple[object, ...]]) -> None:
    for name, values in neutral.items():
        if fields.get(name) not in values:
            expected = " or ".join("absent" if value is None else repr(value) for value in values)
            fields.refuse(name, expected, fix="use a checkpoint whose architecture is plainly Llama")


def _refuse_other_heads(fields: Fields) -> None:
    architectures = fields.get("architectures")
    if isinstance(architectures, list) and architectures:
        known = ("LlamaForCausalLM", "MistralForCausalLM")
        if architectures[0] not in known:
            fields.refuse("architectures", " or ".join(known))


def _hf_rope(fields: Fields, positions: int) -> dict[str, object]:
    """The RoPE parameters in the form of transformers 5, from that form or from `rope_theta` and `rope_scaling`."""
    rope = fields.table("rope_parameters") or fields.table("rope_scaling")
    if any(isinstance(value, Mapping) for value in rope.values()):
        fields.refuse("rope_parameters", "one table for all layers")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        fields.refuse("rope_parameters", "no partial_rotary_factor")
    rope.setdefault("rope_type", rope.get("type", "default"))
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = fields.number("rope_theta", 10000.0)
    if fields.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = fields.integer("original_max_position_embeddings")
    return rope


# ---- GGUF metadata ----


def config_from_gguf(checkpoint: Checkpoint) -> LlamaConfig:
    """The sizes of a GGUF file of architecture `llama`.

    GGUF files hold q and k with their rows permuted for the interleaved pairing of RoPE.

    Raises:
        UnsupportedModelError: a field is missing, malformed, or asks for another computation.
    """
    fields = Fields(checkpoint.metadata, str(checkpoint.path), "llama.")
    _refuse_other_fields(fields, GGUF_NEUTRAL)
    hidden_size, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    head_dim = fields.integer("attention.key_length", hidden_size // num_heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        fields.refuse("attention.value_length", f"{head_dim}, the length of the keys")
    tensors = checkpoint.tensors
    table = tensors.get("token_embd.weight")
    vocab_size = table.shape[0] if table is not None and len(table.shape) == 2 else fields.integer("vocab_size")
    has_bias = {name: f"blk.0.{name}.bias" in tensors for name in ("attn_q", "attn_output", "ffn_gate")}
    length = fields.integer("context_length")
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        context_length=length,
        rope=_gguf_rope(checkpoint, fields, fields.integer("rope.dimension_count", head_dim), length),
        rope_style="interleaved",
        sliding_window=window or None,
        qkv_bias=has_bias["attn_q"],
        o_bias=has_bias["attn_output"],
        mlp_bias=has_bias["ffn_gate"],
        tied="output.weight" not in tensors,
    )


def _gguf_rope(checkpoint: Checkpoint, fields: Fields, n_rot: int, length: int) -> RopeFrequencies:
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
