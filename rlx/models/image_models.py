"""Which recipe a checkpoint of an image model needs, by the name it gives its architecture. Next: `vit.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from rlx.io.checkpoint import Checkpoint
from rlx.io.onnx_file import OnnxFile
from rlx.models.clip import clip_recipe
from rlx.models.dinov2 import dinov2_recipe
from rlx.models.dinov2_onnx import dinov2_onnx_recipe
from rlx.models.recipe import EncoderRecipe, ImageRecipe, PairRecipe
from rlx.models.siglip import siglip_recipe
from rlx.models.vit import vit_recipe

AnyRecipe: TypeAlias = "PairRecipe | ImageRecipe | EncoderRecipe"

IMAGE_TYPES: Mapping[str, Callable[[Checkpoint], AnyRecipe]] = {
    "vit": vit_recipe,
    "dinov2": dinov2_recipe,
    "dinov2_with_registers": dinov2_recipe,
    "clip": clip_recipe,
    "clip_vision_model": clip_recipe,
    "clip_text_model": clip_recipe,
    "siglip": siglip_recipe,
    "siglip_vision_model": siglip_recipe,
    "siglip_text_model": siglip_recipe,
}
"""`model_type` of a config.json."""


def image_recipe_for(checkpoint: Checkpoint) -> AnyRecipe | None:
    """The recipe of a model of images, or of a text tower of one; None for a checkpoint of another architecture.

    Raises:
        UnsupportedModelError: its configuration asks for something not implemented.
    """
    if isinstance(checkpoint, OnnxFile):
        return dinov2_onnx_recipe(checkpoint)
    name = checkpoint.metadata.get("model_type") if checkpoint.kind == "safetensors" else None
    make = IMAGE_TYPES.get(name) if isinstance(name, str) else None
    return None if make is None else make(checkpoint)
