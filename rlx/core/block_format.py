"""What the formats of quantised weights have in common: a block is levels, factors, and small integers that scale them.

In goes uint8 `[blocks, block_bytes]` as it lies in a file, out come the `Parts` of every block, or its float32 values.
One `BlockFormat` says all about a format, and a backend lays the same parts out for its kernels:

    value = scale * (level - zero) + minimum        scale = factor, or factor * scales[sub-block]
            scale * table[level]                    minimum = factor, or -factor * minimums[sub-block]

Every product of a scale with a level is exact in float32 (11 bits of a half, 7 of an integer scale, 5 of a level), so
that only adding the minimum rounds. Next: `storage_blocks.py`, which holds the formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


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
        table: values of the levels, in place of `zero`; 0 where a level is never used.
        unit: what the factor of the scale is a multiple of: a power of two that makes all else integers.
        head: a factor that is no plain half: uint8 `[blocks, block_bytes]` to its bytes, in place of `halves`.
        factor_of: what the bytes of `head` stand for: to float32 `[blocks, 1]`, or one factor for each sub-block.
    """

    dtype: DType
    bits: int
    halves: tuple[int, ...]
    split: Callable[[Bytes], Parts]
    zero: int = 0
    table: tuple[float, ...] = ()
    unit: float = 1.0
    head: Callable[[Bytes], Bytes] | None = None
    factor_of: Callable[[Bytes], Floats] | None = None

    def head_of(self, blocks: Bytes) -> Bytes:
        """The bytes of the factors: uint8 `[blocks, 1, 2 or 4]`."""
        if self.head is not None:
            return np.ascontiguousarray(self.head(blocks))
        return np.ascontiguousarray(blocks[:, self.halves[0] : self.halves[-1] + 2])

    @property
    def head_bytes(self) -> int:
        """How many bytes the factors of a block take."""
        return self.head_of(np.zeros((1, self.dtype.block_bytes), np.uint8)).shape[1]

    def factors(self, blocks: Bytes) -> list[Floats]:
        """Float32 `[blocks, 1]` (or `[blocks, sub-blocks]`) of the scale and, where there is one, of the minimum."""
        if self.factor_of is not None:
            return [self.factor_of(self.head_of(blocks)) * np.float32(self.unit)]
        return [half_column(blocks, byte) * np.float32(self.unit) for byte in self.halves]

    def decode(self, blocks: Bytes) -> Floats:
        """uint8 `[blocks, block_bytes]` to float32 `[blocks, block_size]`; a faulty factor gives infinity or NaN."""
        if not len(blocks):
            return np.empty((0, self.dtype.block_size), np.float32)
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


def bit_fields(packed: Bytes, run: int, bits: int) -> Bytes:
    """Bit fields of bytes in runs: in each run all lowest fields come first, then all of the next, and so on."""
    count, width = packed.shape
    fields = np.empty((count, width // run, 8 // bits, run), np.uint8)
    for index in range(8 // bits):
        field = (packed >> np.uint8(bits * index)) & np.uint8((1 << bits) - 1)
        fields[:, :, index] = field.reshape(count, width // run, run)
    return fields.reshape(count, width * 8 // bits)
