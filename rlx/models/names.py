"""What a checkpoint calls the weights of a decoder.

In: a `NameMap`, which a family writes beside its recipe, and the configuration. Out: key of the flow to name in the
file. The flow's keys are those of a Llama in a Hugging Face folder. Next: `family.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from rlx.flow.tensor_part import TensorPart, TensorStack
from rlx.models.decoder import AttentionConfig, DecoderConfig, MoeConfig

Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Fused:
    """A weight that is part of a tensor: its name, the rows for a configuration, and whether it is `[in, out]`."""

    name: str
    rows: Callable[[DecoderConfig], Rows] | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A stack of the experts' weights, each a tensor of its own: their name with `{e}` for the expert's number."""

    name: str


@dataclass(frozen=True, slots=True)
class NameMap:
    """Names in a file.

    Attributes:
        layer_prefix: stands before the name of a layer's weight; `{i}` is the layer's number.
        layer: the flow's name of a layer's weight (`self_attn.q_proj`) to the file's, both without `.weight`.
        whole: the same for the weights outside of layers, with `.weight`.
        unread: patterns of names that some files carry and the computation does not read.
        bare: as `layer`, for the keys that stand for themselves, without `.weight`.
    """

    layer_prefix: str
    layer: Mapping[str, str | Fused | Experts]
    whole: Mapping[str, str]
    unread: tuple[str, ...] = field(default=())
    bare: Mapping[str, str] = field(default_factory=dict[str, str])

    def expand(self, config: DecoderConfig) -> dict[str, str | TensorPart | TensorStack]:
        """Key of the flow to what the file has for it, for every layer, biases included."""
        names: dict[str, str | TensorPart | TensorStack] = dict(self.whole)
        for index in range(len(config.layers)):
            prefix = self.layer_prefix.format(i=index)
            for part, target in self.layer.items():
                key = f"model.layers.{index}.{part}"
                if isinstance(target, Experts):
                    mlp = config.layers[index].mlp
                    count = mlp.num_experts if isinstance(mlp, MoeConfig) else 0
                    stack = tuple(f"{prefix}{target.name.format(e=expert)}.weight" for expert in range(count))
                    if stack:
                        names[f"{key}.weight"] = TensorStack(stack)
                    continue
                for kind in ("weight", "bias"):
                    names[f"{key}.{kind}"] = _target(prefix, target, kind, config)
            names.update({f"model.layers.{index}.{key}": prefix + name for key, name in self.bare.items()})
        return names

    def with_layer(self, **layer: str | Fused | Experts) -> NameMap:
        """A copy with other names of some weights of a layer; `__` stands for the dot in a name."""
        return replace(self, layer={**self.layer, **{key.replace("__", "."): name for key, name in layer.items()}})


def _target(prefix: str, target: str | Fused, kind: str, config: DecoderConfig) -> str | TensorPart:
    if isinstance(target, str):
        return f"{prefix}{target}.{kind}"
    rows = None if target.rows is None else target.rows(config)
    return TensorPart(f"{prefix}{target.name}.{kind}", rows, target.transposed)


def split_qkv(part: str) -> Callable[[DecoderConfig], Rows]:
    """The rows of q, k or v where a tensor holds them one after another."""

    def rows(config: DecoderConfig) -> Rows:
        attention = config.layers[0].attention
        q, kv = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        return {"q": ((0, q),), "k": ((q, q + kv),), "v": ((q + kv, q + 2 * kv),)}[part]

    return rows


def split_heads(part: str) -> Callable[[DecoderConfig], Rows]:
    """The rows of q, k or v where a tensor holds q, k and v of the first head, then of the second, and so on."""

    def rows(config: DecoderConfig) -> Rows:
        attention, offset = config.layers[0].attention, "qkv".index(part)
        size = attention.head_dim
        return tuple(
            ((3 * head + offset) * size, (3 * head + offset + 1) * size) for head in range(attention.num_heads)
        )

    return rows


def split_query_gate(part: str) -> Callable[[DecoderConfig], Rows]:
    """The rows of the queries or of the output gate where a tensor holds both of a head, one head after another."""

    def rows(config: DecoderConfig) -> Rows:
        attention, offset = config.layers[0].attention, ("query", "gate").index(part)
        starts = [(2 * head + offset) * attention.head_dim for head in range(attention.num_heads)]
        return tuple((start, start + attention.head_dim) for start in starts)

    return rows


def split_gate_up(part: str) -> Callable[[DecoderConfig], Rows]:
    """The rows of gate or up where a tensor holds gate above up."""

    def rows(config: DecoderConfig) -> Rows:
        size = config.layers[0].mlp.intermediate_size
        return ((0, size),) if part == "gate" else ((size, 2 * size),)

    return rows


def keys_of(config: DecoderConfig, head: bool = True) -> Iterator[str]:
    """Every key that the flow of a configuration reads, with or without its head."""
    yield "model.embed_tokens.weight"
    if head and not config.tied:
        yield "lm_head.weight"
    if config.learned_positions is not None:
        yield "model.position_embeddings.weight"
    if config.per_layer is not None:
        parts = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
        yield from (f"model.{part}.weight" for part in parts)
    yield from _norm_keys("model.norm", config)
    norms = config.norms
    for index, layer in enumerate(config.layers):
        prefix, attention = f"model.layers.{index}.", layer.attention
        for norm in (norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp):
            if norm is not None:
                yield from _norm_keys(prefix + norm, config)
        yield from _linear_attention_keys(prefix) if layer.linear else _attention_keys(prefix, attention)
        if config.per_layer is not None:
            parts = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
            yield from (f"{prefix}{part}.weight" for part in parts)
        if config.layer_scalars:
            yield f"{prefix}layer_scalar"
        if isinstance(layer.mlp, MoeConfig):
            yield f"{prefix}mlp.router.weight"
            yield from (f"{prefix}mlp.experts.{part}_proj.weight" for part in ("gate", "up", "down"))
            continue
        for part in ("gate", "up", "down"):
            if part != "gate" or "glu" in layer.mlp.kind:
                yield from _linear_keys(f"{prefix}mlp.{part}_proj", layer.mlp.bias)


