"""What a checkpoint calls the weights of an encoder.

In: an `EncoderNames`, which a family writes beside its configuration. Out: key of the flow to name in the file. The
flow's keys are those of `encoder.py`. Next: `encoder_family.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlx.flow.tensor_part import TensorPart
from rlx.models.encoder import EMBEDDING_NORM, FINAL_NORM, POSITIONS, TYPES, WORDS, EncoderConfig

Rows = tuple[tuple[int, int], ...]

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
"""The parts of a layer as the flow calls them; one with a gate has `intermediate.gate` too."""


@dataclass(frozen=True, slots=True)
class Rowed:
    """A weight that is some rows of a tensor: its name, and which rows."""

    name: str
    rows: Callable[[EncoderConfig], Rows]


@dataclass(frozen=True, slots=True)
class EncoderNames:
    """Names in a file.

    Attributes:
        layer_prefix: stands before the name of a layer's weight; `{i}` is the layer's number.
        layer: the flow's name of a layer's weight to the file's, both without `.weight` and `.bias`.
        whole: the same for the weights outside of layers, with `.weight`.
    """

    layer_prefix: str
    layer: Mapping[str, str | Rowed]
    whole: Mapping[str, str]

    def expand(self, config: EncoderConfig, prefix: str = "") -> dict[str, TensorPart]:
        """Key of the flow to what the file has for it, for every layer, biases included."""
        names = {key: TensorPart(prefix + name) for key, name in self.whole.items()}
        names |= {_bias(key): TensorPart(prefix + _bias(name)) for key, name in self.whole.items()}
        for index in range(config.num_layers):
            before = prefix + self.layer_prefix.format(i=index)
            for part, target in self.layer.items():
                name, rows = (target, None) if isinstance(target, str) else (target.name, target.rows(config))
                for kind in ("weight", "bias"):
                    names[f"encoder.layer.{index}.{part}.{kind}"] = TensorPart(f"{before}{name}.{kind}", rows)
        return names


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def layer_names(*names: str | Rowed, gate: str | Rowed | None = None) -> dict[str, str | Rowed]:
    """The names of `LAYER_PARTS`, in order, and that of the gate."""
    gates: dict[str, str | Rowed] = {} if gate is None else {"intermediate.gate": gate}
    return {**dict(zip(LAYER_PARTS, names, strict=True)), **gates}


def fused_qkv(name: str) -> tuple[Rowed, Rowed, Rowed]:
    """q, k and v where a tensor holds all of q, then of k, then of v."""

    def rows(index: int) -> Callable[[EncoderConfig], Rows]:
        return lambda config: ((index * config.hidden_size, (index + 1) * config.hidden_size),)

    return Rowed(name, rows(0)), Rowed(name, rows(1)), Rowed(name, rows(2))


def fused_gate_up(name: str) -> tuple[Rowed, Rowed]:
    """gate and up where a tensor holds the gate above."""

    def rows(index: int) -> Callable[[EncoderConfig], Rows]:
        return lambda config: ((index * config.intermediate_size, (index + 1) * config.intermediate_size),)

    return Rowed(name, rows(0)), Rowed(name, rows(1))


BERT_WHOLE = {name: name for name in (WORDS, POSITIONS, TYPES, EMBEDDING_NORM)}
BERT_NAMES = EncoderNames("encoder.layer.{i}.", layer_names(*LAYER_PARTS), BERT_WHOLE)
"""A Hugging Face folder whose names are BERT's."""

GGUF_WHOLE = {
    WORDS: "token_embd.weight",
    POSITIONS: "position_embd.weight",
    TYPES: "token_types.weight",
    EMBEDDING_NORM: "token_embd_norm.weight",
    FINAL_NORM: "output_norm.weight",
}
GGUF_NAMES = EncoderNames(
    "blk.{i}.",
    layer_names(
        "attn_q", "attn_k", "attn_v", "attn_output", "attn_output_norm", "ffn_up", "ffn_down", "layer_output_norm"
    ),
    GGUF_WHOLE,
)
"""A GGUF file of an encoder that norms after each residual."""
