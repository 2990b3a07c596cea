"""Pictures against Pillow, and pixels against transformers' image processors; what is refused and by which words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.errors import InputError, RlxError, UnsupportedModelError
from rlx.io.images import read_image
from rlx.io.resample import resize_grid, resize_picture
from rlx.models.fields import Fields
from rlx.models.image_processor import FILTERS, processor_from, read_image_processor
from tests.references.load_images import picture, pillow_cases
from tests.references.load_models import arrays_of

CASES = {case["name"]: case for case in pillow_cases()}
RESIZED = [name for name in CASES if name.startswith("resize_")]
PROCESSED = [name for name in CASES if name.startswith("processor_")]


@pytest.mark.parametrize("name", RESIZED)
def test_a_picture_is_resized_as_pillow_does_it(name: str) -> None:
    case = CASES[name]
    found = resize_picture(picture(*case["picture"]), tuple(case["size"]), FILTERS[case["resample"]])
    assert np.array_equal(found, arrays_of("pictures", name)["resized"])


@pytest.mark.parametrize("name", PROCESSED)
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(case["config"]))
    processor = read_image_processor(tmp_path)
    assert processor is not None
    found, expected = processor.apply(picture(*case["picture"])), arrays_of("pictures", name)["pixels"]
    assert found.dtype == np.float32
    # pictures are equal to the bit; the three steps after that round in float32 in the same order
    assert np.array_equal(found, expected)


def test_the_processor_of_a_newer_folder_is_found(tmp_path: Path) -> None:
    assert read_image_processor(tmp_path) is None
    nested = {"image_processor": CASES["processor_vit"]["config"], "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_image_processor(tmp_path) == processor_from(Fields(CASES["processor_vit"]["config"], "x"))


def test_absent_fields_and_older_names_mean_what_their_class_means() -> None:
    older = processor_from(Fields({"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 20}, "x"))
    assert (older.shortest, older.crop, older.resample, older.scale) == (30, (20, 20), "bicubic", 1 / 255)
    square = processor_from(Fields({"image_processor_type": "ViTImageProcessorFast", "size": 30}, "x"))
    assert (square.size, square.crop, square.resample, square.mean) == ((30, 30), None, "bilinear", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resample", 0),
        ("resample", "bicubic"),
        ("size", {"longest_edge": 20}),
        ("size", {"height": 0, "width": 4}),
        ("size", {"shortest_edge": 1 << 20}),
        ("crop_size", {"shortest_edge": 4}),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("do_pad", True),
        ("image_processor_type", "BlipImageProcessor"),
        ("do_resize", 1),
        ("rescale_factor", "x"),
        ("new_field", 3),
    ],
)
def test_a_configuration_that_asks_for_something_else(field: str, value: Any) -> None:
    config = {**CASES["processor_clip"]["config"], field: value}
    with pytest.raises(UnsupportedModelError, match=field):
        processor_from(Fields(config, "x"))


def test_a_table_for_its_own_grid_is_itself_and_a_constant_one_stays_constant() -> None:
    table = np.arange(18, dtype=np.float32).reshape(9, 2)
    assert resize_grid(table, 3, 3, False) is table
    for antialias in (False, True):
        constant = resize_grid(np.full((9, 2), 3.0, np.float32), 5, 2, antialias)
        assert np.allclose(constant, 3.0, rtol=1e-6)
        # each axis alone: what is constant down the grid stays so
        across = np.tile(np.array([[1.0], [2.0], [4.0]], np.float32), (3, 1))
        rows = resize_grid(across, 5, 2, antialias).reshape(5, 2)
        assert np.array_equal(rows, np.tile(rows[:1], (5, 1)))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), "[4, 4]"),
        (np.zeros((0, 4, 3), np.uint8), "[0, 4, 3]"),
        (np.zeros((4, 4, 4), np.uint8), "[4, 4, 4]"),
    ],
)
def test_an_array_that_is_no_picture(image: Any, words: str) -> None:
    with pytest.raises(InputError) as raised:
        read_image(image)
    assert words in str(raised.value)


def test_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    seen = picture("file", 5, 7)
    np.save(tmp_path / "seen.npy", seen)
    assert np.array_equal(read_image(tmp_path / "seen.npy"), seen)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "seen.npy").read_bytes()[:-9])
    (tmp_path / "text.npy").write_text("no picture")
    for name in ("objects.npy", "cut.npy", "text.npy", "missing.npy", "missing.png"):
        with pytest.raises(RlxError) as raised:
            read_image(tmp_path / name)
        assert name in str(raised.value)


def test_without_pillow_a_picture_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'rlx\[image\]'"):
        read_image(tmp_path / "x.png")
