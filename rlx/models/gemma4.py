"""Gemma 4 (text). Sources: transformers' modeling_gemma4 and configuration_gemma4; llama.cpp's gemma4.

Over Gemma 3: norms scale by the weight alone and v has one too, scores have no scale, layers that see everything have
heads of their own size (and number of KV heads), RoPE tables of their own, and perhaps no weights for v; the last
layers may attend to the keys and values of an earlier layer; every layer may take an embedding of its own and ends in a
product with a number. `enable_moe_block` is refused. Next: `phi3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.rope_scaling import RopeFrequencies, rope_frequencies
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import (
    DEFAULT_ROPE,
    LOCAL_ROPE,
    AttentionConfig,
    DecoderConfig,
    LayerConfig,
    MlpConfig,
    NormConfig,
    PerLayerConfig,
)
from rlx.models.family import Family
from rlx.models.fields import Fields
from rlx.models.gemma import SANDWICH
from rlx.models.gguf_config import gguf_attention, gguf_decoder
from rlx.models.hf_config import attention_of, kinds_of_layers, mlp_of, rope_of, rope_parameters, windowed
from rlx.models.names import GGUF_SANDWICH_NAMES, HF_NAMES

FULL, SLIDING = "full_attention", "sliding_attention"
PER_LAYER = {
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
}
PER_MODEL = {
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
}
"""Weights of the embeddings of layers: name in a Hugging Face folder to name in a GGUF file."""


def gemma4_from_hf(fields: Fields) -> DecoderConfig:
    """The config.json of Gemma 4's text model."""
    if fields.get("use_bidirectional_attention") not in (None, "vision"):  # "vision" is about images alone
        fields.refuse("use_bidirectional_attention", "null or vision")
    kinds = _kinds(fields)
    attentions = _attentions(fields, kinds)
    mlp = mlp_of(fields, default="gelu_pytorch_tanh", name="hidden_activation")
    wide = replace(mlp, intermediate_size=2 * mlp.intermediate_size) if fields.flag("use_double_wide_mlp") else mlp
    shared = fields.integer("num_kv_shared_layers", 0, minimum=0)
    layers = tuple(
        LayerConfig(attention=attention, mlp=mlp if attention.kv_layer is None else wide)
        for attention in _sharing(fields, "num_kv_shared_layers", attentions, shared)
    )
    tables = {kind: _rope(fields, kind, attentions, kinds) for kind in dict.fromkeys(kinds)}
    vocab_size, width = fields.integer("vocab_size"), fields.integer("hidden_size_per_layer_input", 0, minimum=0)
    rows = fields.integer("vocab_size_per_layer_input")
    if width and rows < vocab_size:
        fields.refuse("vocab_size_per_layer_input", f"at least {vocab_size}, as many as there are tokens")
    hidden_size = fields.integer("hidden_size")
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        layers=layers,
        norm=NormConfig(eps=fields.number("rms_norm_eps")),
        norms=SANDWICH,
        context_length=min(length for _, length in tables.values()),
        rope={_table(kind): table for kind, (table, _) in tables.items()},
        embedding_scale=hidden_size**0.5,
        logits_softcap=fields.optional_number("final_logit_softcapping"),
        tied=fields.flag("tie_word_embeddings"),
        per_layer=PerLayerConfig(vocab_size=rows, width=width, kind=mlp.kind) if width else None,
        layer_scalars=True,
    )


def _kinds(fields: Fields) -> tuple[str, ...]:
    """Of each layer; the last sees everything, whatever `layer_types` says of it."""
    count = fields.integer("num_hidden_layers")
    kinds = kinds_of_layers(fields, tuple(FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)))
    return (*kinds[:-1], FULL)


def _table(kind: str) -> str:
    return DEFAULT_ROPE if kind == FULL else LOCAL_ROPE


def _attentions(fields: Fields, kinds: tuple[str, ...]) -> list[AttentionConfig]:
    """The attention of each layer, with keys and values of its own."""
    bias, k_eq_v = fields.flag("attention_bias"), fields.flag("attention_k_eq_v")
    base = replace(attention_of(fields), qkv_bias=bias, o_bias=bias, scale=1.0, qk_norm="head", v_norm=True)
    local, full = (replace(windowed(fields, base, kind), rope=_table(kind)) for kind in (SLIDING, FULL))
    full = replace(full, k_eq_v=k_eq_v)
    if "per_layer_config" in fields.values:
        return _with_own_sizes(fields, [full if kind == FULL else local for kind in kinds])
    heads = fields.integer("num_global_key_value_heads", base.num_kv_heads) if k_eq_v else base.num_kv_heads
    full = replace(full, head_dim=fields.integer("global_head_dim", 512), num_kv_heads=heads)
    return [full if kind == FULL else local for kind in kinds]


def _with_own_sizes(fields: Fields, attentions: list[AttentionConfig]) -> list[AttentionConfig]:
    """`per_layer_config`: by the number of a layer what it has in place of the common sizes."""
    sizes = Fields(fields.table("per_layer_config"), f"{fields.where}, per_layer_config")
    for name in sizes.values:
        if not name.isdecimal() or int(name) >= len(attentions):
            fields.refuse("per_layer_config", f"layers 0 to {len(attentions) - 1}")
        own, common = Fields(sizes.table(name), f"{sizes.where}.{name}"), attentions[int(name)]
        head_dim = own.integer("head_dim", common.head_dim)
        heads = own.integer("num_key_value_heads", common.num_kv_heads)
        attentions[int(name)] = replace(common, head_dim=head_dim, num_kv_heads=heads)
        own.refuse_unread(lambda name: False, {})
    return attentions


