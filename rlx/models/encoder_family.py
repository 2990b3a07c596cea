"""A family of encoders: which checkpoints belong to it, how their configuration is read, what their weights are called.

In: an open checkpoint. Out: its `EncoderRecipe`. Every field of a config.json is read, known to carry no computation,
or refused by name and value. Next: `encoders.py`, which lists the families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from rlx.errors import UnsupportedModelError
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.io.sentence_transformers import SentenceSettings, read_sentence_settings
from rlx.models.encoder import (
    EMBEDDING_NORM,
    POSITIONS,
    TYPES,
    WORDS,
    ClassifierHead,
    EncoderConfig,
    Head,
    PoolHead,
    encoder_flow,
)
from rlx.models.fields import Fields
from rlx.models.recipe import EncoderRecipe
from rlx.models.unread import refuse_unread_tensors

# Fields that carry no computation: what a checkpoint is called, how it was trained, what its labels mean.
NO_COMPUTATION = frozenset(
    (
        "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout",
        "attention_probs_dropout_prob", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout",
        "directionality", "dropout", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing",
        "hidden_dropout_prob", "id2label", "initializer_range", "label2id", "model_type", "output_attentions",
        "output_hidden_states", "output_past", "pad_token_id", "pooler_fc_size", "pooler_num_attention_heads",
        "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "problem_type", "qa_dropout", "return_dict",
        "sep_token_id", "seq_classif_dropout", "sinusoidal_pos_embds", "task_specific_params", "tie_weights_",
        "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "unk_token_id",
        "use_bfloat16", "use_cache", "sentence_transformers", "sbert_ce_default_activation_function", "cls_token_id",
        "mask_token_id", "num_labels",
    )
)  # fmt: skip

# Fields with the values that change nothing. Any other value asks for another computation.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Names of activations in configurations, and the ops they are."""


@dataclass(frozen=True, slots=True)
class EncoderNames:
    """Names in a file.

    Attributes:
        layer_prefix: stands before the name of a layer's weight; `{i}` is the layer's number.
        layer: the flow's name of a layer's weight to the file's, both without `.weight` and `.bias`.
        whole: key of the flow to the file's name for the weights outside of layers.
    """

    layer_prefix: str
    layer: Mapping[str, str]
    whole: Mapping[str, str]

    def expand(self, num_layers: int) -> dict[str, str]:
        """Key of the flow to name, for every layer."""
        names = dict(self.whole)
        for index in range(num_layers):
            for part, target in self.layer.items():
                for kind in ("weight", "bias"):
                    names[f"encoder.layer.{index}.{part}.{kind}"] = (
                        f"{self.layer_prefix.format(i=index)}{target}.{kind}"
                    )
        return names


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """A family of encoders.

    Attributes:
        model_type: `model_type` of its config.json.
        classes: `architectures` of config.json that embed.
        classifier: the one that scores texts or pairs of texts.
        from_hf: reads a config.json.
        names: names in a Hugging Face folder.
        head: the classifier's head; its number of labels is the file's.
        prefix: stands before every name where the encoder is a part of a larger model.
        unread: names of tensors that some files carry and an embedding does not read.
    """

    model_type: str
    classes: tuple[str, ...]
    classifier: str
    from_hf: Callable[[Fields], EncoderConfig]
    names: EncoderNames
    head: ClassifierHead
    prefix: str
    unread: tuple[str, ...] = ()

    def recipe(self, checkpoint: Checkpoint) -> EncoderRecipe:
        """The recipe of a checkpoint of this family.

        Raises:
            UnsupportedModelError: the checkpoint asks for something RLX does not implement.
        """
        config, classifies = self.read_hf(checkpoint)
        found = {_today(name): name for name in checkpoint.tensors}
        prefix = self.prefix if self.prefix + WORDS in found else ""
        names = {key: prefix + name for key, name in self.names.expand(config.num_layers).items()}
        settings = read_sentence_settings(checkpoint.path) or SentenceSettings()
        head: Head = PoolHead(settings.pooling, settings.normalize)
        if classifies:
            head, names = self._classifier(checkpoint, names, prefix)
        names = {key: found.get(name, name) for key, name in names.items()}
        unread = self.unread + tuple(prefix + pattern for pattern in self.unread)
        _refuse_unread_tensors(checkpoint, config, head, names, unread)
        return _recipe(
            self.model_type, config, head, MappedWeights(checkpoint, names), settings, _function(checkpoint, head)
        )

    def read_hf(self, checkpoint: Checkpoint) -> tuple[EncoderConfig, bool]:
        """The configuration of a Hugging Face folder, and whether it classifies.

        Raises:
            UnsupportedModelError: a field is missing, malformed, unknown, or asks for another computation.
        """
        fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
        classes = fields.get("architectures")
        name = cast("list[object]", classes)[0] if isinstance(classes, list) and classes else None
        if name not in (None, self.classifier, *self.classes):
            fields.refuse("architectures", " or ".join((*self.classes, self.classifier)))
        config = self.from_hf(fields)
        if config.hidden_size % config.num_heads:
            fields.refuse("num_attention_heads", f"a divisor of {config.hidden_size}")
        fields.refuse_unread(lambda name: name in NO_COMPUTATION, NEUTRAL)
        return config, name == self.classifier

    def _classifier(
        self, checkpoint: Checkpoint, names: dict[str, str], prefix: str
    ) -> tuple[ClassifierHead, dict[str, str]]:
        """The head with its labels counted, and the names with its weights; BERT's pooler is a part of the encoder."""
        head, dense_prefix = self.head, prefix if self.head.dense.startswith("pooler") else ""
        for part, place in ((head.dense, dense_prefix), (head.out, "")):
            names |= {f"{part}.{kind}": f"{place}{part}.{kind}" for kind in ("weight", "bias")}
        table = checkpoint.tensors.get(f"{head.out}.weight")
        return replace(head, labels=table.shape[0] if table is not None and table.shape else 1), names


