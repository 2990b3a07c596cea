"""CLIP: images and texts in one space. Sources: Radford et al. 2021; transformers' modeling_clip.

In: an open Hugging Face folder with both towers, or with one. Out: a `PairRecipe`, or the recipe of the tower. A
text's vector is read at its end token, behind which nothing matters, since no row sees a later one. Next: `siglip.py`.
"""

from __future__ import annotations

from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.pooling import NormalizeStage, PoolStage
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
    norm_names,
    prefixed,
    refuse_unread,
    scalar,
    text_names,
    text_recipe,
    tower_names,
)
from rlx.models.recipe import EncoderRecipe, ImageRecipe, PairRecipe
from rlx.models.tower import ImageSide, TextSide, TowerConfig, linear_shapes
from rlx.models.unread import refuse_unread_tensors

KIND = ImageSide(image_size=224, patch_size=32, patch_bias=False, first_norm=True)
CLASSIFIER = "CLIPForImageClassification"
LAYER_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
"""A layer's parts; SigLIP has the same."""
UNREAD = ("*position_ids",)
"""Buffers that older files carry."""
LEGACY_END = 2
"""The end token in the configurations of the first CLIPs; it stands for the largest token of the text."""


def clip_tower(fields: Fields, hidden: int, inner: int, heads: int, **facts: bool) -> TowerConfig:
    """The fields that both towers have, with the sizes that are meant where they are absent."""
    config = TowerConfig(
        hidden_size=fields.integer("hidden_size", hidden),
        intermediate_size=fields.integer("intermediate_size", inner),
        num_layers=fields.integer("num_hidden_layers", 12),
        num_heads=fields.integer("num_attention_heads", heads),
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        activation=fields.choice("hidden_act", IMAGE_ACTIVATIONS, "quick_gelu"),
        **facts,
    )
    return check_heads(fields, config)


def clip_recipe(checkpoint: Checkpoint) -> PairRecipe | ImageRecipe | EncoderRecipe:
    """The recipe of a CLIP, or of one of its towers.

    Raises:
        UnsupportedModelError: the checkpoint asks for something RLX does not implement.
    """
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
    kind = fields.text("model_type", "clip")
    if kind == "clip_vision_model":
        return _vision_alone(checkpoint, fields)
    if kind == "clip_text_model":
        return _text_alone(checkpoint, fields)
    if class_of(fields, ("CLIPModel", CLASSIFIER), "CLIPModel") == CLASSIFIER:
        return _classifier(checkpoint, fields)
    width = fields.integer("projection_dim", 512)
    image, image_parts = _vision(checkpoint, part_of(fields, "vision"), "vision_model.", "", width, normalize=True)
    text, text_parts = _text(checkpoint, part_of(fields, "text"), "text_model.", "", width, normalize=True)
    refuse_unread(fields)
    refuse_unread_tensors(checkpoint, image_parts | text_parts | {"logit_scale"}, UNREAD)
    return PairRecipe(image, text, scale=exp_of(checkpoint, "logit_scale"), bias=0.0)


def part_of(fields: Fields, side: str) -> Fields:
    """The configuration of a tower; `text_config_dict` of older files stands for all of `text_config`."""
    name = f"{side}_config"
    table, older = fields.table(name), fields.table(f"{name}_dict")
    return Fields(older or table, f"{fields.where}, {name}")


def exp_of(checkpoint: Checkpoint, name: str) -> float:
    """e to the power of a tensor of one number."""
    import math

    return math.exp(scalar(checkpoint, name))


def _vision(
    checkpoint: Checkpoint, fields: Fields, prefix: str, outer: str, width: int | None, normalize: bool
) -> tuple[ImageRecipe, set[str]]:
    """An image's tower and the tensors it reads; its own width without a projection."""
    config, side, names = _vision_parts(fields, prefix)
    hidden = config.hidden_size
    names |= norm_names("head.norm", f"{prefix}post_layernorm", hidden)
    stages: list[BlockStage] = [PoolStage("first"), LayerNormStage("head.norm.weight", config.norm_eps)]
    if width is not None:
        names |= _projection(f"{outer}visual_projection", width, hidden)
        stages.append(LinearStage("head.projection.weight"))
    head = SequenceStage(*stages, *([NormalizeStage()] if normalize else []))
    recipe = image_recipe("clip", checkpoint, config, side, names, head, width or hidden)
    return recipe, {part.name for part in names.values()}


