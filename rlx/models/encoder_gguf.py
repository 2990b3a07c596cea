"""Encoders in GGUF files, as llama.cpp's converter writes them: `bert` (BERT, RoBERTa, XLM-RoBERTa, DistilBERT),
`nomic-bert` and `modern-bert`.

In: an open file. Out: its `EncoderRecipe`. A file names the pooling and is silent about normalisation and prompts:
vectors are made of length 1, as llama.cpp does. It is silent about the activation of a `bert` too, which is the GELU of
the original. Source: conversion/bert.py of llama.cpp. Next: `encoders.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rlx.errors import UnsupportedModelError
from rlx.flow.rope_scaling import rope_frequencies
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.io.sentence_transformers import NormalizeModule, SentenceSettings
from rlx.models.decoder import DEFAULT_ROPE
from rlx.models.encoder import LOCAL_ROPE, POSITIONS, TYPES, WORDS, EncoderConfig, encoder_keys
from rlx.models.encoder_family import GATED_ACTIVATIONS, encoder_recipe
from rlx.models.encoder_head import ClassifierHead, Head, head_keys
from rlx.models.encoder_names import GGUF_NAMES, EncoderNames, fused_gate_up, fused_qkv, layer_names
from rlx.models.fields import Fields
from rlx.models.pooled import pool_head
from rlx.models.recipe import EncoderRecipe
from rlx.models.unread import refuse_unread_tensors

POOLINGS = {1: "mean", 2: "first", 3: "last"}
"""`pooling_type`; 4 is a classifier's, and 0 none at all."""
RANK = 4
LAYER_NORM_EPS, RMS_EPS = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
NO_COMPUTATION = frozenset(
    ("vocab_size", "classifier.output_labels", "classifier.pooling_type", "attention.layer_norm_rms_epsilon")
)
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "rope.scaling.type": (None, "none"),
    "expert_count": (None, 0),
    "moe_every_n_layers": (None, 0),
}
CLASSIFIER = ClassifierHead(0, "cls", "cls.output")


def bert_from_gguf(fields: Fields, checkpoint: Checkpoint) -> EncoderConfig:
    """Metadata of the architecture `bert`. The table of positions begins at the first token."""
    return EncoderConfig(
        vocab_size=_rows(checkpoint, GGUF_NAMES.whole[WORDS]),
        hidden_size=fields.integer("embedding_length"),
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.integer("block_count"),
        num_heads=fields.integer("attention.head_count"),
        position_rows=_rows(checkpoint, GGUF_NAMES.whole[POSITIONS]),
        norm_eps=fields.number(LAYER_NORM_EPS),
        activation="gelu",
        token_types=_rows(checkpoint, GGUF_NAMES.whole[TYPES]),
    )


def nomic_bert_from_gguf(fields: Fields, checkpoint: Checkpoint) -> EncoderConfig:
    """Metadata of the architecture `nomic-bert`."""
    config = bert_from_gguf(fields, checkpoint)
    length = fields.integer("context_length")
    rope = {"rope_theta": fields.number("rope.freq_base", 1000.0)}
    return replace(
        config,
        position_rows=length,
        activation="silu",
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        rope={DEFAULT_ROPE: rope_frequencies(rope, _head_dim(fields, config), length)},
    )


def modern_bert_from_gguf(fields: Fields, checkpoint: Checkpoint) -> EncoderConfig:
    """Metadata of the architecture `modern-bert`; one layer in `sliding_window_pattern` sees everything."""
    fields = replace(fields, defaults={LAYER_NORM_EPS: fields.get(RMS_EPS)})
    config = nomic_bert_from_gguf(fields, checkpoint)
    every = fields.integer("attention.sliding_window_pattern", 3)
    window = fields.integer("attention.sliding_window") // 2 + 1
    local = {"rope_theta": fields.number("rope.freq_base_swa", 10000.0)}
    tables = {
        DEFAULT_ROPE: config.rope[DEFAULT_ROPE],
        LOCAL_ROPE: rope_frequencies(local, _head_dim(fields, config), config.position_rows),
    }
    return replace(
        config,
        activation=fields.choice("hidden_activation", GATED_ACTIVATIONS, "gelu"),
        norm_bias=False,
        norm_first=True,
        rope=tables,
        windows=tuple(window if index % every else None for index in range(config.num_layers)),
    )


