"""Qwen2 and Qwen2.5: Llama with biases of q, k and v. Source: transformers' modeling_qwen2. Next: `gemma.py`."""

from __future__ import annotations

from dataclasses import replace

from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gguf_config import gguf_attention, gguf_decoder, gguf_mlp, gguf_uniform
from rlx.models.hf_config import attention_of, decoder_of, full_and_sliding, mlp_of


def qwen2_from_hf(fields: Fields) -> DecoderConfig:
    """Qwen2's config.json."""
    attention = replace(attention_of(fields), qkv_bias=True)
    return decoder_of(fields, full_and_sliding(fields, attention, mlp_of(fields), kinds_by_number(fields)))


def kinds_by_number(fields: Fields) -> tuple[str, ...]:
    """Qwen's rule where `layer_types` is absent: if windows are in use, from the layer `max_window_layers` on."""
    count, first = fields.integer("num_hidden_layers"), fields.integer("max_window_layers", minimum=0)
    window = fields.flag("use_sliding_window") and fields.get("sliding_window") is not None
    if not window:
        fields.read.add("sliding_window")  # a window that is not in use
    return tuple("sliding_attention" if window and index >= first else "full_attention" for index in range(count))


def qwen2_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `qwen2`."""
    attention = gguf_attention(fields, checkpoint)
    return gguf_decoder(fields, checkpoint, gguf_uniform(fields, attention, gguf_mlp(fields, checkpoint)))


QWEN2 = Family(
    "qwen2",
    ("Qwen2ForCausalLM",),
    qwen2_from_hf,
    {"max_position_embeddings": 32768, "max_window_layers": 28, "rms_norm_eps": 1e-6, "sliding_window": 4096},
    gguf="qwen2",
    from_gguf=qwen2_from_gguf,
)
