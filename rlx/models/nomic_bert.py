"""NomicBERT: BERT with RoPE, SwiGLU and no biases but those of its norms. Sources: transformers' modeling_nomic_bert,
and the configuration and names of the files that were published before it, which are GPT-2's.

Next: `modernbert.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlx.flow.rope_scaling import rope_frequencies
from rlx.models.bert import BERT_UNREAD, pooler_head
from rlx.models.decoder import DEFAULT_ROPE
from rlx.models.encoder import EMBEDDING_NORM, EncoderConfig
from rlx.models.encoder_family import GATED_ACTIVATIONS, EncoderFamily
from rlx.models.encoder_names import BERT_NAMES, EncoderNames, fused_qkv, layer_names
from rlx.models.fields import Fields
from rlx.models.hf_config import rope_of

PUBLISHED_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}
"""`activation_function` of the published files, each with a gate."""


def nomic_bert_from_hf(fields: Fields) -> EncoderConfig:
    """config.json of a NomicBERT, as transformers writes it or as it was published."""
    if "n_embd" in fields.values:
        return _published(fields)
    hidden_size, num_heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
    if fields.integer("head_dim", hidden_size // num_heads) * num_heads != hidden_size:
        fields.refuse("head_dim", hidden_size // num_heads)
    frequencies, length = rope_of(fields, max(1, hidden_size // num_heads))
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size", 30528),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", 3072),
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=num_heads,
        position_rows=length,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=fields.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
        token_types=fields.integer("type_vocab_size", 2),
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        rope={DEFAULT_ROPE: frequencies},
    )


def _published(fields: Fields) -> EncoderConfig:
    hidden_size, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    length = fields.integer("n_positions")
    # beyond the positions it was trained for, the scaling changes the frequencies with the length of the text
    if fields.optional_number("rotary_scaling_factor") is not None:
        length = min(length, fields.integer("max_trained_positions", 2048))
    rope = {"rope_theta": fields.number("rotary_emb_base", 10000.0)}
    return EncoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("n_inner"),
        num_layers=fields.integer("n_layer"),
        num_heads=num_heads,
        position_rows=length,
        norm_eps=fields.number("layer_norm_epsilon"),
        activation=fields.choice("activation_function", PUBLISHED_ACTIVATIONS),
        token_types=fields.integer("type_vocab_size", 2),
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        rope={DEFAULT_ROPE: rope_frequencies(rope, max(2, hidden_size // num_heads), length)},
    )


NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "rotary_emb_fraction": (1, 1.0),
    "rotary_emb_interleaved": (None, False),
    "rotary_emb_scale_base": (None,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "prenorm": (False,),
    "use_rms_norm": (None, False),
    "causal": (None, False),
    "parallel_block": (None, False),
    "parallel_block_tied_norm": (None, False),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "scale_attn_weights": (None, True),
    "num_experts": (None, 0),
    "max_trained_positions": (None, 2048),
    "rope_theta": (None, 1000, 1000.0),
    "layer_types": (None,),
}
NO_COMPUTATION = frozenset(
    (
        "attn_pdrop", "embd_pdrop", "resid_pdrop", "fused_bias_fc", "fused_dropout_add_ln", "last_layer_subset",
        "pad_vocab_size_multiple", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout",
        "summary_proj_to_labels", "summary_type", "summary_use_proj", "use_flash_attn", "use_xentropy",
    )
)  # fmt: skip

NAMES = EncoderNames(
    "encoder.layers.{i}.",
    layer_names(
        *fused_qkv("attn.Wqkv"),
        "attn.out_proj",
        "norm1",
        "mlp.fc11",
        "mlp.fc2",
        "norm2",
        gate="mlp.fc12",
    ),
    {**BERT_NAMES.whole, EMBEDDING_NORM: "emb_ln.weight"},
)

NOMIC_BERT = EncoderFamily(
    "nomic_bert",
    ("NomicBertModel", "NomicBertForMaskedLM", "NomicBertForPreTraining"),
    "NomicBertForSequenceClassification",
    nomic_bert_from_hf,
    pooler_head,
    prefix="nomic_bert.",
    names=NAMES,
    unread=BERT_UNREAD,
    defaults={"max_position_embeddings": 2048, "rope_theta": 1000.0},
    no_computation=NO_COMPUTATION,
    neutral=NEUTRAL,
)
