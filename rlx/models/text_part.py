"""The language model inside a folder that holds a model of images and sound as well.

In: an open folder whose config.json has a `text_config`. Out: a `Checkpoint` of that alone, under the names that a
folder of the language model by itself has. Text is computed as there; images and sound are not. Next: `registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlx.io.checkpoint import Checkpoint, TensorInfo
from rlx.io.identity import Identity
from rlx.models.fields import Fields
from rlx.models.hf_config import NO_COMPUTATION

WRAPPERS = {"gemma4": ("Gemma4ForConditionalGeneration",), "mistral3": ("Mistral3ForConditionalGeneration",)}
"""`model_type` of the whole to the classes that give logits of the next token."""
PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
"""How names of the language model begin in the whole, and by themselves."""
OTHER_PARTS = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.", "multi_modal_projector.")
# Fields about images and sound, and ids of tokens that stand for them.
OTHER_FIELDS = frozenset(
    [
        "audio_config",
        "image_seq_length",
        "multimodal_projector_bias",
        "projector_hidden_act",
        "spatial_merge_size",
        "vision_config",
        "vision_feature_layer",
        "vision_soft_tokens_per_image",
    ]
)


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """The language model of a folder; the checkpoint itself if it is nothing else.

    Raises:
        UnsupportedModelError: a field of the whole is malformed, or asks for something RLX does not know.
    """
    classes = WRAPPERS.get(str(checkpoint.metadata.get("model_type")))
    if checkpoint.kind == "gguf" or classes is None:
        return checkpoint
    fields = Fields(checkpoint.metadata, f"{checkpoint.path}/config.json")
    found = fields.get("architectures")
    if isinstance(found, list) and found and found[0] not in classes:
        fields.refuse("architectures", " or ".join(classes))
    text = fields.table("text_config")
    if not isinstance(text.get("model_type"), str):
        fields.refuse("text_config", "the configuration of a language model, with its model_type")
    tied = fields.get("tie_word_embeddings")
    if tied is not None and text.setdefault("tie_word_embeddings", tied) != tied:
        fields.refuse("tie_word_embeddings", "the value in text_config")
    fields.refuse_unread(_is_harmless, {"quantization_config": (None,)})
    text.pop("architectures", None)  # where it is there, it names a class of the text model or of the whole
    return TextPart(checkpoint, text)


def _is_harmless(name: str) -> bool:
    return name in NO_COMPUTATION or name in OTHER_FIELDS or name.endswith(("_token_id", "_token_index"))


class TextPart:
    """The language model of a folder; implements `Checkpoint`.

    Attributes:
        path: the folder.
        metadata: the `text_config` of its config.json.
        tensors: those of the language model; one whose part of the model is unknown keeps its name.
        file_size: bytes of the whole.
    """

    kind: Literal["safetensors"] = "safetensors"

    def __init__(self, whole: Checkpoint, metadata: Mapping[str, object]) -> None:
        self.path: Path = whole.path
        self.metadata, self.file_size, self._whole = metadata, whole.file_size, whole
        self._names = {_own_name(name): name for name in whole.tensors if not _is_of_another_part(name)}
        self.tensors: Mapping[str, TensorInfo] = {name: whole.tensors[full] for name, full in self._names.items()}

    def data(self, name: str) -> NDArray[np.uint8]:
        """See `Checkpoint.data`."""
        return self._whole.data(self._names.get(name, name))

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        self._whole.release(self._names.get(name, name))

    def identity(self) -> Identity:
        """See `Checkpoint.identity`; that of the whole."""
        return self._whole.identity()


def _own_name(name: str) -> str:
    for prefix, own in PREFIXES.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _is_of_another_part(name: str) -> bool:
    return name.removeprefix("model.").startswith(OTHER_PARTS)