def _rows(checkpoint: Checkpoint, name: str) -> int:
    """Rows of a table; 0 without it."""
    table = checkpoint.tensors.get(name)
    return table.shape[0] if table is not None and table.shape else 0


def _head_dim(fields: Fields, config: EncoderConfig) -> int:
    head_dim = max(2, config.head_dim)
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if fields.integer(name, head_dim) != head_dim:
            fields.refuse(name, head_dim)
    return head_dim


NOMIC_NAMES = replace(
    GGUF_NAMES,
    layer=layer_names(
        *fused_qkv("attn_qkv"),
        "attn_output",
        "attn_output_norm",
        "ffn_up",
        "ffn_down",
        "layer_output_norm",
        gate="ffn_gate",
    ),
)
_GATE, _UP = fused_gate_up("ffn_up")
MODERN_NAMES = replace(
    GGUF_NAMES,
    layer=layer_names(*fused_qkv("attn_qkv"), "attn_output", "attn_norm", _UP, "ffn_down", "ffn_norm", gate=_GATE),
)


@dataclass(frozen=True, slots=True)
class GgufEncoder:
    """How the files of an architecture are read."""

    read: Callable[[Fields, Checkpoint], EncoderConfig]
    names: EncoderNames


GGUF_ENCODERS = {
    "bert": GgufEncoder(bert_from_gguf, GGUF_NAMES),
    "nomic-bert": GgufEncoder(nomic_bert_from_gguf, NOMIC_NAMES),
    "modern-bert": GgufEncoder(modern_bert_from_gguf, MODERN_NAMES),
}
"""`general.architecture` of a GGUF file."""


def gguf_encoder_recipe(architecture: str, checkpoint: Checkpoint) -> EncoderRecipe:
    """The recipe of a GGUF file of one of `GGUF_ENCODERS`.

    Raises:
        UnsupportedModelError: the file asks for something RLX does not implement.
    """
    family = GGUF_ENCODERS[architecture]
    fields = Fields(checkpoint.metadata, str(checkpoint.path), f"{architecture}.")
    if fields.flag("attention.causal"):
        fields.refuse("attention.causal", False)
    config = family.read(fields, checkpoint)
    if config.hidden_size % config.num_heads:
        fields.refuse("attention.head_count", f"a divisor of {config.hidden_size}")
    settings = replace(gguf_settings(fields), max_tokens=fields.integer("context_length"))
    names = family.names.expand(config)
    head: Head = pool_head(settings, str(checkpoint.path)) if settings.pooling else _classifier(checkpoint)
    fields.refuse_unread(lambda name: name in NO_COMPUTATION, NEUTRAL)
    names |= {key: replace(names[WORDS], name=key, rows=None) for key in head_keys(head)}
    read = {names[key].name for key in (*encoder_keys(config), *head_keys(head))}
    refuse_unread_tensors(checkpoint, read, ())
    return encoder_recipe(architecture, config, head, MappedWeights(checkpoint, names), settings, checkpoint)


def gguf_settings(fields: Fields) -> SentenceSettings:
    """How a file says that its model embeds; without a pooling for one that scores.

    Raises:
        UnsupportedModelError: the file names a pooling that RLX does not have.
    """
    kind = fields.integer("pooling_type", 1, minimum=0)
    if kind == RANK:
        return SentenceSettings(pooling=())
    if kind not in POOLINGS:
        fields.refuse("pooling_type", "1 (mean), 2 (first), 3 (last) or 4 (a classifier)")
    return SentenceSettings(pooling=(POOLINGS[kind],), steps=(NormalizeModule(),))


def _classifier(checkpoint: Checkpoint) -> ClassifierHead:
    missing = [key for key in head_keys(CLASSIFIER) if key not in checkpoint.tensors]
    if missing:
        raise UnsupportedModelError(
            "the file lacks a part of its classifier; the converter leaves out BERT's pooler",
            where=str(checkpoint.path),
            found=f"no {missing[0]}",
            fix="use the model's folder with safetensors",
        )
    return replace(CLASSIFIER, labels=_rows(checkpoint, "cls.output.weight"))
