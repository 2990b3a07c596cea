"""Which recipe a checkpoint of an encoder needs, by the name it gives its architecture. Next: `bert.py`."""

from __future__ import annotations

from rlx.io.checkpoint import Checkpoint
from rlx.io.sentence_transformers import read_sentence_settings
from rlx.models.bert import BERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from rlx.models.embedder import embedder_recipe
from rlx.models.encoder_gguf import GGUF_ENCODERS, gguf_encoder_recipe, gguf_settings
from rlx.models.fields import Fields
from rlx.models.modernbert import MODERNBERT
from rlx.models.mpnet import MPNET
from rlx.models.nomic_bert import NOMIC_BERT
from rlx.models.recipe import EncoderRecipe
from rlx.models.registry import GGUF_ARCHITECTURES, MODEL_TYPES

FAMILIES = (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, MPNET, NOMIC_BERT, MODERNBERT)
ENCODER_TYPES = {family.model_type: family for family in FAMILIES}
"""`model_type` of a config.json."""


def encoder_recipe_for(checkpoint: Checkpoint) -> EncoderRecipe | None:
    """The recipe of an encoder's checkpoint, or of a decoder's that embeds; None for a checkpoint of another kind.

    Raises:
        UnsupportedModelError: its configuration asks for something not implemented.
    """
    if checkpoint.kind == "gguf":
        return _gguf_recipe(checkpoint)
    name = checkpoint.metadata.get("model_type")
    if not isinstance(name, str):
        return None
    if name in ENCODER_TYPES:
        return ENCODER_TYPES[name].recipe(checkpoint)
    settings = read_sentence_settings(checkpoint.path) if name in MODEL_TYPES else None
    return None if settings is None else embedder_recipe(MODEL_TYPES[name], checkpoint, settings)


def _gguf_recipe(checkpoint: Checkpoint) -> EncoderRecipe | None:
    """The recipe of a GGUF file; a decoder embeds if the file names a pooling."""
    name = checkpoint.metadata.get("general.architecture")
    if not isinstance(name, str):
        return None
    if name in GGUF_ENCODERS:
        return gguf_encoder_recipe(name, checkpoint)
    pooling = checkpoint.metadata.get(f"{name}.pooling_type")
    if name not in GGUF_ARCHITECTURES or pooling in (None, 0):
        return None
    settings = gguf_settings(Fields(checkpoint.metadata, str(checkpoint.path), f"{name}."))
    return embedder_recipe(GGUF_ARCHITECTURES[name], checkpoint, settings)
