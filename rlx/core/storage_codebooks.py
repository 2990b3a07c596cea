"""The IQ formats of GGUF: levels from tables and codebooks, with signs kept apart.

In goes uint8 `[blocks, block_bytes]`, out come `Parts`, whose levels index the signed values of a table. What a format
scales its values by is `factor * (0.5 + s)` with a small integer s, so the integer scale is `2s + 1` and the rest a
power of two (`unit`). IQ1 adds +-1/8 to -1, 0 or 1: in eighths, its levels are six integers. Layouts: ggml-common.h,
and gguf-py's quants.py, which the tests compare with. Used by `storage_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.block_format import BlockFormat, Bytes, Floats, Parts, bit_fields
from rlx.core.codebooks import codebook
from rlx.core.dtype import iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_xs

IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The levels of IQ4_NL and IQ4_XS (ggml-common.h, `kvalues_iq4nl`)."""
_IQ2_VALUES = (8, 25, 43, 0, -8, -25, -43, 0)
_IQ3_XXS_VALUES = (4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62)
_IQ3_S_VALUES = (1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15)
_IQ1_VALUES = (-7, 1, 9, 0, -9, -1, 7, 0)
"""Eighths: -1, 0, 1 plus 1/8, then less 1/8."""


def _words(packed: NDArray[Any], kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(packed).view(kind)


def _levels(name: str, indices: NDArray[Any], upper: NDArray[Any], position: int) -> Bytes:
    """Codebook vectors with one more bit of each level at `position`; `upper` has a bit for each, or one for many."""
    vectors = codebook(name)[indices]
    bits = upper.reshape(*indices.shape, -1).astype(np.uint8) << np.uint8(position)
    return (vectors | bits).reshape(len(indices), -1)


def _bits_of(signs: Bytes) -> Bytes:
    """The bits of bytes, lowest first, in a new last axis."""
    return np.unpackbits(signs[..., None], axis=-1, bitorder="little")


def _even_signs(codes: NDArray[Any]) -> Bytes:
    """Seven sign bits each, and an eighth that makes the number of set ones even."""
    seven = (codes & 127).astype(np.uint8)
    parity = np.bitwise_xor.reduce(_bits_of(seven), axis=-1)
    return _bits_of(seven | parity << np.uint8(7))


def _odd(small: NDArray[Any]) -> NDArray[np.int8]:
    """The integer scale `2s + 1`."""
    return (2 * small.astype(np.int8) + np.int8(1)).reshape(len(small), -1)


def _nibble_scales(packed: Bytes) -> NDArray[np.int8]:
    return _odd(bit_fields(packed, 1, 4))


def _signs_and_scales(words: NDArray[Any]) -> tuple[Bytes, NDArray[np.int8]]:
    """32 bits for 32 elements: four times seven signs, then the scale."""
    return _even_signs(words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32)), _odd(words >> np.uint32(28))


def _split_iq2_xxs(blocks: Bytes) -> Parts:
    words = _words(blocks[:, 2:], np.uint32).reshape(len(blocks), 8, 2)
    signs, scales = _signs_and_scales(words[..., 1])
    indices = _words(words[..., 0], np.uint8).reshape(len(blocks), 32)
    return Parts(_levels("iq2_xxs", indices, signs, 2), scales)


def _split_iq2_xs(blocks: Bytes) -> Parts:
    codes = _words(blocks[:, 2:66], np.uint16)
    levels = _levels("iq2_xs", codes & np.uint16(511), _even_signs(codes >> np.uint16(9)), 2)
    return Parts(levels, _nibble_scales(blocks[:, 66:]))


def _split_iq2_s(blocks: Bytes) -> Parts:
    indices = blocks[:, 2:34] | bit_fields(blocks[:, 66:74], 1, 2).astype(np.uint16) << np.uint16(8)
    return Parts(_levels("iq2_s", indices, _bits_of(blocks[:, 34:66]), 2), _nibble_scales(blocks[:, 74:]))


def _split_iq3_xxs(blocks: Bytes) -> Parts:
    signs, scales = _signs_and_scales(_words(blocks[:, 66:], np.uint32))
    return Parts(_levels("iq3_xxs", blocks[:, 2:66], signs, 3), scales)


def _split_iq3_s(blocks: Bytes) -> Parts:
    indices = blocks[:, 2:66] | bit_fields(blocks[:, 66:74], 1, 1).astype(np.uint16) << np.uint16(8)
    return Parts(_levels("iq3_s", indices, _bits_of(blocks[:, 74:106]), 3), _nibble_scales(blocks[:, 106:]))


def _split_iq1_s(blocks: Bytes) -> Parts:
    high = _words(blocks[:, 34:], np.uint16)
    upper = (high[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)).reshape(len(blocks), 32)
    indices = blocks[:, 2:34] | upper << np.uint16(8)
    minus = np.repeat(high >> np.uint16(15), 4, axis=1)
    return Parts(_levels("iq1", indices, minus, 2), _odd(high >> np.uint16(12) & np.uint16(7)))


def _split_iq1_m(blocks: Bytes) -> Parts:
    high = bit_fields(blocks[:, 32:48], 1, 4)
    indices = blocks[:, :32] | (high & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    scales = _words(blocks[:, 48:], np.uint16)[..., None] >> np.arange(0, 12, 3, dtype=np.uint16)
    return Parts(_levels("iq1", indices, high >> np.uint8(3), 2), _odd(scales & np.uint16(7)))


def _head_iq1_m(blocks: Bytes) -> Bytes:
    """The half scale lies in the upper nibbles of four 16-bit words."""
    nibbles = _words(blocks[:, 48:], np.uint16) >> np.uint16(12)
    return _words(np.bitwise_or.reduce(nibbles << np.arange(0, 16, 4, dtype=np.uint16), axis=1)[:, None], np.uint8)


def _half(head: Bytes) -> Floats:
    return head.view(np.float16).astype(np.float32)


def _split_iq4_xs(blocks: Bytes) -> Parts:
    """8 scales of 6 bits: the upper two of all in 16 bits, then nibbles."""
    upper = bit_fields(blocks[:, 2:4], 1, 2)
    scales = (bit_fields(blocks[:, 4:8], 1, 4) | upper << np.uint8(4)).view(np.int8) - np.int8(32)
    return Parts(bit_fields(blocks[:, 8:], 16, 4), scales)


def _iq2(dtype: Any, split: Callable[[Bytes], Parts]) -> BlockFormat:
    return BlockFormat(dtype, 3, (0,), split, table=_IQ2_VALUES, unit=0.125)


CODEBOOK_FORMATS: tuple[BlockFormat, ...] = (
    BlockFormat(iq4_xs, 4, (0,), _split_iq4_xs, table=IQ4_NL_VALUES),
    BlockFormat(iq3_s, 4, (0,), _split_iq3_s, table=_IQ3_S_VALUES),
    BlockFormat(iq3_xxs, 4, (0,), _split_iq3_xxs, table=_IQ3_XXS_VALUES, unit=0.25),
    _iq2(iq2_s, _split_iq2_s),
    _iq2(iq2_xs, _split_iq2_xs),
    _iq2(iq2_xxs, _split_iq2_xxs),
    BlockFormat(iq1_m, 3, (), _split_iq1_m, table=_IQ1_VALUES, unit=0.125, head=_head_iq1_m, factor_of=_half),
    BlockFormat(iq1_s, 3, (0,), _split_iq1_s, table=_IQ1_VALUES, unit=0.125),
)
"""Formats with a table of signed values behind a codebook, and IQ4_XS."""
