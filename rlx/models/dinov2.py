"""DINOv2, with and without registers. Sources: Oquab et al. 2023, Darcet et al. 2023; transformers' modeling_dinov2 and
modeling_dinov2_with_registers.

In: an open Hugging Face folder. Out: its `ImageRecipe`. A picture's vector is its CLS token behind the last norm. The
positions of another grid are an average over the learned ones only in the form with registers. Next: `dinov2_onnx.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.patch_embed import FirstAndMeanStage
from rlx.flow.blocks.pooling import PoolStage
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.stage import BlockStage
from rlx.flow.tensor_part import TensorPart
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

CLASSES = {
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
}
LAYER_NAMES = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "norm1": "norm1",
    "norm2": "norm2",
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
}
PLAIN_MLP = {"up": "mlp.fc1", "down": "mlp.fc2"}
GATED_MLP = {"gate": "mlp.weights_in", "up": "mlp.weights_in", "down": "mlp.weights_out"}


def dinov2_from_hf(fields: Fields) -> TowerConfig:
    """config.json of a DINOv2; a gated MLP has two thirds of the width inside that a plain one has."""
    hidden, gated = fields.integer("hidden_size", 768), fields.flag("use_swiglu_ffn")
    inner = int(hidden * fields.number("mlp_ratio", 4))
    config = TowerConfig(
        hidden_size=hidden,
        intermediate_size=(int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner,
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=fields.integer("num_attention_heads", 12),
        norm_eps=fields.number("layer_norm_eps", 1e-6),
        activation=fields.choice("hidden_act", IMAGE_ACTIVATIONS, "gelu"),
        qkv_bias=fields.flag("qkv_bias", True),
        layer_scale=True,
        gated=gated,
    )
    return check_heads(fields, config)


def dinov2_recipe(checkpoint: Checkpoint) -> ImageRecipe:
    """The recipe of a DINOv2, with registers or without.

    Raises:
        UnsupportedModelError: the checkpoint asks for something RLX does not implement.
    """
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
    kind = fields.text("model_type", "dinov2")
    classifies = class_of(fields, CLASSES[kind], CLASSES[kind][0]) == CLASSES[kind][1]
    config, has_registers = dinov2_from_hf(fields), kind == "dinov2_with_registers"
    registers = fields.integer("num_register_tokens", 4, minimum=0) if has_registers else 0
    patch_size = 16 if has_registers else 14
    look = ImageSide(image_size=224, patch_size=patch_size, registers=registers, antialias=has_registers)
    side = image_side(fields, look)
    prefix = f"{kind}." if classifies or f"{kind}.embeddings.cls_token" in checkpoint.tensors else ""
    names, labels, width = prefixed(dinov2_names(config, side), prefix), (), config.hidden_size
    head: BlockStage = PoolStage("first")
    if classifies:
        labels = labels_of(fields, checkpoint, "classifier.weight")
        names |= named(linear_shapes("head.dense", len(labels), 2 * width), {"head.dense": "classifier"})
        head = SequenceStage(FirstAndMeanStage(side.prefix), LinearStage("head.dense.weight", bias=True))
        width = len(labels)
    refuse_unread(fields)
    refuse_unread_tensors(checkpoint, {part.name for part in names.values()}, (f"{prefix}embeddings.mask_token",))
    return image_recipe(kind, checkpoint, config, side, names, head, width, labels)


def dinov2_names(config: TowerConfig, side: ImageSide) -> dict[str, TensorPart]:
    """Key of every weight to its tensor in a Hugging Face folder, and in what was exported from one."""
    mlp = GATED_MLP if config.gated else PLAIN_MLP
    names = tower_names(config, "encoder.layer.{i}.", LAYER_NAMES | mlp, "layernorm")
    for key, part in names.items() if config.gated else ():
        if ".gate." in key or ".up." in key:
            # one tensor holds the gate, then what it multiplies
            inner, *rest = part.stored or (0,)
            start = 0 if ".gate." in key else inner
            names[key] = replace(part, rows=((start, start + inner),), stored=(2 * inner, *rest))
    cls = ("embeddings.cls_token", (1, 1, config.hidden_size))
    names |= image_names(
        config, side, "embeddings.patch_embeddings.projection", cls, ("embeddings.position_embeddings", 3)
    )
    if side.registers:
        shown = (side.registers, config.hidden_size)
        names["registers"] = TensorPart("embeddings.register_tokens", stored=(1, *shown), shown=shown)
    return names
