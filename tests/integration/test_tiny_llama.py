"""Tiny random models, saved as transformers saves them, on every instruction set: its logits and its greedy tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from rlx.backends.cpu.target import available
from rlx.backends.reference import run_graph
from tests.integration.driving import Drive, in_chunks
from tests.integration.tiny import TINY, recipe_of, session_of
from tests.models.checkpoints import write_folder

# The bar of the exact mode. transformers computes in float32 too; two or three layers with logits of size 3 were
# measured to differ by less than 1e-5.
TOLERANCE = 1e-4
TARGETS = available()


@pytest.mark.parametrize("form", ["config", "legacy_config"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TINY)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, target: str, form: str, tmp_path: Path) -> None:
    case = TINY[name]
    recipe = recipe_of(write_folder(tmp_path, getattr(case, form), case.weights()))
    with session_of(recipe, target=target) as session:
        assert session.module.target.name == target
        (logits,) = Drive(session, [case.ids]).step([(0, len(case.ids))])
        assert logits.dtype == np.float32
        assert np.abs(logits - case.logits).max() <= TOLERANCE
        assert Drive(session, [case.ids], room=16, seed=3).greedy(16) == [case.greedy.tolist()]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["biases", "mistral_window"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "f16"])
def test_half_precision_weights_are_computed_in_float32(dtype: Any, name: str, target: str, tmp_path: Path) -> None:
    """Against the definition of each op in float64 on the rounded weights; transformers rounds activations as well."""
    case = TINY[name]
    rounded = {key: array.astype(dtype) for key, array in case.weights().items()}
    words = {"bfloat16": "bfloat16", "float16": "float16"}
    config = {**case.config, "dtype": words[np.dtype(dtype).name]}
    recipe = recipe_of(write_folder(tmp_path, config, rounded))
    expected = run_graph(recipe.flow.build(recipe.weights), {"tokens": case.ids[None]}, recipe.weights)["logits"][0]
    # the rounding itself has to show, or the weights were not those of the file
    assert np.abs(expected - case.logits).max() > 10 * TOLERANCE
    with session_of(recipe, target=target) as session:
        found = in_chunks(session, case.ids, 5)
    assert np.abs(found - expected).max() <= TOLERANCE


def test_the_cases_cover_what_is_promised() -> None:
    configs = {name: case.config for name, case in TINY.items()}
    assert {config["tie_word_embeddings"] for config in configs.values()} == {True, False}
    assert any(config["num_key_value_heads"] < config["num_attention_heads"] for config in configs.values())
    assert any(config["rope_parameters"]["rope_type"] == "llama3" for config in configs.values())
    window = configs["mistral_window"]["sliding_window"]
    assert window < len(TINY["mistral_window"].ids), "the prompt is longer than the window"
