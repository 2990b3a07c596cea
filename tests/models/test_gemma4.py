"""What Gemma 4's configuration can say: sizes by layer in two forms, layers that share keys, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlx.core.text import print_graph
from rlx.errors import UnsupportedModelError
from rlx.hir import LayerCache, derive_step
from rlx.io.safetensors_folder import open_folder
from rlx.models import ModelRecipe, recipe_for
from tests.models.family_files import FAMILIES, folder


def recipe(name: str, path: Path, without: tuple[str, ...] = (), **changes: Any) -> ModelRecipe:
    case = FAMILIES[name]
    config = {key: value for key, value in case.config.items() if key not in without} | changes
    return recipe_for(open_folder(folder(replace(case, config=config), path)))


def text(recipe: ModelRecipe) -> str:
    return print_graph(recipe.flow.build(recipe.weights), locations=False)


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("gemma4_shared", {"global_head_dim": 32}),
        ("gemma4_k_eq_v", {"global_head_dim": 32, "num_global_key_value_heads": 1}),
    ],
)
def test_the_older_fields_of_sizes_mean_the_same(name: str, older: dict[str, int], tmp_path: Path) -> None:
    expected = text(recipe(name, tmp_path))
    assert text(recipe(name, tmp_path, without=("per_layer_config",), **older)) == expected


def test_layers_that_share_keys_have_no_pages(tmp_path: Path) -> None:
    model = recipe("gemma4_shared", tmp_path)
    step = derive_step(model.flow.build(model.weights))
    local, full = LayerCache(2, 16, 7), LayerCache(2, 32, None)
    assert step.layers == (local, full, local, full)
    assert model.num_layers == 7
    appended = [node.location.path for node in step.graph.nodes if node.op == "cache_append"]
    assert appended == [f"layers.{index}.self_attn" for index in range(4)]


@pytest.mark.parametrize(
    ("field", "value", "fact"),
    [
        ("enable_moe_block", True, "enable_moe_block = True"),
        ("use_bidirectional_attention", "all", "use_bidirectional_attention = 'all'"),
        ("num_kv_shared_layers", 6, "layers that follow one of their kind"),
        ("num_kv_shared_layers", 8, "layers that follow one of their kind"),
        ("vocab_size_per_layer_input", 150, "at least 160"),
        ("per_layer_config", {"9": {"head_dim": 32}}, "layers 0 to 6"),
        ("per_layer_config", {"1": {"sliding_window": 32}}, "per_layer_config.1"),
        ("per_layer_config", {"1": {"head_dim": 32}}, "one head_dim for all layers of full_attention"),
        (
            "rope_parameters",
            {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "no partial_rotary_factor",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(field: str, value: Any, fact: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        recipe("gemma4_shared", tmp_path, **{field: value})
    assert fact in str(error.value)
