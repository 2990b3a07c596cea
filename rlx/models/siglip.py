"""SigLIP: images and texts in one space. Sources: Zhai et al. 2023; transformers' modeling_siglip.

In: an open Hugging Face folder with both towers, or with one. Out: a `PairRecipe`, or the recipe of the tower. Texts
are padded to the full length and every row sees the padding, since it was trained so. Next: `image_models.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.blocks.attention_pool import AttentionPoolStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.pooling import NormalizeStage, PoolStage
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.tensor_part import TensorPart
from rlx.io.checkpoint import Checkpoint
from rlx.models.clip import LAYER_NAMES, UNREAD, clip_tower, exp_of, part_of
from rlx.models.fields import Fields
from rlx.models.image_family import (
    class_of,
    image_names,
    image_recipe,
    image_side,
    labels_of,
    named,
    prefixed,
    refuse_unread,
    scalar,
    text_names,
    text_recipe,
    tower_names,
)
from rlx.models.recipe import EncoderRecipe, ImageRecipe, PairRecipe
from rlx.models.tower import ImageSide, Shapes, TextSide, TowerConfig, linear_shapes, mlp_stage, norm_shapes
from rlx.models.unread import refuse_unread_tensors

KIND = ImageSide(image_size=224, patch_size=16, has_cls=False)
CLASSIFIER = "SiglipForImageClassification"
DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
"""Where an absent field means something else than in a CLIP."""


def siglip_recipe(checkpoint: Checkpoint) -> PairRecipe | ImageRecipe | EncoderRecipe:
    """The recipe of a SigLIP, or of one of its towers.

    Raises:
        UnsupportedModelError: the checkpoint asks for something RLX does not implement.
    """
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json", defaults=DEFAULTS)
    kind = fields.text("model_type", "siglip")
    if kind != "siglip":
        return _one_tower(checkpoint, fields, kind)
    if class_of(fields, ("SiglipModel", CLASSIFIER), "SiglipModel") == CLASSIFIER:
        return _classifier(checkpoint, fields)
    image, image_parts = _vision(checkpoint, _part(fields, "vision"), "vision_model.", normalize=True)
    text, text_parts = _text(checkpoint, _part(fields, "text"), "text_model.", normalize=True)
    refuse_unread(fields)
    refuse_unread_tensors(checkpoint, image_parts | text_parts | {"logit_scale", "logit_bias"}, UNREAD)
    return PairRecipe(image, text, exp_of(checkpoint, "logit_scale"), scalar(checkpoint, "logit_bias"))


def _part(fields: Fields, side: str) -> Fields:
    return replace(part_of(fields, side), defaults=DEFAULTS)


def _one_tower(checkpoint: Checkpoint, fields: Fields, kind: str) -> ImageRecipe | EncoderRecipe:
    if kind == "siglip_vision_model":
        class_of(fields, ("SiglipVisionModel",), "SiglipVisionModel")
        prefix = "vision_model." if "vision_model.head.probe" in checkpoint.tensors else ""
        recipe, read = _vision(checkpoint, fields, prefix, normalize=False)
    else:
        class_of(fields, ("SiglipTextModel",), "SiglipTextModel")
        prefix = "text_model." if "text_model.head.weight" in checkpoint.tensors else ""
        recipe, read = _text(checkpoint, fields, prefix, normalize=False)
    refuse_unread_tensors(checkpoint, read, UNREAD)
    return recipe


def _vision(checkpoint: Checkpoint, fields: Fields, prefix: str, normalize: bool) -> tuple[ImageRecipe, set[str]]:
    """An image's tower and the tensors it reads: a learned query reads its rows, then comes an MLP."""
    config, side, names = _vision_parts(fields, prefix)
    names |= prefixed(_head_names(config), prefix)
    q, k, v, o = (f"head.{part}.weight" for part in "qkvo")
    head = SequenceStage(
        AttentionPoolStage("head.probe", q, k, v, o, config.num_heads),
        SaveResidualStage(),
        LayerNormStage("head.norm.weight", config.norm_eps),
        mlp_stage("head", config),
        AddResidualStage(),
        *([NormalizeStage()] if normalize else []),
    )
    recipe = image_recipe("siglip", checkpoint, config, side, names, head, config.hidden_size)
    return recipe, {part.name for part in names.values()}


