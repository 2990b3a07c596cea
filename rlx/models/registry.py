"""Which recipe a checkpoint needs, by the name it gives its architecture. Next: `llama.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from rlx.errors import UnsupportedModelError
from rlx.io.checkpoint import Checkpoint
from rlx.models.llama_config import llama_recipe
from rlx.models.recipe import ModelRecipe

Recipe: TypeAlias = "Callable[[Checkpoint, int | None], ModelRecipe]"

GGUF_ARCHITECTURES: dict[str, Recipe] = {"llama": llama_recipe}
"""`general.architecture` of a GGUF file."""

MODEL_TYPES: dict[str, Recipe] = {"llama": llama_recipe, "mistral": llama_recipe}
"""`model_type` of a config.json."""


def recipe_for(checkpoint: Checkpoint, context_length: int | None = None) -> ModelRecipe:
    """The recipe of a checkpoint.

    Args:
        checkpoint: an open GGUF file or Hugging Face folder.
        context_length: most positions of a sequence; None for what the model was made for.

    Raises:
        UnsupportedModelError: the architecture is unknown, or its configuration asks for something not implemented.
    """
    is_gguf = checkpoint.kind == "gguf"
    key, known = ("general.architecture", GGUF_ARCHITECTURES) if is_gguf else ("model_type", MODEL_TYPES)
    name = checkpoint.metadata.get(key)
    recipe = known.get(name) if isinstance(name, str) else None
    if recipe is None:
        raise UnsupportedModelError(
            "RLX does not know this architecture",
            where=str(checkpoint.path),
            found=f"{key} = {name!r}",
            expected=f"one of: {', '.join(sorted(known))}",
        )
    return recipe(checkpoint, context_length)
