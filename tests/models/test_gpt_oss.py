"""gpt-oss as it is published: experts in MXFP4, gate and up by turns; the fields of its first config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.reference import run_graph
from rlx.core.dtype import mxfp4
from rlx.core.text import print_graph
from rlx.errors import UnsupportedModelError
from rlx.io.reference import open_model
from rlx.models import recipe_for
from tests.models.checkpoints import write_folder
from tests.models.family_files import FAMILIES
from tests.models.gpt_oss_files import published, rounded

CASE = FAMILIES["gpt_oss"]


def test_published_experts_are_those_of_the_float_form(tmp_path: Path) -> None:
    logits: list[NDArray[Any]] = []
    for name, weights, more in (
        ("packed", published(CASE.weights()), {"quantization_config": {"quant_method": "mxfp4"}}),
        ("floats", rounded(CASE.weights()), {}),
    ):
        (tmp_path / name).mkdir()
        recipe = recipe_for(open_model(write_folder(tmp_path / name, {**CASE.config, **more}, weights)))
        graph = recipe.flow.build(recipe.weights)
        packed = [value for node in graph.nodes for value in node.outputs if value.type.dtype == mxfp4]
        assert len(packed) == (9 if more else 0)  # gate, up and down of three layers stay in their format
        logits.append(run_graph(graph, {"tokens": CASE.ids[None]}, recipe.weights, dtype=np.float64)["logits"])
    np.testing.assert_allclose(*logits, rtol=1e-12, atol=1e-12)


def test_the_first_form_of_the_configuration_says_the_same(tmp_path: Path) -> None:
    rope = dict(CASE.config["rope_parameters"])
    old = {key: value for key, value in CASE.config.items() if key not in ("rope_parameters", "swiglu_alpha")}
    old |= {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
        "experts_per_token": CASE.config["num_experts_per_tok"],
        "initial_context_length": rope["original_max_position_embeddings"],
    }
    texts: list[str] = []
    for name, config in (("new", CASE.config), ("old", old)):
        (tmp_path / name).mkdir()
        case = replace(CASE, config=config)
        recipe = recipe_for(open_model(write_folder(tmp_path / name, case.config, case.weights())))
        texts.append(print_graph(recipe.flow.build(recipe.weights), locations=False))
    assert texts[0] == texts[1]


def test_two_contexts_before_yarn_are_refused(tmp_path: Path) -> None:
    config = {**CASE.config, "initial_context_length": 7}
    with pytest.raises(UnsupportedModelError, match="initial_context_length"):
        recipe_for(open_model(write_folder(tmp_path, config, CASE.weights())))