def _rope(
    fields: Fields, kind: str, attentions: list[AttentionConfig], kinds: tuple[str, ...]
) -> tuple[RopeFrequencies, int]:
    """The table of the layers of a kind, and how far it goes."""
    parameters = rope_parameters(fields, kind)
    if parameters["rope_type"] == "default" and parameters.get("partial_rotary_factor") not in (None, 1.0):
        fields.refuse("rope_parameters", "no partial_rotary_factor of the default type, which transformers ignores")
    head_dims = {attention.head_dim for attention, other in zip(attentions, kinds, strict=True) if other == kind}
    if len(head_dims) > 1:
        fields.refuse("per_layer_config", f"one head_dim for all layers of {kind}")
    return rope_of(fields, head_dims.pop(), parameters)


def _sharing(fields: Fields, name: str, attentions: list[AttentionConfig], shared: int) -> list[AttentionConfig]:
    """The last `shared` layers attend to what the last layer of their kind before them has."""
    layers = attentions[: max(len(attentions) - shared, 0)]
    last = {attention.rope: index for index, attention in enumerate(layers)}
    for attention in attentions[len(layers) :]:
        source = last.get(attention.rope)
        if source is None or _key_shape(layers[source]) != _key_shape(attention):
            fields.refuse(name, "layers that follow one of their kind, with keys of its shape")
        layers.append(replace(attention, kv_layer=source))
    return layers


def _key_shape(attention: AttentionConfig) -> tuple[int, int]:
    return attention.num_kv_heads, attention.head_dim


def gemma4_from_gguf(fields: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """Metadata of the architecture `gemma4`. Sizes without `_swa` are those of layers that see everything."""
    shared = fields.integer("attention.shared_kv_layers", 0, minimum=0)
    attentions = _sharing(fields, "attention.shared_kv_layers", _gguf_attentions(fields, checkpoint), shared)
    sizes = fields.for_layers("feed_forward_length", len(attentions))
    layers = tuple(
        LayerConfig(attention=attention, mlp=MlpConfig(kind="geglu_tanh", intermediate_size=size))
        for attention, size in zip(attentions, sizes, strict=True)
    )
    n_rot = fields.integer("rope.dimension_count_swa", fields.integer("attention.key_length_swa"))
    local = rope_frequencies({"rope_theta": fields.number("rope.freq_base_swa", 10000.0)}, n_rot, 1)
    config = gguf_decoder(fields, checkpoint, layers)
    width = fields.integer("embedding_length_per_layer_input", 0, minimum=0)
    return replace(
        config,
        norms=SANDWICH,
        rope={**config.rope, LOCAL_ROPE: local},
        embedding_scale=config.hidden_size**0.5,
        logits_softcap=fields.optional_number("final_logit_softcapping"),
        per_layer=PerLayerConfig(vocab_size=config.vocab_size, width=width, kind="geglu_tanh") if width else None,
        layer_scalars="blk.0.layer_output_scale.weight" in checkpoint.tensors,
    )


def _gguf_attentions(fields: Fields, checkpoint: Checkpoint) -> list[AttentionConfig]:
    """The attention of each layer, with keys and values of its own."""
    count, window = fields.integer("block_count"), fields.integer("attention.sliding_window")
    pattern = fields.for_layers("attention.sliding_window_pattern", count, minimum=0)
    kv_heads = fields.for_layers("attention.head_count_kv", count)
    base = gguf_attention(fields, checkpoint, num_kv_heads=kv_heads[0])
    base = replace(base, scale=1.0, qk_norm="head", v_norm=True)
    local_dim, _ = fields.integer("attention.key_length_swa"), fields.integer("rope.dimension_count")
    if fields.integer("attention.value_length_swa", local_dim) != local_dim:
        fields.refuse("attention.value_length_swa", f"{local_dim}, the length of the keys")
    local = replace(base, rope=LOCAL_ROPE, window=window, head_dim=local_dim)
    return [
        replace(
            local if is_local else base,
            num_kv_heads=heads,
            k_eq_v=f"blk.{index}.attn_v.weight" not in checkpoint.tensors,
        )
        for index, (is_local, heads) in enumerate(zip(pattern, kv_heads, strict=True))
    ]


GEMMA4 = Family(
    "gemma4_text",
    ("Gemma4ForCausalLM",),
    gemma4_from_hf,
    {
        "head_dim": 256,
        "hidden_size_per_layer_input": 256,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
    },
    names=replace(
        HF_NAMES.with_layer(**{part: part for part in PER_LAYER}),
        whole={**HF_NAMES.whole, **{f"model.{key}.weight": f"model.{key}.weight" for key in PER_MODEL}},
        bare={"layer_scalar": "layer_scalar"},
    ),
    gguf="gemma4",
    from_gguf=gemma4_from_gguf,
    gguf_names=replace(
        GGUF_SANDWICH_NAMES.with_layer(**PER_LAYER),
        whole={
            **GGUF_SANDWICH_NAMES.whole,
            **{f"model.{key}.weight": f"{name}.weight" for key, name in PER_MODEL.items()},
        },
        bare={"layer_scalar": "layer_output_scale.weight"},
    ),
)
