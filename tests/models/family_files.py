"""The recorded models of every family as files: a Hugging Face folder, or the GGUF file llama.cpp's converter makes.

The tensors of a GGUF file are found by their content: the recorded hash says which of a few rearrangements of the
weights the converter applies, so that nothing here has to be believed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.models.registry import MODEL_TYPES
from tests.models.checkpoints import permuted, write_folder, write_gguf
from tests.references.load_models import FamilyCase, family_cases, gguf_layouts

FAMILIES = {case.name: case for case in family_cases()}
LAYOUTS = gguf_layouts()

# What GGUF files cannot say: Qwen's, SmolLM3's and Mixtral's windows, another activation, layer types out of the usual
# order, a scale that is not of head_dim, GPT-2's scale by layer, scaled RoPE of layers with a window, YaRN with another
# mscale, weights of experts that are not divided by their sum.
UNFAITHFUL = {
    "llama_gelu",
    "qwen2_window",
    "qwen3_window_bias",
    "gemma_bias_untied",
    "gemma2",
    "gemma2_caps",
    "gemma3",
    "gemma3_scaled",
    "gemma4_unusual",
    "gpt2_inverse",
    "neox_sequential",
    "smollm3_window",
    "ministral3_window",
    "ministral3_mscale",
    "olmo3_full",
    "mixtral_gelu",
    "mixtral_window",
    "qwen3_moe_sums",
}
FAITHFUL = sorted(set(LAYOUTS) - UNFAITHFUL)

Array = NDArray[np.float32]


def _candidates(array: Array, config: dict[str, object]) -> Iterator[Array]:
    yield array
    if array.ndim == 1:
        yield array + np.float32(1)
    heads = {int(str(config[key])) for key in ("num_attention_heads", "num_key_value_heads") if config.get(key)}
    for count in sorted(heads):
        if array.shape[0] % (2 * count) == 0:
            yield permuted(array, count)
        if array.shape[0] % (3 * count) == 0:  # q, k and v head by head become q, then k, then v
            by_head = array.reshape(count, 3, -1, *array.shape[1:])
            yield np.ascontiguousarray(np.swapaxes(by_head, 0, 1)).reshape(array.shape)
    if array.ndim == 2:
        yield np.ascontiguousarray(array.T)


def _hybrid_candidates(array: Array, config: dict[str, Any]) -> Iterator[Array]:
    """Linear attention: rates in place of logarithms, filters without an axis, value heads of a key head apart."""
    config = config.get("text_config", config)
    if "linear_num_key_heads" not in config:
        return
    key_heads, value_heads = (int(config[f"linear_num_{kind}_heads"]) for kind in ("key", "value"))
    key_dim, value_dim = (int(config[f"linear_{kind}_head_dim"]) for kind in ("key", "value"))

    def tiled(x: Array, width: int) -> Array:
        """The last rows, of value heads, with those of the first of each key head first."""
        first = len(x) - value_heads * width
        by_head = x[first:].reshape(key_heads, value_heads // key_heads, width, *x.shape[1:])
        return np.concatenate([x[:first], np.swapaxes(by_head, 0, 1).reshape(x[first:].shape)])

    if array.ndim == 3:
        array = array.reshape(len(array), -1)
        yield array
    if len(array) == value_heads:
        yield tiled(array, 1)
        if array.ndim == 1:
            yield -np.exp(tiled(array, 1).astype(np.float64)).astype(np.float32)
    if len(array) in (value_heads * value_dim, 2 * key_heads * key_dim + value_heads * value_dim):
        yield tiled(array, value_dim)
    if array.ndim == 2 and array.shape[1] == value_heads * value_dim:
        yield np.ascontiguousarray(tiled(array.T, value_dim).T)


def _unrotated(pairs: int) -> dict[str, Array]:
    """Divisors of frequencies, of which any number of leading pairs keep theirs and the rest turns no more."""
    rows = np.arange(pairs)
    return {f"unrotated.{kept}": np.where(rows < kept, 1.0, 1e30).astype(np.float32) for kept in range(pairs)}


def gguf_file(case: FamilyCase, path: Path) -> Path:
    """Write the GGUF file of a case."""
    return write_gguf(path, LAYOUTS[case.name].metadata, gguf_tensors(case))


def _stacks(weights: dict[str, Array]) -> dict[str, Array]:
    """The experts of each layer as one tensor."""
    stacks: dict[str, list[Array]] = {}
    for name in sorted(weights, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split(".")]):
        if re.search(r"experts\.\d+\.", name):
            stacks.setdefault(re.sub(r"experts\.\d+\.", "experts.", name), []).append(weights[name])
    return {name: np.stack(arrays) for name, arrays in stacks.items()}


def gguf_tensors(case: FamilyCase) -> dict[str, Array]:
    """The tensors of the GGUF file of a case."""
    layout = LAYOUTS[case.name]
    by_hash: dict[str, Array] = {}
    rope = case.config.get("rope_parameters") or {}
    factors = {key: np.array(rope[key], np.float32) for key in ("short_factor", "long_factor") if key in rope}
    factors |= _unrotated(layout.shapes.get("rope_freqs.weight", (0,))[0])
    weights = case.weights()
    for array in (weights | factors | _stacks(weights)).values():
        for candidate in (*_candidates(array, case.config), *_hybrid_candidates(array, case.config)):
            by_hash[hashlib.sha256(candidate.tobytes()).hexdigest()] = candidate
    tensors: dict[str, Array] = {}
    for name, digest in layout.hashes.items():
        if digest not in by_hash:
            raise LookupError(f"{case.name}: no weight of the case has the bytes of {name}")
        tensors[name] = by_hash[digest].reshape(layout.shapes[name])
    return tensors


def folder(case: FamilyCase, path: Path) -> Path:
    """Write the Hugging Face folder of a case."""
    return write_folder(path, case.config, case.weights())


def context_of(case: FamilyCase) -> int | None:
    """The context length to open a case with: beyond the first one of LongRoPE if its prompt is longer than that."""
    rope = case.config.get("rope_parameters") or {}
    is_long = rope.get("rope_type") == "longrope" and len(case.ids) > rope["original_max_position_embeddings"]
    return case.config["max_position_embeddings"] if is_long else None


def families_without_a_case() -> set[str]:
    """Model types that no recorded case has."""
    return set(MODEL_TYPES) - {str(case.config["model_type"]) for case in FAMILIES.values()}
