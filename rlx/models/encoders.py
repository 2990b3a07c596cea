"""Which recipe a checkpoint of an encoder needs, by the name it gives its architecture. Next: `bert.py`."""

from __future__ import annotations

from rlx.io.checkpoint import Checkpoint
from rlx.models.bert import BERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from rlx.models.recipe import EncoderRecipe

FAMILIES = (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT)
ENCODER_TYPES = {family.model_type: family for family in FAMILIES}
"""`model_type` of a config.json."""


def encoder_recipe_for(checkpoint: Checkpoint) -> EncoderRecipe | None:
    """The recipe of an encoder's checkpoint; None for a checkpoint of another architecture.

    Raises:
        UnsupportedModelError: its configuration asks for something not implemented.
    """
    name = checkpoint.metadata.get("model_type") if checkpoint.kind != "gguf" else None
    family = ENCODER_TYPES.get(name) if isinstance(name, str) else None
    return None if family is None else family.recipe(checkpoint)
