"""The recorded tiny Llamas as files on disk: a Hugging Face folder, or a GGUF file as llama.cpp lays it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import save_file

from rlx.flow import rope_frequencies
from tests.io.gguf_writer import Tensor, gguf_bytes
from tests.models.small_llama import gguf_names
from tests.references.load import TinyLlamaCase


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, NDArray[Any]]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def permuted(rows: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Rows of q or k in the order of GGUF files: pair (i, i + half) of a head becomes (2i, 2i + 1)."""
    half = rows.shape[0] // num_heads // 2
    return rows.reshape(num_heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_metadata(config: dict[str, Any]) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "llama.rope.dimension_count": config["head_dim"],
    }


def gguf_tensors(case: TinyLlamaCase) -> dict[str, NDArray[Any]]:
    config, names = case.config, gguf_names(case.config["num_hidden_layers"])
    tensors: dict[str, NDArray[Any]] = {}
    for key, array in case.weights().items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(key.split(".")[-2])
        tensors[names[key]] = permuted(array, config[heads]) if heads else array
    if config["rope_parameters"]["rope_type"] == "llama3":
        head_dim, positions = config["head_dim"], config["max_position_embeddings"]
        plain = rope_frequencies({"rope_theta": config["rope_parameters"]["rope_theta"]}, head_dim, positions)
        scaled = rope_frequencies(config["rope_parameters"], head_dim, positions)
        tensors["rope_freqs.weight"] = plain.inverse / scaled.inverse
    return tensors


def write_gguf(path: Path, metadata: dict[str, object], tensors: dict[str, NDArray[Any]]) -> Path:
    entries = {name: Tensor(array.shape[::-1], 0, array.tobytes()) for name, array in tensors.items()}
    path.write_bytes(gguf_bytes(metadata, entries))
    return path
