"""Hugging Face folders: read as the `safetensors` library wrote them, refused when they lie."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rlx.core import dtype
from rlx.core.storage import decode
from rlx.errors import (
    FileFormatError,
    MissingTensorError,
    ModelNotFoundError,
    RlxError,
    UnsupportedModelError,
)
from rlx.io.reference import open_model
from rlx.io.safetensors_folder import SafetensorsFolder, open_folder

CONFIG = {"model_type": "llama", "hidden_size": 4}
RNG = np.random.default_rng(0)
TENSORS: dict[str, np.ndarray] = {
    "a": RNG.standard_normal((3, 4)).astype(np.float32),
    "b": RNG.standard_normal((5,)).astype(np.float16),
    "c": RNG.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
    "d": np.arange(6, dtype=np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
}


def folder_with(path: Path, content: bytes, config: str = json.dumps(CONFIG)) -> Path:
    (path / "config.json").write_text(config)
    (path / "model.safetensors").write_bytes(content)
    return path


def raw_file(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def check_values(folder: SafetensorsFolder) -> None:
    for name, expected in TENSORS.items():
        info = folder.tensors[name]
        assert info.shape == expected.shape
        assert folder.data(name).tobytes() == expected.tobytes()
        if info.dtype.is_float:
            np.testing.assert_array_equal(
                decode(info.dtype, folder.data(name), info.shape), expected.astype(np.float32)
            )
        folder.release(name)


def test_single_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "np"})
    folder = open_folder(tmp_path)
    assert folder.kind == "safetensors"
    assert folder.config == folder.metadata == CONFIG
    assert set(folder.tensors) == set(TENSORS)
    assert folder.file_size == (tmp_path / "model.safetensors").stat().st_size
    check_values(folder)
    assert isinstance(open_model(tmp_path), SafetensorsFolder)
    with pytest.raises(MissingTensorError):
        folder.data("nothing")


def sharded(path: Path) -> dict[str, str]:
    (path / "config.json").write_text(json.dumps(CONFIG))
    names = list(TENSORS)
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: TENSORS[name] for name in names if weight_map[name] == shard}, path / shard)
    write_index(path, weight_map)
    return weight_map


def write_index(path: Path, weight_map: Any) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    folder = open_folder(tmp_path)
    check_values(folder)
    assert folder.file_size == sum((tmp_path / shard).stat().st_size for shard in set(weight_map.values()))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    shard = next(iter(sharded(tmp_path).values()))
    (tmp_path / shard).unlink()
    with pytest.raises(ModelNotFoundError, match=shard):
        open_folder(tmp_path)


def test_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    write_index(tmp_path, weight_map | {"ghost": next(iter(weight_map.values()))})
    with pytest.raises(FileFormatError, match="ghost"):
        open_folder(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}])
def test_index_that_is_not_one(tmp_path: Path, weight_map: Any) -> None:
    sharded(tmp_path)
    write_index(tmp_path, weight_map)
    with pytest.raises(FileFormatError, match="index"):
        open_folder(tmp_path)


def test_type_that_is_only_listed(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    folder = open_folder(folder_with(tmp_path, raw_file(header)))
    assert folder.tensors["x"].nbytes == 4
    with pytest.raises(UnsupportedModelError, match="f8_e4m3"):
        folder.data("x")


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


BROKEN: dict[str, bytes] = {
    "short": b"1234567",
    "header past the end": struct.pack("<Q", 2**63) + b"{}",
    "header not JSON": raw_file(b"{nonsense"),
    "header not UTF-8": raw_file(b'{"\xff": 1}'),
    "header is a list": raw_file([]),
    "deep header": raw_file(b"[" * 200_000),
    "number of 10000 digits": raw_file(b'{"x": ' + b"9" * 10_000 + b"}"),
    "entry is a number": raw_file({"x": 1}),
    "unknown type": raw_file(entry(dtype="F31")),
    "no type": raw_file({"x": {"shape": [2], "data_offsets": [0, 8]}}),
    "negative size": raw_file(entry(shape=[-2])),
    "size is true": raw_file(entry(shape=[True, 2])),
    "size is text": raw_file(entry(shape="2")),
    "length does not fit the shape": raw_file(entry(shape=[3])),
    "offsets backwards": raw_file(entry(data_offsets=[8, 0])),
    "three offsets": raw_file(entry(data_offsets=[0, 8, 9])),
    "past the end": raw_file(entry(shape=[16], data_offsets=[4, 68])),
    "huge shape": raw_file(entry(shape=[2**40, 2**40], data_offsets=[0, 2**62])),
    "overlap": raw_file(entry() | {"y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}),
    "the same name twice": raw_file(b'{"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "x": 1}'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        open_folder(folder_with(tmp_path, BROKEN[case]))


@pytest.mark.parametrize("config", ["", "{", "[]", "[" * 100_000])
def test_broken_config_is_refused(tmp_path: Path, config: str) -> None:
    with pytest.raises(FileFormatError, match=r"config\.json"):
        open_folder(folder_with(tmp_path, raw_file({}), config))


def test_what_is_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        open_folder(tmp_path)
    with pytest.raises(ModelNotFoundError, match="folder does not exist"):
        open_folder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="no safetensors"):
        open_folder(tmp_path)


GOOD = raw_file(entry() | {"y": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]}}, bytes(16))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(FileFormatError):
            open_folder(folder_with(tmp_path, GOOD[:length]))


@given(st.lists(st.integers(0, len(GOOD) * 8 - 1), min_size=1, max_size=6))
def test_bit_flips_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, flips: list[int]) -> None:
    content = bytearray(GOOD)
    for bit in flips:
        content[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(RlxError):
        folder = open_folder(folder_with(tmp_path_factory.getbasetemp(), bytes(content)))
        for name, info in folder.tensors.items():
            if info.dtype.name in dtype.DTYPES:
                assert folder.data(name).size == info.nbytes
