"""Tiny random encoders against transformers, plain and packed; what is refused and by which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rlx
from rlx.backends.cpu.target import available
from rlx.backends.reference import run_graph
from rlx.errors import MissingTensorError, RlxError, UnsupportedModelError
from rlx.hir.derive_packed import derive_packed
from rlx.io.safetensors_folder import open_folder
from rlx.models.encoder import encoder_flow
from rlx.models.encoders import ENCODER_TYPES, encoder_recipe_for
from rlx.models.recipe import EncoderRecipe
from tests.models.checkpoints import write_folder
from tests.references.load_models import EncoderCase, encoder_cases

CASES = {case.name: case for case in encoder_cases()}
TARGETS = available()
# transformers computes in float32 as well; rows have elements of size one, and two or three layers were measured to
# differ by less than 3e-6
TOLERANCE = 2e-5


def recipe_of(case: EncoderCase, folder: Path, **changes: Any) -> EncoderRecipe:
    recipe = encoder_recipe_for(open_folder(write_folder(folder, {**case.config, **changes}, case.weights())))
    assert recipe is not None
    return recipe


def inputs_of(case: EncoderCase, recipe: EncoderRecipe) -> dict[str, NDArray[np.int32]]:
    return {"tokens": case.ids, **({"token_types": case.types} if recipe.token_types else {})}


def build(folder: Path) -> None:
    recipe = encoder_recipe_for(open_folder(folder))
    if recipe is not None:
        recipe.flow.build(recipe.weights)


def headless(case: EncoderCase, folder: Path) -> tuple[Any, EncoderRecipe]:
    recipe = recipe_of(case, folder)
    config, _ = ENCODER_TYPES[case.config["model_type"]].read_hf(open_folder(folder))
    return encoder_flow(config, None).build(recipe.weights), recipe


@pytest.mark.parametrize("name", CASES)
def test_the_plain_flow_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    graph, recipe = headless(case, tmp_path)
    plain = {key: array[None] for key, array in inputs_of(case, recipe).items()}
    found = run_graph(graph, plain, recipe.weights)["output"][0]
    assert np.abs(found - case.hidden).max() <= TOLERANCE


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_three_packed_texts_are_each_what_transformers_computes(name: str, target: str, tmp_path: Path) -> None:
    """The text between others, whose rows must not reach it: same bits as alone."""
    case = CASES[name]
    graph, recipe = headless(case, tmp_path)
    exe = rlx.compile(derive_packed(graph), recipe.weights, target=target, precision="exact", threads=2)
    count, lengths = len(case.ids), (3, len(case.ids), 7)
    given = {key: np.concatenate((array[5:8], array, array[-7:])) for key, array in inputs_of(case, recipe).items()}
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    bounds = np.cumsum((0, *lengths)).astype(np.int32)
    found = exe(**given, positions=positions, bounds=bounds)["output"][3 : 3 + count]
    assert np.abs(found - case.hidden).max() <= TOLERANCE
    alone = exe(**inputs_of(case, recipe), positions=positions[3 : 3 + count], bounds=np.array([0, count], np.int32))[
        "output"
    ]
    assert np.array_equal(found, alone)
    exe.close()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.logits is not None])
def test_classifiers_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = recipe_of(case, tmp_path)
    assert case.logits is not None
    assert recipe.labels == len(case.logits)
    assert recipe.score_function == ("sigmoid" if recipe.labels == 1 else "identity")
    plain = {key: array[None] for key, array in inputs_of(case, recipe).items()}
    found = run_graph(recipe.flow.build(recipe.weights), plain, recipe.weights)["output"]
    assert found.shape == (1, 1, recipe.labels)
    assert np.abs(found[0, 0] - case.logits).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "change", "facts"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, ["position_embedding_type", "relative_key"]),
        ("bert", {"hidden_act": "quick_gelu"}, ["hidden_act", "quick_gelu"]),
        ("bert", {"is_decoder": True}, ["is_decoder", "True"]),
        ("bert", {"new_field": 3}, ["new_field", "3"]),
        ("bert", {"architectures": ["BertForTokenClassification"]}, ["architectures", "BertForTokenClassification"]),
        ("bert", {"num_attention_heads": 5}, ["num_attention_heads", "5"]),
        ("bert", {"layer_norm_eps": 0}, ["layer_norm_eps"]),
        ("roberta", {"pad_token_id": "x"}, ["pad_token_id", "'x'"]),
        ("distilbert", {"n_layers": 3.5}, ["n_layers", "3.5"]),
        ("distilbert", {"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
    ],
)
def test_configurations_that_ask_for_something_else(
    name: str, change: dict[str, Any], facts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        recipe_of(CASES[name], tmp_path, **change)
    for fact in facts:
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layer_norm_eps", 0.3), ("hidden_act", "relu"), ("num_attention_heads", 6), ("pad_token_id", 5)],
)
def test_a_field_that_is_read_changes_the_graph(field: str, value: Any, tmp_path: Path) -> None:
    from rlx.core.text import print_graph

    name = "roberta" if field == "pad_token_id" else "bert"
    texts: list[str] = []
    for index, changes in enumerate(({}, {field: value})):
        folder = tmp_path / str(index)
        folder.mkdir()
        recipe = recipe_of(CASES[name], folder, **changes)
        texts.append(print_graph(recipe.flow.build(recipe.weights)))
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("name", "key", "array", "error"),
    [
        ("bert", "encoder.layer.1.output.dense.weight", None, MissingTensorError),
        ("bert", "encoder.layer.0.extra.weight", np.ones(3, np.float32), UnsupportedModelError),
        ("roberta", "embeddings.position_embeddings.weight", np.ones((39, 48), np.float32), RlxError),
    ],
)
def test_weights_that_do_not_fit_are_named(
    name: str, key: str, array: Any, error: type[RlxError], tmp_path: Path
) -> None:
    case = CASES[name]
    weights: dict[str, Any] = {**case.weights(), key: array}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    folder = write_folder(tmp_path, case.config, weights)
    with pytest.raises(error) as raised:
        build(folder)
    assert key in str(raised.value)


def test_norms_by_their_first_names_are_read(tmp_path: Path) -> None:
    case = CASES["bert"]
    old = {"weight": "gamma", "bias": "beta"}
    weights = {
        f"{name.rpartition('.')[0]}.{old[name.rpartition('.')[2]]}" if ".LayerNorm." in name else name: tensor
        for name, tensor in case.weights().items()
    }
    recipe = encoder_recipe_for(open_folder(write_folder(tmp_path, case.config, weights)))
    assert recipe is not None
    graph = recipe.flow.build(recipe.weights)
    plain = {key: array[None] for key, array in inputs_of(case, recipe).items()}
    mean = case.hidden.mean(axis=0)
    assert np.abs(run_graph(graph, plain, recipe.weights)["output"][0, 0] - mean).max() <= TOLERANCE
