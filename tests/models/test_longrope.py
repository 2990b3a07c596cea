"""LongRoPE: the context length that a model is opened with says which of its two tables all sequences use."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlx.core.text import print_graph
from rlx.errors import UnsupportedModelError
from rlx.io.checkpoint import Checkpoint
from rlx.io.gguf import open_gguf
from rlx.io.safetensors_folder import open_folder
from rlx.models import recipe_for
from tests.models.family_files import FAMILIES, folder, gguf_file

CASE = FAMILIES["phi3_longrope"]  # made for 128 positions, 64 of them with the short factors


def text(checkpoint: Checkpoint, context_length: int | None) -> str:
    recipe = recipe_for(checkpoint, context_length)
    return print_graph(recipe.flow.build(recipe.weights), locations=False).replace(f"1..{recipe.context_length}", "")


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_table_goes_by_the_context_length_asked_for(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        checkpoint: Checkpoint = open_folder(folder(CASE, tmp_path))
    else:
        checkpoint = open_gguf(gguf_file(CASE, tmp_path / "model.gguf"))
    assert recipe_for(checkpoint).context_length == 64
    short, long = text(checkpoint, 64), text(checkpoint, 65)
    assert (text(checkpoint, None), text(checkpoint, 24), text(checkpoint, 128)) == (short, short, long)
    assert short != long
    with pytest.raises(UnsupportedModelError, match="1 to 128"):
        recipe_for(checkpoint, 129)
