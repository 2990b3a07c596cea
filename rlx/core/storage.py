"""NumPy codecs of the storage formats: bytes of a tensor to float32 values and back.

In goes a flat `uint8` array as it lies in a file, out comes `float32` (or the other way round). Each format is one
entry of `STORAGE_FORMATS`: its dtype and two functions over whole blocks. These are the definitions the kernels are
tested against. How the blocks of quantised weights are read is in `storage_blocks.py`; rounding follows gguf-py's
quants.py. Next: `rlx/io/gguf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.block_format import power_of_two
from rlx.core.dtype import DType, bf16, bf16_act, f16, f32, f64, q8_act, q8k_act, q8kx2_act, q8x2_act
from rlx.core.storage_blocks import BLOCK_FORMATS, E2M1_DOUBLED
from rlx.errors import InputError, ShapeError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """How one dtype is read and written.

    Attributes:
        dtype: the format; `dtype.block_size` values take `dtype.block_bytes` bytes.
        decode_blocks: uint8 `[blocks, block_bytes]` to float32 `[blocks, block_size]`.
        encode_blocks: the reverse; None for formats that RLX only reads.
        needs_finite: the format cannot hold infinities or NaN, so `encode` refuses them.
    """

    dtype: DType
    decode_blocks: Callable[[Bytes], Floats]
    encode_blocks: Callable[[Floats], Bytes] | None
    needs_finite: bool = False


def decode(dtype: DType, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """Read a stored tensor as float32.

    Args:
        dtype: a storage format of `STORAGE_FORMATS`.
        raw: the bytes, flat, exactly as many as `shape` needs.
        shape: shape of the result; a packed format needs the last axis to be a multiple of its block.

    Returns:
        float32 of `shape`. For float32 input this is a view of `raw` where alignment allows.

    Raises:
        ShapeError: the shape does not fit the format or the number of bytes.
    """
    storage = _format_of(dtype)
    elements = _checked_elements(dtype, shape)
    expected = elements // dtype.block_size * dtype.block_bytes
    if raw.ndim != 1 or raw.size != expected:
        raise ShapeError(
            f"the bytes do not fit a {dtype} tensor of shape {shape}",
            found=f"{raw.size} bytes of rank {raw.ndim}",
            expected=f"{expected} bytes, flat",
        )
    blocks = np.ascontiguousarray(raw).reshape(-1, dtype.block_bytes)
    return storage.decode_blocks(blocks).reshape(shape)


def encode(dtype: DType, values: Floats) -> Bytes:
    """Write float32 values in a storage format.

    Args:
        dtype: a storage format of `STORAGE_FORMATS`.
        values: float32 of any shape; a packed format needs the last axis to be a multiple of its block.

    Returns:
        The bytes, flat, in row-major order of the blocks.

    Raises:
        ShapeError: the last axis is not a multiple of the block.
        InputError: a NaN or infinity that the format cannot hold, or a format that RLX only reads.
    """
    storage = _format_of(dtype)
    if storage.encode_blocks is None:
        raise InputError(f"RLX reads {dtype}, and does not write it", fix="quantise the file with the tools of ggml")
    _checked_elements(dtype, values.shape)
    if storage.needs_finite and not np.isfinite(values).all():
        raise InputError(f"{dtype} cannot hold NaN or infinity", expected="finite values")
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, dtype.block_size)
    return storage.encode_blocks(blocks).reshape(-1)


def _format_of(dtype: DType) -> StorageFormat:
    storage = STORAGE_FORMATS.get(dtype.name)
    if storage is None:
        raise InputError(
            "there is no codec for this storage format", found=dtype, expected=f"one of {', '.join(STORAGE_FORMATS)}"
        )
    return storage


def _checked_elements(dtype: DType, shape: tuple[int, ...]) -> int:
    if any(size < 0 for size in shape) or (dtype.is_packed and (not shape or shape[-1] % dtype.block_size)):
        raise ShapeError(
            f"the shape does not fit the blocks of {dtype}",
            found=shape,
            expected=f"a last axis that is a multiple of {dtype.block_size}",
        )
    return math.prod(shape)


def _half_bytes(column: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return column.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _inverse(scale: Floats) -> Floats:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _pack_nibbles(quants: Bytes) -> Bytes:
    """`[blocks, 32]` levels to `[blocks, 16]`: elements 0..15 are low nibbles, 16..31 high ones."""
    return quants[:, :16] | (quants[:, 16:] << np.uint8(4))


def _to_level(values: Floats, largest: int) -> Bytes:
    with np.errstate(invalid="ignore"):
        return np.trunc(values).astype(np.uint8).clip(0, largest)


def _decode_f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _encode_f32(blocks: Floats) -> Bytes:
    return blocks.view(np.uint8)


def _decode_f64(blocks: Bytes) -> Floats:
    with np.errstate(over="ignore"):
        return blocks.view(np.float64).astype(np.float32)


def _encode_f64(blocks: Floats) -> Bytes:
    return blocks.astype(np.float64).view(np.uint8)


def _decode_f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _encode_f16(blocks: Floats) -> Bytes:
    return _half_bytes(blocks)


def _decode_bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _encode_bf16(blocks: Floats) -> Bytes:
    # Round half to even on the upper 16 bits; a NaN keeps its upper bits and is made quiet, as ggml does.
    bits = blocks.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.where(np.isnan(blocks), quiet, rounded).astype(np.uint16).view(np.uint8)


def _signed_levels(blocks: Floats, zero: int) -> tuple[Floats, Bytes]:
    """Scale and levels 0..2 * zero - 1. The signed value of largest magnitude maps to level 0, so one end is exact."""
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = extreme / np.float32(-zero)
    with np.errstate(over="ignore", invalid="ignore"):
        return scale, _to_level(blocks * _inverse(scale) + np.float32(zero + 0.5), 2 * zero - 1)


def _ranged_levels(blocks: Floats, largest: int) -> tuple[Floats, Floats, Bytes]:
    """Scale, minimum and levels 0..largest over the range of the block."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (high - low) / np.float32(largest)
        return scale, low, _to_level((blocks - low) * _inverse(scale) + np.float32(0.5), largest)