def _today(name: str) -> str:
    """What transformers calls a tensor today; the first BERTs call weight and bias of a norm gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _keys(config: EncoderConfig, head: Head, names: Mapping[str, str]) -> Iterator[str]:
    """Every key that the flow reads."""
    yield from (WORDS, POSITIONS, EMBEDDING_NORM, EMBEDDING_NORM.replace("weight", "bias"))
    if config.token_types:
        yield TYPES
    yield from (key for key in names if key.startswith("encoder."))
    if isinstance(head, ClassifierHead):
        yield from (f"{part}.{kind}" for part in (head.dense, head.out) for kind in ("weight", "bias"))


def _refuse_unread_tensors(
    checkpoint: Checkpoint, config: EncoderConfig, head: Head, names: Mapping[str, str], unread: tuple[str, ...]
) -> None:
    """A tensor that the flow would not read means that the model computes something else."""
    read = {names[key] for key in _keys(config, head, names)}
    refuse_unread_tensors(checkpoint, read, unread)


def _function(checkpoint: Checkpoint, head: Head) -> str:
    """What a cross-encoder applies to its scores: what config.json says, or a sigmoid for one score."""
    if not isinstance(head, ClassifierHead):
        return "identity"
    table = checkpoint.metadata.get("sentence_transformers")
    said = cast("Mapping[str, object]", table).get("activation_fn") if isinstance(table, Mapping) else None
    said = said or checkpoint.metadata.get("sbert_ce_default_activation_function")
    if said is None:
        return "sigmoid" if head.labels == 1 else "identity"
    name = str(said).rsplit(".", 1)[-1]
    if name not in ("Sigmoid", "Identity"):
        raise UnsupportedModelError(
            "RLX cannot apply this function to scores",
            where=f"{checkpoint.path}/config.json",
            found=str(said),
            expected="Sigmoid or Identity",
        )
    return name.lower()


def _recipe(
    architecture: str,
    config: EncoderConfig,
    head: Head,
    weights: MappedWeights,
    settings: SentenceSettings,
    function: str,
) -> EncoderRecipe:
    limit = min(settings.max_tokens or config.max_tokens, config.max_tokens)
    return EncoderRecipe(
        architecture=architecture,
        flow=encoder_flow(config, head, architecture),
        weights=weights,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        token_types=config.token_types,
        labels=head.labels if isinstance(head, ClassifierHead) else 0,
        score_function=function,
        settings=replace(settings, max_tokens=limit),
    )
