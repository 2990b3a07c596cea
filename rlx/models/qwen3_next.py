"""Qwen3-Next without experts: Qwen3.5's layers, with fused projections of each key head and its value heads in turn.

Source: transformers' modeling_qwen3_next. Next: `hybrid.py`, what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable

from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.hybrid import DEFAULTS, hybrid_from_hf
from rlx.models.names import HF_HYBRID_NAMES, Fused, Rows

EXPERTS = ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob",
           "decoder_sparse_step", "output_router_logits", "router_aux_loss_coef")  # fmt: skip
"""Fields that count where there are experts."""


def qwen3_next_from_hf(fields: Fields) -> DecoderConfig:
    """Qwen3-Next's config.json."""
    if fields.get("num_experts") != 0:
        fields.refuse("num_experts", "0: RLX has no Qwen3-Next with experts")
    fields.read.update((*EXPERTS, "mlp_only_layers"))
    return hybrid_from_hf(fields)


def _rows(*parts: str) -> Callable[[DecoderConfig], Rows]:
    """Rows of the parts, all heads of one part before the next; each key head has q, k, v, z (or b, a) in turn."""

    def rows(config: DecoderConfig) -> Rows:
        linear = next(layer.linear for layer in config.layers if layer.linear is not None)
        group = linear.value_heads // linear.key_heads
        values = group * linear.value_dim
        order = {"q": linear.key_dim, "k": linear.key_dim, "v": values, "z": values}
        if parts[0] not in order:
            order = {"b": group, "a": group}
        starts = {part: sum(list(order.values())[:place]) for place, part in enumerate(order)}
        total = sum(order.values())
        firsts = [(head * total + starts[part], order[part]) for part in parts for head in range(linear.key_heads)]
        return tuple((first, first + size) for first, size in firsts)

    return rows


FUSED = {"in_proj_qkv": ("qkvz", "qkv"), "in_proj_z": ("qkvz", "z"), "in_proj_b": ("ba", "b"), "in_proj_a": ("ba", "a")}
QWEN3_NEXT = Family(
    "qwen3_next",
    ("Qwen3NextForCausalLM",),
    qwen3_next_from_hf,
    {**DEFAULTS, "num_key_value_heads": 2, "num_experts": 512},
    names=HF_HYBRID_NAMES.with_layer(
        **{f"linear_attn__{key}": Fused(f"linear_attn.in_proj_{name}", _rows(*parts))
           for key, (name, parts) in FUSED.items()}
    ),
)  # fmt: skip
