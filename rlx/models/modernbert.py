"""ModernBERT: norms before the blocks, GeGLU, and layers that see a window on both sides between those that see all,
each kind with RoPE frequencies of its own. Source: transformers' modeling_modernbert. Next: `encoders.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlx.flow.rope_scaling import RopeFrequencies, rope_frequencies
from rlx.models.decoder import DEFAULT_ROPE
from rlx.models.encoder import EMBEDDING_NORM, FINAL_NORM, LOCAL_ROPE, WORDS, EncoderConfig
from rlx.models.encoder_family import ACTIVATIONS, GATED_ACTIVATIONS, EncoderFamily
from rlx.models.encoder_head import ClassifierHead
from rlx.models.encoder_names import EncoderNames, fused_gate_up, fused_qkv, layer_names
from rlx.models.fields import Fields
from rlx.models.hf_config import kinds_of_layers, positions_of, rope_parameters

FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
"""The older field of each kind of layer, and what transformers takes where it is silent."""


def modernbert_from_hf(fields: Fields) -> EncoderConfig:
    """config.json of a ModernBERT, as transformers 4 or 5 writes it."""
    hidden_size, num_heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
    count, every = fields.integer("num_hidden_layers", 22), fields.integer("global_attn_every_n_layers", 3)
    kinds = kinds_of_layers(fields, tuple(SLIDING if index % every else FULL for index in range(count)))
    # the field counts both sides; a token sees half of it before and behind, and itself
    window = fields.integer("local_attention", 128) // 2 + 1
    head_dim = max(2, hidden_size // num_heads)
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size", 50368),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", 1152),
        num_layers=count,
        num_heads=num_heads,
        position_rows=positions_of(fields),
        norm_eps=fields.number("norm_eps", 1e-5),
        activation=fields.choice("hidden_activation", GATED_ACTIVATIONS, "gelu"),
        gated=True,
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
        norm_bias=fields.flag("norm_bias"),
        norm_first=True,
        rope={DEFAULT_ROPE: _rope(fields, FULL, head_dim), LOCAL_ROPE: _rope(fields, SLIDING, head_dim)},
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
    )


def _rope(fields: Fields, kind: str, head_dim: int) -> RopeFrequencies:
    name, theta = THETAS[kind]
    theta = fields.number(name, theta)
    rope: dict[str, object] = {"rope_theta": theta}
    if fields.table("rope_parameters"):
        rope = rope_parameters(fields, kind)
    if rope.get("rope_type", "default") != "default":
        fields.refuse("rope_parameters", "RoPE without scaling")
    return rope_frequencies(rope, head_dim, positions_of(fields))


def modernbert_head(fields: Fields) -> ClassifierHead:
    """Dense, activation, norm, and one linear layer, of the first token or of the mean of all."""
    return ClassifierHead(
        0,
        "head.dense",
        "classifier",
        activation=fields.choice("classifier_activation", ACTIVATIONS, "gelu"),
        pooling=fields.choice("classifier_pooling", {"cls": "first", "mean": "mean"}, "cls"),
        dense_bias=fields.flag("classifier_bias"),
        norm="head.norm",
        norm_eps=fields.number("norm_eps", 1e-5),
        norm_bias=fields.flag("norm_bias"),
    )


NO_COMPUTATION = frozenset(
    (
        "classifier_activation", "classifier_bias", "classifier_pooling", "decoder_bias", "deterministic_flash_attn",
        "embedding_dropout", "initializer_cutoff_factor", "mlp_dropout", "reference_compile",
        "repad_logits_with_grad", "sparse_pred_ignore_index", "sparse_prediction",
    )
)  # fmt: skip
NEUTRAL: Mapping[str, tuple[object, ...]] = {"rope_scaling": (None,)}

GATE, UP = fused_gate_up("mlp.Wi")
NAMES = EncoderNames(
    "layers.{i}.",
    layer_names(*fused_qkv("attn.Wqkv"), "attn.Wo", "attn_norm", UP, "mlp.Wo", "mlp_norm", gate=GATE),
    {
        WORDS: "embeddings.tok_embeddings.weight",
        EMBEDDING_NORM: "embeddings.norm.weight",
        FINAL_NORM: "final_norm.weight",
    },
)

MODERNBERT = EncoderFamily(
    "modernbert",
    ("ModernBertModel", "ModernBertForMaskedLM"),
    "ModernBertForSequenceClassification",
    modernbert_from_hf,
    modernbert_head,
    prefix="model.",
    names=NAMES,
    unread=("head.*", "decoder.*"),
    defaults={"max_position_embeddings": 8192},
    no_computation=NO_COMPUTATION,
    neutral=NEUTRAL,
)
