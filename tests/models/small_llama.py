"""A Llama by its sizes, for tests that need a decoder and no checkpoint; and Llama's names in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.flow import ModelFlow, RopeFrequencies
from rlx.models.decoder import AttentionConfig, DecoderConfig, LayerConfig, MlpConfig, NormConfig, decoder_flow
from rlx.models.names import GGUF_NAMES


@dataclass(frozen=True, slots=True, eq=False)
class LlamaConfig:
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


def llama_flow(config: LlamaConfig) -> ModelFlow:
    attention = AttentionConfig(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        window=config.sliding_window,
    )
    layer = LayerConfig(attention=attention, mlp=MlpConfig(intermediate_size=config.intermediate_size))
    decoder = DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=(layer,) * config.num_layers,
        norm=NormConfig(eps=config.rms_norm_eps),
        context_length=config.context_length,
        rope={"default": config.rope},
        rope_style=config.rope_style,
    )
    return decoder_flow(decoder, "llama")


def gguf_names(num_layers: int) -> dict[str, str]:
    names = dict(GGUF_NAMES.whole)
    for index in range(num_layers):
        for part, short in GGUF_NAMES.layer.items():
            for kind in ("weight", "bias"):
                names[f"model.layers.{index}.{part}.{kind}"] = f"blk.{index}.{short}.{kind}"
    return names
