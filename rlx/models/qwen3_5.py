"""Qwen3.5: linear attention in three of four layers; the text model alone, or that of a model that sees images too.

Source: transformers' modeling_qwen3_5. Next: `hybrid.py`, what it is made of.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.models.decoder import DecoderConfig
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.hf_config import refuse_unread_hf
from rlx.models.hybrid import DEFAULTS, hybrid_from_gguf, hybrid_from_hf
from rlx.models.names import GGUF_HYBRID_NAMES, HF_HYBRID_NAMES, under

IMAGES = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Fields of the part that sees."""


def qwen3_5_text_of(fields: Fields) -> DecoderConfig:
    """The config.json of a model that sees images: its text model."""
    fields.read.update(IMAGES)
    text = Fields(fields.table("text_config"), f"{fields.where}, text_config", defaults=fields.defaults)
    if text.get("model_type") not in (None, QWEN3_5_TEXT.model_type):
        text.refuse("model_type", QWEN3_5_TEXT.model_type)
    config = hybrid_from_hf(text)
    refuse_unread_hf(text)
    return replace(config, tied=fields.flag("tie_word_embeddings"))


QWEN3_5_TEXT = Family(
    "qwen3_5_text",
    ("Qwen3_5ForCausalLM",),
    hybrid_from_hf,
    {**DEFAULTS, "num_key_value_heads": 4},
    names=HF_HYBRID_NAMES,
    gguf="qwen35",
    from_gguf=hybrid_from_gguf,
    gguf_names=GGUF_HYBRID_NAMES,
)
QWEN3_5 = Family(
    "qwen3_5",
    ("Qwen3_5ForConditionalGeneration",),
    qwen3_5_text_of,
    QWEN3_5_TEXT.defaults,
    names=under("model.language_model.", HF_HYBRID_NAMES, unread=("model.visual.*",)),
)