def _fifth_bits(levels: Bytes) -> Bytes:
    return np.packbits(levels >> np.uint8(4), axis=1, bitorder="little")


def _encode_q4_0(blocks: Floats) -> Bytes:
    scale, levels = _signed_levels(blocks, 8)
    return np.concatenate([_half_bytes(scale), _pack_nibbles(levels)], axis=1)


def _encode_q4_1(blocks: Floats) -> Bytes:
    scale, low, levels = _ranged_levels(blocks, 15)
    return np.concatenate([_half_bytes(scale), _half_bytes(low), _pack_nibbles(levels)], axis=1)


def _encode_q5_0(blocks: Floats) -> Bytes:
    scale, levels = _signed_levels(blocks, 16)
    return np.concatenate([_half_bytes(scale), _fifth_bits(levels), _pack_nibbles(levels & np.uint8(15))], axis=1)


def _encode_q5_1(blocks: Floats) -> Bytes:
    scale, low, levels = _ranged_levels(blocks, 31)
    parts = [_half_bytes(scale), _half_bytes(low), _fifth_bits(levels), _pack_nibbles(levels & np.uint8(15))]
    return np.concatenate(parts, axis=1)


def _encode_mxfp4(blocks: Floats) -> Bytes:
    """The exponent of the largest magnitude, less the 2 of E2M1's largest value, then the nearest levels."""
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.where(largest > 0, np.floor(np.log2(largest)) + np.float32(125), np.float32(0)).astype(np.uint8)
    values = power_of_two(exponent)[:, :, None] * np.array(E2M1_DOUBLED, np.float32)
    levels = np.abs(values - blocks[:, :, None]).argmin(axis=2).astype(np.uint8)
    return np.concatenate([exponent, _pack_nibbles(levels)], axis=1)


def _round_half_away(values: Floats) -> Floats:
    magnitude = np.abs(values)
    floor = np.floor(magnitude)
    return np.sign(values) * (floor + np.floor(np.float32(2) * (magnitude - floor)))


def _encode_q8_0(blocks: Floats) -> Bytes:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        quants = _round_half_away(blocks * _inverse(scale)).astype(np.int8)
    return np.concatenate([_half_bytes(scale), quants.view(np.uint8)], axis=1)


def _decode_term(dtype: DType, blocks: Bytes) -> Floats:
    quants, scale = split_term(dtype, blocks)
    with np.errstate(invalid="ignore"):  # a faulty block: 0 times infinity is NaN, as it should be
        return quants.astype(np.float32) * scale


