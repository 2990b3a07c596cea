"""NumPy codecs of the storage formats: bytes of a tensor to float32 values and back.

In goes a flat `uint8` array as it lies in a file, out comes `float32` (or the other way round). Each format is one
entry of `STORAGE_FORMATS`: its dtype and two functions over whole blocks. These are the definitions the kernels are
tested against. Layouts and rounding follow the GGML block formats (ggml-common.h, gguf-py's quants.py).
Next: `rlx/io/gguf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType, bf16, f16, f32, q4_0, q4_1, q8_0, q8_act, q8x2_act
from rlx.errors import InputError, ShapeError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """How one dtype is read and written.

    Attributes:
        dtype: the format; `dtype.block_size` values take `dtype.block_bytes` bytes.
        decode_blocks: uint8 `[blocks, block_bytes]` to float32 `[blocks, block_size]`.
        encode_blocks: the reverse.
        needs_finite: the format cannot hold infinities or NaN, so `encode` refuses them.
    """

    dtype: DType
    decode_blocks: Callable[[Bytes], Floats]
    encode_blocks: Callable[[Floats], Bytes]
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
        InputError: a NaN or infinity that the format cannot hold.
    """
    storage = _format_of(dtype)
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


def _half_column(blocks: Bytes, byte: int) -> Floats:
    """The float16 at `byte` of every block, as a float32 column `[blocks, 1]`."""
    return np.ascontiguousarray(blocks[:, byte : byte + 2]).view(np.float16).astype(np.float32)


def _half_bytes(column: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return column.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _inverse(scale: Floats) -> Floats:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _unpack_nibbles(packed: Bytes) -> Bytes:
    """`[blocks, 16]` bytes to `[blocks, 32]`: low nibbles are elements 0..15, high nibbles 16..31."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def _pack_nibbles(quants: Bytes) -> Bytes:
    return quants[:, :16] | (quants[:, 16:] << np.uint8(4))


def _to_nibble(values: Floats) -> Bytes:
    with np.errstate(invalid="ignore"):
        return np.trunc(values).astype(np.uint8).clip(0, 15)


def _decode_f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _encode_f32(blocks: Floats) -> Bytes:
    return blocks.view(np.uint8)


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


def _decode_q4_0(blocks: Bytes) -> Floats:
    quants = _unpack_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)
    return _half_column(blocks, 0) * quants.astype(np.float32)


def _encode_q4_0(blocks: Floats) -> Bytes:
    # The signed value of largest magnitude maps to -8, so one end of the range is exact.
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = extreme / np.float32(-8)
    with np.errstate(over="ignore", invalid="ignore"):
        quants = _to_nibble(blocks * _inverse(scale) + np.float32(8.5))
    return np.concatenate([_half_bytes(scale), _pack_nibbles(quants)], axis=1)


def _decode_q4_1(blocks: Bytes) -> Floats:
    quants = _unpack_nibbles(blocks[:, 4:]).astype(np.float32)
    return _half_column(blocks, 0) * quants + _half_column(blocks, 2)


def _encode_q4_1(blocks: Floats) -> Bytes:
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (high - low) / np.float32(15)
        quants = _to_nibble((blocks - low) * _inverse(scale) + np.float32(0.5))
    return np.concatenate([_half_bytes(scale), _half_bytes(low), _pack_nibbles(quants)], axis=1)


def _decode_q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half_column(blocks, 0)


def _round_half_away(values: Floats) -> Floats:
    magnitude = np.abs(values)
    floor = np.floor(magnitude)
    return np.sign(values) * (floor + np.floor(np.float32(2) * (magnitude - floor)))


def _encode_q8_0(blocks: Floats) -> Bytes:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        quants = _round_half_away(blocks * _inverse(scale)).astype(np.int8)
    return np.concatenate([_half_bytes(scale), quants.view(np.uint8)], axis=1)


def _decode_q8_act(blocks: Bytes) -> Floats:
    scale = np.ascontiguousarray(blocks[:, 32:36]).view(np.float32)
    with np.errstate(invalid="ignore"):  # a faulty block: 0 times infinity is NaN, as it should be
        return blocks[:, :32].view(np.int8).astype(np.float32) * scale


def _encode_q8_act(blocks: Floats) -> Bytes:
    """`scale = amax / 127`, `q = round_half_even(x * (127 / amax))`, all in float32, and the sum `scale * sum(q)`.

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
        total = scale * quants.astype(np.int32).sum(axis=1, keepdims=True).astype(np.float32)
    return np.concatenate([quants.view(np.uint8), scale.view(np.uint8), total.view(np.uint8)], axis=1)


def _decode_q8x2_act(blocks: Bytes) -> Floats:
    return _decode_q8_act(blocks[:, :40]) + _decode_q8_act(blocks[:, 40:])


def _encode_q8x2_act(blocks: Floats) -> Bytes:
    """The block in `q8_act`, then what its rounding left over in `q8_act`."""
    first = _encode_q8_act(blocks)
    with np.errstate(invalid="ignore"):  # a faulty block: infinity less infinity is NaN, as it should be
        rest = blocks - _decode_q8_act(first)
    return np.concatenate([first, _encode_q8_act(rest)], axis=1)


STORAGE_FORMATS: dict[str, StorageFormat] = {
    storage.dtype.name: storage
    for storage in (
        StorageFormat(f32, _decode_f32, _encode_f32),
        StorageFormat(f16, _decode_f16, _encode_f16),
        StorageFormat(bf16, _decode_bf16, _encode_bf16),
        StorageFormat(q4_0, _decode_q4_0, _encode_q4_0, needs_finite=True),
        StorageFormat(q4_1, _decode_q4_1, _encode_q4_1, needs_finite=True),
        StorageFormat(q8_0, _decode_q8_0, _encode_q8_0, needs_finite=True),
        StorageFormat(q8_act, _decode_q8_act, _encode_q8_act),
        StorageFormat(q8x2_act, _decode_q8x2_act, _encode_q8x2_act),
    )
}