def _vision_parts(fields: Fields, prefix: str) -> tuple[TowerConfig, ImageSide, dict[str, TensorPart]]:
    config = clip_tower(fields, 768, 3072, 12, last_norm=False)
    side = image_side(fields, KIND)
    fields.get("projection_dim")
    refuse_unread(fields)
    names = tower_names(config, "encoder.layers.{i}.", LAYER_NAMES, "")
    cls = ("embeddings.class_embedding", (config.hidden_size,))
    names |= image_names(config, side, "embeddings.patch_embedding", cls, ("embeddings.position_embedding.weight", 2))
    names |= norm_names("first_norm", "pre_layrnorm", config.hidden_size)
    return config, side, prefixed(names, prefix)


def _text(
    checkpoint: Checkpoint, fields: Fields, prefix: str, outer: str, width: int | None, normalize: bool
) -> tuple[EncoderRecipe, set[str]]:
    """A text's tower and the tensors it reads."""
    config = clip_tower(fields, 512, 2048, 8, causal=True)
    side = TextSide(
        vocab_size=fields.integer("vocab_size", 49408), max_tokens=fields.integer("max_position_embeddings", 77)
    )
    end = fields.integer("eos_token_id", 49407, minimum=0)
    fields.get("projection_dim")
    refuse_unread(fields)
    names = tower_names(config, "encoder.layers.{i}.", LAYER_NAMES, "final_layer_norm") | text_names(config, side)
    names = prefixed(names, prefix)
    stages: list[BlockStage] = [PoolStage("last")]
    if width is not None:
        names |= _projection(f"{outer}text_projection", width, config.hidden_size)
        stages.append(LinearStage("head.projection.weight"))
    head = SequenceStage(*stages, *([NormalizeStage()] if normalize else []))
    end_token = -1 if end == LEGACY_END else end
    recipe = text_recipe(
        "clip", checkpoint, config, side, names, head, width or config.hidden_size, end_token=end_token
    )
    return recipe, {part.name for part in names.values()}


def _projection(name: str, width: int, hidden: int) -> dict[str, TensorPart]:
    return {"head.projection.weight": TensorPart(f"{name}.weight", stored=(width, hidden))}


def _vision_alone(checkpoint: Checkpoint, fields: Fields) -> ImageRecipe:
    name = class_of(fields, ("CLIPVisionModel", "CLIPVisionModelWithProjection"), "CLIPVisionModel")
    width = fields.integer("projection_dim", 512) if name.endswith("WithProjection") else None
    prefix = _prefix(checkpoint, "vision_model.", "embeddings.class_embedding")
    recipe, read = _vision(checkpoint, fields, prefix, "", width, normalize=False)
    refuse_unread_tensors(checkpoint, read, UNREAD)
    return recipe


def _text_alone(checkpoint: Checkpoint, fields: Fields) -> EncoderRecipe:
    name = class_of(fields, ("CLIPTextModel", "CLIPTextModelWithProjection"), "CLIPTextModel")
    width = fields.integer("projection_dim", 512) if name.endswith("WithProjection") else None
    prefix = _prefix(checkpoint, "text_model.", "embeddings.token_embedding.weight")
    recipe, read = _text(checkpoint, fields, prefix, "", width, normalize=False)
    refuse_unread_tensors(checkpoint, read, UNREAD)
    return recipe


def _prefix(checkpoint: Checkpoint, prefix: str, name: str) -> str:
    """What stands before the names of a tower alone; transformers of different age disagree."""
    return prefix if prefix + name in checkpoint.tensors else ""


def _classifier(checkpoint: Checkpoint, fields: Fields) -> ImageRecipe:
    """Scores from the mean of the patches, which no norm follows."""
    config, side, names = _vision_parts(part_of(fields, "vision"), "vision_model.")
    labels = labels_of(fields, checkpoint, "classifier.weight")
    for ignored in ("text_config", "text_config_dict", "projection_dim"):
        fields.get(ignored)
    refuse_unread(fields)
    names |= named(linear_shapes("head.dense", len(labels), config.hidden_size), {"head.dense": "classifier"})
    read = {part.name for part in names.values()}
    refuse_unread_tensors(checkpoint, read, (*UNREAD, "vision_model.post_layernorm.*"))
    head = SequenceStage(PoolStage("mean", skip=side.prefix), LinearStage("head.dense.weight", bias=True))
    return image_recipe("clip", checkpoint, config, side, names, head, len(labels), labels)