def split_term(dtype: DType, blocks: Bytes) -> tuple[NDArray[np.int8], Floats]:
    """The quants `[blocks, block_size]` and scales `[blocks, 1]` of `q8_act` or `q8k_act`."""
    start, chunk_bytes = (32, 32) if dtype == q8_act else (320, 40)
    chunks = blocks[:, :start].reshape(len(blocks), start // chunk_bytes, chunk_bytes)
    scale = np.ascontiguousarray(blocks[:, start : start + 4]).view(np.float32)
    return np.ascontiguousarray(chunks[:, :, :32]).view(np.int8).reshape(len(blocks), dtype.block_size), scale


def _encode_term(dtype: DType, blocks: Floats) -> Bytes:
    """`scale = amax / 127`, `q = round_half_even(x * (127 / amax))`, all in float32, and the sums that `dtype.py` says.

    The inverse is 0 where `127 / amax` is not finite (an all-zero block, or one below 3.8e-37): its quants are 0.
    A block with a NaN or an infinity has quants 0 and a scale that is not finite, so that the fault stays visible.
    """
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scale = largest / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(127) / largest
        inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))
        product = np.rint(blocks * inverse)
        quants = np.where(np.isfinite(product), product, np.float32(0)).astype(np.int8)
    parts = _join_q8_act(quants, scale) if dtype == q8_act else _join_q8k_act(quants, scale)
    return np.concatenate([part.view(np.uint8) for part in parts], axis=1)


def _join_q8_act(quants: NDArray[np.int8], scale: Floats) -> list[NDArray[Any]]:
    total = quants.sum(axis=1, keepdims=True, dtype=np.int32)
    with np.errstate(invalid="ignore"):
        return [quants, scale, scale * total.astype(np.float32), total * np.int32(-8)]


def _join_q8k_act(quants: NDArray[np.int8], scale: Floats) -> list[NDArray[Any]]:
    sums = quants.reshape(len(quants), 16, 16).sum(axis=2, dtype=np.int32)
    chunks = np.concatenate(
        [quants.reshape(-1, 8, 32).view(np.uint8), (sums * np.int32(-32)).reshape(-1, 8, 2).view(np.uint8)], axis=2
    ).reshape(len(quants), 320)
    return [chunks, scale, (sums[:, ::2] + sums[:, 1::2]).astype(np.int16), sums.astype(np.int16)]


def _activation(dtype: DType, term: DType) -> StorageFormat:
    """One term, or two: the block, then what its rounding left over in the same format."""

    def decode_blocks(blocks: Bytes) -> Floats:
        first = _decode_term(term, blocks[:, : term.block_bytes])
        return first if dtype == term else first + _decode_term(term, blocks[:, term.block_bytes :])

    def encode_blocks(blocks: Floats) -> Bytes:
        first = _encode_term(term, blocks)
        if dtype == term:
            return first
        with np.errstate(invalid="ignore"):  # a faulty block: infinity less infinity is NaN, as it should be
            rest = blocks - _decode_term(term, first)
        return np.concatenate([first, _encode_term(term, rest)], axis=1)

    return StorageFormat(dtype, decode_blocks, encode_blocks)


_ENCODERS: dict[str, Callable[[Floats], Bytes]] = {
    "q4_0": _encode_q4_0,
    "q4_1": _encode_q4_1,
    "q8_0": _encode_q8_0,
    "q5_0": _encode_q5_0,
    "q5_1": _encode_q5_1,
    "mxfp4": _encode_mxfp4,
}
_WEIGHTS = (
    StorageFormat(fmt.dtype, fmt.decode, _ENCODERS.get(name), needs_finite=True) for name, fmt in BLOCK_FORMATS.items()
)

STORAGE_FORMATS: dict[str, StorageFormat] = {
    storage.dtype.name: storage
    for storage in (
        StorageFormat(f64, _decode_f64, _encode_f64),
        StorageFormat(f32, _decode_f32, _encode_f32),
        StorageFormat(f16, _decode_f16, _encode_f16),
        StorageFormat(bf16, _decode_bf16, _encode_bf16),
        StorageFormat(bf16_act, _decode_bf16, _encode_bf16),
        *_WEIGHTS,
        *(_activation(dtype, q8_act) for dtype in (q8_act, q8x2_act)),
        *(_activation(dtype, q8k_act) for dtype in (q8k_act, q8kx2_act)),
    )
}
