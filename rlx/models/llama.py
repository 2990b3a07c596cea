"""Llama, and Mistral, which is Llama with a sliding window. Source: transformers' modeling_llama and modeling_mistral.

In: an open GGUF file or Hugging Face folder. Out: its recipe. Top to bottom: the sizes, the flow, the weight names. How
the sizes are read from a file is in `llama_config.py`, which is next.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.rms_norm import RmsNormStage
from rlx.flow.blocks.self_attention import SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.swiglu_mlp import SwiGluMlpStage
from rlx.flow.flow import ModelFlow
from rlx.flow.rope_scaling import RopeFrequencies


@dataclass(frozen=True, slots=True, eq=False)
class LlamaConfig:
    """The sizes and choices of a Llama.

    Attributes:
        rope: frequencies of the RoPE table, scaling included; `n_rot` is twice their number.
        rope_style: how the checkpoint's q and k rows are paired: "half", or "interleaved" in GGUF files.
        sliding_window: keys a query sees, its own included; None for all.
        context_length: most positions of one sequence.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int
    rope: RopeFrequencies
    rope_style: str = "half"
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


def llama_flow(config: LlamaConfig, name: str = "llama") -> ModelFlow:
    """tokens `i32[batch, seq]` to logits `f32[batch, seq, vocab]`."""
    batch, seq = Dim("batch"), Dim("seq", max=config.context_length)
    return (
        ModelFlow(name)
        .input("tokens", (batch, seq), i32)
        .rope_tables(config.rope)
        .token_embed(shape=(config.vocab_size, config.hidden_size))
        .repeat_layers(config.num_layers, lambda index: decoder_layer(index, config))
        .final_norm(config.rms_norm_eps)
        .lm_head(config.vocab_size, config.hidden_size, tied=config.tied)
    )


def decoder_layer(index: int, config: LlamaConfig) -> SequenceStage:
    """`[batch, seq, hidden]` to the same: attention and MLP, each behind a norm and inside a residual."""
    prefix = f"model.layers.{index}"
    return SequenceStage(
        SaveResidualStage(),
        RmsNormStage(f"{prefix}.input_layernorm.weight", config.rms_norm_eps),
        self_attention(prefix, config),
        AddResidualStage(),
        SaveResidualStage(),
        RmsNormStage(f"{prefix}.post_attention_layernorm.weight", config.rms_norm_eps),
        SwiGluMlpStage(GatedKeys.hf_layer(prefix), bias=config.mlp_bias),
        AddResidualStage(),
    )


def self_attention(prefix: str, config: LlamaConfig) -> SelfAttentionStage:
    """Causal grouped-query attention, over a sliding window if the configuration has one."""
    window = config.sliding_window
    spec = (
        SelfAttnPrefillSpec.hf_layer(prefix, config.num_heads, config.head_dim, config.num_kv_heads)
        .with_n_rot(2 * config.rope.inverse.size)
        .with_mask(MaskKind.causal() if window is None else MaskKind.sliding(window))
        .with_rope_style(config.rope_style)
    )
    return SelfAttentionStage(spec, f"{prefix}.self_attn.o_proj.weight", qkv_bias=config.qkv_bias, o_bias=config.o_bias)


GGUF_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def hf_names(num_layers: int) -> dict[str, str]:
    """Key of the flow to name in a Hugging Face folder: the same."""
    return {key: key for key in gguf_names(num_layers)}


def gguf_names(num_layers: int) -> dict[str, str]:
    """Key of the flow to name in a GGUF file, biases included."""
    names = dict(GGUF_NAMES)
    for index in range(num_layers):
        for part, short in GGUF_LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"model.layers.{index}.{part}.{kind}"] = f"blk.{index}.{short}.{kind}"
    return names
