"""The decoder that most language models are, with everything they choose differently as a field.

In: a `DecoderConfig`, which a family's file fills from a checkpoint. Out: its flow,

    embedding -> layers of (norm) attention (norm) + residual, (norm) MLP (norm) + residual -> norm -> head

Keys of weights are those of a Llama in a Hugging Face folder; `names.py` says what a file calls them. Next: `llama.py`,
the shortest family, and `family.py`, which turns a checkpoint into a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.flow.blocks.gated_delta import GatedDeltaStage
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.blocks.geglu_mlp import GeGluMlpStage
from rlx.flow.blocks.gelu_mlp import GeluMlpStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.learned_positions import LearnedPositionsStage
from rlx.flow.blocks.lm_head import LmHeadStage
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.moe_mlp import MoeMlpStage, Routing
from rlx.flow.blocks.parallel import ParallelStage
from rlx.flow.blocks.per_layer_input import PerLayerInputsStage, PerLayerInputStage
from rlx.flow.blocks.query_scale import QUERY_SCALE, QueryScaleStage
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.rms_norm import RmsNormStage
from rlx.flow.blocks.scale import ScaleStage, WeightScaleStage
from rlx.flow.blocks.self_attention import HeadNorm, SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.swiglu_mlp import SwiGluMlpStage
from rlx.flow.blocks.token_embed import TokenEmbedStage
from rlx.flow.flow import ModelFlow
from rlx.flow.rope_scaling import RopeFrequencies
from rlx.flow.stage import BlockStage

DEFAULT_ROPE, LOCAL_ROPE = "default", "local"
"""The RoPE table of a model, and the one of its layers with a window where they have their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """The norm that is used everywhere in a model.

    Attributes:
        eps: added to the mean square or the variance.
        layer_norm: subtract the mean, with weight and bias, as GPT-2 does; else an RMS norm.
        plus_one: the RMS norm scales by 1 + weight, as Gemma does in Hugging Face files.
    """

    eps: float
    layer_norm: bool = False
    plus_one: bool = False

    def stage(self, key: str) -> BlockStage:
        """The norm with the weight `key`."""
        return LayerNormStage(key, self.eps) if self.layer_norm else RmsNormStage(key, self.eps, self.plus_one)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """What one layer attends to, and how.

    Attributes:
        rope: which of the model's RoPE tables rotates q and k; None rotates nothing (NoPE).
        window: keys a query sees, its own included; None for all before it.
        bidirectional: a query sees what comes after it too, as far as a window lets it; for models that embed.
        scale: factor of the scores; None is `head_dim ** -0.5`.
        softcap: bound of the scores; None for no bound.
        qk_norm: "none", "head" (an RMS norm of each head, Qwen3) or "width" (of all heads together, OLMo 2).
        qkv_bias, o_bias: biases stand beside the weights.
        output_gate: what attention gives is multiplied by the sigmoid of one more projection, `gate_proj` (Qwen3-Next).
        v_norm: an RMS norm without a weight of each head of v, where q and k have norms.
        k_eq_v: there is no weight for v: the values are the K projection before norm and RoPE.
        kv_layer: the earlier layer whose keys and values this one attends to, having none itself; None for its own.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: str | None = DEFAULT_ROPE
    window: int | None = None
    bidirectional: bool = False
    scale: float | None = None
    softcap: float | None = None
    qk_norm: str = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    output_gate: bool = False
    v_norm: bool = False
    k_eq_v: bool = False
    kv_layer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttentionConfig:
    """Linear attention by the gated delta rule; see `GatedDeltaStage` for what the fields mean."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    taps: int
    tiled: bool = False
    log_rate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """The MLP of one layer.

    Attributes:
        kind: "swiglu", "geglu" and "geglu_tanh" (gated), "gelu" and "gelu_tanh" (two matrices).
        intermediate_size: width inside.
        bias: biases stand beside the weights.
    """

    intermediate_size: int
    kind: str = "swiglu"
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """The experts of one layer.

    Attributes:
        num_experts: how many there are.
        intermediate_size: width inside of each.
        routing: how they are chosen.
        kind: as `MlpConfig.kind`, a gated one.
    """

    num_experts: int
    intermediate_size: int
    routing: Routing
    kind: str = "swiglu"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """The norms of a layer by the last part of their keys; None for one that is not there.

    Llama norms what goes in, OLMo 2 what comes out, Gemma 2 both.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """One layer: attention and MLP, one after the other, or both of the layer's input (`parallel`).

    With `linear` the layer has linear attention; `attention` is then what the model's other layers have.
    """

    attention: AttentionConfig
    mlp: MlpConfig | MoeConfig
    parallel: bool = False
    linear: LinearAttentionConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerConfig:
    """A small embedding of each token for each layer: rows of its table, width in a layer, activation of its gate."""

    vocab_size: int
    width: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecoderConfig:
    """The sizes and choices of a decoder.

    Attributes:
        context_length: most positions of one sequence.
        rope: RoPE frequencies by the name that `AttentionConfig.rope` uses; `n_rot` is twice their number.
        rope_style: how the checkpoint's q and k rows are paired: "half", or "interleaved" in some GGUF files.
        learned_positions: rows of a learned table of positions that is added to the embedding; None for no table.
        embedding_scale, residual_scale, logits_scale: factors of the embedding, of what each block adds, of the logits.
        logits_softcap: bound of the logits; None for no bound.
        tied: the head reads the embedding table.
        unread_layers: layers behind these that a file may carry for something else, such as speculative decoding.
        longer: RoPE tables and context length of a session that is opened for more than `context_length` positions
            (LongRoPE); None where there are no others.
        query_scale: beta and interval of queries that grow with their position (`query_scale.py`); None for none.
        per_layer: embeddings of each layer's own; None for none.
        layer_scalars: each layer ends in a product with a number of its own, `layer_scalar`.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    norm: NormConfig
    context_length: int
    norms: LayerNorms = field(default_factory=LayerNorms)
    rope: Mapping[str, RopeFrequencies] = field(default_factory=dict[str, RopeFrequencies])
    rope_style: str = "half"
    learned_positions: int | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    logits_softcap: float | None = None
    tied: bool = False
    unread_layers: int = 0
    longer: tuple[Mapping[str, RopeFrequencies], int] | None = None
    query_scale: tuple[float, int] | None = None
    per_layer: PerLayerConfig | None = None
    layer_scalars: bool = False


