"""Encoders in GGUF files laid out as llama.cpp's converter does, tensor by tensor by hash, against transformers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.reference import run_graph
from rlx.errors import UnsupportedModelError
from rlx.io.gguf import open_gguf
from rlx.models.encoders import encoder_recipe_for
from rlx.models.recipe import EncoderRecipe
from tests.models.checkpoints import write_gguf
from tests.models.family_files import FAMILIES, gguf_file
from tests.references.load_models import EncoderCase, GgufLayout, encoder_cases, gguf_layouts

CASES = {case.name: case for case in encoder_cases()}
LAYOUTS = gguf_layouts("encoder_gguf")
# as for folders, float32 in transformers
TOLERANCE = 2e-5


def tensors_of(case: EncoderCase, layout: GgufLayout) -> dict[str, NDArray[Any]]:
    """The tensors of the file, each found among the weights of the case, or their last rows, by its hash."""
    found: dict[str, NDArray[Any]] = {}
    for array in case.weights().values():
        for start in range(min(8, len(array))):
            part = np.ascontiguousarray(array[start:])
            found.setdefault(hashlib.sha256(part.tobytes()).hexdigest(), part)
    return {name: found[digest] for name, digest in layout.hashes.items()}


def recipe_of(name: str, path: Path, **changes: object) -> EncoderRecipe:
    layout = LAYOUTS[name]
    metadata = {key: value for key, value in {**layout.metadata, **changes}.items() if value is not None}
    recipe = encoder_recipe_for(open_gguf(write_gguf(path, metadata, tensors_of(CASES[name], layout))))
    assert recipe is not None
    return recipe


def run(recipe: EncoderRecipe, case: EncoderCase) -> NDArray[Any]:
    inputs = {"tokens": case.ids[None], **({"token_types": case.types[None]} if recipe.token_types else {})}
    return run_graph(recipe.flow.build(recipe.weights), inputs, recipe.weights)["output"][0, 0]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if CASES[name].logits is None])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_vectors_are_those_of_the_pooled_rows_of_transformers(name: str, kind: int, tmp_path: Path) -> None:
    case = CASES[name]
    architecture = LAYOUTS[name].metadata["general.architecture"]
    recipe = recipe_of(name, tmp_path / "model.gguf", **{f"{architecture}.pooling_type": kind})
    expected = {1: case.hidden.mean(axis=0), 2: case.hidden[0], 3: case.hidden[-1]}[kind]
    assert np.abs(run(recipe, case) - expected / np.linalg.norm(expected)).max() <= TOLERANCE
    assert recipe.width == len(expected)


def test_a_reranker_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    case = CASES["roberta_classifier"]
    recipe = recipe_of(case.name, tmp_path / "model.gguf", **{"bert.pooling_type": 4})
    assert (recipe.labels, recipe.score_function) == (1, "sigmoid")
    assert case.logits is not None
    assert np.abs(run(recipe, case) - case.logits).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes", "facts"),
    [
        ("bert_classifier", {"bert.pooling_type": 4}, ["lacks a part of its classifier", "cls.weight"]),
        ("roberta_classifier", {}, ["cls.", "a tensor"]),
        ("bert", {"bert.pooling_type": 0}, ["pooling_type", "0"]),
        ("bert", {"bert.attention.causal": True}, ["attention.causal", "True"]),
        ("bert", {"bert.novelty": 2}, ["bert.novelty", "2"]),
        ("bert", {"bert.attention.head_count": 5}, ["head_count", "5"]),
        ("nomic_bert", {"nomic-bert.attention.key_length": 10}, ["key_length", "10"]),
        ("nomic_bert", {"nomic-bert.moe_every_n_layers": 2}, ["moe_every_n_layers"]),
        ("modernbert", {"modern-bert.hidden_activation": "relu"}, ["hidden_activation", "relu"]),
        ("modernbert", {"modern-bert.attention.sliding_window": None}, ["sliding_window"]),
    ],
)
def test_files_that_ask_for_something_else(name: str, changes: Any, facts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        recipe_of(name, tmp_path / "model.gguf", **changes)
    for fact in facts:
        assert fact in str(error.value)


def test_a_decoder_that_names_a_pooling_embeds(tmp_path: Path) -> None:
    """The last row of Qwen3 before its head: the head makes transformers' logits of it, but for their scale."""
    case = FAMILIES["qwen3"]
    layout = gguf_layouts()["qwen3"]
    path = gguf_file(case, tmp_path / "plain.gguf")
    assert encoder_recipe_for(open_gguf(path)) is None
    file = open_gguf(path)
    tensors = {name: file.data(name).view(np.float32).reshape(shape).copy() for name, shape in layout.shapes.items()}
    path = write_gguf(tmp_path / "model.gguf", {**layout.metadata, "qwen3.pooling_type": 3}, tensors)
    recipe = encoder_recipe_for(open_gguf(path))
    assert recipe is not None
    found = run_graph(recipe.flow.build(recipe.weights), {"tokens": case.ids[None]}, recipe.weights)["output"][0, 0]
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    logits = head @ found
    expected = case.logits[-1]
    assert np.abs(logits / np.linalg.norm(logits) - expected / np.linalg.norm(expected)).max() <= TOLERANCE
    assert abs(np.linalg.norm(found) - 1) < 1e-6
