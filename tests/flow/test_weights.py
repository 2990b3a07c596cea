"""Weight sources: arrays in memory, and an open checkpoint under other names."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rlx.core.dtype import bf16, f32, q4_0
from rlx.core.type import TensorType
from rlx.errors import InputError, MissingTensorError, UnsupportedModelError
from rlx.flow import DictWeights, MappedWeights
from rlx.io.safetensors_folder import open_folder


def test_arrays_and_packed_bytes() -> None:
    packed = TensorType(q4_0, (2, 32))
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    weights = DictWeights({"a": matrix, "b": np.ones(3, ml_dtypes.bfloat16), "c": (packed, bytes(36))})
    assert weights.type_of("a") == TensorType(f32, (3, 2))
    assert weights.type_of("b") == TensorType(bf16, (3,))
    assert weights.type_of("c") == packed
    np.testing.assert_array_equal(weights.raw("a").view(np.float32).reshape(3, 2), matrix)
    assert weights.raw("c").size == 36
    assert list(weights.keys()) == ["a", "b", "c"]
    assert "a" in weights
    assert "d" not in weights


def test_what_cannot_be_a_weight_is_refused() -> None:
    with pytest.raises(InputError, match="complex"):
        DictWeights({"a": np.ones(2, np.complex64)})
    with pytest.raises(InputError, match="35 bytes"):
        DictWeights({"a": (TensorType(q4_0, (2, 32)), bytes(35))})
    with pytest.raises(MissingTensorError, match="'a'"):
        DictWeights({}).raw("a")


def test_a_checkpoint_under_other_names(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"blk.0": array, "odd": np.ones(2, np.uint32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    weights = MappedWeights(open_folder(tmp_path), {"layer": "blk.0", "gone": "blk.1", "odd": "odd"})
    assert list(weights.keys()) == ["layer", "odd"]
    assert "layer" in weights
    assert "gone" not in weights
    assert "blk.0" not in weights
    assert weights.type_of("layer") == TensorType(f32, (2, 3))
    np.testing.assert_array_equal(weights.raw("layer").view(np.float32).reshape(2, 3), array)
    weights.release("layer")
    np.testing.assert_array_equal(weights.raw("layer").view(np.float32).reshape(2, 3), array)
    with pytest.raises(MissingTensorError) as error:
        weights.raw("gone")
    assert "'blk.1'" in str(error.value)
    assert "the weight gone" in str(error.value)
    with pytest.raises(UnsupportedModelError, match="u32"):
        weights.type_of("odd")
