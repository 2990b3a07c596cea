"""How each weight format lies in memory for the kernels (layout `rows16`), and how a block of it is unpacked.

Groups of 16 output rows, one row per vector lane; K is walked in order. A block of 32 k of a quantised group is

    scales   16 x (half scale, half minimum) for q4_1, 16 x half scale for q4_0 and q8_0
    quants   q4: 4 x 64 bytes, vector v holds bytes 4v..4v+3 of each row's 16: low nibbles are k = 4v.., high 16 + 4v..
             q8: 8 x 64 bytes, vector v holds k = 4v..4v+3 of each row, offset by 128 to be unsigned

and a block of one k of a float group is 16 elements. A new format is one `WeightFormat`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.emit import F32, I8, I16, I32, LANES, VF, VI, Emit, Val, vec
from rlx.core.dtype import DType, bf16, f16, f32, q4_0, q4_1, q8_0

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One storage format in the `rows16` layout.

    Attributes:
        dtype: the format in the file.
        block: k per block.
        block_bytes: bytes of one block of a group of 16 rows.
        pack: raw bytes [rows, bytes of a row] with rows a multiple of 16, to the layout.
        floats: (e, block address, k within the block) to the 16 rows' float32 values.
        row: (e, block address, row within the group as i64) to the block's values of one row: vectors of 16.
        scales: (e, block address) to scale and minimum (w = scale * u + minimum), quantised formats only.
        quants: (e, block address) to (first k, unsigned bytes as 16 x i32) pairs, quantised formats only.
        small: whether the unsigned bytes stay below 128.
    """

    dtype: DType
    block: int
    block_bytes: int
    pack: Callable[[Bytes], Bytes]
    floats: Callable[[Emit, Val, int], Val]
    row: Callable[[Emit, Val, Val], list[Val]]
    scales: Callable[[Emit, Val], tuple[Val, Val]] | None = None
    quants: Callable[[Emit, Val], list[tuple[int, Val]]] | None = None
    small: bool = True


def pack_rows16(dtype: DType, raw: Bytes, shape: tuple[int, ...]) -> Bytes:
    """A weight [rows, k] or a vector [k] as the file has it, in the layout; missing rows of a group are zero."""
    rows = shape[0] if len(shape) > 1 else 1
    matrix = raw.reshape(rows, -1)
    if rows % LANES:
        matrix = np.concatenate([matrix, np.zeros((-rows % LANES, matrix.shape[1]), np.uint8)])
    return FORMATS[dtype.name].pack(matrix)