def _vision_parts(fields: Fields, prefix: str) -> tuple[TowerConfig, ImageSide, dict[str, TensorPart]]:
    config = clip_tower(fields, 768, 3072, 12)
    side = image_side(fields, KIND)
    if not fields.flag("vision_use_head", True):
        fields.refuse("vision_use_head", "true")
    refuse_unread(fields)
    names = tower_names(config, "encoder.layers.{i}.", LAYER_NAMES, "post_layernorm")
    table = ("embeddings.position_embedding.weight", 2)
    names |= image_names(config, side, "embeddings.patch_embedding", ("", ()), table)
    return config, side, prefixed(names, prefix)


def _head_names(config: TowerConfig) -> dict[str, TensorPart]:
    """The weights of the pooling; one tensor holds q, k and v, one behind the other."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: Shapes = linear_shapes("head.o", hidden, hidden) | norm_shapes("head.norm", hidden)
    shapes |= linear_shapes("head.up", inner, hidden) | linear_shapes("head.down", hidden, inner)
    places = {
        "head.o": "head.attention.out_proj",
        "head.norm": "head.layernorm",
        "head.up": "head.mlp.fc1",
        "head.down": "head.mlp.fc2",
    }
    names = named(shapes, places)
    for index, part in enumerate("qkv"):
        rows = ((index * hidden, (index + 1) * hidden),)
        weight, bias = (f"head.attention.in_proj_{kind}" for kind in ("weight", "bias"))
        names[f"head.{part}.weight"] = TensorPart(weight, rows, stored=(3 * hidden, hidden))
        names[f"head.{part}.bias"] = TensorPart(bias, rows, stored=(3 * hidden,))
    names["head.probe"] = TensorPart("head.probe", stored=(1, 1, hidden), shown=(1, hidden))
    return names


def _text(checkpoint: Checkpoint, fields: Fields, prefix: str, normalize: bool) -> tuple[EncoderRecipe, set[str]]:
    """A text's tower and the tensors it reads."""
    config = clip_tower(fields, 768, 3072, 12)
    side = TextSide(
        vocab_size=fields.integer("vocab_size", 32000), max_tokens=fields.integer("max_position_embeddings", 64)
    )
    width = fields.integer("projection_size", config.hidden_size)
    pad_token = fields.integer("pad_token_id", 1, minimum=0)
    refuse_unread(fields)
    names = tower_names(config, "encoder.layers.{i}.", LAYER_NAMES, "final_layer_norm") | text_names(config, side)
    names |= named(linear_shapes("head.dense", width, config.hidden_size), {"head.dense": "head"})
    names = prefixed(names, prefix)
    head = SequenceStage(
        PoolStage("last"), LinearStage("head.dense.weight", bias=True), *([NormalizeStage()] if normalize else [])
    )
    recipe = text_recipe("siglip", checkpoint, config, side, names, head, width, pad_token=pad_token)
    return recipe, {part.name for part in names.values()}


def _classifier(checkpoint: Checkpoint, fields: Fields) -> ImageRecipe:
    """Scores from the mean of all rows behind the last norm; the learned query is not asked."""
    config, side, names = _vision_parts(_part(fields, "vision"), "vision_model.")
    labels = labels_of(fields, checkpoint, "classifier.weight")
    fields.get("text_config")
    refuse_unread(fields)
    names |= named(linear_shapes("head.dense", len(labels), config.hidden_size), {"head.dense": "classifier"})
    read = {part.name for part in names.values()}
    refuse_unread_tensors(checkpoint, read, (*UNREAD, "vision_model.head.*"))
    head = SequenceStage(PoolStage("mean"), LinearStage("head.dense.weight", bias=True))
    return image_recipe("siglip", checkpoint, config, side, names, head, len(labels), labels)
