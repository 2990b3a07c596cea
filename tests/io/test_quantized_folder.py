"""Quantised Hugging Face checkpoints: every weight is what its format's description says, evaluated in float64.

The descriptions are written out element by element below, from the published packing of each format: no code of RLX
takes part in the expected values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.core.storage import decode
from rlx.errors import FileFormatError, RlxError, UnsupportedModelError
from rlx.io.checkpoint import Checkpoint
from rlx.io.reference import open_model

Array = NDArray[Any]
RNG = np.random.default_rng(7)
NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
OUT, IN, GROUP = 24, 128, 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def write(folder: Path, tensors: Mapping[str, Array], quantization: object) -> Path:
    config: dict[str, object] = {"model_type": "llama"}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    data = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def weight_of(checkpoint: Checkpoint, name: str) -> Array:
    info = checkpoint.tensors[name]
    raw = checkpoint.data(name)
    assert raw.size == info.nbytes
    checkpoint.release(name)
    return decode(info.dtype, raw, info.shape)


def packed_words(levels: Array, axis: int, order: tuple[int, ...] = tuple(range(8))) -> Array:
    """Eight levels in an int32 along `axis`: nibble j holds the one at place order[j]."""
    moved = np.moveaxis(levels.astype(np.int64), axis, -1).reshape(*np.moveaxis(levels, axis, -1).shape[:-1], -1, 8)
    words = np.zeros(moved.shape[:-1], np.int64)
    for nibble, place in enumerate(order):
        words |= moved[..., place] << (4 * nibble)
    return np.moveaxis((words & 0xFFFFFFFF).astype(np.uint32).view(np.int32), -1, axis)


def int4_case(
    *, gptq: bool, symmetric: bool, version: str = "gptq", order: Array | None = None, group: int = GROUP
) -> tuple[dict[str, Array], Array]:
    """The tensors of one weight, and its values in float64."""
    groups = IN // group
    q = RNG.integers(0, 16, (IN, OUT))
    stored_less = 1 if gptq and version == "gptq" else 0
    zero = np.full((groups, OUT), 8) if symmetric else RNG.integers(stored_less, 16, (groups, OUT))
    scale = (RNG.standard_normal((groups, OUT)) * 0.01).astype(np.float16)
    index = np.arange(IN) // group if order is None else order
    expected = scale.astype(np.float64)[index] * (q - zero[index])  # [in, out]
    if gptq:
        tensors = {"w.qweight": packed_words(q, 0), "w.qzeros": packed_words(zero - stored_less, 1)}
        tensors["w.g_idx"] = index.astype(np.int32)
    else:
        tensors = {"w.qweight": packed_words(q, 1, AWQ_ORDER), "w.qzeros": packed_words(zero, 1, AWQ_ORDER)}
    return {**tensors, "w.scales": scale, "norm": np.ones(4, np.float32)}, expected.T


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq(tmp_path: Path, symmetric: bool, version: str, group: int) -> None:
    tensors, expected = int4_case(gptq=True, symmetric=symmetric, version=version, group=IN if group == -1 else group)
    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": symmetric, "desc_act": False}
    opened = open_model(write(tmp_path, tensors, {**config, "checkpoint_format": version}))
    assert opened.tensors["w.weight"].dtype.name == ("q4_0" if symmetric else "q4_z")
    assert set(opened.tensors) == {"w.weight", "norm"}
    assert "quantization_config" not in opened.metadata
    # a half times a five-bit integer is exact in float32
    np.testing.assert_array_equal(weight_of(opened, "w.weight"), expected)


def test_gptq_in_act_order(tmp_path: Path) -> None:
    order = RNG.permutation(np.arange(IN) // GROUP)
    tensors, expected = int4_case(gptq=True, symmetric=False, order=order)
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": True}
    np.testing.assert_array_equal(weight_of(open_model(write(tmp_path, tensors, config)), "w.weight"), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(tmp_path: Path, symmetric: bool) -> None:
    tensors, expected = int4_case(gptq=False, symmetric=symmetric)
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    opened = open_model(write(tmp_path, tensors, config))
    np.testing.assert_array_equal(weight_of(opened, "w.weight"), expected)


@pytest.mark.parametrize("element", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize(
    ("scale_name", "shape", "rows", "columns"),
    [
        ("_scale", (), OUT, IN),
        ("_scale", (OUT, 1), 1, IN),
        ("_scale", (OUT,), 1, IN),
        ("_scale_inv", (2, 2), 16, 64),
        ("_scale_inv", (2, 3), 16, 48),  # blocks of 48 are no whole blocks of 32: held as float32
    ],
)
def test_float8(
    tmp_path: Path, element: type, scale_name: str, shape: tuple[int, ...], rows: int, columns: int
) -> None:
    values = (RNG.standard_normal((OUT, IN)) * 4).astype(element)
    scale = np.asarray(RNG.uniform(0.001, 0.1, shape), np.float32)
    grid = scale.reshape(-(-OUT // rows), -(-IN // columns)).astype(np.float64)
    factors = grid[np.arange(OUT)[:, None] // rows, np.arange(IN)[None] // columns]
    expected = (values.astype(np.float64) * factors).astype(np.float32)  # one rounding, as a float32 product has
    tensors: dict[str, Array] = {
        "w.weight": values,
        f"w.weight{scale_name}": scale,
        "w.input_scale": np.ones(1, np.float32),
    }
    config = {"quant_method": "fp8", "weight_block_size": [rows, columns]}
    opened = open_model(write(tmp_path, tensors, config))
    assert set(opened.tensors) == {"w.weight"}
    assert opened.tensors["w.weight"].dtype.name == ("f32" if columns == 48 else element.__name__[7:11] + "_s")
    np.testing.assert_array_equal(weight_of(opened, "w.weight"), expected)


def test_compressed_tensors_with_scales_in_bfloat16(tmp_path: Path) -> None:
    values = RNG.standard_normal((OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    scale = RNG.uniform(0.001, 0.1, (OUT, 1)).astype(ml_dtypes.bfloat16)
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    opened = open_model(write(tmp_path, {"w.weight": values, "w.weight_scale": scale}, config))
    expected = values.astype(np.float64) * scale.astype(np.float64)
    np.testing.assert_array_equal(weight_of(opened, "w.weight"), expected)


def test_float8_without_scales_or_configuration(tmp_path: Path) -> None:
    values = RNG.standard_normal((OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    opened = open_model(write(tmp_path, {"w": values}, None))
    np.testing.assert_array_equal(weight_of(opened, "w"), values.astype(np.float64))


def test_microscaled_experts(tmp_path: Path) -> None:
    """gpt-oss: E2M1 values, two neighbours in a byte with the first one low, times 2 ** (scale - 127) for each 32."""
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    levels = RNG.integers(0, 16, (3, 8, 2, 32))
    scales = RNG.integers(100, 140, (3, 8, 2)).astype(np.uint8)
    blocks = (levels[..., ::2] | levels[..., 1::2] << 4).astype(np.uint8)
    expected = (e2m1[levels] * 2.0 ** (scales.astype(np.float64)[..., None] - 127)).reshape(3, 8, 64)
    tensors = {"mlp.experts.down_proj_blocks": blocks, "mlp.experts.down_proj_scales": scales}
    opened = open_model(write(tmp_path, tensors, {"quant_method": "mxfp4"}))
    assert opened.tensors["mlp.experts.down_proj"].shape == (3, 8, 64)
    np.testing.assert_array_equal(weight_of(opened, "mlp.experts.down_proj"), expected)


def test_an_unknown_method_is_left_to_the_recipe(tmp_path: Path) -> None:
    opened = open_model(write(tmp_path, {"w": np.ones(4, np.float32)}, {"quant_method": "other"}))
    assert opened.metadata["quantization_config"] == {"quant_method": "other"}


@pytest.mark.parametrize(
    ("key", "value"), [("bits", 3), ("group_size", 20), ("group_size", "x"), ("checkpoint_format", "marlin")]
)
def test_settings_that_are_not_read_are_named(tmp_path: Path, key: str, value: object) -> None:
    tensors, _ = int4_case(gptq=True, symmetric=True)
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, key: value}
    with pytest.raises(UnsupportedModelError, match=key):
        open_model(write(tmp_path, tensors, config))


def damaged_gptq(change: str) -> tuple[dict[str, Array], dict[str, object]]:
    tensors, _ = int4_case(gptq=True, symmetric=change not in ("symmetric",))
    if change == "order":
        tensors["w.g_idx"] = tensors["w.g_idx"][::-1].copy()
    if change == "missing":
        del tensors["w.qzeros"]
    if change == "shape":
        tensors["w.scales"] = tensors["w.scales"][:, :-1]
    if change == "type":
        tensors["w.qzeros"] = tensors["w.qzeros"].astype(np.float32)
    if change == "infinite":
        tensors["w.scales"] = tensors["w.scales"].astype(np.float32) * 1e9
    return tensors, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}


@pytest.mark.parametrize("change", ["order", "missing", "shape", "type", "symmetric", "infinite"])
def test_parts_that_contradict_each_other(tmp_path: Path, change: str) -> None:
    tensors, config = damaged_gptq(change)
    with pytest.raises(FileFormatError, match=r"quantised weight"):
        open_model(write(tmp_path, tensors, config)).data("w.weight")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 200) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data())
def test_any_configuration_and_shapes_are_one_error_or_a_weight(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    keys = ("bits", "group_size", "sym", "desc_act", "checkpoint_format", "version", "weight_block_size", "format")
    config: dict[str, object] = {
        "quant_method": data.draw(st.sampled_from(["gptq", "awq", "fp8", "mxfp4", "compressed-tensors", 3, None]))
    }
    config |= data.draw(st.dictionaries(st.sampled_from(keys), JSON, max_size=3))
    shapes = st.lists(st.sampled_from([0, 1, 4, 8, 16, 32, 64]), max_size=4)
    tensors: dict[str, Array] = {}
    kinds = [np.int32, np.float16, np.uint8, np.float32, ml_dtypes.float8_e4m3fn]
    for name in ("qweight", "qzeros", "scales", "g_idx", "weight", "weight_scale", "weight_scale_inv", "x_blocks"):
        if data.draw(st.booleans()):
            tensors[f"w.{name}"] = np.zeros(data.draw(shapes), data.draw(st.sampled_from(kinds)))
    folder = write(tmp_path_factory.mktemp("any"), tensors, config)
    try:
        opened = open_model(folder)
        for name, info in opened.tensors.items():
            assert opened.data(name).size == info.nbytes
    except RlxError:
        return