def packed_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """The size of a packed weight [rows, k]."""
    fmt = FORMATS[dtype.name]
    return -(-shape[0] // LANES) * (shape[1] // fmt.block) * fmt.block_bytes


def _pack_plain(element: Any) -> Callable[[Bytes], Bytes]:
    def pack(raw: Bytes) -> Bytes:
        values = raw.view(element).reshape(raw.shape[0] // LANES, LANES, -1)
        return np.ascontiguousarray(values.transpose(0, 2, 1)).view(np.uint8).reshape(-1)

    return pack


def _pack_q4_1(raw: Bytes) -> Bytes:
    # a block is 5 words (scale and minimum, then 4 of quants), and each word moves as it is
    words = raw.view(np.uint32).reshape(raw.shape[0] // LANES, LANES, -1, 5)
    return np.ascontiguousarray(words.transpose(0, 2, 3, 1)).view(np.uint8).reshape(-1)


def _pack_scaled(words: int, offset: int) -> Callable[[Bytes], Bytes]:
    def pack(raw: Bytes) -> Bytes:
        groups = raw.shape[0] // LANES
        blocks = raw.reshape(groups, LANES, -1, 2 + 4 * words)
        result = np.empty((groups, blocks.shape[2], LANES * (2 + 4 * words)), np.uint8)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.uint16)[..., 0]
        result[..., : 2 * LANES].view(np.uint16)[...] = scales.transpose(0, 2, 1)
        quants = np.ascontiguousarray(blocks[..., 2:])
        if offset:
            quants ^= np.uint8(offset)
        moved = quants.view(np.uint32).transpose(0, 2, 3, 1)
        result[..., 2 * LANES :].view(np.uint32)[...] = moved.reshape(groups, moved.shape[1], -1)
        return result.reshape(-1)

    return pack


def _half_scales(e: Emit, block: Val) -> Val:
    return e.half_to_float(e.load(block, vec(I16)))


def _nibbles(offset: int) -> Callable[[Emit, Val], list[tuple[int, Val]]]:
    def quants(e: Emit, block: Val) -> list[tuple[int, Val]]:
        pairs: list[tuple[int, Val]] = []
        for v in range(4):
            word = e.load(e.at(block, offset + 64 * v), VI)
            pairs += [(4 * v, word & 0x0F0F0F0F), (16 + 4 * v, (word >> 4) & 0x0F0F0F0F)]
        return pairs

    return quants


def _bytes(e: Emit, block: Val) -> list[tuple[int, Val]]:
    return [(4 * v, e.load(e.at(block, 2 * LANES + 64 * v), VI)) for v in range(8)]


def _nibble_of(e: Emit, block: Val, offset: int, k: int) -> Val:
    word = e.load(e.at(block, offset + 64 * (k % 16 // 4)), VI)
    return ((word >> (8 * (k % 4) + 4 * (k // 16))) & 15).to_float()


def _row_words(e: Emit, block: Val, offset: int, row: Val, first: int) -> Val:
    """16 bytes of one row as bytes: words `first`..`first + 3`."""
    address = e.at(block, row * 4)
    words = [e.load(e.at(address, offset + 64 * (first + v)), vec(I32, 1)) for v in range(4)]
    result = e.typed(0, vec(I32, 4))
    for lane, word in enumerate(words):
        result = Val(e, e.b.insert_element(result.v, word.v, e.typed(lane, I32).v))
    return result.bitcast(vec(I8, 16))


def _scale_and_minimum(e: Emit, block: Val) -> tuple[Val, Val]:
    words = e.load(block, VI)
    return e.half_to_float(words.trunc(I16)), e.half_to_float((words >> 16).trunc(I16))


def _q4_1_floats(e: Emit, block: Val, k: int) -> Val:
    scale, minimum = _scale_and_minimum(e, block)
    return e.fma(_nibble_of(e, block, 64, k), scale, minimum)


def _q4_1_row(e: Emit, block: Val, row: Val) -> list[Val]:
    scale = e.splat(e.half_to_float(e.load(block, I16, row * 2)))
    minimum = e.splat(e.half_to_float(e.load(block, I16, row * 2 + 1)))
    packed = _row_words(e, block, 64, row, 0)
    return [e.fma(half.zext(I32).to_float(), scale, minimum) for half in (packed & 15, packed >> 4)]


def _q4_0_floats(e: Emit, block: Val, k: int) -> Val:
    return (_nibble_of(e, block, 32, k) - 8.0) * _half_scales(e, block)


def _q4_0_row(e: Emit, block: Val, row: Val) -> list[Val]:
    scale = e.splat(e.half_to_float(e.load(block, I16, row)))
    packed = _row_words(e, block, 32, row, 0)
    return [(half.zext(I32).to_float() - 8.0) * scale for half in (packed & 15, packed >> 4)]


def _q8_0_floats(e: Emit, block: Val, k: int) -> Val:
    word = e.load(e.at(block, 32 + 64 * (k // 4)), VI)
    return (((word >> (8 * (k % 4))) & 255).to_float() - 128.0) * _half_scales(e, block)


def _q8_0_row(e: Emit, block: Val, row: Val) -> list[Val]:
    scale = e.splat(e.half_to_float(e.load(block, I16, row)))
    return [(_row_words(e, block, 32, row, first).zext(I32).to_float() - 128.0) * scale for first in (0, 4)]


def _offset_scales(offset: float) -> Callable[[Emit, Val], tuple[Val, Val]]:
    def scales(e: Emit, block: Val) -> tuple[Val, Val]:
        scale = _half_scales(e, block)
        return scale, scale * -offset

    return scales


def _plain(element: Any, convert: Callable[[Emit, Val], Val]) -> tuple[Any, Any]:
    def floats(e: Emit, block: Val, k: int) -> Val:
        return convert(e, e.load(block, vec(element)))

    def row(e: Emit, block: Val, index: Val) -> list[Val]:
        return [convert(e, e.load(block, element, index))]

    return floats, row


_f32_floats, _f32_row = _plain(F32, lambda e, x: x)
_f16_floats, _f16_row = _plain(I16, lambda e, x: e.half_to_float(x))
_bf16_floats, _bf16_row = _plain(I16, lambda e, x: e.bf16_to_float(x))

FORMATS: dict[str, WeightFormat] = {
    fmt.dtype.name: fmt
    for fmt in (
        WeightFormat(f32, 1, 64, _pack_plain(np.uint32), _f32_floats, _f32_row),
        WeightFormat(f16, 1, 32, _pack_plain(np.uint16), _f16_floats, _f16_row),
        WeightFormat(bf16, 1, 32, _pack_plain(np.uint16), _bf16_floats, _bf16_row),
        WeightFormat(q4_0, 32, 288, _pack_scaled(4, 0), _q4_0_floats, _q4_0_row, _offset_scales(8.0), _nibbles(32)),
        WeightFormat(q4_1, 32, 320, _pack_q4_1, _q4_1_floats, _q4_1_row, _scale_and_minimum, _nibbles(64)),
        WeightFormat(
            q8_0, 32, 544, _pack_scaled(8, 128), _q8_0_floats, _q8_0_row, _offset_scales(128.0), _bytes, small=False
        ),
    )
}

__all__ = ["FORMATS", "VF", "WeightFormat", "pack_rows16", "packed_bytes"]
