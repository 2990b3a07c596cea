"""A family of encoders: which checkpoints belong to it, how their configuration is read, what their weights are called.

In: an open checkpoint. Out: its `EncoderRecipe`. Every field of a config.json is read, known to carry no computation,
or refused by name and value. Next: `encoders.py`, which lists the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from rlx.errors import UnsupportedModelError
from rlx.flow.tensor_part import TensorPart
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.io.sentence_transformers import SentenceSettings, read_sentence_settings
from rlx.models.encoder import WORDS, EncoderConfig, encoder_flow, encoder_keys
from rlx.models.encoder_head import ClassifierHead, Head, head_keys
from rlx.models.encoder_names import BERT_NAMES, EncoderNames
from rlx.models.fields import Fields
from rlx.models.pooled import pool_head, width_of, with_dense_weights
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
GATED_ACTIVATIONS = {name: op for name, op in ACTIVATIONS.items() if op not in ("relu", "tanh")}
"""Those that stand before a gate."""


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """A family of encoders.

    Attributes:
        model_type: `model_type` of its config.json.
        classes: `architectures` of config.json that embed.
        classifier: the one that scores texts or pairs of texts.
        from_hf: reads a config.json.
        head: the classifier's head, from config.json; its number of labels is the file's.
        names: names in a Hugging Face folder.
        prefix: stands before every name where the encoder is a part of a larger model.
        unread: names of tensors that some files carry and an embedding does not read.
        defaults: what transformers assumes where config.json is silent, if that is not what most configurations assume.
        no_computation, neutral: further fields of its config.json that carry none, and the values that change nothing.
    """

    model_type: str
    classes: tuple[str, ...]
    classifier: str
    from_hf: Callable[[Fields], EncoderConfig]
    head: Callable[[Fields], ClassifierHead]
    prefix: str
    names: EncoderNames = BERT_NAMES
    unread: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    no_computation: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])

    def recipe(self, checkpoint: Checkpoint) -> EncoderRecipe:
        """The recipe of a checkpoint of this family.

        Raises:
            UnsupportedModelError: the checkpoint asks for something RLX does not implement.
        """
        config, classifier = self.read_hf(checkpoint)
        found = {_today(name): name for name in checkpoint.tensors}
        prefix = self.prefix if self.prefix + self.names.whole[WORDS] in found else ""
        said = read_sentence_settings(checkpoint.path)
        settings = said or SentenceSettings()
        names = self.names.expand(config, prefix)
        unread = self.unread + tuple(prefix + pattern for pattern in self.unread)
        if classifier is not None:
            names |= _classifier_names(classifier, prefix)
        head: Head
        if classifier is not None and (said is None or not said.pooling):
            labels = checkpoint.tensors.get(f"{classifier.out}.weight")
            head = replace(classifier, labels=labels.shape[0] if labels is not None and labels.shape else 1)
        else:
            head = pool_head(settings, str(checkpoint.path))
            unread += () if classifier is None else tuple(names[key].name for key in head_keys(classifier))
        names = {key: replace(part, name=found.get(part.name, part.name)) for key, part in names.items()}
        read = {names[key].name for key in (*encoder_keys(config), *head_keys(head))}
        refuse_unread_tensors(checkpoint, read, unread)
        return encoder_recipe(self.model_type, config, head, MappedWeights(checkpoint, names), settings, checkpoint)

    def read_hf(self, checkpoint: Checkpoint) -> tuple[EncoderConfig, ClassifierHead | None]:
        """The configuration of a Hugging Face folder, and its head, with the labels to be counted, if it classifies.

        Raises:
            UnsupportedModelError: a field is missing, malformed, unknown, or asks for another computation.
        """
        fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json", defaults=self.defaults)
        classes = fields.get("architectures")
        name = cast("list[object]", classes)[0] if isinstance(classes, list) and classes else None
        if name not in (None, self.classifier, *self.classes):
            fields.refuse("architectures", " or ".join((*self.classes, self.classifier)))
        config = self.from_hf(fields)
        if config.hidden_size % config.num_heads:
            fields.refuse("num_attention_heads", f"a divisor of {config.hidden_size}")
        if config.rope and config.head_dim % 2:
            fields.refuse("num_attention_heads", "heads of an even width, since RoPE rotates pairs")
        head = self.head(fields) if name == self.classifier else None
        harmless = NO_COMPUTATION | self.no_computation
        fields.refuse_unread(lambda name: name in harmless, {**NEUTRAL, **self.neutral})
        return config, head


def _classifier_names(head: ClassifierHead, prefix: str) -> dict[str, TensorPart]:
    """The names of a classifier's weights; a pooler is a part of the encoder."""
    before = {head.dense: prefix if head.dense.startswith("pooler") else "", head.out: ""}
    before |= {} if head.norm is None else {head.norm: ""}
    return {
        f"{part}.{kind}": TensorPart(f"{place}{part}.{kind}")
        for part, place in before.items()
        for kind in ("weight", "bias")
    }


def _today(name: str) -> str:
    """What transformers calls a tensor today; the first BERTs call weight and bias of a norm gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _function(checkpoint: Checkpoint, head: Head, said: str | None) -> str:
    """What a cross-encoder applies to its scores: what the folder says, or a sigmoid for one score."""
    if not isinstance(head, ClassifierHead):
        return "identity"
    table = checkpoint.metadata.get("sentence_transformers")
    older = cast("Mapping[str, object]", table).get("activation_fn") if isinstance(table, Mapping) else None
    found = said or older or checkpoint.metadata.get("sbert_ce_default_activation_function")
    if found is None:
        return "sigmoid" if head.labels == 1 else "identity"
    name = str(found).rsplit(".", 1)[-1]
    if name not in ("Sigmoid", "Identity"):
        raise UnsupportedModelError(
            "RLX cannot apply this function to scores",
            where=f"{checkpoint.path}/config.json",
            found=str(found),
            expected="Sigmoid or Identity",
        )
    return name.lower()


def encoder_recipe(
    architecture: str,
    config: EncoderConfig,
    head: Head,
    weights: MappedWeights,
    settings: SentenceSettings,
    checkpoint: Checkpoint,
) -> EncoderRecipe:
    """The recipe of an encoder with this head."""
    limit = min(settings.max_tokens or config.max_tokens, config.max_tokens)
    return EncoderRecipe(
        architecture=architecture,
        flow=encoder_flow(config, head, architecture),
        weights=with_dense_weights(weights, settings),
        vocab_size=config.vocab_size,
        width=head.labels if isinstance(head, ClassifierHead) else width_of(settings, config.hidden_size),
        num_layers=config.num_layers,
        token_types=config.token_types,
        labels=head.labels if isinstance(head, ClassifierHead) else 0,
        score_function=_function(checkpoint, head, settings.score_function),
        settings=replace(settings, max_tokens=limit),
    )