def unread_keys_of(config: DecoderConfig) -> Iterator[str]:
    """Keys that files of a configuration may carry and its flow does not read."""
    if config.tied:  # the head once more
        yield "lm_head.weight"
    for index, layer in enumerate(config.layers):
        if layer.attention.kv_layer is not None:
            for part in ("k_proj", "v_proj", "k_norm"):
                yield from _linear_keys(f"model.layers.{index}.self_attn.{part}", bias=True)


def _attention_keys(prefix: str, attention: AttentionConfig) -> Iterator[str]:
    own = "" if attention.kv_layer is not None else "k" if attention.k_eq_v else "kv"
    for letter in f"q{own}o":
        bias = attention.o_bias if letter == "o" else attention.qkv_bias
        yield from _linear_keys(f"{prefix}self_attn.{letter}_proj", bias)
    if attention.qk_norm != "none":
        yield from (f"{prefix}self_attn.{letter}_norm.weight" for letter in f"q{own[:1]}")
    if attention.output_gate:
        yield from _linear_keys(f"{prefix}self_attn.gate_proj", attention.qkv_bias)


def _linear_attention_keys(prefix: str) -> Iterator[str]:
    yield from (f"{prefix}linear_attn.{part}.weight" for part in LINEAR_ATTENTION_PARTS)
    yield from (prefix + key for key in LINEAR_ATTENTION_NUMBERS)


def _norm_keys(name: str, config: DecoderConfig) -> Iterator[str]:
    yield from _linear_keys(name, config.norm.layer_norm)


def _linear_keys(name: str, bias: bool) -> Iterator[str]:
    yield f"{name}.weight"
    if bias:
        yield f"{name}.bias"


LINEAR_ATTENTION_PARTS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "conv1d", "norm", "out_proj")
LINEAR_ATTENTION_NUMBERS = ("linear_attn.A_log", "linear_attn.dt_bias")
"""One for each value head."""
LAYER_PARTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
HF_NAMES = NameMap(
    "model.layers.{i}.",
    {part: part for part in LAYER_PARTS},
    {key: key for key in ("model.embed_tokens.weight", "model.norm.weight", "model.norm.bias", "lm_head.weight")},
    unread=("*.rotary_emb.inv_freq",),
)
"""A Hugging Face folder whose names are Llama's."""

GGUF_NAMES = NameMap(
    "blk.{i}.",
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.router": "ffn_gate_inp",
        **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
    },
    {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.position_embeddings.weight": "position_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.norm.bias": "output_norm.bias",
        "lm_head.weight": "output.weight",
    },
    unread=("rope_freqs.weight",),
)
"""A GGUF file of a model with Llama's two norms."""

GGUF_SANDWICH_NAMES = GGUF_NAMES.with_layer(
    post_attention_layernorm="post_attention_norm",
    pre_feedforward_layernorm="ffn_norm",
    post_feedforward_layernorm="post_ffw_norm",
)
"""A GGUF file of a model that norms what attention and MLP give."""

HF_HYBRID_NAMES = replace(
    HF_NAMES.with_layer(
        self_attn__q_proj=Fused("self_attn.q_proj", split_query_gate("query")),
        self_attn__gate_proj=Fused("self_attn.q_proj", split_query_gate("gate")),
        **{f"linear_attn__{part}": f"linear_attn.{part}" for part in LINEAR_ATTENTION_PARTS},
    ),
    bare={key: key for key in LINEAR_ATTENTION_NUMBERS},
    unread=(*HF_NAMES.unread, "mtp.*"),
)
"""A Hugging Face folder of Qwen3.5."""

GGUF_HYBRID_NAMES = replace(
    GGUF_NAMES.with_layer(
        post_attention_layernorm="post_attention_norm",
        self_attn__q_proj=Fused("attn_q", split_query_gate("query")),
        self_attn__gate_proj=Fused("attn_q", split_query_gate("gate")),
        linear_attn__in_proj_qkv="attn_qkv",
        linear_attn__in_proj_z="attn_gate",
        linear_attn__in_proj_b="ssm_beta",
        linear_attn__in_proj_a="ssm_alpha",
        linear_attn__conv1d="ssm_conv1d",
        linear_attn__norm="ssm_norm",
        linear_attn__out_proj="ssm_out",
    ),
    bare=dict(zip(LINEAR_ATTENTION_NUMBERS, ("ssm_a", "ssm_dt.bias"), strict=True)),
)
"""A GGUF file of Qwen3.5."""


def under(prefix: str, names: NameMap, unread: tuple[str, ...]) -> NameMap:
    """The same names below `prefix` in place of `model.`, beside other parts of a larger model."""
    return replace(
        names,
        layer_prefix=names.layer_prefix.replace("model.", prefix, 1),
        whole={key: name.replace("model.", prefix, 1) for key, name in names.whole.items()},
        unread=(*names.unread, *unread),
    )
