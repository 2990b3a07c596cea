"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one encoder, other names. Source: transformers' modeling_bert, _roberta,
_xlm_roberta and _distilbert.

In: an open Hugging Face folder. Out: its `EncoderRecipe`. Top to bottom: how each configuration is read,
what each calls its weights, the families. Next: `encoder_family.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.models.encoder import EncoderConfig
from rlx.models.encoder_family import ACTIVATIONS, EncoderFamily
from rlx.models.encoder_head import ClassifierHead
from rlx.models.encoder_names import BERT_NAMES, layer_names
from rlx.models.fields import Fields


def bert_from_hf(fields: Fields) -> EncoderConfig:
    """config.json of a BERT."""
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size", 30522),
        hidden_size=fields.integer("hidden_size", 768),
        intermediate_size=fields.integer("intermediate_size", 3072),
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=fields.integer("num_attention_heads", 12),
        position_rows=fields.integer("max_position_embeddings", 512),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        token_types=fields.integer("type_vocab_size", 2),
    )


def roberta_from_hf(fields: Fields) -> EncoderConfig:
    """config.json of a RoBERTa or XLM-RoBERTa: positions start behind the row of the padding token."""
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size", 50265),
        hidden_size=fields.integer("hidden_size", 768),
        intermediate_size=fields.integer("intermediate_size", 3072),
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=fields.integer("num_attention_heads", 12),
        position_rows=fields.integer("max_position_embeddings", 512),
        first_position=fields.integer("pad_token_id", 1, minimum=0) + 1,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        token_types=fields.integer("type_vocab_size", 2),
    )


def distilbert_from_hf(fields: Fields) -> EncoderConfig:
    """config.json of a DistilBERT, which has no token types; `sinusoidal_pos_embds` only fills the table at first."""
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size", 30522),
        hidden_size=fields.integer("dim", 768),
        intermediate_size=fields.integer("hidden_dim", 3072),
        num_layers=fields.integer("n_layers", 6),
        num_heads=fields.integer("n_heads", 12),
        position_rows=fields.integer("max_position_embeddings", 512),
        norm_eps=1e-12,
        activation=fields.choice("activation", ACTIVATIONS, "gelu"),
    )


DISTILBERT_NAMES = replace(
    BERT_NAMES,
    layer_prefix="transformer.layer.{i}.",
    layer=layer_names(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
)


def pooler_head(fields: Fields) -> ClassifierHead:
    """BERT's: the pooler that it was trained with, and one linear layer."""
    return ClassifierHead(0, "pooler.dense", "classifier")


def roberta_head(fields: Fields) -> ClassifierHead:
    """RoBERTa's: two linear layers of its own."""
    return ClassifierHead(0, "classifier.dense", "classifier.out_proj")


def distilbert_head(fields: Fields) -> ClassifierHead:
    """DistilBERT's, with a ReLU."""
    return ClassifierHead(0, "pre_classifier", "classifier", "relu")


# Pre-training heads, the pooling of a model that was trained without one, and buffers: nothing here reads them.
BERT_UNREAD = ("pooler.dense.*", "cls.*", "*.position_ids")
ROBERTA_UNREAD = (*BERT_UNREAD, "lm_head.*")

BERT = EncoderFamily(
    "bert",
    ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "BertForSequenceClassification",
    bert_from_hf,
    pooler_head,
    prefix="bert.",
    unread=BERT_UNREAD,
)
ROBERTA = EncoderFamily(
    "roberta",
    ("RobertaModel", "RobertaForMaskedLM"),
    "RobertaForSequenceClassification",
    roberta_from_hf,
    roberta_head,
    prefix="roberta.",
    unread=ROBERTA_UNREAD,
)
XLM_ROBERTA = EncoderFamily(
    "xlm-roberta",
    ("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    "XLMRobertaForSequenceClassification",
    roberta_from_hf,
    roberta_head,
    prefix="roberta.",
    unread=ROBERTA_UNREAD,
)
DISTILBERT = EncoderFamily(
    "distilbert",
    ("DistilBertModel", "DistilBertForMaskedLM"),
    "DistilBertForSequenceClassification",
    distilbert_from_hf,
    distilbert_head,
    prefix="distilbert.",
    names=DISTILBERT_NAMES,
    unread=("vocab_*", "*.position_ids"),
)
