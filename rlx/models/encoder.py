"""The encoder that most embedding models are, with what they choose differently as fields: BERT and its relatives.

In: an `EncoderConfig`, which a family's file fills from a checkpoint, and a head. Out: the flow

    embeddings + positions (+ token types) -> norm -> layers of attention, norm, MLP, norm -> head

An author writes the plain forward pass of one text; `rlx/hir/derive_packed.py` makes the program for many of them. Keys
of weights are those of BERT in a Hugging Face folder. Next: `bert.py`, the families; `recipe.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.gather import GatherAddStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.learned_positions import LearnedPositionsStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.pooling import NormalizeStage, PoolStage
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.self_attention import SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.flow import ModelFlow

WORDS, POSITIONS, TYPES = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
EMBEDDING_NORM = "embeddings.LayerNorm.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The sizes and choices of an encoder.

    Attributes:
        position_rows: rows of the table of positions.
        first_position: its row for the first token.
        token_types: kinds of tokens (a question and its answer); 0 for a model that knows none.
        activation: of the MLP, an op of `rlx/ops/elementwise.py`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    position_rows: int
    norm_eps: float
    activation: str
    first_position: int = 0
    token_types: int = 0

    @property
    def max_tokens(self) -> int:
        """Most tokens of one text."""
        return self.position_rows - self.first_position


@dataclass(frozen=True, slots=True)
class PoolHead:
    """One vector for each text.

    Attributes:
        mode: how its tokens become one; one of `rlx.ops.pooling.POOLINGS`.
        normalize: make its length 1.
    """

    mode: str = "mean"
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """Scores of a text, or of a pair of texts, from its first token: `out(activation(dense(x)))`.

    Attributes:
        labels: how many scores.
        dense, out: keys of the two linear layers, without `.weight`.
        activation: between them.
    """

    labels: int
    dense: str
    out: str
    activation: str = "tanh"


Head: TypeAlias = PoolHead | ClassifierHead


def encoder_flow(config: EncoderConfig, head: Head | None, name: str = "encoder") -> ModelFlow:
    """tokens (and token types) `i32[batch, seq]` to `f32[batch, 1, hidden]`, to scores, or, headless, to all rows."""
    shape = (Dim("batch"), Dim("seq", max=config.max_tokens))
    flow = ModelFlow(name).input("tokens", shape, i32)
    if config.token_types:
        flow.input("token_types", shape, i32)
    flow.token_embed(WORDS, shape=(config.vocab_size, config.hidden_size))
    if config.token_types:
        flow.stage(GatherAddStage("token_types", TYPES))
    flow.stage(LearnedPositionsStage(POSITIONS, config.position_rows, config.first_position))
    flow.stage(LayerNormStage(EMBEDDING_NORM, config.norm_eps))
    flow.repeat_layers(config.num_layers, lambda index: encoder_layer(index, config))
    return flow if head is None else flow.named("head", head_stages(head))


def encoder_layer(index: int, config: EncoderConfig) -> SequenceStage:
    """`[batch, seq, hidden]` to the same: attention and MLP, each inside a residual and before a norm."""
    prefix = f"encoder.layer.{index}"
    head_dim = config.hidden_size // config.num_heads
    q, k, v = (f"{prefix}.attention.self.{part}.weight" for part in ("query", "key", "value"))
    spec = SelfAttnPrefillSpec(q, k, v, config.num_heads, head_dim, config.num_heads, n_rot=0, mask=MaskKind.none())
    return SequenceStage(
        SaveResidualStage(),
        SelfAttentionStage(spec, f"{prefix}.attention.output.dense.weight", qkv_bias=True, o_bias=True),
        AddResidualStage(),
        LayerNormStage(f"{prefix}.attention.output.LayerNorm.weight", config.norm_eps),
        SaveResidualStage(),
        LinearStage(f"{prefix}.intermediate.dense.weight", bias=True),
        ActivationStage(config.activation),
        LinearStage(f"{prefix}.output.dense.weight", bias=True),
        AddResidualStage(),
        LayerNormStage(f"{prefix}.output.LayerNorm.weight", config.norm_eps),
    )


def head_stages(head: Head) -> SequenceStage:
    """`[batch, seq, hidden]` to one row for each text."""
    if isinstance(head, PoolHead):
        return SequenceStage(PoolStage(head.mode), *([NormalizeStage()] if head.normalize else []))
    return SequenceStage(
        PoolStage("first"),
        LinearStage(f"{head.dense}.weight", bias=True),
        ActivationStage(head.activation),
        LinearStage(f"{head.out}.weight", bias=True),
    )
