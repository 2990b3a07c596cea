"""What `models/` gives to the compiler: a flow, where its weights are, and the few facts the runtime asks for.

Next: `registry.py`, which picks the recipe of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.flow.flow import ModelFlow
from rlx.flow.weights import WeightSource


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """A model that is ready to be built: `recipe.flow.build(recipe.weights)`.

    Attributes:
        architecture: what the checkpoint calls itself.
        flow: the plain causal forward pass, `tokens: i32[batch, seq]` to `logits: f32[batch, seq, vocab]`.
        weights: the checkpoint under the keys of the flow.
        context_length: most positions of one sequence.
        vocab_size: logits of a token.
        num_layers, hidden_size, num_heads, num_kv_heads, head_dim: the sizes, as usual.
    """

    architecture: str
    flow: ModelFlow
    weights: WeightSource
    context_length: int
    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
