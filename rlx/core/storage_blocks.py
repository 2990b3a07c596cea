"""The GGML block formats by their parts: integer levels, and the factors and small integers that scale them.

In goes uint8 `[blocks, block_bytes]` as it lies in a file, out come the `Parts` of every block, or its float32 values.
One `BlockFormat` says all about a format, and a backend lays the same parts out for its kernels:

    value = scale * (level - zero) + minimum        scale = factor, or factor * scales[sub-block]
            scale * table[level]                    minimum = factor, or -factor * minimums[sub-block]

Every product of a scale with a level is exact in float32 (11 bits of a half, 7 of an integer scale, 5 of a level), so
that only adding the minimum rounds. Layouts: ggml-common.h; gguf-py's quants.py is what the tests compare with.
Used by `storage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import (
    DType,
    iq4_nl,
    mxfp4,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The levels of IQ4_NL (ggml-common.h, `kvalues_iq4nl`)."""
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of the 4-bit float E2M1 (OCP Microscaling Formats 1.0, 5.3.3)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Blocks taken apart.

    Attributes:
        levels: uint8 `[blocks, block_size]`, in the order of the elements.
        scales: integer scale of each sub-block, int8 `[blocks, sub-blocks]`; None where the factor is the scale.
        minimums: integer minimum of each sub-block, uint8 `[blocks, sub-blocks]`; None where there is none.
    """

    levels: Bytes
    scales: NDArray[np.int8] | None = None
    minimums: Bytes | None = None


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One format.

    Attributes:
        dtype: the format.
        bits: of a level.
        halves: where the half-precision factors lie in a block: of the scale, then of the minimum where there is one.
        split: uint8 `[blocks, block_bytes]` to its parts.
        zero: the level that stands for 0.
        table: values of the levels, in place of `zero`.
    """

    dtype: DType
    bits: int
    halves: tuple[int, ...]
    split: Callable[[Bytes], Parts]
    zero: int = 0
    table: tuple[int, ...] = ()

    def factors(self, blocks: Bytes) -> list[Floats]:
        """Float32 `[blocks, 1]` of the scale and, where there is one, of the minimum."""
        if not self.halves:
            return [power_of_two(blocks[:, :1])]
        return [half_column(blocks, byte) for byte in self.halves]

    def decode(self, blocks: Bytes) -> Floats:
        """uint8 `[blocks, block_bytes]` to float32 `[blocks, block_size]`; a faulty factor gives infinity or NaN."""
        parts, factors = self.split(blocks), self.factors(blocks)
        if self.table:
            signed = np.array(self.table, np.float32)[parts.levels]
        else:
            signed = parts.levels.astype(np.float32) - np.float32(self.zero)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = factors[0] if parts.scales is None else factors[0] * parts.scales.astype(np.float32)
            sub_blocks = scale.shape[1]
            values = signed.reshape(len(blocks), sub_blocks, self.dtype.block_size // sub_blocks) * scale[:, :, None]
            if parts.minimums is not None:
                values -= (factors[1] * parts.minimums.astype(np.float32))[:, :, None]
            elif len(factors) == 2:
                values += factors[1][:, :, None]
        return values.reshape(len(blocks), self.dtype.block_size)


def half_column(blocks: Bytes, byte: int) -> Floats:
    """The float16 at `byte` of every block, as a float32 column `[blocks, 1]`."""
    return np.ascontiguousarray(blocks[:, byte : byte + 2]).view(np.float16).astype(np.float32)


def power_of_two(exponents: Bytes) -> Floats:
    """Half of the E8M0 scale `2 ** (e - 127)`, since the table of E2M1 is doubled."""
    wide = exponents.astype(np.uint32)
    # the two smallest are subnormal in float32
    return np.where(wide < 2, np.uint32(1 << 21) << wide, (wide - np.uint32(1)) << np.uint32(23)).view(np.float32)


def _fields(packed: Bytes, run: int, bits: int) -> Bytes:
    """Bit fields of bytes in runs: in each run all lowest fields come first, then all of the next, and so on."""
    count, width = packed.shape
    fields = np.empty((count, width // run, 8 // bits, run), np.uint8)
    for index in range(8 // bits):
        field = (packed >> np.uint8(bits * index)) & np.uint8((1 << bits) - 1)
        fields[:, :, index] = field.reshape(count, width // run, run)
    return fields.reshape(count, width * 8 // bits)


def _nibbles_at(start: int) -> Callable[[Bytes], Parts]:
    return lambda blocks: Parts(_fields(blocks[:, start : start + 16], 16, 4))


def _five_bits_at(start: int) -> Callable[[Bytes], Parts]:
    """4 bytes of fifth bits in the order of the elements, then the nibbles."""

    def split(blocks: Bytes) -> Parts:
        high = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
        return Parts(_fields(blocks[:, start + 4 :], 16, 4) | high << np.uint8(4))

    return split


def _split_q8_0(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 2:] ^ np.uint8(128))


def _split_q2_k(blocks: Bytes) -> Parts:
    scales = blocks[:, :16]
    return Parts(_fields(blocks[:, 16:80], 32, 2), (scales & np.uint8(15)).view(np.int8), scales >> np.uint8(4))


def _split_q3_k(blocks: Bytes) -> Parts:
    levels = _fields(blocks[:, 32:96], 32, 2) | _fields(blocks[:, :32], 32, 1) << np.uint8(2)
    # 16 scales of 6 bits: 8 bytes of lower nibbles, then 4 bytes of the upper two bits
    scales = _fields(blocks[:, 96:104], 8, 4) | _fields(blocks[:, 104:108], 4, 2) << np.uint8(4)
    return Parts(levels, scales.view(np.int8) - np.int8(32))


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """8 scales and 8 minimums of 6 bits in 12 bytes (Q4_K and Q5_K).

    The first four of each lie in the lower bits of bytes 0..3 and 4..7; the others are a nibble of bytes 8..11 each,
    with their upper two bits above those of the first four.
    """
    scales, minimums, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, top = np.uint8(63), np.uint8(48)
    late_scales = (rest & np.uint8(15)) | (scales >> np.uint8(2) & top)
    late_minimums = (rest >> np.uint8(4)) | (minimums >> np.uint8(2) & top)
    return (
        np.concatenate([scales & low, late_scales], axis=1),
        np.concatenate([minimums & low, late_minimums], axis=1),
    )


def _split_q4_k(blocks: Bytes) -> Parts:
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    return Parts(_fields(blocks[:, 16:], 32, 4), scales.view(np.int8), minimums)


def _split_q5_k(blocks: Bytes) -> Parts:
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    levels = _fields(blocks[:, 48:], 32, 4) | _fields(blocks[:, 16:48], 32, 1) << np.uint8(4)
    return Parts(levels, scales.view(np.int8), minimums)


def _split_q6_k(blocks: Bytes) -> Parts:
    levels = _fields(blocks[:, :128], 64, 4) | _fields(blocks[:, 128:192], 32, 2) << np.uint8(4)
    return Parts(levels, np.ascontiguousarray(blocks[:, 192:208]).view(np.int8))


BLOCK_FORMATS: dict[str, BlockFormat] = {
    fmt.dtype.name: fmt
    for fmt in (
        BlockFormat(q4_0, 4, (0,), _nibbles_at(2), zero=8),
        BlockFormat(q4_1, 4, (0, 2), _nibbles_at(4)),
        BlockFormat(q8_0, 8, (0,), _split_q8_0, zero=128),
        BlockFormat(q5_0, 5, (0,), _five_bits_at(2), zero=16),
        BlockFormat(q5_1, 5, (0, 2), _five_bits_at(4)),
        BlockFormat(iq4_nl, 4, (0,), _nibbles_at(2), table=IQ4_NL_VALUES),
        BlockFormat(mxfp4, 4, (), _nibbles_at(1), table=E2M1_DOUBLED),
        BlockFormat(q2_k, 2, (80, 82), _split_q2_k),
        BlockFormat(q3_k, 3, (108,), _split_q3_k, zero=4),
        BlockFormat(q4_k, 4, (0, 2), _split_q4_k),
        BlockFormat(q5_k, 5, (0, 2), _split_q5_k),
        BlockFormat(q6_k, 6, (208,), _split_q6_k, zero=32),
    )
}
"""Every format of quantised weights."""
