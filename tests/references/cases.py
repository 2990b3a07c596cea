"""What an attention case is made of: its configuration, and its operands grown from the seed.

In: nothing. Out: `AttentionConfig`, used by the recording script and by the tests. Next: `attention.py` (records the
answers with torch and transformers) or `load.py` (reads them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.references.seeded import Float32Array, seeded_tensor

PREFIX = "layers.0"


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """One attention case.

    A `stage` case is the self-attention prefill stage: x [batch, queries, hidden_size], linear weights [out, in],
    answer [batch, queries, num_heads * head_dim] without an output projection. An `op` case is attention alone on
    q [batch, queries, num_heads * head_dim] and k, v [batch, keys, num_kv_heads * head_dim], nothing rotated; the
    queries are the last ones of the sequence.

    Attributes:
        mask: "causal", "sliding" (causal, `window` keys, the query's own included), "none" (every key) or "bias" (every
            key, with `bias()` added to the capped scores).
        masked_keys: with mask "bias", the keys at which the bias is minus infinity.
        softcap: None or <= 0 is off; else scores become softcap * tanh(score * scale / softcap) before the mask.
        rope: how the table was made: "default" (theta ** -(2i / n_rot)), "proportional" (Gemma 4: pairs i with
            i + head_dim / 2, angle 0 beyond `partial_rotary_factor`) or "data" (arbitrary angles).
        rope_style: "half" (i with i + n_rot / 2) or "interleaved" (2i with 2i + 1).
        rope_table: the name of the table the stage asks for; None is the default table. A named case has `rope_theta`
            in the named table while the default table holds `default_rope_theta`.
        spread: factor on the q weights (or on q), for large scores.
    """

    name: str
    kind: str
    seed: int
    batch: int = 1
    queries: int = 9
    keys: int = 9
    hidden_size: int = 32
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 8
    mask: str = "causal"
    window: int | None = None
    score_scale: float | None = None
    softcap: float | None = None
    k_eq_v: bool = False
    n_rot: int = 8
    rope: str = "default"
    rope_style: str = "half"
    rope_theta: float = 10000.0
    default_rope_theta: float = 10000.0
    rope_table: str | None = None
    partial_rotary_factor: float = 1.0
    masked_keys: tuple[int, ...] = ()
    spread: float = 1.0

    def x(self) -> Float32Array:
        """Input of a stage case, float32 [batch, queries, hidden_size]."""
        return seeded_tensor("x", (self.batch, self.queries, self.hidden_size), self.seed)

    def weights(self) -> dict[str, Float32Array]:
        """Linear weights [out, in] of a stage case by Hugging Face key; no v key with `k_eq_v`."""
        rows = {"q": self.num_heads * self.head_dim, "k": self.num_kv_heads * self.head_dim}
        if not self.k_eq_v:
            rows["v"] = self.num_kv_heads * self.head_dim
        result: dict[str, Float32Array] = {}
        for letter, out in rows.items():
            key = f"{PREFIX}.self_attn.{letter}_proj.weight"
            scale = (self.spread if letter == "q" else 1.0) / math.sqrt(self.hidden_size)
            result[key] = seeded_tensor(key, (out, self.hidden_size), self.seed, scale)
        return result

    def bias(self) -> Float32Array:
        """The additive mask of a case with mask "bias", float32 [queries, keys]."""
        bias = seeded_tensor("bias", (self.queries, self.keys), self.seed)
        bias[:, list(self.masked_keys)] = -np.inf
        return bias

    def qkv(self) -> tuple[Float32Array, Float32Array, Float32Array]:
        """q [batch, queries, num_heads * head_dim], k and v [batch, keys, num_kv_heads * head_dim] of an op case."""
        kv_shape = (self.batch, self.keys, self.num_kv_heads * self.head_dim)
        return (
            seeded_tensor("q", (self.batch, self.queries, self.num_heads * self.head_dim), self.seed, self.spread),
            seeded_tensor("k", kv_shape, self.seed),
            seeded_tensor("v", kv_shape, self.seed),
        )
