"""Llama between Hugging Face folders and GGUF: the configuration in both directions, and the order of the q and k rows.

In: the configuration of one format. Out: the metadata of the other. The names of the weights are the family's two maps,
read forwards and backwards. GGUF pairs neighbouring rows of a head for RoPE, Hugging Face the halves of the head.
Source: llama.cpp's convert_hf_to_gguf.py. Used by `convert.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.errors import UnsupportedModelError
from rlx.flow.rope_scaling import rope_frequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DEFAULT_ROPE, DecoderConfig, MoeConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.hf_config import rope_parameters
from rlx.models.llama import LLAMA, MISTRAL

GGUF_NAME = "llama"


def _family(checkpoint: Checkpoint) -> Family:
    return MISTRAL if checkpoint.metadata.get("model_type") == "mistral" else LLAMA


def read_config(checkpoint: Checkpoint) -> DecoderConfig:
    """The sizes of a checkpoint of either format; see `family.py` for the errors."""
    family = _family(checkpoint)
    return family.read_gguf(checkpoint) if checkpoint.kind == "gguf" else family.read_hf(checkpoint)


def names(kind: str, config: DecoderConfig) -> dict[str, str]:
    """Key of the flow to name in a file of "gguf" or "safetensors"."""
    name_map = LLAMA.gguf_names if kind == "gguf" else LLAMA.names
    return {key: name for key, name in name_map.expand(config).items() if isinstance(name, str)}


def heads_to_reorder(key: str, config: DecoderConfig) -> int:
    """How many heads of rows change their order between the formats: those of q and k, of none for other weights."""
    attention = config.layers[0].attention
    if ".self_attn.q_proj." in key:
        return attention.num_heads
    return attention.num_kv_heads if ".self_attn.k_proj." in key else 0


def reordered(rows: NDArray[Any], heads: int, *, to_gguf: bool) -> NDArray[Any]:
    """`[heads * head_dim, ...]` with the halves of each head interleaved, or the other way round."""
    if not heads:
        return rows
    per_head = len(rows) // heads
    split = (2, per_head // 2) if to_gguf else (per_head // 2, 2)
    moved = rows.reshape(heads, *split, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(moved).reshape(rows.shape)


def gguf_metadata(
    checkpoint: Checkpoint, config: DecoderConfig
) -> tuple[dict[str, object], NDArray[np.float32] | None]:
    """Metadata of a GGUF file for a folder, and the divisors of the RoPE frequencies (`rope_freqs.weight`), if any.

    Raises:
        UnsupportedModelError: GGUF has no place for the scaling of RoPE.
    """
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json", defaults=_family(checkpoint).defaults)
    rope = rope_parameters(fields)
    kind, theta, factor = str(rope.get("rope_type", "default")), rope.get("rope_theta"), rope.get("factor")
    base = float(theta) if isinstance(theta, (int, float)) else 10000.0
    layer, inverse = config.layers[0], config.rope[DEFAULT_ROPE].inverse
    attention = layer.attention
    values: dict[str, object] = {
        "context_length": fields.integer("max_position_embeddings", config.context_length),
        "embedding_length": config.hidden_size,
        "block_count": len(config.layers),
        "feed_forward_length": layer.mlp.intermediate_size,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm.eps,
        "rope.freq_base": base,
        "rope.dimension_count": 2 * inverse.size,
        "vocab_size": config.vocab_size,
    }
    divisors: NDArray[np.float32] | None = None
    if kind == "linear" and isinstance(factor, (int, float)):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
    elif kind == "llama3":
        plain = rope_frequencies(
            {"rope_type": "default", "rope_theta": base}, attention.head_dim, config.context_length
        )
        divisors = (plain.inverse / inverse).astype(np.float32)
    elif kind != "default":
        raise UnsupportedModelError(
            "RLX does not write this scaling of RoPE to GGUF",
            where=f"{checkpoint.path}/config.json",
            found=kind,
            expected="default, linear or llama3",
        )
    if attention.window is not None:
        values["attention.sliding_window"] = attention.window
    name = str(checkpoint.metadata.get("_name_or_path") or checkpoint.path.resolve().name)
    head: dict[str, object] = {"general.architecture": GGUF_NAME, "general.name": name}
    return head | {f"{GGUF_NAME}.{key}": value for key, value in values.items()}, divisors


def hf_config(checkpoint: Checkpoint, config: DecoderConfig, dtype: str) -> dict[str, object]:
    """The config.json of a folder for a GGUF file.

    Raises:
        UnsupportedModelError: config.json has no way to say what the file's RoPE does, or the model has experts.
    """
    metadata: Mapping[str, object] = checkpoint.metadata
    scaling = metadata.get(f"{GGUF_NAME}.rope.scaling.type", "none")
    if "rope_freqs.weight" in checkpoint.tensors or scaling not in ("none", "linear"):
        raise UnsupportedModelError(
            "RLX does not write this scaling of RoPE to config.json",
            where=str(checkpoint.path),
            found="rope_freqs.weight" if "rope_freqs.weight" in checkpoint.tensors else scaling,
            expected="plain or linear frequencies",
            fix="use the Hugging Face folder of the model",
        )
    base = metadata.get(f"{GGUF_NAME}.rope.freq_base", 10000.0)
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": base}
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": metadata.get(f"{GGUF_NAME}.rope.scaling.factor")}
    layer = config.layers[0]
    if isinstance(layer.mlp, MoeConfig):
        raise UnsupportedModelError(
            "RLX does not convert models with experts",
            where=str(checkpoint.path),
            found=f"{layer.mlp.num_experts} experts",
            fix="use the Hugging Face folder of the model",
        )
    attention, is_mistral = layer.attention, layer.attention.window is not None
    result: dict[str, object] = {
        "architectures": ["MistralForCausalLM" if is_mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if is_mistral else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": layer.mlp.intermediate_size,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(config.norm.eps),
        "max_position_embeddings": config.context_length,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
    }
    if is_mistral:
        result["sliding_window"] = attention.window
    else:
        result |= {"attention_bias": attention.qkv_bias, "mlp_bias": layer.mlp.bias}
    for role in ("bos", "eos"):
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(index, int):
            result[f"{role}_token_id"] = index
    return result


def _shortest(value: float) -> float:
    """The shortest number that is the same float32: GGUF keeps 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))
