"""A family of decoders: which checkpoints belong to it, how their configuration is read, what their weights are called.

In: an open checkpoint. Out: its recipe. A family is one file that makes a `Family`; `registry.py` lists them. Next:
`hf_config.py` and `gguf_config.py`, which read what most configurations share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from rlx.errors import UnsupportedModelError
from rlx.flow.tensor_part import TensorPart, TensorStack
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.models.decoder import DecoderConfig, decoder_flow
from rlx.models.fields import Fields
from rlx.models.gguf_config import refuse_unread_gguf
from rlx.models.hf_config import refuse_unread_hf
from rlx.models.names import GGUF_NAMES, HF_NAMES, NameMap, keys_of, unread_keys_of
from rlx.models.recipe import ModelRecipe
from rlx.models.unread import refuse_unread_tensors

ReadHf: TypeAlias = "Callable[[Fields], DecoderConfig]"
ReadGguf: TypeAlias = "Callable[[Fields, Checkpoint], DecoderConfig]"


@dataclass(frozen=True, slots=True)
class Family:
    """A family of decoders.

    Attributes:
        model_type: `model_type` of its config.json.
        classes: the heads in `architectures` of config.json that give logits of the next token.
        from_hf: reads a config.json.
        defaults: what transformers assumes where config.json is silent, if that is not what most configurations assume.
        names: names in a Hugging Face folder.
        gguf: `general.architecture` of its GGUF files; none if llama.cpp does not know it.
        from_gguf: reads GGUF metadata.
        gguf_names: names in a GGUF file.
    """

    model_type: str
    classes: Sequence[str]
    from_hf: ReadHf
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    names: NameMap = HF_NAMES
    gguf: str | None = None
    from_gguf: ReadGguf | None = None
    gguf_names: NameMap = GGUF_NAMES

    def recipe(self, checkpoint: Checkpoint, context_length: int | None = None) -> ModelRecipe:
        """The recipe of a checkpoint of this family.

        Args:
            checkpoint: the open file or folder.
            context_length: most positions of a sequence; None for what the model was made for.

        Raises:
            UnsupportedModelError: the checkpoint asks for something RLX does not implement.
        """
        is_gguf = checkpoint.kind == "gguf"
        config = self.read_gguf(checkpoint) if is_gguf else self.read_hf(checkpoint)
        if context_length is not None:
            config = _with_context(config, context_length, str(checkpoint.path))
        name_map = self.gguf_names if is_gguf else self.names
        names = name_map.expand(config)
        _refuse_unread_tensors(checkpoint, config, name_map, names)
        attention = config.layers[0].attention
        architecture = self.gguf if is_gguf and self.gguf is not None else self.model_type
        return ModelRecipe(
            architecture=architecture,
            flow=decoder_flow(config, architecture),
            weights=MappedWeights(checkpoint, names),
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            num_layers=len(config.layers),
            hidden_size=config.hidden_size,
            num_heads=attention.num_heads,
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
        )

    def read_hf(self, checkpoint: Checkpoint, body: bool = False) -> DecoderConfig:
        """The configuration of a Hugging Face folder, as transformers 4 or 5 writes it.

        Args:
            checkpoint: the open folder.
            body: what stands before the head will do, and it may look both ways.

        Raises:
            UnsupportedModelError: a field is missing, malformed, unknown, or asks for another computation.
        """
        fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json", defaults=self.defaults)
        classes = fields.get("architectures")
        allowed = (*self.classes, *self._bodies()) if body else self.classes
        if isinstance(classes, list) and classes and classes[0] not in allowed:
            fields.refuse("architectures", " or ".join(allowed))
        config = self.from_hf(fields)
        if not body and any(layer.attention.bidirectional for layer in config.layers):
            fields.refuse("use_bidirectional_attention", "false in a model that writes text")
        refuse_unread_hf(fields)
        return config

    def _bodies(self) -> tuple[str, ...]:
        """What transformers calls the models without their heads."""
        stems = [name.removesuffix("ForCausalLM") for name in self.classes]
        return tuple(f"{stem}{kind}" for stem in stems for kind in ("Model", "TextModel"))

    def read_gguf(self, checkpoint: Checkpoint) -> DecoderConfig:
        """The configuration of a GGUF file.

        Raises:
            UnsupportedModelError: a field is missing, malformed, unknown, or asks for another computation.
        """
        if self.from_gguf is None or self.gguf is None:
            raise UnsupportedModelError("this family has no GGUF files", where=str(checkpoint.path))
        fields = Fields(checkpoint.metadata, str(checkpoint.path), f"{self.gguf}.")
        config = self.from_gguf(fields, checkpoint)
        refuse_unread_gguf(fields)
        return config


def _with_context(config: DecoderConfig, context_length: int, where: str) -> DecoderConfig:
    longest = config.context_length if config.longer is None else config.longer[1]
    if not 1 <= context_length <= longest:
        raise UnsupportedModelError(
            "the context length asked for is beyond what this model is exact for",
            where=where,
            found=context_length,
            expected=f"1 to {longest}",
        )
    if config.longer is not None and context_length > config.context_length:
        config = replace(config, rope=config.longer[0])
    return replace(config, context_length=context_length)


def _refuse_unread_tensors(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    name_map: NameMap,
    names: Mapping[str, str | TensorPart | TensorStack],
) -> None:
    """A tensor that the flow would not read means that the model computes something else."""
    read: set[str] = set()
    for key in keys_of(config):
        target = names.get(key)
        if target is not None:
            read.update((target,) if isinstance(target, str) else target.names)
    unread = (*name_map.unread, *(str(names.get(key)) for key in unread_keys_of(config)))
    behind = range(len(config.layers), len(config.layers) + config.unread_layers)
    unread = (*unread, *(f"{name_map.layer_prefix.format(i=index)}*" for index in behind))
    refuse_unread_tensors(checkpoint, read, unread)
