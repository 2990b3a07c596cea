"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one encoder, other names. Source: transformers' modeling_bert, _roberta,
_xlm_roberta and _distilbert, and llama.cpp's `bert` for GGUF files.

In: an open Hugging Face folder or GGUF file. Out: its `EncoderRecipe`. Top to bottom: how each configuration is read,
what each calls its weights, the families. Next: `encoder_recipe.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlx.io.checkpoint import Checkpoint
from rlx.models.encoder import EMBEDDING_NORM, POSITIONS, TYPES, WORDS, ClassifierHead, EncoderConfig
from rlx.models.encoder_family import EncoderFamily, EncoderNames, activation_of
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
        activation=activation_of(fields, "hidden_act", "gelu"),
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
        activation=activation_of(fields, "hidden_act", "gelu"),
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
        activation=activation_of(fields, "activation", "gelu"),
    )


def bert_from_gguf(fields: Fields, checkpoint: Checkpoint) -> EncoderConfig:
    """Metadata of the architecture `bert`; RoBERTa's table comes without the rows for padding."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return EncoderConfig(
        vocab_size=shapes.get("token_embd.weight", (0,))[0],
        hidden_size=fields.integer("embedding_length"),
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.integer("block_count"),
        num_heads=fields.integer("attention.head_count"),
        position_rows=shapes.get("position_embd.weight", (0,))[0],
        norm_eps=fields.number("attention.layer_norm_epsilon"),
        activation="gelu",
        token_types=shapes.get("token_types.weight", (0,))[0],
    )


LAYER_PARTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
WHOLE = {name: name for name in (WORDS, POSITIONS, TYPES, EMBEDDING_NORM, EMBEDDING_NORM.replace("weight", "bias"))}


def _layer_names(*names: str) -> Mapping[str, str]:
    return dict(zip(LAYER_PARTS, names, strict=True))


HF_NAMES = EncoderNames("encoder.layer.{i}.", _layer_names(*LAYER_PARTS), WHOLE)
DISTILBERT_NAMES = EncoderNames(
    "transformer.layer.{i}.",
    _layer_names(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
    WHOLE,
)
GGUF_NAMES = EncoderNames(
    "blk.{i}.",
    _layer_names(
        "attn_q", "attn_k", "attn_v", "attn_output", "attn_output_norm", "ffn_up", "ffn_down", "layer_output_norm"
    ),
    {
        WORDS: "token_embd.weight",
        POSITIONS: "position_embd.weight",
        TYPES: "token_types.weight",
        EMBEDDING_NORM: "token_embd_norm.weight",
        EMBEDDING_NORM.replace("weight", "bias"): "token_embd_norm.bias",
    },
)

# Pre-training heads, the pooling of a model that was trained without one, and buffers: nothing here reads them.
BERT_UNREAD = ("pooler.dense.*", "cls.*", "*.position_ids")
ROBERTA_UNREAD = (*BERT_UNREAD, "lm_head.*")

BERT = EncoderFamily(
    "bert",
    ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "BertForSequenceClassification",
    bert_from_hf,
    HF_NAMES,
    ClassifierHead(0, "pooler.dense", "classifier", "tanh"),
    prefix="bert.",
    unread=BERT_UNREAD,
    gguf="bert",
    from_gguf=bert_from_gguf,
    gguf_names=GGUF_NAMES,
)
ROBERTA = EncoderFamily(
    "roberta",
    ("RobertaModel", "RobertaForMaskedLM"),
    "RobertaForSequenceClassification",
    roberta_from_hf,
    HF_NAMES,
    ClassifierHead(0, "classifier.dense", "classifier.out_proj", "tanh"),
    prefix="roberta.",
    unread=ROBERTA_UNREAD,
)
XLM_ROBERTA = EncoderFamily(
    "xlm-roberta",
    ("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    "XLMRobertaForSequenceClassification",
    roberta_from_hf,
    HF_NAMES,
    ClassifierHead(0, "classifier.dense", "classifier.out_proj", "tanh"),
    prefix="roberta.",
    unread=ROBERTA_UNREAD,
)
DISTILBERT = EncoderFamily(
    "distilbert",
    ("DistilBertModel", "DistilBertForMaskedLM"),
    "DistilBertForSequenceClassification",
    distilbert_from_hf,
    DISTILBERT_NAMES,
    ClassifierHead(0, "pre_classifier", "classifier", "relu"),
    prefix="distilbert.",
    unread=("vocab_*", "*.position_ids"),
)
