"""MPNet: RoBERTa with a bias of the scores by distance, which all layers share. Source: transformers' modeling_mpnet.

Next: `nomic_bert.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.models.bert import ROBERTA_UNREAD, roberta_head
from rlx.models.encoder import DISTANCES, EncoderConfig
from rlx.models.encoder_family import ACTIVATIONS, EncoderFamily
from rlx.models.encoder_names import BERT_NAMES, layer_names
from rlx.models.fields import Fields

BUCKETS = 32
"""Rows of the table of distances that transformers uses, whatever the configuration says."""
FIRST_POSITION = 2
"""Behind the row of the padding token, which is token 1 whatever the configuration says."""


def mpnet_from_hf(fields: Fields) -> EncoderConfig:
    """config.json of an MPNet."""
    if fields.integer("relative_attention_num_buckets", BUCKETS) != BUCKETS:
        fields.refuse("relative_attention_num_buckets", BUCKETS)
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size", 30527),
        hidden_size=fields.integer("hidden_size", 768),
        intermediate_size=fields.integer("intermediate_size", 3072),
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=fields.integer("num_attention_heads", 12),
        position_rows=fields.integer("max_position_embeddings", 512, minimum=FIRST_POSITION + 1),
        first_position=FIRST_POSITION,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        distance_buckets=BUCKETS,
    )


MPNET_NAMES = replace(
    BERT_NAMES,
    layer=layer_names(
        "attention.attn.q",
        "attention.attn.k",
        "attention.attn.v",
        "attention.attn.o",
        "attention.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ),
    whole={**BERT_NAMES.whole, DISTANCES: DISTANCES},
)

MPNET = EncoderFamily(
    "mpnet",
    ("MPNetModel", "MPNetForMaskedLM"),
    "MPNetForSequenceClassification",
    mpnet_from_hf,
    roberta_head,
    prefix="mpnet.",
    names=MPNET_NAMES,
    unread=ROBERTA_UNREAD,
)