def decoder_flow(config: DecoderConfig, name: str) -> ModelFlow:
    """tokens `i32[batch, seq]` to logits `f32[batch, seq, vocab]`."""
    flow = decoder_body(config, name).stage(LmHeadStage(config.vocab_size, config.hidden_size, tied=config.tied))
    if config.logits_scale != 1.0:
        flow.stage(ScaleStage(config.logits_scale))
    return flow.soft_cap(config.logits_softcap)


def decoder_body(config: DecoderConfig, name: str) -> ModelFlow:
    """tokens `i32[batch, seq]` to the rows that a head reads, `f32[batch, seq, hidden]`."""
    batch, seq = Dim("batch"), Dim("seq", max=config.context_length)
    flow = ModelFlow(name).input("tokens", (batch, seq), i32)
    for table, frequencies in config.rope.items():
        if table == DEFAULT_ROPE:
            flow.rope_tables(frequencies)
        else:
            flow.named_rope_tables(table, frequencies)
    if config.query_scale is not None:
        flow.stage(QueryScaleStage(*config.query_scale))
    shape = (config.vocab_size, config.hidden_size)
    flow.stage(TokenEmbedStage(scale=config.embedding_scale, shape=shape))
    if config.learned_positions is not None:
        flow.stage(LearnedPositionsStage("model.position_embeddings.weight", config.learned_positions))
    if (own := config.per_layer) is not None:
        sizes = (own.vocab_size, len(config.layers), own.width)
        flow.stage(PerLayerInputsStage(*sizes, eps=config.norm.eps))
    flow.repeat_layers(len(config.layers), lambda index: decoder_layer(index, config))
    return flow.stage(config.norm.stage("model.norm.weight"))


def decoder_layer(index: int, config: DecoderConfig) -> BlockStage:
    """`[batch, seq, hidden]` to the same."""
    prefix = f"model.layers.{index}"
    layer, norms = config.layers[index], config.norms
    attention = _branch(
        prefix, config, norms.before_attention, _attention(prefix, index, config), norms.after_attention
    )
    mlp = _branch(prefix, config, norms.before_mlp, _mlp(prefix, layer.mlp), norms.after_mlp)
    if layer.parallel:
        return ParallelStage(SequenceStage(*attention), SequenceStage(*mlp))
    add = AddResidualStage(config.residual_scale)
    return SequenceStage(
        SaveResidualStage(), *attention, add, SaveResidualStage(), *mlp, add, *_layer_end(prefix, index, config)
    )


