"""Every family on real files of tiny models, against transformers' logits; and no field of a configuration ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from ml_dtypes import bfloat16

from rlx.backends.reference import run_graph
from rlx.core.text import print_graph
from rlx.errors import RlxError, UnsupportedModelError
from rlx.io.gguf import open_gguf
from rlx.io.safetensors_folder import open_folder
from rlx.models import ModelRecipe, recipe_for
from rlx.models.hf_config import NO_COMPUTATION
from rlx.models.qwen3_5 import IMAGES
from rlx.models.qwen3_next import EXPERTS
from tests.models.checkpoints import write_folder, write_gguf
from tests.models.family_files import (
    FAITHFUL,
    FAMILIES,
    LAYOUTS,
    context_of,
    families_without_a_case,
    folder,
    gguf_file,
    gguf_tensors,
)
from tests.models.field_changes import ignored_fields
from tests.references.load_models import FamilyCase

NAMES = sorted(FAMILIES)
# float32 rounding of transformers over three to seven layers, as a share of the largest logit; the bar of exact mode
TOLERANCE = 1e-4


def check(recipe: ModelRecipe, case: FamilyCase) -> None:
    graph = recipe.flow.build(recipe.weights)
    found = run_graph(graph, {"tokens": case.ids[None]}, recipe.weights, dtype=np.float64)["logits"][0]
    assert np.abs(found - case.logits).max() <= TOLERANCE * np.abs(case.logits).max()


def test_every_family_has_a_case() -> None:
    assert families_without_a_case() == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    case = FAMILIES[name]
    check(recipe_for(open_folder(folder(case, tmp_path)), context_of(case)), case)


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_gguf_file_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    case = FAMILIES[name]
    check(recipe_for(open_gguf(gguf_file(case, tmp_path / "model.gguf")), context_of(case)), case)


# Fields that count in some configurations only, and why not in others.
CONDITIONAL = {
    "max_window_layers": "read where layer_types is absent",
    "_sliding_window_pattern": "read where layer_types is absent",
    "no_rope_layer_interval": "read where no_rope_layers is absent",
    "sliding_window": "not in use without use_sliding_window",
    "use_sliding_window": "layer_types says which layers have the window",
    "original_max_position_embeddings": "read for LongRoPE",
    "intermediate_size": "not in use where every layer has experts",
    "is_decoder": "changes the type hints of transformers' class and nothing it computes",
    "use_double_wide_mlp": "widens layers that share keys and values",
    "vocab_size_per_layer_input": "read where layers have embeddings of their own",
    "hidden_act": "Gemma's gelu is the tanh form",
    **dict.fromkeys(IMAGES, "texts have no images"),
    **dict.fromkeys(EXPERTS, "read where there are experts"),
}


@pytest.mark.parametrize("name", NAMES)
def test_no_field_is_ignored(name: str, tmp_path: Path) -> None:
    """A change of a field gives another graph or a refusal, or the field is known to carry no computation."""
    case = FAMILIES[name]
    path = folder(case, tmp_path)
    contexts = dict.fromkeys((None, context_of(case)))

    def graph_of(config: dict[str, Any]) -> str | None:
        folder(type(case)(case.name, case.seed, config, case.shapes, case.ids, case.logits, case.greedy), path)
        try:
            recipes = [recipe_for(open_folder(path), context) for context in contexts]
            texts = [print_graph(recipe.flow.build(recipe.weights), locations=False) for recipe in recipes]
            return "".join(texts) + str([recipe.context_length for recipe in recipes])
        except RlxError:
            return None

    plain = graph_of(case.config)
    assert plain is not None
    ignored = ignored_fields(case.config, NO_COMPUTATION, lambda config: graph_of(config) == plain)
    assert set(ignored) <= set(CONDITIONAL)


@pytest.mark.parametrize(
    ("name", "without", "field", "value"),
    [
        ("qwen2_window", "layer_types", "max_window_layers", 2),
        ("qwen2_window", "layer_types", "use_sliding_window", False),
        ("qwen3_window_bias", "layer_types", "max_window_layers", 1),
        ("gemma3_plain", "layer_types", "_sliding_window_pattern", 2),
        ("smollm3", "no_rope_layers", "no_rope_layer_interval", 2),
        ("phi3_longrope", "", "original_max_position_embeddings", 32),
    ],
)
def test_a_field_that_counts_where_another_is_absent(
    name: str, without: str, field: str, value: object, tmp_path: Path
) -> None:
    case = FAMILIES[name]
    config = {key: entry for key, entry in case.config.items() if key != without}
    texts: list[str] = []
    for changed_config in (config, {**config, field: value}):
        other = type(case)(case.name, case.seed, changed_config, case.shapes, case.ids, case.logits, case.greedy)
        try:
            recipe = recipe_for(open_folder(folder(other, tmp_path)))
            texts.append(print_graph(recipe.flow.build(recipe.weights), locations=False))
        except UnsupportedModelError as error:
            texts.append(str(error))
    assert texts[0] != texts[1]


def test_a_checkpoint_as_it_is_published(tmp_path: Path) -> None:
    """Fields that say what the model is anyway, a layer for speculative decoding, filters in bfloat16."""
    case = FAMILIES["qwen3_5_image"]
    more = {
        "attn_output_gate": True,
        "full_attention_interval": 2,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
    }
    rope = {"mrope_interleaved": True, "mrope_section": [2, 1, 1], **case.config["text_config"]["rope_parameters"]}
    text = {**case.config["text_config"], **more, "rope_parameters": rope}
    extra = {"mtp.layers.0.input_layernorm.weight": np.ones(64, np.float32)}
    filters = {key: array.astype(bfloat16) for key, array in case.weights().items() if "conv1d" in key}
    path = write_folder(tmp_path, {**case.config, "text_config": text}, {**case.weights(), **extra, **filters})
    recipe = recipe_for(open_folder(path))
    graph = recipe.flow.build(recipe.weights)
    assert "dequantize" not in {node.op for node in graph.nodes}, "filters are float32 when they are loaded"
    found = run_graph(graph, {"tokens": case.ids[None]}, recipe.weights)["logits"][0]
    rounded = {**case.weights(), **{key: array.astype(np.float32) for key, array in filters.items()}}
    plain = recipe_for(open_folder(write_folder(tmp_path, case.config, rounded)))
    expected = run_graph(plain.flow.build(plain.weights), {"tokens": case.ids[None]}, plain.weights)["logits"][0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_output_gate", False),
        ("mamba_ssm_dtype", "bfloat16"),
        ("layer_types", ["linear_attention", "sliding_attention", "full_attention", "full_attention"]),
        ("linear_num_value_heads", 3),
        ("hidden_act", "gelu"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": False}),
    ],
)
def test_linear_attention_of_another_kind_is_refused(field: str, value: object, tmp_path: Path) -> None:
    case = FAMILIES["qwen3_5"]
    with pytest.raises(UnsupportedModelError, match=field):
        recipe_for(open_folder(write_folder(tmp_path, {**case.config, field: value}, case.weights())))


def test_experts_are_refused(tmp_path: Path) -> None:
    case = FAMILIES["qwen3_next_dense"]
    for config in ({**case.config, "num_experts": 4}, {k: v for k, v in case.config.items() if k != "num_experts"}):
        with pytest.raises(UnsupportedModelError, match="num_experts"):
            recipe_for(open_folder(write_folder(tmp_path, config, case.weights())))


def test_a_gguf_file_may_end_in_layers_for_speculative_decoding(tmp_path: Path) -> None:
    case, layout = FAMILIES["qwen3_5"], LAYOUTS["qwen3_5"]
    recurrent = cast(list[bool], layout.metadata["qwen35.attention.recurrent_layers"])
    more: dict[str, object] = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    more["qwen35.attention.recurrent_layers"] = [*recurrent, False]
    extra = {"blk.4.attn_norm.weight": np.ones(64, np.float32), "blk.4.nextn.enorm.weight": np.ones(64, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", {**layout.metadata, **more}, {**gguf_tensors(case), **extra})
    check(recipe_for(open_gguf(path)), case)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_field_is_refused_by_name_and_value(name: str, tmp_path: Path) -> None:
    case = FAMILIES[name]
    config = {**case.config, "attention_novelty": 0.5}
    other = type(case)(case.name, case.seed, config, case.shapes, case.ids, case.logits, case.greedy)
    with pytest.raises(UnsupportedModelError, match=r"attention_novelty = 0\.5"):
        recipe_for(open_folder(folder(other, tmp_path)))
