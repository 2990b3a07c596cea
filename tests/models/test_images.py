"""Tiny random models of images against transformers, alone and in batches; what is refused and by which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.core.text import print_graph
from rlx.errors import MissingTensorError, RlxError, TensorShapeError, UnsupportedModelError
from rlx.flow.profile import Profile
from rlx.io.safetensors_folder import open_folder
from rlx.models.image_models import IMAGE_TYPES, AnyRecipe, image_recipe_for
from rlx.models.recipe import EncoderRecipe, ImageRecipe, PairRecipe
from rlx.runtime.encoder import Encoder
from rlx.runtime.image_model import ImageModel, compare
from rlx.runtime.load_encoder import packed_executable
from rlx.runtime.load_images import image_tower
from tests.models.checkpoints import write_folder
from tests.references.load_images import ImageCase, image_cases

CASES = {case.name: case for case in image_cases()}
EXACT = Profile(precision="exact")
# times the largest magnitude of the answer. transformers computes in float32 as well, and two or three layers were
# measured to differ by less than 1.5e-6
TOLERANCE = 1e-5


def recipe_of(case: ImageCase, folder: Path, config: dict[str, Any] | None = None) -> AnyRecipe:
    folder.mkdir(exist_ok=True)
    recipe = image_recipe_for(open_folder(write_folder(folder, config or case.config, case.weights())))
    assert recipe is not None
    return recipe


def towers(recipe: AnyRecipe) -> tuple[ImageRecipe | None, EncoderRecipe | None]:
    if isinstance(recipe, PairRecipe):
        return recipe.image, recipe.text
    return (recipe, None) if isinstance(recipe, ImageRecipe) else (None, recipe)


def check(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_every_family_has_cases() -> None:
    counts = {name: sum(case.config["model_type"] == name for case in CASES.values()) for name in IMAGE_TYPES}
    assert sum(counts[name] for name in ("clip", "clip_vision_model", "clip_text_model")) >= 4
    assert all(counts[name] >= 2 for name in ("vit", "dinov2", "dinov2_with_registers", "clip", "siglip"))


@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    """Vectors, scores, rows, texts and their comparison; in a batch each has the bits it has alone."""
    case = CASES[name]
    recipe = recipe_of(case, tmp_path)
    image, text = towers(recipe)
    vectors = texts = None
    if image is not None:
        with ImageModel(name, image_tower(image, EXACT, 2), None, {}) as model:
            for index in range(len(case.sizes)):
                pixels = case.pixels(index)
                made, rows = model.run_pixels(pixels)
                check(made, case.arrays[f"image.{index}"])
                if f"hidden.{index}" in case.arrays:
                    check(rows, case.arrays[f"hidden.{index}"])
                alone = model.run_pixels(pixels[1:])
                assert np.array_equal(alone[0], made[1:])
                assert np.array_equal(alone[1], rows[1:])
                vectors = made if vectors is None else vectors
    if text is not None:
        with Encoder(name, packed_executable(text, EXACT, 2), None, text, {}) as encoder:  # pyright: ignore[reportArgumentType]
            ids = case.arrays["ids"].tolist()
            texts = encoder.run_tokens(ids)
            check(texts, case.arrays["text"])
            assert np.array_equal(encoder.run_tokens(ids[1:2]), texts[1:2])
    if isinstance(recipe, PairRecipe):
        assert vectors is not None
        assert texts is not None
        check(compare(vectors, texts, recipe.scale, recipe.bias), case.arrays["similarity"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> EncoderRecipe:
    recipe = recipe_of(CASES["clip_text"], tmp_path_factory.mktemp("clip"))
    assert isinstance(recipe, EncoderRecipe)
    return recipe


def test_a_text_without_its_end_token_is_refused(clip: EncoderRecipe) -> None:
    with (
        Encoder("clip", packed_executable(clip, EXACT, 1), None, clip, {}) as encoder,  # pyright: ignore[reportArgumentType]
        pytest.raises(RlxError, match="end token"),
    ):
        encoder.run_tokens([[5, 6, 7]])


def test_float16_files_are_read(tmp_path: Path) -> None:
    """Tables and kernels of three and four axes in half precision: the graph has them as float32 where it adds them."""
    case = CASES["registers"]
    halves = {key: array.astype(np.float16) for key, array in case.weights().items()}
    recipe = image_recipe_for(open_folder(write_folder(tmp_path, case.config, halves)))
    assert isinstance(recipe, ImageRecipe)
    with ImageModel("half", image_tower(recipe, EXACT, 1), None, {}) as model:
        made, _ = model.run_pixels(case.pixels(0))
    # weights have 11 bits
    assert np.abs(made - case.arrays["image.0"]).max() <= 2**-7 * np.abs(made).max()


def text_of(recipe: AnyRecipe) -> str:
    """Everything that a recipe decides."""
    parts: list[str] = []
    for tower in towers(recipe):
        if tower is not None:
            parts.append(print_graph(tower.flow.build(tower.weights)))
        if isinstance(tower, EncoderRecipe):
            parts.append(repr((tower.end_token, tower.pad_token, tower.settings)))
        if isinstance(tower, ImageRecipe):
            parts.append(repr((tower.side, tower.labels)))
    return "\n".join(parts)


# Fields that carry no computation in these configurations, beside those of every configuration
QUIET = {
    "vit": {"encoder_stride", "pooler_act", "pooler_output_size"},
    "dinov2": {
        "out_features",
        "out_indices",
        "stage_names",
        "use_mask_token",
        "apply_layernorm",
        "reshape_hidden_states",
        "layerscale_value",
        "drop_path_rate",
    },
    "clip": {"projection_dim", "initializer_factor", "logit_scale_init_value", "bos_token_id", "pad_token_id"},
    "siglip": {"initializer_factor", "bos_token_id", "eos_token_id"},
}
EVERYWHERE = {
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "dtype",
    "hidden_dropout_prob",
    "initializer_range",
    "label2id",
    "model_type",
    "transformers_version",
}


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.5
    if isinstance(value, str):
        return "relu"
    return {**value, "0": "another"} if isinstance(value, dict) else [*value, 1]


def fields_of(config: dict[str, Any]) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for name, value in config.items():
        inner = fields_of(value) if name in ("text_config", "vision_config") else None
        paths += [(name,)] if inner is None else [(name, *path) for path in inner]
    return paths


def with_field(config: dict[str, Any], path: tuple[str, ...], change: Callable[[Any], Any]) -> dict[str, Any]:
    head, *rest = path
    return {**config, head: with_field(config[head], tuple(rest), change) if rest else change(config[head])}


@pytest.mark.parametrize("name", ["vit_classifier", "vit", "dinov2", "registers", "clip", "siglip"])
def test_no_field_is_ignored(name: str, tmp_path: Path) -> None:
    """A field that changes gives another graph or a refusal, unless it is known to carry no computation."""
    case = CASES[name]
    plain = text_of(recipe_of(case, tmp_path))
    family = case.config["model_type"].partition("_")[0]
    quiet = EVERYWHERE | QUIET[family] - ({"pooler_act", "pooler_output_size"} if name == "vit" else set())
    quiet -= {"projection_dim"} if name == "clip" else set()
    ignored: set[str] = set()
    for path in fields_of(case.config):
        if path == ("model_type",):
            continue  # it chooses the family
        try:
            text = text_of(recipe_of(case, tmp_path, with_field(case.config, path, changed)))
        except RlxError:
            continue
        if text == plain:
            ignored.add(path[-1] if path[0] == path[-1] else "/".join(path))
    towers_own = {f"{side}_config/projection_dim" for side in ("text", "vision")} if name == "clip" else set()
    assert {path for path in ignored - towers_own if path.rpartition("/")[2] not in quiet} == set()


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("vit", ("hidden_act",), "mish"),
        ("vit", ("image_size",), [24, 30]),
        ("vit", ("patch_size",), 25),
        ("vit", ("num_attention_heads",), 5),
        ("vit", ("architectures",), ["ViTForMaskedImageModeling"]),
        ("vit", ("new_field",), 3),
        ("dinov2", ("mlp_ratio",), 0),
        ("dinov2", ("architectures",), ["Dinov2Backbone"]),
        ("clip", ("vision_config", "new_field"), 3),
        ("clip", ("text_config", "layer_norm_eps"), "x"),
        ("siglip", ("vision_config", "vision_use_head"), False),
        ("vit_classifier", ("id2label",), {"0": "one", "7": "other"}),
    ],
)
def test_configurations_that_ask_for_something_else(
    name: str, path: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    config = CASES[name].config
    inner = config if len(path) == 1 else config[path[0]]
    changed_inner = {**inner, path[-1]: value}
    config = changed_inner if len(path) == 1 else {**config, path[0]: changed_inner}
    with pytest.raises(UnsupportedModelError, match=path[-1]):
        recipe_of(CASES[name], tmp_path, config)


@pytest.mark.parametrize(
    ("name", "key", "array", "error"),
    [
        ("vit", "encoder.layer.1.output.dense.weight", None, MissingTensorError),
        ("vit", "embeddings.position_embeddings", None, MissingTensorError),
        ("vit", "embeddings.cls_token", np.ones((1, 1, 47), np.float32), TensorShapeError),
        ("vit", "embeddings.position_embeddings", np.ones((1, 18, 48), np.float32), TensorShapeError),
        ("vit", "embeddings.patch_embeddings.projection.weight", np.ones((48, 6, 6, 3), np.float32), TensorShapeError),
        ("vit", "encoder.layer.0.extra.weight", np.ones(3, np.float32), UnsupportedModelError),
        ("dinov2", "encoder.layer.0.layer_scale1.lambda1", np.ones(3, np.float32), TensorShapeError),
        ("registers", "embeddings.register_tokens", None, MissingTensorError),
        ("clip", "logit_scale", None, MissingTensorError),
        ("clip", "logit_scale", np.ones(2, np.float32), TensorShapeError),
        ("clip", "text_model.embeddings.position_embedding.weight", None, MissingTensorError),
        ("siglip", "vision_model.head.attention.in_proj_weight", np.ones((48, 48), np.float32), TensorShapeError),
        ("siglip", "vision_model.head.probe", None, MissingTensorError),
    ],
)
def test_weights_that_do_not_fit_are_named(
    name: str, key: str, array: Any, error: type[RlxError], tmp_path: Path
) -> None:
    case = CASES[name]
    weights: dict[str, Any] = {**case.weights(), key: array}
    folder = write_folder(tmp_path, case.config, {k: tensor for k, tensor in weights.items() if tensor is not None})
    with pytest.raises(error) as raised:
        text_of(image_recipe_for(open_folder(folder)))  # pyright: ignore[reportArgumentType]
    assert key in str(raised.value)


def test_the_older_form_of_a_configuration_is_read(tmp_path: Path) -> None:
    """`text_config_dict` beside an empty `text_config`, and buffers of positions, as the first CLIPs have them."""
    case = CASES["clip"]
    config = {**case.config, "text_config": None, "text_config_dict": case.config["text_config"]}
    weights: dict[str, Any] = {**case.weights(), "text_model.embeddings.position_ids": np.arange(14)[None]}
    recipe = image_recipe_for(open_folder(write_folder(tmp_path, config, weights)))
    assert recipe is not None
    (tmp_path / "new").mkdir()
    assert text_of(recipe) == text_of(recipe_of(case, tmp_path / "new"))
