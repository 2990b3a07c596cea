"""gpt-oss as it is published: experts in MXFP4, gate and up by turns; the fields of its first config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlx.backends.reference import run_graph
from rlx.core.dtype import mxfp4
from rlx.core.storage import decode, encode
from rlx.core.text import print_graph
from rlx.io.reference import open_model
from rlx.models import recipe_for
from tests.models.checkpoints import write_folder
from tests.models.family_files import FAMILIES

CASE = FAMILIES["gpt_oss"]


def published(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The experts `[experts, in, out]` as blocks of two neighbours a byte, and scales, a row for each output."""
    result: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in weights.items():
        if array.ndim != 3:
            result[name] = array
            continue
        rows = np.ascontiguousarray(np.swapaxes(array, 1, 2))
        packed = encode(mxfp4, rows).reshape(*rows.shape[:2], -1, 17)
        levels = np.concatenate([packed[..., 1:] & 15, packed[..., 1:] >> 4], axis=-1)  # in the order of k
        result[f"{name}_blocks"] = levels[..., 0::2] | levels[..., 1::2] << 4
        result[f"{name}_scales"] = np.ascontiguousarray(packed[..., 0])
    return result


def rounded(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The same values as floats."""

    def experts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows = np.ascontiguousarray(np.swapaxes(array, 1, 2))
        return np.ascontiguousarray(np.swapaxes(decode(mxfp4, encode(mxfp4, rows), rows.shape), 1, 2))

    return {name: experts(array) if array.ndim == 3 else array for name, array in weights.items()}


def test_published_experts_are_those_of_the_float_form(tmp_path: Path) -> None:
    logits: list[np.ndarray[Any, Any]] = []
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
