"""ONNX files: a tiny DINOv2 with anonymous matrices against transformers; files that are damaged or hold others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rlx
from rlx.errors import FileFormatError, RlxError, UnsupportedModelError
from rlx.io.onnx_file import open_onnx
from rlx.runtime.image_model import ImageEncoder
from tests.io.onnx_writer import dinov2, message, model, node, number, tensor
from tests.references.load_images import ImageCase, image_cases

CASE = next(case for case in image_cases() if case.name == "dinov2")
Parts = tuple[list[bytes], dict[str, NDArray[Any]]]


def parts(case: ImageCase = CASE, **facts: Any) -> Parts:
    weights = {key: array for key, array in case.weights().items() if "mask_token" not in key}
    return dinov2(weights, 2, 12, 6, **facts)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_tiny_dinov2_is_the_one_of_transformers(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.onnx", model(*parts()))
    with rlx.load(path, precision="exact", threads=1) as loaded:
        assert isinstance(loaded, ImageEncoder)
        for index in range(len(CASE.sizes)):
            made, rows = loaded.run_pixels(CASE.pixels(index))
            for found, expected in ((made, CASE.arrays[f"image.{index}"]), (rows, CASE.arrays[f"hidden.{index}"])):
                # as for the same weights in a folder, tests/models/test_images.py
                assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_a_file_holds_is_listed(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = [tensor("raw", array), tensor("floats", array, data_field=4), tensor("half", array.astype(np.float16))]
    file = open_onnx(write(tmp_path / "x.onnx", model([node("Relu", ["raw"], "y", axes=(-1, 2))], stored)))
    assert {name: (info.shape, str(info.dtype)) for name, info in file.tensors.items()} == {
        "raw": ((2, 3), "f32"),
        "floats": ((2, 3), "f32"),
        "half": ((2, 3), "f16"),
    }
    assert file.data("raw").tobytes() == file.data("floats").tobytes() == array.tobytes()
    assert file.nodes[0].numbers == {"axes": (-1, 2)}
    assert file.metadata == {"ir_version": 7, "producer_name": "tests", "graph": "main", "opset": 14}


ARRAY = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("stored", "error", "words"),
    [
        (tensor("w", ARRAY)[:-1], FileFormatError, "past the end"),
        (tensor("w", ARRAY) + number(1, 3), FileFormatError, "length of tensor 'w'"),
        (tensor("w", ARRAY) + message(9, b"1234"), FileFormatError, "2 pieces"),
        (tensor("w", ARRAY) + number(2, 8), FileFormatError, "type of tensor 'w'"),
        (tensor("w", ARRAY) + number(1, -5), FileFormatError, "shape of tensor 'w'"),
        (tensor("w", ARRAY) + number(14, 1), UnsupportedModelError, "external data"),
        (tensor("w", ARRAY) + message(13, message(1, "location") + message(2, "w.bin")), UnsupportedModelError, "'w'"),
        (tensor("w", ARRAY, data_field=7), UnsupportedModelError, "outside of raw_data"),
        (tensor("other", ARRAY), FileFormatError, "two initialisers"),
        (b"\x0b", FileFormatError, "unknown kind"),
        (b"\xff" * 12, FileFormatError, "no end"),
        (message(8, b"\xff\xfe"), FileFormatError, "UTF-8"),
    ],
)
def test_tensors_that_cannot_be_read(stored: bytes, error: type[RlxError], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", model([], [tensor("other", ARRAY), stored]))
    with pytest.raises(error) as raised:
        open_onnx(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


def test_no_damage_is_worse_than_an_error(tmp_path: Path) -> None:
    """Seeded changes of bytes, and every kind of cut, of the file that the first test loads."""
    content, random = model(*parts()), np.random.default_rng(5)
    starts = {0, 1, len(content) - 1, *random.integers(0, len(content), 40).tolist()}
    broken = [content[:stop] for stop in sorted(starts)]
    for _ in range(60):
        changed = bytearray(content)
        for place in random.integers(0, len(content), 3):
            changed[place] = int(random.integers(256))
        broken.append(bytes(changed))
    refused = 0
    for data in broken:
        try:
            open_onnx(write(tmp_path / "x.onnx", data or b"\0"))
        except RlxError:
            refused += 1
    assert refused >= len(starts)


def without(tensors: dict[str, Any], ending: str) -> dict[str, Any]:
    return {name: array for name, array in tensors.items() if not name.endswith(ending)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, t: (n, without(t, "cls_token")), "CLS token"),
        (lambda n, t: (n, without(t, "encoder.layer.1.mlp.fc1.bias")), "encoder.layer.1.mlp.fc1.bias"),
        (lambda n, t: (n, without(t, "layernorm.weight")), "layernorm.weight"),
        (lambda n, t: (n, {**t, "more": ARRAY}), "more"),
        (lambda n, t: (n, {**t, "onnx::Concat_1": np.zeros((1, 1, 47), np.float32)}), "onnx::Concat_1"),
        (lambda n, t: (n[:-1], t), "norms"),
        (lambda n, t: ([*n, node("Softmax", ["x"], "y")], t), "layers"),
        (lambda n, t: ([item for item in n if b"Conv" not in item], t), "Conv"),
    ],
)
def test_graphs_that_are_no_dinov2(change: Callable[..., Parts], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", model(*change(*parts())))
    with pytest.raises(RlxError) as raised:
        rlx.load(path, precision="exact", threads=1)
    assert words in str(raised.value)


def test_a_gguf_or_a_text_is_no_onnx_file(tmp_path: Path) -> None:
    for content in (b"GGUF\3\0\0\0" + b"\0" * 64, b"hello world, this is a text"):
        with pytest.raises(FileFormatError):
            open_onnx(write(tmp_path / "x.onnx", content))
