"""The language model of a folder that holds a model of images as well, against transformers' answers to text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.errors import UnsupportedModelError
from rlx.io.safetensors_folder import open_folder
from rlx.models import recipe_for
from rlx.models.text_part import WRAPPERS
from tests.models.family_files import folder
from tests.references.load_models import family_cases

CASES = {case.name: case for case in family_cases("multimodal")}


def test_every_kind_of_folder_has_a_case() -> None:
    assert {case.config["model_type"] for case in CASES.values()} == set(WRAPPERS)


@pytest.mark.parametrize("name", sorted(CASES))
def test_text_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = recipe_for(open_folder(folder(case, tmp_path)))
    assert recipe.architecture == case.config["text_config"]["model_type"]
    graph = recipe.flow.build(recipe.weights)
    found = run_graph(graph, {"tokens": case.ids[None]}, recipe.weights, dtype=np.float64)["logits"][0]
    # float32 rounding of transformers over a few layers; the bar of exact mode
    assert np.abs(found - case.logits).max() <= 1e-4 * np.abs(case.logits).max()


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"architectures": ["Gemma4ForSequenceClassification"]}, "Gemma4ForConditionalGeneration"),
        ({"text_config": {}}, "text_config"),
        ({"text_config": {"model_type": "nothing_known"}}, "nothing_known"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"attention_novelty": 0.5}, "attention_novelty = 0.5"),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused(changes: dict[str, Any], fact: str, tmp_path: Path) -> None:
    case = CASES["gemma4_whole"]
    other = replace(case, config=case.config | changes)
    with pytest.raises(UnsupportedModelError) as error:
        recipe_for(open_folder(folder(other, tmp_path)))
    assert fact in str(error.value)


def test_a_tensor_of_no_known_part_is_refused(tmp_path: Path) -> None:
    case = CASES["mistral3_whole"]
    other = replace(case, shapes=case.shapes | {"language_model.model.layers.0.novelty.weight": (4, 4)})
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.novelty\.weight"):
        recipe_for(open_folder(folder(other, tmp_path)))
