"""The formats of quantised weights: how the blocks of each come apart.

In goes uint8 `[blocks, block_bytes]` as it lies in a file, out come `Parts`. Layouts: ggml-common.h; gguf-py's
quants.py is what the tests compare with. The three formats that no GGUF file has are what `rlx/io/` rearranges the
quantised checkpoints of Hugging Face into. Used by `storage.py`; formats with codebooks are in `storage_codebooks.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from rlx.core.block_format import BlockFormat, Bytes, Floats, Parts, bit_fields, power_of_two
from rlx.core.dtype import (
    DType,
    e4m3_s,
    e5m2_s,
    iq4_nl,
    mxfp4,
    nvfp4,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q4_z,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    tq1_0,
    tq2_0,
)
from rlx.core.storage_codebooks import CODEBOOK_FORMATS, IQ4_NL_VALUES

E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of the 4-bit float E2M1 (OCP Microscaling Formats 1.0, 5.3.3)."""


def _nibbles_at(start: int) -> Callable[[Bytes], Parts]:
    return lambda blocks: Parts(bit_fields(blocks[:, start : start + 16], 16, 4))


def _five_bits_at(start: int) -> Callable[[Bytes], Parts]:
    """4 bytes of fifth bits in the order of the elements, then the nibbles."""

    def split(blocks: Bytes) -> Parts:
        high = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
        return Parts(bit_fields(blocks[:, start + 4 :], 16, 4) | high << np.uint8(4))

    return split


def _split_q8_0(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 2:] ^ np.uint8(128))


def _split_q2_k(blocks: Bytes) -> Parts:
    scales = blocks[:, :16]
    return Parts(bit_fields(blocks[:, 16:80], 32, 2), (scales & np.uint8(15)).view(np.int8), scales >> np.uint8(4))


def _split_q3_k(blocks: Bytes) -> Parts:
    levels = bit_fields(blocks[:, 32:96], 32, 2) | bit_fields(blocks[:, :32], 32, 1) << np.uint8(2)
    # 16 scales of 6 bits: 8 bytes of lower nibbles, then 4 bytes of the upper two bits
    scales = bit_fields(blocks[:, 96:104], 8, 4) | bit_fields(blocks[:, 104:108], 4, 2) << np.uint8(4)
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
    return Parts(bit_fields(blocks[:, 16:], 32, 4), scales.view(np.int8), minimums)


def _split_q5_k(blocks: Bytes) -> Parts:
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    levels = bit_fields(blocks[:, 48:], 32, 4) | bit_fields(blocks[:, 16:48], 32, 1) << np.uint8(4)
    return Parts(levels, scales.view(np.int8), minimums)


def _split_q6_k(blocks: Bytes) -> Parts:
    levels = bit_fields(blocks[:, :128], 64, 4) | bit_fields(blocks[:, 128:192], 32, 2) << np.uint8(4)
    return Parts(levels, np.ascontiguousarray(blocks[:, 192:208]).view(np.int8))


def _split_tq1_0(blocks: Bytes) -> Parts:
    """A byte is a fraction of 256: its digits in base 3 are five levels, found by multiplying, highest first.

    32 bytes, then 16, hold five levels each, and 4 bytes hold the last 16.
    """
    levels: list[Bytes] = []
    for start, stop, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        for digit in range(digits):
            shifted = blocks[:, start:stop] * np.uint8(3**digit)  # modulo 256, which drops the digits before
            levels.append((shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8))
    return Parts(np.concatenate(levels, axis=1))


def _split_nvfp4(blocks: Bytes) -> Parts:
    return Parts(bit_fields(blocks[:, 4:], 8, 4))


def unsigned_e4m3(scales: Bytes) -> Floats:
    """Half of the E4M3 scale, since the table of E2M1 is doubled; the upper bit does not count, and 0x7F is 0."""
    values = (scales & np.uint8(127)).view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(0.5)
    # 0xFF differs from 0x7F in ggml: it is the number 480, which E4M3 has no place for
    return np.where(scales == 0x7F, np.float32(0), np.where(scales == 0xFF, np.float32(240), values))


def _split_q4_z(blocks: Bytes) -> Parts:
    return Parts(bit_fields(blocks[:, 3:], 16, 4), minimums=blocks[:, 2:3])


def _split_float8(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 4:])


def _all_values(element: type) -> tuple[float, ...]:
    return tuple(np.arange(256, dtype=np.uint8).view(element).astype(np.float64).tolist())


def _float8(dtype: DType, element: type) -> BlockFormat:
    return BlockFormat(
        dtype,
        8,
        (),
        _split_float8,
        table=_all_values(element),
        head=lambda blocks: blocks[:, :4],
        factor_of=lambda head: head.view(np.float32),
    )


BLOCK_FORMATS: dict[str, BlockFormat] = {
    fmt.dtype.name: fmt
    for fmt in (
        BlockFormat(q4_0, 4, (0,), _nibbles_at(2), zero=8),
        BlockFormat(q4_1, 4, (0, 2), _nibbles_at(4)),
        BlockFormat(q8_0, 8, (0,), _split_q8_0, zero=128),
        BlockFormat(q5_0, 5, (0,), _five_bits_at(2), zero=16),
        BlockFormat(q5_1, 5, (0, 2), _five_bits_at(4)),
        BlockFormat(iq4_nl, 4, (0,), _nibbles_at(2), table=IQ4_NL_VALUES),
        BlockFormat(mxfp4, 4, (), _nibbles_at(1), table=E2M1_DOUBLED, head=lambda b: b[:, :1], factor_of=power_of_two),
        BlockFormat(q2_k, 2, (80, 82), _split_q2_k),
        BlockFormat(q3_k, 3, (108,), _split_q3_k, zero=4),
        BlockFormat(q4_k, 4, (0, 2), _split_q4_k),
        BlockFormat(q5_k, 5, (0, 2), _split_q5_k),
        BlockFormat(q6_k, 6, (208,), _split_q6_k, zero=32),
        *CODEBOOK_FORMATS,
        BlockFormat(tq1_0, 2, (52,), _split_tq1_0, zero=1),
        BlockFormat(tq2_0, 2, (64,), lambda blocks: Parts(bit_fields(blocks[:, :64], 32, 2)), zero=1),
        BlockFormat(nvfp4, 4, (), _split_nvfp4, table=E2M1_DOUBLED, head=lambda b: b[:, :4], factor_of=unsigned_e4m3),
        # the minimum is the zero times the factor of the scale
        BlockFormat(q4_z, 4, (0, 0), _split_q4_z),
        _float8(e4m3_s, ml_dtypes.float8_e4m3fn),
        _float8(e5m2_s, ml_dtypes.float8_e5m2),
    )
}
"""Every format of quantised weights."""
