"""The storage codecs against the `gguf` package, and the activation format against its definition."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given
from hypothesis import strategies as st

from rlx.core import dtype
from rlx.core.dtype import DType
from rlx.core.storage import STORAGE_FORMATS, decode, encode
from rlx.core.storage_blocks import BLOCK_FORMATS
from rlx.errors import InputError, ShapeError
from tests.ops.sample_inputs import set_factors

FORMATS = [dtype.f16, dtype.bf16, *dtype.GGUF_WEIGHTS]
ORACLE = {storage.name: gguf.GGMLQuantizationType[storage.name.upper()] for storage in FORMATS}
WRITTEN = [storage for storage in FORMATS if STORAGE_FORMATS[storage.name].encode_blocks is not None]
READ_ONLY = [storage for storage in FORMATS if storage not in WRITTEN]
SHAPES = [(32,), (3, 64), (2, 1, 96), (0, 32)]


def samples(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Values of many magnitudes, with zero blocks and ties among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 4, (*shape[:-1], 1))
    values.reshape(-1)[::7] = 0
    values.reshape(-1)[::5] = np.round(values.reshape(-1)[::5])
    if values.shape[0] > 1:
        values[0] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("storage", WRITTEN, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_encode_and_decode_are_bit_equal_to_gguf(storage: DType, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        values = samples(shape, seed)
        expected = quants.quantize(values, ORACLE[storage.name])
        raw = encode(storage, values)
        np.testing.assert_array_equal(raw, expected.view(np.uint8).reshape(-1))
        decoded = decode(storage, raw, shape)
        reference = quants.dequantize(expected, ORACLE[storage.name])
        np.testing.assert_array_equal(decoded.view(np.uint32), reference.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("storage", FORMATS, ids=str)
def test_decode_of_any_bytes_is_bit_equal_to_gguf(storage: DType) -> None:
    # Random bytes hold scales and quants that no encoder makes: subnormals, infinities, NaN.
    count = 500
    raw = np.random.default_rng(0).integers(0, 256, count * storage.block_bytes, dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        decoded = decode(storage, raw, (count, storage.block_size))
        typed = raw.view(np.float16) if storage.name == "f16" else raw
        reference = quants.dequantize(typed.reshape(count, -1), ORACLE[storage.name]).astype(np.float32)
    np.testing.assert_array_equal(decoded, reference)


@pytest.mark.parametrize("storage", dtype.GGUF_WEIGHTS, ids=str)
@given(data=st.data())
def test_decode_of_finite_blocks_is_bit_equal_to_gguf(storage: DType, data: st.DataObject) -> None:
    """Any bytes with any finite factors, so that every bit of the result counts, the sign of zero among them."""
    raw = np.frombuffer(data.draw(st.binary(min_size=storage.block_bytes, max_size=storage.block_bytes)), np.uint8)
    raw = raw.copy()
    if storage.name not in ("mxfp4", "nvfp4"):  # which have no infinite factors
        for place in range(max(1, len(BLOCK_FORMATS[storage.name].halves))):
            half = data.draw(st.floats(width=16, allow_nan=False, allow_infinity=False))
            set_factors(storage, raw[None], half, place)
    decoded = decode(storage, raw, (storage.block_size,))
    with np.errstate(all="ignore"):
        reference = quants.dequantize(raw[None], ORACLE[storage.name])[0]
    np.testing.assert_array_equal(decoded.view(np.uint32), reference.view(np.uint32))


@pytest.mark.parametrize("storage", READ_ONLY, ids=str)
def test_a_format_that_is_only_read_is_not_written(storage: DType) -> None:
    with pytest.raises(InputError, match="does not write"):
        encode(storage, np.zeros(storage.block_size, np.float32))


def test_plain_float_is_stored_as_it_is() -> None:
    values = samples((4, 5), 1)
    raw = encode(dtype.f32, values)
    assert raw.tobytes() == values.tobytes()
    np.testing.assert_array_equal(decode(dtype.f32, raw, (4, 5)), values)


@pytest.mark.parametrize("storage", [*FORMATS, dtype.q8_act, dtype.q8k_act], ids=str)
def test_empty_tensor(storage: DType) -> None:
    shape = (0, max(32, storage.block_size))
    if storage not in READ_ONLY:
        assert encode(storage, np.zeros(shape, np.float32)).size == 0
    assert decode(storage, np.zeros(0, np.uint8), shape).shape == shape


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=32, max_size=32))
def test_activation_format_follows_its_definition(block: list[float]) -> None:
    values = np.array(block, np.float32)
    raw = encode(dtype.q8_act, values)
    quanta = raw[:32].view(np.int8)
    scale, total = raw[32:40].view(np.float32)
    largest = np.abs(values).max()
    assert scale == largest / np.float32(127)
    with np.errstate(all="ignore"):
        inverse = np.float32(127) / largest
    for value, quantum in zip(values, quanta, strict=True):
        # Python's round is half to even, on the float32 product.
        assert quantum == (round(float(value * inverse)) if np.isfinite(inverse) else 0)
    assert total == scale * np.float32(int(quanta.astype(np.int64).sum()))
    assert raw[40:].view(np.int32) == -8 * quanta.astype(np.int64).sum()
    decoded = decode(dtype.q8_act, raw, (32,))
    np.testing.assert_array_equal(decoded, quanta.astype(np.float32) * scale)
    # Half a step, and a little for the two roundings of scale and inverse (relative 2**-23 of at most 127 steps).
    if np.isfinite(inverse):
        assert np.abs(decoded - values).max() <= 0.501 * float(scale) + 1e-38


def test_the_large_activation_format_follows_its_definition() -> None:
    """One scale for 256; the sums of halves as int32 times -32, and sums of 32 and of 16 as int16."""
    values = samples((4, 256), 5)[1:]
    values[1] = 127.0  # the largest sums
    raw = encode(dtype.q8k_act, values).reshape(3, -1)
    for row, block in zip(values, raw, strict=True):
        chunks = block[:320].reshape(8, 40)
        quanta, scale = chunks[:, :32].copy().view(np.int8).reshape(-1), block[320:324].view(np.float32)[0]
        assert scale == np.abs(row).max() / np.float32(127)
        np.testing.assert_array_equal(quanta, np.rint(row * (np.float32(127) / np.abs(row).max())))
        sums = quanta.astype(np.int64).reshape(16, 16).sum(axis=1)
        np.testing.assert_array_equal(chunks[:, 32:].copy().view(np.int32).reshape(-1), -32 * sums)
        np.testing.assert_array_equal(block[324:340].view(np.int16), sums[::2] + sums[1::2])
        np.testing.assert_array_equal(block[340:].view(np.int16), sums)
        np.testing.assert_array_equal(decode(dtype.q8k_act, block, (256,)), quanta.astype(np.float32) * scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activation_format_keeps_a_fault_visible(bad: float) -> None:
    values = np.ones(64, np.float32)
    values[3] = bad
    decoded = decode(dtype.q8_act, encode(dtype.q8_act, values), (64,))
    assert not np.isfinite(decoded[:32]).any()
    np.testing.assert_array_equal(decoded[32:], np.ones(32, np.float32))


@pytest.mark.parametrize("storage", [storage for storage in WRITTEN if storage.is_packed], ids=str)
def test_packed_weights_refuse_what_they_cannot_hold(storage: DType) -> None:
    values = np.ones(32, np.float32)
    values[0] = np.nan
    with pytest.raises(InputError):
        encode(storage, values)


@pytest.mark.parametrize("shape", [(31,), (32, 3), ()])
def test_shapes_that_do_not_fit_the_block_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        encode(dtype.q4_1, np.ones(shape, np.float32))
    with pytest.raises(ShapeError):
        decode(dtype.q4_1, np.zeros(20, np.uint8), shape)


@pytest.mark.parametrize("size", [0, 19, 21, 40])
def test_wrong_number_of_bytes_is_refused(size: int) -> None:
    with pytest.raises(ShapeError):
        decode(dtype.q4_1, np.zeros(size, np.uint8), (32,))


def test_type_without_codec_is_refused() -> None:
    with pytest.raises(InputError):
        decode(dtype.i32, np.zeros(4, np.uint8), (1,))


def values_of_bits(code: int, exponent_bits: int, fraction_bits: int, bias: int) -> float:
    """A small float by its definition in float64 (OCP 8-bit Floating Point 1.0, 5), its special values left out."""
    fraction, rest = code & ((1 << fraction_bits) - 1), code >> fraction_bits
    exponent = rest & ((1 << exponent_bits) - 1)
    sign = -1.0 if rest >> exponent_bits else 1.0
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias - fraction_bits)
    return sign * (1 + fraction / (1 << fraction_bits)) * 2.0 ** (exponent - bias)


@pytest.mark.parametrize(
    ("storage", "exponent", "fraction", "bias"), [(dtype.e4m3_s, 4, 3, 7), (dtype.e5m2_s, 5, 2, 15)], ids=str
)
def test_eight_bit_floats_follow_their_definition(storage: DType, exponent: int, fraction: int, bias: int) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    scale = np.float32(0.7)
    raw = np.concatenate([np.full((8, 1), scale).view(np.uint8), codes], axis=1).reshape(-1)
    decoded = decode(storage, raw, (256,))
    for code, found in enumerate(decoded):
        magnitude = code & 127
        if storage == dtype.e4m3_s and magnitude == 127:
            assert np.isnan(found)
        elif storage == dtype.e5m2_s and magnitude >= 124:
            assert np.isinf(found) if magnitude == 124 else np.isnan(found)
        else:
            assert found == np.float32(values_of_bits(code, exponent, fraction, bias) * np.float64(scale))


def test_nibbles_with_a_zero_follow_their_definition() -> None:
    """`scale * (level - zero)`, elements 0..15 in the lower nibbles; exact, so that no rounding enters."""
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (50, 19), dtype=np.uint8)
    scales = rng.standard_normal(50).astype(np.float16)
    raw[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    raw[:, 2] %= 17
    decoded = decode(dtype.q4_z, raw.reshape(-1), (50, 32))
    levels = np.concatenate([raw[:, 3:] & 15, raw[:, 3:] >> 4], axis=1).astype(np.float64)
    expected = scales.astype(np.float64)[:, None] * (levels - raw[:, 2:3])
    np.testing.assert_array_equal(decoded, expected)
