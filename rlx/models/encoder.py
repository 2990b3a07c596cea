"""The encoder that most embedding models are, with what they choose differently as fields: BERT and its relatives.

In: an `EncoderConfig`, which a family's file fills from a checkpoint, and a head. Out: the flow

    embeddings (+ positions, token types) -> norm -> layers of attention and MLP, a norm after or before each -> head

An author writes the plain forward pass of one text; `rlx/hir/derive_packed.py` makes the program for many of them. Keys
of weights are those of BERT in a Hugging Face folder. Next: `bert.py`, the first families; `encoder_head.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.distance_bias import DistanceBiasStage
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.blocks.gather import GatherAddStage
from rlx.flow.blocks.geglu_mlp import GeGluMlpStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.learned_positions import LearnedPositionsStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.self_attention import SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.swiglu_mlp import SwiGluMlpStage
from rlx.flow.flow import ModelFlow
from rlx.flow.rope_scaling import RopeFrequencies
from rlx.flow.stage import BlockStage
from rlx.models.decoder import DEFAULT_ROPE
from rlx.models.encoder_head import Head, head_stages

WORDS, POSITIONS, TYPES = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
EMBEDDING_NORM, FINAL_NORM = "embeddings.LayerNorm.weight", "encoder.LayerNorm.weight"
DISTANCES = "encoder.relative_attention_bias.weight"
ATTENTION, MLP = "attention.output", "output"
"""What stands before the norm of attention and of the MLP in keys, wherever that norm is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncoderConfig:
    """The sizes and choices of an encoder.

    Attributes:
        position_rows: rows of the table of positions; without a table, most positions.
        first_position: its row for the first token.
        token_types: kinds of tokens (a question and its answer); 0 for a model that knows none.
        activation: of the MLP, an op of `rlx/ops/elementwise.py`.
        gated: the MLP has a gate, which the activation is for.
        attention_bias, mlp_bias, norm_bias: biases stand beside the weights.
        norm_first: a norm before attention and MLP, but for the first attention, and one at the end (ModernBERT); else
            one after each residual.
        rope: RoPE frequencies, by the name of the table; empty for a learned table of positions.
        windows: for each layer how many tokens it sees on one side, its own included, or None for all; a layer with a
            window takes the table `rope["local"]` if there is one. Empty for layers that all see everything.
        distance_buckets: rows of the table from which scores get a bias by distance (MPNet); 0 for none.
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
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    norm_first: bool = False
    rope: Mapping[str, RopeFrequencies] = field(default_factory=dict[str, RopeFrequencies])
    windows: tuple[int | None, ...] = ()
    distance_buckets: int = 0

    @property
    def max_tokens(self) -> int:
        """Most tokens of one text."""
        return self.position_rows - self.first_position

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    def norm(self, key: str) -> LayerNormStage:
        """The norm with this weight."""
        return LayerNormStage(key, self.norm_eps, self.norm_bias)


LOCAL_ROPE = "local"


def encoder_flow(config: EncoderConfig, head: Head | None, name: str = "encoder") -> ModelFlow:
    """tokens (and token types) `i32[batch, seq]` to `f32[batch, 1, width]`, to scores, or, headless, to all rows."""
    shape = (Dim("batch"), Dim("seq", max=config.max_tokens))
    flow = ModelFlow(name).input("tokens", shape, i32)
    if config.token_types:
        flow.input("token_types", shape, i32)
    for table, frequencies in config.rope.items():
        if table == DEFAULT_ROPE:
            flow.rope_tables(frequencies)
        else:
            flow.named_rope_tables(table, frequencies)
    flow.token_embed(WORDS, shape=(config.vocab_size, config.hidden_size))
    if config.token_types:
        flow.stage(GatherAddStage("token_types", TYPES, rows=config.token_types))
    if not config.rope:
        flow.stage(LearnedPositionsStage(POSITIONS, config.position_rows, config.first_position))
    flow.stage(config.norm(EMBEDDING_NORM))
    if config.distance_buckets:
        flow.stage(DistanceBiasStage(DISTANCES, config.distance_buckets, config.num_heads, config.max_tokens))
    flow.repeat_layers(config.num_layers, lambda index: encoder_layer(index, config))
    if config.norm_first:
        flow.stage(config.norm(FINAL_NORM))
    return flow if head is None else flow.named("head", head_stages(head))


def encoder_layer(index: int, config: EncoderConfig) -> SequenceStage:
    """`[batch, seq, hidden]` to the same: attention and MLP, each inside a residual, with a norm before or after."""
    prefix = f"encoder.layer.{index}"
    blocks: list[BlockStage] = []
    for kind, stages in ((ATTENTION, (_attention(index, config),)), (MLP, _mlp(prefix, config))):
        norm = config.norm(f"{prefix}.{kind}.LayerNorm.weight")
        blocks.append(SaveResidualStage())
        if config.norm_first and (index or kind == MLP):
            blocks.append(norm)
        blocks.extend((*stages, AddResidualStage()))
        if not config.norm_first:
            blocks.append(norm)
    return SequenceStage(*blocks)


def _attention(index: int, config: EncoderConfig) -> SelfAttentionStage:
    prefix = f"encoder.layer.{index}.attention"
    q, k, v = (f"{prefix}.self.{part}.weight" for part in ("query", "key", "value"))
    window = config.windows[index] if config.windows else None
    mask = MaskKind.none() if window is None else MaskKind.around(window)
    if config.distance_buckets:
        mask = MaskKind.relative(DistanceBiasStage.operand)
    spec = SelfAttnPrefillSpec(
        q,
        k,
        v,
        config.num_heads,
        config.head_dim,
        config.num_heads,
        n_rot=config.head_dim if config.rope else 0,
        rope_table=LOCAL_ROPE if window is not None and LOCAL_ROPE in config.rope else None,
        mask=mask,
    )
    bias = config.attention_bias
    return SelfAttentionStage(spec, f"{prefix}.output.dense.weight", qkv_bias=bias, o_bias=bias)


def _mlp(prefix: str, config: EncoderConfig) -> tuple[BlockStage, ...]:
    up, down, bias = f"{prefix}.intermediate.dense.weight", f"{prefix}.output.dense.weight", config.mlp_bias
    if not config.gated:
        return (
            LinearStage(up, bias, config.intermediate_size),
            ActivationStage(config.activation),
            LinearStage(down, bias),
        )
    keys = GatedKeys(f"{prefix}.intermediate.gate.weight", up, down)
    if config.activation == "silu":
        return (SwiGluMlpStage(keys, bias, config.intermediate_size),)
    return (GeGluMlpStage(keys, bias, config.activation == "gelu_tanh", config.intermediate_size),)


def encoder_keys(config: EncoderConfig) -> Iterator[str]:
    """Every key that the flow reads, but for those of its head."""
    yield WORDS
    if config.token_types:
        yield TYPES
    if not config.rope:
        yield POSITIONS
    if config.distance_buckets:
        yield DISTANCES
    yield from with_bias(EMBEDDING_NORM, config.norm_bias)
    if config.norm_first:
        yield from with_bias(FINAL_NORM, config.norm_bias)
    for index in range(config.num_layers):
        prefix = f"encoder.layer.{index}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from with_bias(f"{prefix}attention.{part}.weight", config.attention_bias)
        for part in ("intermediate.dense", "output.dense", *(("intermediate.gate",) if config.gated else ())):
            yield from with_bias(f"{prefix}{part}.weight", config.mlp_bias)
        for kind in (ATTENTION, MLP):
            if kind == MLP or index or not config.norm_first:
                yield from with_bias(f"{prefix}{kind}.LayerNorm.weight", config.norm_bias)


def with_bias(key: str, bias: bool) -> Iterator[str]:
    """A weight's key, and that of the bias beside it if there is one."""
    yield key
    if bias:
        yield key.removesuffix("weight") + "bias"
