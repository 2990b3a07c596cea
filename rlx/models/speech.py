"""Which recipe a checkpoint of a speech model needs: its flows, its weights, and how it is decoded.

In: an open Hugging Face folder or CTranslate2 folder. Out: a `SpeechRecipe`; None for a model of another kind. Which
tokens are never written is in generation_config.json or CTranslate2's config.json. Next: `whisper.py`.
"""

from __future__ import annotations

from typing import cast

from rlx.errors import UnsupportedModelError
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.io.ctranslate2 import CTranslate2Folder
from rlx.io.json_file import read_object_if_present
from rlx.models.fields import Fields
from rlx.models.recipe import SpeechRecipe
from rlx.models.unread import refuse_unread_tensors
from rlx.models.whisper import EMBEDDING, WhisperConfig, decoder_flow, encoder_flow, hf_names, whisper_from_hf
from rlx.models.whisper_ctranslate2 import SPECIFICATION, ctranslate2_names, whisper_from_ctranslate2

MODEL_TYPE, CLASS = "whisper", "WhisperForConditionalGeneration"
MULTILINGUAL_VOCABULARY = 51865
"""Entries of the vocabulary from which on a Whisper knows languages; the English ones have one less."""
# What some files carry beside the tensors of the flows: a head that is the embedding again, CTranslate2's numbers.
UNREAD_HF = ("proj_out.weight",)
UNREAD_CTRANSLATE2 = (
    "decoder/projection/weight",
    "*/num_heads",
    "*/activation",
    "decoder/alignment_*",
    "decoder/alibi",
    "decoder/pre_norm",
    "decoder/scale_embeddings",
    "decoder/start_from_zero_embedding",
)


def speech_recipe_for(checkpoint: Checkpoint) -> SpeechRecipe | None:
    """The recipe of a speech model's checkpoint; None for a checkpoint of another architecture.

    Raises:
        UnsupportedModelError: its configuration asks for something not implemented, or it is a model of CTranslate2
            of another kind.
    """
    if isinstance(checkpoint, CTranslate2Folder):
        if checkpoint.specification != SPECIFICATION:
            raise UnsupportedModelError(
                "RLX reads speech models of CTranslate2",
                where=str(checkpoint.path),
                found=checkpoint.specification,
                expected=SPECIFICATION,
                fix="use the model's Hugging Face folder",
            )
        config = whisper_from_ctranslate2(checkpoint)
        names, unread = ctranslate2_names(config), UNREAD_CTRANSLATE2
        settings, prefix = checkpoint.metadata, ("suppress_ids", "suppress_ids_begin")
    elif checkpoint.kind == "safetensors" and checkpoint.metadata.get("model_type") == MODEL_TYPE:
        config = _read_hf(checkpoint)
        names, unread = hf_names(checkpoint, config), UNREAD_HF if config.tied else ()
        settings = read_object_if_present(checkpoint.path / "generation_config.json") or checkpoint.metadata
        prefix = ("suppress_tokens", "begin_suppress_tokens")
    else:
        return None
    refuse_unread_tensors(checkpoint, {part.name for part in names.values()}, unread)
    fields = Fields(settings, str(checkpoint.path))
    multilingual = settings.get("is_multilingual", config.vocab_size >= MULTILINGUAL_VOCABULARY)
    return SpeechRecipe(
        architecture=MODEL_TYPE,
        encoder=encoder_flow(config),
        decoder=decoder_flow(config),
        weights=MappedWeights(checkpoint, names),
        embedding_key=EMBEDDING,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        mel_bins=config.mel_bins,
        frames=config.frames,
        source_positions=config.source_positions,
        context_length=config.target_positions,
        multilingual=bool(multilingual),
        suppressed=_token_ids(fields, prefix[0], config),
        suppressed_first=_token_ids(fields, prefix[1], config),
    )


def _read_hf(checkpoint: Checkpoint) -> WhisperConfig:
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
    classes = fields.get("architectures")
    if isinstance(classes, list) and classes and classes[0] != CLASS:
        fields.refuse("architectures", CLASS)
    return whisper_from_hf(fields)


def _token_ids(fields: Fields, name: str, config: WhisperConfig) -> frozenset[int]:
    """A list of token ids, null for none. An id beyond the vocabulary is refused: it was meant for another model."""
    value = fields.get(name)
    items = cast("list[object]", value) if isinstance(value, list) else []
    if value is not None and not isinstance(value, list):
        fields.refuse(name, "a list of token ids")
    ids = [item for item in items if type(item) is int and 0 <= item < config.vocab_size]
    if len(ids) != len(items):
        fields.refuse(name, f"token ids below {config.vocab_size}")
    return frozenset(ids)
