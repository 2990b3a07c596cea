"""One file per architecture family: configuration to flow, plus its weight names. Read `llama.py` first."""

from rlx.models.recipe import ModelRecipe
from rlx.models.registry import recipe_for

__all__ = ["ModelRecipe", "recipe_for"]
