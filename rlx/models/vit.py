"""ViT: the vision transformer. Sources: Dosovitskiy et al. 2020; transformers' modeling_vit.

In: an open Hugging Face folder. Out: its `ImageRecipe`. A picture's vector is what `ViTModel` calls `pooler_output`, or
the CLS token where the file has no pooler. Next: `dinov2.py`.
"""

from __future__ import annotations

from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.pooling import PoolStage
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.stage import BlockStage
from rlx.io.checkpoint import Checkpoint
from rlx.models.fields import Fields
from rlx.models.image_family import (
    IMAGE_ACTIVATIONS,
    check_heads,
    class_of,
    image_names,
    image_recipe,
    image_side,
    labels_of,
    named,
    prefixed,
    refuse_unread,
    tower_names,
)
from rlx.models.recipe import ImageRecipe
from rlx.models.tower import ImageSide, TowerConfig, linear_shapes
from rlx.models.unread import refuse_unread_tensors

CLASSIFIER = "ViTForImageClassification"
CLASSES = ("ViTModel", CLASSIFIER)
KIND = ImageSide(image_size=224, patch_size=16)
LAYER_NAMES = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def vit_from_hf(fields: Fields) -> TowerConfig:
    """config.json of a ViT."""
    config = TowerConfig(
        hidden_size=fields.integer("hidden_size", 768),
        intermediate_size=fields.integer("intermediate_size", 3072),
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=fields.integer("num_attention_heads", 12),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=fields.choice("hidden_act", IMAGE_ACTIVATIONS, "gelu"),
        qkv_bias=fields.flag("qkv_bias", True),
    )
    return check_heads(fields, config)


def vit_recipe(checkpoint: Checkpoint) -> ImageRecipe:
    """The recipe of a ViT.

    Raises:
        UnsupportedModelError: the checkpoint asks for something RLX does not implement.
    """
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
    classifies = class_of(fields, CLASSES, CLASSES[0]) == CLASSIFIER
    config, side = vit_from_hf(fields), image_side(fields, KIND)
    pooler_size = fields.integer("pooler_output_size", config.hidden_size)
    pooler = fields.choice("pooler_act", IMAGE_ACTIVATIONS, "tanh")
    prefix = "vit." if classifies or "vit.embeddings.cls_token" in checkpoint.tensors else ""
    names = tower_names(config, "encoder.layer.{i}.", LAYER_NAMES, "layernorm")
    cls = ("embeddings.cls_token", (1, 1, config.hidden_size))
    names |= image_names(
        config, side, "embeddings.patch_embeddings.projection", cls, ("embeddings.position_embeddings", 3)
    )
    names, labels, width = prefixed(names, prefix), (), config.hidden_size
    stages: list[BlockStage] = []
    if classifies:
        labels = labels_of(fields, checkpoint, "classifier.weight")
        names |= named(linear_shapes("head.dense", len(labels), width), {"head.dense": "classifier"})
        stages.append(LinearStage("head.dense.weight", bias=True))
        width = len(labels)
    elif f"{prefix}pooler.dense.weight" in checkpoint.tensors:
        names |= named(linear_shapes("head.dense", pooler_size, width), {"head.dense": f"{prefix}pooler.dense"})
        stages += [LinearStage("head.dense.weight", bias=True), ActivationStage(pooler)]
        width = pooler_size
    refuse_unread(fields)
    refuse_unread_tensors(checkpoint, {part.name for part in names.values()}, (f"{prefix}embeddings.mask_token",))
    head = SequenceStage(PoolStage("first"), *stages)
    return image_recipe("vit", checkpoint, config, side, names, head, width, labels)
