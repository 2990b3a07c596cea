"""The Llama recipe on real files of tiny models, against transformers' logits; and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.backends.reference import run_graph
from rlx.errors import MissingTensorError, RlxError, TensorShapeError, UnsupportedModelError
from rlx.flow import DictWeights
from rlx.io.gguf import open_gguf
from rlx.io.safetensors_folder import open_folder
from rlx.models import ModelRecipe, recipe_for
from rlx.models.llama import LLAMA, MISTRAL
from tests.models.checkpoints import gguf_metadata, gguf_tensors, write_folder, write_gguf
from tests.references.load import PromptCase, smollm2_prompts, tiny_llama_cases

CASES = {case.name: case for case in tiny_llama_cases()}
# float32 rounding of transformers over three layers; the bar of the exact mode
TOLERANCE = 1e-4


def logits_of(recipe: ModelRecipe, ids: Any, dtype: Any) -> Any:
    graph = recipe.flow.build(recipe.weights)
    return run_graph(graph, {"tokens": ids[None]}, recipe.weights, dtype=dtype)["logits"][0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("form", ["config", "legacy_config"])
@pytest.mark.parametrize("name", CASES)
def test_folder_is_what_transformers_computes(name: str, form: str, dtype: Any, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = recipe_for(open_folder(write_folder(tmp_path, getattr(case, form), case.weights())))
    assert (recipe.vocab_size, recipe.context_length) == (case.config["vocab_size"], 128)
    assert np.abs(logits_of(recipe, case.ids, dtype) - case.logits).max() <= TOLERANCE


@pytest.mark.parametrize("name", [name for name in CASES if name != "mistral_window"])
def test_gguf_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = write_gguf(tmp_path / "model.gguf", gguf_metadata(case.config), gguf_tensors(case))
    assert np.abs(logits_of(recipe_for(open_gguf(path)), case.ids, np.float64) - case.logits).max() <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_greedy_continuation(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = recipe_for(open_folder(write_folder(tmp_path, case.config, case.weights())))
    # teacher forcing: each recorded token has to be the best one after those before it
    sequence = np.concatenate([case.ids, case.greedy]).astype(np.int32)
    best = logits_of(recipe, sequence, np.float64)[len(case.ids) - 1 : -1].argmax(-1)
    assert best.tolist() == case.greedy.tolist()


def test_a_sliding_window_of_a_gguf_file_is_obeyed(tmp_path: Path) -> None:
    case = CASES["mistral_window"]
    metadata = {**gguf_metadata(case.config), "llama.attention.sliding_window": case.config["sliding_window"]}
    path = write_gguf(tmp_path / "model.gguf", metadata, gguf_tensors(case))
    assert np.abs(logits_of(recipe_for(open_gguf(path)), case.ids, np.float64) - case.logits).max() <= TOLERANCE


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    recipe = recipe_for(open_folder(write_folder(tmp_path, case.config, case.weights())))
    ids = np.stack([case.ids, case.ids[::-1]])
    together = run_graph(recipe.flow.build(recipe.weights), {"tokens": ids}, recipe.weights)["logits"]
    for row, alone in zip(together, ids, strict=True):
        np.testing.assert_allclose(row, logits_of(recipe, alone, np.float64), atol=1e-12)


def test_the_recipe_says_what_the_runtime_asks_for(tmp_path: Path) -> None:
    case = CASES["wide_heads"]
    recipe = recipe_for(open_folder(write_folder(tmp_path, case.config, case.weights())), 32)
    assert (recipe.architecture, recipe.context_length, recipe.num_layers) == ("llama", 32, 2)
    assert (recipe.hidden_size, recipe.num_heads, recipe.num_kv_heads, recipe.head_dim) == (64, 4, 2, 24)
    (_, tokens), *rest = recipe.flow.build(recipe.weights).inputs
    assert not rest
    assert str(tokens.type) == "i32[batch, seq]"


def gguf_scaling(tmp_path: Path, **keys: object) -> Any:
    case = CASES["gqa_untied"]
    extra = {f"llama.rope.{name.replace('__', '.')}": value for name, value in keys.items()}
    tensors = gguf_tensors(case)
    path = write_gguf(tmp_path / "model.gguf", {**gguf_metadata(case.config), **extra}, tensors)
    return LLAMA.read_gguf(open_gguf(path)).rope["default"]


def test_gguf_rope_scaling_keys(tmp_path: Path) -> None:
    from rlx.flow import rope_frequencies

    plain = gguf_scaling(tmp_path)
    for keys in ({"scaling__type": "linear", "scaling__factor": 4.0}, {"scale_linear": 4.0}):
        np.testing.assert_array_equal(gguf_scaling(tmp_path, **keys).inverse, plain.inverse / np.float32(4))
    yarn = gguf_scaling(
        tmp_path,
        scaling__type="yarn",
        scaling__factor=4.0,
        scaling__original_context_length=32,
        scaling__attn_factor=0.5,
    )
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    expected = rope_frequencies(parameters, 16, 128)
    np.testing.assert_array_equal(yarn.inverse, expected.inverse)
    assert yarn.attention_scaling == pytest.approx(expected.attention_scaling * 0.5)
    with pytest.raises(UnsupportedModelError, match=r"rope\.scaling\.type = 'longrope'"):
        gguf_scaling(tmp_path, scaling__type="longrope", scaling__factor=4.0)


def test_defaults_of_transformers_where_the_configuration_is_silent(tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config = {name: case.config[name] for name in sizes}
    folder = write_folder(tmp_path, {**config, "model_type": "llama"}, case.weights())
    found = LLAMA.read_hf(open_folder(folder))
    attention = found.layers[0].attention
    assert (attention.num_kv_heads, attention.head_dim, found.context_length) == (4, 16, 2048)
    assert (found.norm.eps, found.tied, attention.qkv_bias, attention.window) == (1e-6, False, False, None)
    folder = write_folder(tmp_path, {**config, "model_type": "mistral"}, case.weights())
    mistral = MISTRAL.read_hf(open_folder(folder))
    attention = mistral.layers[0].attention
    assert (attention.num_kv_heads, mistral.context_length, attention.window) == (8, 131072, 4096)
    folder = write_folder(tmp_path, {**config, "model_type": "mistral", "sliding_window": None}, case.weights())
    assert MISTRAL.read_hf(open_folder(folder)).layers[0].attention.window is None


def test_longrope_goes_to_its_first_context_unless_asked_for_more(tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope["original_max_position_embeddings"] = 32
    folder = open_folder(write_folder(tmp_path, {**case.config, "rope_parameters": rope}, case.weights()))
    assert recipe_for(folder).context_length == 32
    longest = case.config["max_position_embeddings"]
    assert recipe_for(folder, longest).context_length == longest
    with pytest.raises(UnsupportedModelError, match=f"1 to {longest}"):
        recipe_for(folder, longest + 1)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"model_type": "gpt9"}, ["model_type = 'gpt9'", "llama", "mistral"]),
        ({"model_type": None}, ["model_type = None"]),
        ({"hidden_act": "relu6"}, ["hidden_act = 'relu6'", "silu"]),
        ({"novelty": 3}, ["novelty = 3", "knows the meaning"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"auto_map": {"AutoModel": "code.Model"}}, ["auto_map"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["architectures", "LlamaForSequenceClassification"]),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, ["spiral", "llama3"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters"]),
        ({"logits_scaling": 8.0}, ["logits_scaling = 8.0"]),
        ({"hidden_size": None}, ["no hidden_size", "whole number"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0"]),
        ({"vocab_size": "many"}, ["vocab_size = 'many'"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps = 'small'"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings = 'yes'"]),
    ],
)
def test_configurations_that_ask_for_something_else(change: dict[str, Any], facts: list[str], tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    config = {name: value for name, value in {**case.config, **change}.items() if value is not None}
    with pytest.raises(UnsupportedModelError) as error:
        recipe_for(open_folder(write_folder(tmp_path, config, case.weights())))
    for fact in facts:
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"general.architecture": "mamba"}, ["general.architecture = 'mamba'", "llama"]),
        ({"llama.expert_count": 8}, ["no llama.expert_used_count"]),
        ({"llama.attention.clamp_kqv": 8.0}, ["llama.attention.clamp_kqv = 8.0"]),
        ({"llama.attention.value_length": 8}, ["llama.attention.value_length = 8"]),
        ({"llama.attention.head_count_kv": [2, 4, 2]}, ["llama.attention.head_count_kv"]),
    ],
)
def test_gguf_files_that_ask_for_something_else(change: dict[str, object], facts: list[str], tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    path = write_gguf(tmp_path / "model.gguf", {**gguf_metadata(case.config), **change}, gguf_tensors(case))
    with pytest.raises(UnsupportedModelError) as error:
        recipe_for(open_gguf(path))
    for fact in facts:
        assert fact in str(error.value)


def test_sizes_given_for_each_layer_count_if_they_are_equal(tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    metadata = {**gguf_metadata(case.config), "llama.attention.head_count_kv": [2, 2, 2]}
    assert recipe_for(open_gguf(write_gguf(tmp_path / "model.gguf", metadata, gguf_tensors(case)))).num_kv_heads == 2


@pytest.mark.parametrize("key", ["model.layers.1.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_a_tensor_the_recipe_would_not_read_is_refused(key: str, tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    weights: dict[str, Any] = {**case.weights(), key: np.ones(16, np.float32)}
    with pytest.raises(UnsupportedModelError) as error:
        recipe_for(open_folder(write_folder(tmp_path, case.config, weights)))
    assert key in str(error.value)


def test_tensors_without_meaning_are_let_be(tmp_path: Path) -> None:
    case = CASES["tied"]
    extra: dict[str, Any] = {"lm_head.weight": np.zeros((131, 64), np.float32)}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    recipe = recipe_for(open_folder(write_folder(tmp_path, case.config, {**case.weights(), **extra})))
    assert np.abs(logits_of(recipe, case.ids, np.float64) - case.logits).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("key", "array", "error", "facts"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, MissingTensorError, ["layers.1.mlp"]),
        ("lm_head.weight", None, MissingTensorError, ["lm_head"]),
        ("model.norm.weight", np.ones(63, np.float32), TensorShapeError, ["[63]", "[64]"]),
        ("model.embed_tokens.weight", np.ones((299, 64), np.float32), TensorShapeError, ["[299, 64]", "[300, 64]"]),
        ("model.layers.0.self_attn.o_proj.weight", np.ones((64, 63), np.float32), TensorShapeError, ["[64, 63]"]),
    ],
)
def test_weights_that_do_not_fit(key: str, array: Any, error: type[RlxError], facts: list[str], tmp_path: Path) -> None:
    case = CASES["gqa_untied"]
    weights: dict[str, Any] = {**case.weights(), key: array}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    recipe = recipe_for(open_folder(write_folder(tmp_path, case.config, weights)))
    with pytest.raises(error) as raised:
        recipe.flow.build(recipe.weights)
    for fact in [key, *facts]:
        assert fact in str(raised.value)


def test_arrays_in_memory_serve_as_well(tmp_path: Path) -> None:
    case = CASES["biases"]
    recipe = recipe_for(open_folder(write_folder(tmp_path, case.config, case.weights())))
    weights = DictWeights(case.weights())
    found = run_graph(recipe.flow.build(weights), {"tokens": case.ids[None]}, weights)["logits"][0]
    assert np.abs(found - case.logits).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("prompt", smollm2_prompts()[:3], ids=lambda prompt: prompt.name)
def test_smollm2_is_what_transformers_computes(prompt: PromptCase, smollm2_path: Path) -> None:
    recipe = recipe_for(open_gguf(smollm2_path))
    found = logits_of(recipe, prompt.ids, np.float32)
    assert np.abs(found[-1] - prompt.last_logits).max() <= 2e-3  # the bar of the exact mode
