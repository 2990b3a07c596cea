# pyright: basic, reportMissingImports=false
"""Record what attention and the self-attention prefill stage answer, by torch and transformers' own functions.

In: the cases below. Out: attention.json and attention.npz. Run `python -m tests.references.attention` with the
`references` extra installed. Next: `attention_modules.py`, which checks the same answers against whole transformers
modules, and `load.py`, which reads the files.

Which function is whose: rotation is `apply_rotary_pos_emb` of GPT-NeoX (half-split, partial) and GLM (interleaved);
score scale, soft cap, mask and softmax are `eager_attention_forward` of Gemma 2; masks come from
`transformers.masking_utils`; inverse frequencies of proportional RoPE are `ROPE_INIT_FUNCTIONS["proportional"]`.
All arithmetic is float32.
"""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as rotate_half_split

from tests.references.cases import PREFIX, AttentionConfig
from tests.references.recording import write
from tests.references.seeded import seeded_tensor

GQA = {"num_heads": 4, "num_kv_heads": 2}


def _stage(name: str, seed: int, tokens: int = 9, **fields: Any) -> AttentionConfig:
    fields.setdefault("n_rot", fields.get("head_dim", 8))
    return AttentionConfig(name, "stage", seed, queries=tokens, keys=tokens, **fields)


def _op(name: str, seed: int, **fields: Any) -> AttentionConfig:
    return AttentionConfig(name, "op", seed, n_rot=0, **fields)


CASES: tuple[AttentionConfig, ...] = (
    _stage("mha", 1),
    _stage("gqa_4_over_2", 2, 13, **GQA),
    _stage("gqa_6_over_2", 3, 11, hidden_size=48, num_heads=6, num_kv_heads=2),
    _stage("mqa", 4, num_kv_heads=1),
    _stage("single_token", 5, 1, **GQA),
    _stage("small_soft_cap", 6, 12, softcap=1.0, spread=8.0, **GQA),
    _stage("soft_cap_with_scale", 7, 12, softcap=1.5, score_scale=0.5, spread=4.0, **GQA),
    _stage("score_scale", 8, score_scale=1.0, **GQA),
    _stage("window_4", 9, 12, mask="sliding", window=4, **GQA),
    _stage("window_3", 9, 12, mask="sliding", window=3, **GQA),
    _stage("window_1", 9, 12, mask="sliding", window=1, **GQA),
    _stage("window_beyond_sequence", 9, 12, mask="sliding", window=64, **GQA),
    _stage("window_4_soft_cap", 10, 12, mask="sliding", window=4, softcap=1.0, spread=8.0, **GQA),
    _stage("partial_rotary", 11, 20, head_dim=16, n_rot=8, **GQA),
    _stage("proportional", 12, 20, head_dim=16, rope="proportional", partial_rotary_factor=0.25, **GQA),
    _stage("interleaved", 13, 20, rope_style="interleaved", **GQA),
    _stage("interleaved_partial", 14, 20, head_dim=16, n_rot=8, rope_style="interleaved", **GQA),
    _stage("k_eq_v", 15, 12, k_eq_v=True, **GQA),
    _stage("k_eq_v_proportional_wide", 16, 12, k_eq_v=True, head_dim=16, rope="proportional",
           partial_rotary_factor=0.25, rope_table="global", rope_theta=1e6, score_scale=1.0, **GQA),
    _stage("wide_heads", 17, 12, head_dim=24, **GQA),
    _stage("narrow_heads", 18, 12, head_dim=4, **GQA),
    _stage("batch_3", 19, 7, batch=3, **GQA),
    _stage("batch_2_window", 20, 12, batch=2, mask="sliding", window=5, **GQA),
    _stage("theta_1e6", 21, 20, rope_theta=1e6, default_rope_theta=1e6, **GQA),
    _stage("named_table", 22, 20, rope_table="global", rope_theta=1e6, **GQA),
    _stage("table_as_data", 23, 12, rope="data", **GQA),
    _stage("bidirectional", 24, mask="none", **GQA),
    _stage("bias", 25, 10, mask="bias", masked_keys=(0, 4), **GQA),
    _op("op_causal", 31, **GQA),
    _op("op_soft_cap_zero_is_off", 32, softcap=0.0, spread=4.0, **GQA),
    _op("op_soft_cap_negative_is_off", 32, softcap=-1.0, spread=4.0, **GQA),
    _op("op_small_soft_cap", 32, softcap=1.0, spread=4.0, **GQA),
    _op("op_fewer_queries", 33, queries=4, keys=11, **GQA),
    _op("op_one_query", 34, batch=2, queries=1, keys=17, num_heads=6, num_kv_heads=2),
    _op("op_fewer_queries_window_4", 35, queries=5, keys=14, mask="sliding", window=4, **GQA),
    _op("op_fewer_queries_window_3", 35, queries=5, keys=14, mask="sliding", window=3, **GQA),
    _op("op_cross", 36, batch=2, queries=6, keys=10, mask="none"),
    _op("op_bias", 37, batch=2, queries=6, keys=8, mask="bias", **GQA),
    _op("op_bias_soft_cap", 37, batch=2, queries=6, keys=8, mask="bias", softcap=1.0, spread=4.0, **GQA),
    _op("op_bias_last_keys_masked", 37, batch=2, queries=6, keys=8, mask="bias", masked_keys=(6, 7), **GQA),
    _op("op_bias_first_keys_masked", 39, queries=5, keys=40, mask="bias", masked_keys=tuple(range(33)), **GQA),
    _op("op_large_scores", 38, queries=9, keys=9, spread=200.0, **GQA),
)  # fmt: skip


