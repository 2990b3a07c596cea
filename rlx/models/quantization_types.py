"""Which format each tensor of a quantised GGUF file gets.

In: the name of a type (`Q4_K_M`), the tensors and the sizes of the model. Out: a dtype for each. A mixture gives more
bits to the tensors that suffer most: the output, attention values and the MLP's last product, in the first and last
layers and every third between. Source: llama.cpp's llama-quant.cpp, whose choices these are, so that a file is what its
name says elsewhere too. Used by `convert.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rlx.core import dtype
from rlx.core.dtype import DType

TYPES: dict[str, tuple[DType, int]] = {
    "F32": (dtype.f32, 0),
    "F16": (dtype.f16, 1),
    "BF16": (dtype.bf16, 32),
    "Q4_0": (dtype.q4_0, 2),
    "Q4_1": (dtype.q4_1, 3),
    "Q5_0": (dtype.q5_0, 8),
    "Q5_1": (dtype.q5_1, 9),
    "Q8_0": (dtype.q8_0, 7),
    "Q2_K": (dtype.q2_k, 10),
    "Q3_K_S": (dtype.q3_k, 11),
    "Q3_K_M": (dtype.q3_k, 12),
    "Q3_K_L": (dtype.q3_k, 13),
    "Q4_K_S": (dtype.q4_k, 14),
    "Q4_K_M": (dtype.q4_k, 15),
    "Q5_K_S": (dtype.q5_k, 16),
    "Q5_K_M": (dtype.q5_k, 17),
    "Q6_K": (dtype.q6_k, 18),
    "IQ4_NL": (dtype.iq4_nl, 25),
    "MXFP4": (dtype.mxfp4, 38),
}
"""The types `rlx quantize` writes: the format of most tensors, and the number of `general.file_type`."""

_SMALLER_BLOCKS = {"q2_k": dtype.q4_0, "q3_k": dtype.q4_0, "q4_k": dtype.q5_0, "q5_k": dtype.q5_1, "q6_k": dtype.q8_0}
"""For rows that are no whole super-blocks."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """One type for one model.

    Attributes:
        name: a key of `TYPES`.
        num_layers: of the model.
        queries_per_kv: query heads that share a KV head.
        tied: the embedding is the output as well.
    """

    name: str
    num_layers: int
    queries_per_kv: int
    tied: bool

    def types(self, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, DType]:
        """The format of each tensor of a GGUF file, by name and shape in NumPy order."""
        return {name: self.type_of(name, shape) for name, shape in tensors}

    def type_of(self, name: str, shape: tuple[int, ...]) -> DType:
        """The format of one tensor: vectors and routers stay float32."""
        base = TYPES[self.name][0]
        if len(shape) < 2 or not name.endswith(".weight") or "ffn_gate_inp" in name or "_norm" in name:
            return dtype.f32
        if not base.is_packed:
            return base
        chosen = self._wanted(name, base)
        if shape[-1] % chosen.block_size:
            chosen = _SMALLER_BLOCKS.get(chosen.name, chosen)
        return dtype.f16 if shape[-1] % chosen.block_size else chosen

    def _wanted(self, name: str, base: DType) -> DType:
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return dtype.q8_0 if base in (dtype.q8_0, dtype.mxfp4) else dtype.q6_k
        if name == "token_embd.weight":
            return dtype.q8_0 if base == dtype.mxfp4 else base
        match = re.fullmatch(r"blk\.(\d+)\.(attn_v|attn_output|attn_qkv|ffn_down)(?:_exps)?\.weight", name)
        if match is None:
            return base
        rules = {
            "attn_v": self._attention_values,
            "attn_output": self._attention_output,
            "attn_qkv": self._fused_attention,
            "ffn_down": self._mlp_down,
        }
        return rules[match[2]](int(match[1])) or base

    def _needs_more(self, layer: int) -> bool:
        eighth = self.num_layers // 8
        return layer < eighth or layer >= 7 * self.num_layers // 8 or (layer - eighth) % 3 == 2

    def _attention_values(self, layer: int) -> DType | None:
        match self.name:
            case "Q2_K":
                return dtype.q4_k if self.queries_per_kv >= 4 else dtype.q3_k
            case "Q3_K_M":
                return dtype.q5_k if layer < 2 else dtype.q4_k
            case "Q3_K_L":
                return dtype.q5_k
            case "IQ4_NL":
                return dtype.q5_k if self.queries_per_kv >= 4 else None
            case "Q4_K_M" | "Q5_K_M":
                return dtype.q6_k if self._needs_more(layer) else None
            case "Q4_K_S":
                return dtype.q5_k if layer < 4 else None
            case _:
                return None

    def _mlp_down(self, layer: int) -> DType | None:
        is_early = layer < self.num_layers // 8
        match self.name:
            case "Q2_K":
                return dtype.q3_k
            case "Q3_K_M":
                return dtype.q5_k if layer < self.num_layers // 16 else dtype.q4_k
            case "Q3_K_L":
                return dtype.q5_k
            case "Q4_K_M" | "Q5_K_M":
                return dtype.q6_k if self._needs_more(layer) else None
            case "Q4_K_S" | "IQ4_NL":
                return dtype.q5_k if is_early else None
            case _:
                return None

    def _attention_output(self, layer: int) -> DType | None:
        return {"Q2_K": dtype.q3_k, "Q3_K_M": dtype.q4_k, "Q3_K_L": dtype.q5_k}.get(self.name)

    def _fused_attention(self, layer: int) -> DType | None:
        wanted = {"Q3_K_M": dtype.q4_k, "Q3_K_L": dtype.q4_k, "Q4_K_M": dtype.q5_k, "Q5_K_M": dtype.q6_k}
        return wanted.get(self.name)
