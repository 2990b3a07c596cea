"""Tiny random encoders against transformers, plain and packed; what is refused and by which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rlx
from rlx.backends.cpu.target import available
from rlx.backends.reference import run_graph
from rlx.core.text import print_graph
from rlx.errors import MissingTensorError, RlxError, UnsupportedModelError
from rlx.hir.derive_packed import derive_packed
from rlx.io.safetensors_folder import open_folder
from rlx.models.encoder import encoder_flow
from rlx.models.encoder_family import NO_COMPUTATION
from rlx.models.encoders import ENCODER_TYPES, encoder_recipe_for
from rlx.models.recipe import EncoderRecipe
from tests.models.checkpoints import write_folder
from tests.models.field_changes import ignored_fields
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


# a case of each kind of program: compiling is what this test costs
COMPILED = (
    "bert", "bert_tanh_gelu", "bert_masked", "roberta_padding", "distilbert", "mpnet_long", "nomic_bert_theta",
    "modernbert_biases",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", COMPILED)
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
        ("mpnet", {"relative_attention_num_buckets": 16}, ["relative_attention_num_buckets", "16"]),
        ("nomic_bert", {"head_dim": 10}, ["head_dim", "10"]),
        ("modernbert", {"hidden_activation": "relu"}, ["hidden_activation", "relu"]),
        ("modernbert", {"layer_types": ["sliding_attention"]}, ["layer_types"]),
        ("modernbert_classifier", {"classifier_pooling": "max"}, ["classifier_pooling", "max"]),
    ],
)
def test_configurations_that_ask_for_something_else(
    name: str, change: dict[str, Any], facts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        recipe_of(CASES[name], tmp_path, **change)
    for fact in facts:
        assert fact in str(error.value)


# Fields of a classifier's head, which a model without one has as well.
HEAD_FIELDS = frozenset(("classifier_activation", "classifier_bias", "classifier_pooling"))


@pytest.mark.parametrize("name", CASES)
def test_no_field_is_ignored(name: str, tmp_path: Path) -> None:
    """A change of a field gives another graph or a refusal, or the field is known to carry no computation."""
    case = CASES[name]
    write_folder(tmp_path, case.config, case.weights())

    def text_of(config: dict[str, Any]) -> str | None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        try:
            recipe = encoder_recipe_for(open_folder(tmp_path))
            assert recipe is not None
            return print_graph(recipe.flow.build(recipe.weights), locations=False) + str(recipe.settings.max_tokens)
        except RlxError:
            return None

    plain = text_of(case.config)
    assert plain is not None
    family = ENCODER_TYPES[case.config["model_type"]]
    counts = HEAD_FIELDS if case.logits is not None else frozenset[str]()
    harmless = (NO_COMPUTATION | family.no_computation) - counts
    assert ignored_fields(case.config, harmless, lambda config: text_of(config) == plain) == set()


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