def _layer_end(prefix: str, index: int, config: DecoderConfig) -> tuple[BlockStage, ...]:
    """What follows the MLP in some models: the embeddings of the layer's own, its scalar."""
    end: tuple[BlockStage, ...] = ()
    if (own := config.per_layer) is not None:
        gate, projection = f"{prefix}.per_layer_input_gate.weight", f"{prefix}.per_layer_projection.weight"
        block = PerLayerInputStage(gate, projection, index, own.width, own.kind)
        branch = _branch(prefix, config, None, block, "post_per_layer_input_norm")
        end += (SaveResidualStage(), *branch, AddResidualStage())
    return (*end, WeightScaleStage(f"{prefix}.layer_scalar")) if config.layer_scalars else end


def _branch(
    prefix: str, config: DecoderConfig, before: str | None, block: BlockStage, after: str | None
) -> tuple[BlockStage, ...]:
    norms = [None if key is None else config.norm.stage(f"{prefix}.{key}.weight") for key in (before, after)]
    return tuple(stage for stage in (norms[0], block, norms[1]) if stage is not None)


def _attention(prefix: str, index: int, config: DecoderConfig) -> BlockStage:
    attention, key, linear = config.layers[index].attention, f"{prefix}.self_attn", config.layers[index].linear
    if linear is not None:
        return GatedDeltaStage(
            prefix=f"{prefix}.linear_attn",
            key_heads=linear.key_heads,
            key_dim=linear.key_dim,
            value_heads=linear.value_heads,
            value_dim=linear.value_dim,
            taps=linear.taps,
            eps=config.norm.eps,
            tiled=linear.tiled,
            log_rate=linear.log_rate,
        )
    rope = attention.rope
    spec = SelfAttnPrefillSpec(
        f"{key}.q_proj.weight",
        f"{key}.k_proj.weight",
        f"{key}.v_proj.weight",
        attention.num_heads,
        attention.head_dim,
        attention.num_kv_heads,
        n_rot=0 if rope is None else 2 * config.rope[rope].inverse.size,
        rope_table=None if rope == DEFAULT_ROPE else rope,
        mask=_mask(attention),
        score_scale=attention.scale,
        attn_logit_softcap=attention.softcap,
        rope_style=config.rope_style,
        k_eq_v=attention.k_eq_v,
    )
    norm = None
    if attention.qk_norm != "none":
        q_norm, k_norm = (f"{key}.{letter}_norm.weight" for letter in "qk")
        whole_width = attention.qk_norm == "width"
        norm = HeadNorm(q_norm, k_norm, config.norm.eps, config.norm.plus_one, whole_width, attention.v_norm)
    return SelfAttentionStage(
        spec,
        f"{key}.o_proj.weight",
        attention.qkv_bias,
        attention.o_bias,
        norm,
        gate_key=f"{key}.gate_proj.weight" if attention.output_gate else None,
        query_scale=None if config.query_scale is None else QUERY_SCALE,
        keeps=f"kv_{index}" if any(layer.attention.kv_layer == index for layer in config.layers) else None,
        reuses=None if attention.kv_layer is None else f"kv_{attention.kv_layer}",
    )


def _mask(attention: AttentionConfig) -> MaskKind:
    if attention.window is None:
        return MaskKind.none() if attention.bidirectional else MaskKind.causal()
    return MaskKind.around(attention.window) if attention.bidirectional else MaskKind.sliding(attention.window)


def _mlp(prefix: str, mlp: MlpConfig | MoeConfig) -> BlockStage:
    if isinstance(mlp, MoeConfig):
        experts = GatedKeys(*(f"{prefix}.mlp.experts.{part}_proj.weight" for part in ("gate", "up", "down")))
        router = f"{prefix}.mlp.router.weight"
        return MoeMlpStage(router, experts, mlp.num_experts, mlp.intermediate_size, mlp.routing, mlp.kind)
    keys, size = GatedKeys.hf_layer(prefix), mlp.intermediate_size
    if mlp.kind == "swiglu":
        return SwiGluMlpStage(keys, mlp.bias, size)
    if mlp.kind in ("geglu", "geglu_tanh"):
        return GeGluMlpStage(keys, mlp.bias, mlp.kind == "geglu_tanh", size)
    return GeluMlpStage(keys.up, keys.down, mlp.bias, mlp.kind == "gelu_tanh", size)