def rope_table(case: AttentionConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [queries, n_rot / 2], of the table a stage case asks for."""
    pairs = case.n_rot // 2
    if case.rope == "data":
        angles = torch.from_numpy(seeded_tensor("angles", (case.queries, pairs), case.seed, 2.0))
        return angles.cos(), angles.sin()
    if case.rope == "proportional":
        parameters = {
            "rope_type": "proportional",
            "rope_theta": case.rope_theta,
            "partial_rotary_factor": case.partial_rotary_factor,
        }
        config = LlamaConfig(
            hidden_size=case.hidden_size,
            num_attention_heads=case.num_heads,
            head_dim=case.head_dim,
            rope_parameters=parameters,
        )
        inverse, _ = ROPE_INIT_FUNCTIONS["proportional"](config)
    else:
        inverse = 1.0 / (case.rope_theta ** (torch.arange(0, case.n_rot, 2, dtype=torch.float) / case.n_rot))
    angles = torch.arange(case.queries).float()[:, None] * inverse
    return angles.cos(), angles.sin()


def attention_mask(case: AttentionConfig) -> torch.Tensor:
    """Additive float32 mask that broadcasts to [batch, heads, queries, keys]; causal queries are the last ones."""
    if case.mask == "bias":
        return torch.from_numpy(case.bias())[None, None]
    functions = {"causal": causal_mask_function, "none": bidirectional_mask_function}
    function = functions.get(case.mask) or sliding_window_causal_mask_function(case.window)
    offset = 0 if case.mask == "none" else case.keys - case.queries
    return eager_mask(case.batch, case.queries, case.keys, q_offset=offset, mask_function=function)


def attend(case: AttentionConfig, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> NDArray[np.float32]:
    """Gemma 2's attention on [batch, heads, tokens, head_dim]; float32 [batch, queries, num_heads * head_dim]."""
    module = SimpleNamespace(
        head_dim=case.head_dim, num_key_value_groups=case.num_heads // case.num_kv_heads, training=False
    )
    # The contract says that a cap of None or <= 0 is off; Gemma 2 only knows None.
    softcap = case.softcap if case.softcap is not None and case.softcap > 0 else None
    output, _ = eager_attention_forward(
        module, q, k, v, attention_mask(case), scaling=case.score_scale, softcap=softcap
    )
    return output.reshape(case.batch, case.queries, -1).numpy()


def _heads(flat: torch.Tensor, head_dim: int) -> torch.Tensor:
    return flat.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def answer(case: AttentionConfig) -> dict[str, NDArray[np.float32]]:
    """`output`, and for a stage case the table it used: `cos` and `sin`, [queries, n_rot / 2]."""
    with torch.no_grad():
        if case.kind == "op":
            q, k, v = (_heads(torch.from_numpy(operand), case.head_dim) for operand in case.qkv())
            return {"output": attend(case, q, k, v)}
        x = torch.from_numpy(case.x())
        weights = {key: torch.from_numpy(array) for key, array in case.weights().items()}
        q = _heads(x @ weights[f"{PREFIX}.self_attn.q_proj.weight"].T, case.head_dim)
        k = _heads(x @ weights[f"{PREFIX}.self_attn.k_proj.weight"].T, case.head_dim)
        v = k if case.k_eq_v else _heads(x @ weights[f"{PREFIX}.self_attn.v_proj.weight"].T, case.head_dim)
        cos, sin = rope_table(case)
        full = [torch.cat((half, half), dim=-1)[None].expand(case.batch, -1, -1) for half in (cos, sin)]
        rotate = rotate_interleaved if case.rope_style == "interleaved" else rotate_half_split
        q, k = rotate(q, k, *full)
        return {"output": attend(case, q, k, v), "cos": cos.numpy(), "sin": sin.numpy()}


def main() -> None:
    """Record every case."""
    arrays = {f"{case.name}.{key}": value for case in CASES for key, value in answer(case).items()}
    write("attention", {"cases": [asdict(case) for case in CASES]}, arrays, ["torch", "transformers"])


if __name__ == "__main__":
    main()
