"""Which recipe a checkpoint of an encoder needs, by the name it gives its architecture. Next: `bert.py`."""

from __future__ import annotations

from rlx.io.checkpoint import Checkpoint
from rlx.models.bert import BERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from rlx.models.recipe import EncoderRecipe

FAMILIES = (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT)
ENCODER_TYPES = {family.model_type: family for family in FAMILIES}
"""`model_type` of a config.json."""
GGUF_ENCODERS = {family.gguf: family for family in FAMILIES if family.gguf is not None}
"""`general.architecture` of a GGUF file."""


def encoder_recipe_for(checkpoint: Checkpoint) -> EncoderRecipe | None:
    """The recipe of an encoder's checkpoint; None for a checkpoint of another architecture.

    Raises:
        UnsupportedModelError: its configuration asks for something not implemented.
    """
    is_gguf = checkpoint.kind == "gguf"
    key, known = ("general.architecture", GGUF_ENCODERS) if is_gguf else ("model_type", ENCODER_TYPES)
    name = checkpoint.metadata.get(key)
    family = known.get(name) if isinstance(name, str) else None
    return None if family is None else family.recipe(checkpoint)
