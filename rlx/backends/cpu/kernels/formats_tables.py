"""The `rows16` layouts of the formats with codebooks, of ternary ones, and of 4- and 8-bit floats.

A codebook does not go into a register, so packing looks the vectors up once and lays out their levels, exactly. What
that costs in memory, in bits per weight:

    in the file     IQ1_S 1.56   IQ1_M 1.75   IQ2_XXS 2.06   IQ2_XS 2.31   IQ2_S 2.56   IQ3_XXS 3.06   IQ3_S 3.44
    laid out                3.31 for all of IQ1 and IQ2                                         4.31 for both of IQ3

IQ4_XS, the ternary formats and NVFP4 keep their size but for 2% (TQ1_0: 2.06 for 1.69). Next: `formats.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlx.backends.cpu.emit import F32, I16, I32, Emit, Val
from rlx.backends.cpu.kernels.formats_blocks import BlockLayout, Reader, Scales
from rlx.core.block_format import Bytes, Parts
from rlx.core.storage_blocks import BLOCK_FORMATS


def _half_factor(r: Reader, unit: float) -> Val:
    factor = r.e.half_to_float(r.head(0, I16))
    return factor * unit if unit != 1 else factor


def _read_odd(unit: float) -> Callable[[Reader], Scales]:
    """The integer scale `2s + 1` of the chunk."""

    def read(r: Reader) -> Scales:
        return Scales(_half_factor(r, unit), None, [r.side(0) * 2 + 1])

    return read


def _read_odd_pair(unit: float) -> Callable[[Reader], Scales]:
    """The integer scales `2s + 1` of both halves, whose s are nibbles."""

    def read(r: Reader) -> Scales:
        side = r.side(0)
        return Scales(_half_factor(r, unit), None, [(side & 15) * 2 + 1, (side >> 4) * 2 + 1])

    return read


def _small_scales(parts: Parts) -> Bytes:
    """The s of `2s + 1`."""
    scales = parts.levels[:, :0] if parts.scales is None else parts.scales.view(np.uint8)
    return scales >> np.uint8(1)


def _side_odd(parts: Parts) -> Bytes:
    return _small_scales(parts)[..., None]


def _side_odd_pair(parts: Parts) -> Bytes:
    pairs = _small_scales(parts).reshape(len(parts.levels), -1, 2)
    return pairs[..., :1] | pairs[..., 1:] << np.uint8(4)


def _read_iq4_xs(r: Reader) -> Scales:
    return Scales(_half_factor(r, 1), None, [(r.side(0) << 24).shift_right_signed(24)])


def _side_iq4_xs(parts: Parts) -> Bytes:
    return (parts.levels[:, :0] if parts.scales is None else parts.scales.view(np.uint8))[..., None]


def _read_half(r: Reader) -> Scales:
    """One scale for the super-block: every chunk counts once."""
    return Scales(_half_factor(r, 1), None, [r.e.like(1, r.head(0, I16).zext(I32))])


def _read_nvfp4(r: Reader) -> Scales:
    """The four E4M3 scales of a block are one word; half of each, since the table is doubled."""
    both = r.chunk_bits(r.head(0, I32), 16)
    values: list[Val] = []
    for half in range(2):
        code = (both >> (8 * half)) & 255
        scale = _e4m3(r.e, code & 127) * 0.5
        zero, largest = r.e.like(0.0, scale), r.e.like(240.0, scale)
        values.append(r.e.select(code.equals(127), zero, r.e.select(code.equals(255), largest, scale)))
    return Scales(values[0], half_scales=values)


def _read_q4_z(r: Reader) -> Scales:
    scale = _half_factor(r, 1)
    return Scales(scale, -scale * r.side(0).to_float())


def _side_q4_z(parts: Parts) -> Bytes:
    return (parts.levels[:, :0] if parts.minimums is None else parts.minimums)[..., None]


def _read_float(r: Reader) -> Scales:
    return Scales(r.head(0, F32))


def _e4m3(e: Emit, code: Val) -> Val:
    """E4M3 (i32) as float32: its exponent and fraction are those of a half with a bias of 15 for 7, so 2**8 less."""
    half = (code & 128) << 8 | (code & 127) << 7
    return e.half_to_float(half.trunc(I16)) * 256.0


def _e4m3_or_nan(e: Emit, code: Val) -> Val:
    value = _e4m3(e, code)
    return e.select((code & 127).equals(127), e.like(float("nan"), value), value)


def _e5m2(e: Emit, code: Val) -> Val:
    """E5M2 (i32) as float32: the upper byte of a half."""
    return e.half_to_float((code << 8).trunc(I16))


def _layout(name: str, pair: bool) -> BlockLayout:
    fmt = BLOCK_FORMATS[name]
    read, side = (_read_odd_pair, _side_odd_pair) if pair else (_read_odd, _side_odd)
    return BlockLayout(fmt, read(fmt.unit), side, 1)


TABLE_LAYOUTS: dict[str, BlockLayout] = {
    layout.fmt.dtype.name: layout
    for layout in (
        *(_layout(name, pair=False) for name in ("iq1_s", "iq2_xxs", "iq3_xxs", "iq3_s")),
        *(_layout(name, pair=True) for name in ("iq1_m", "iq2_xs", "iq2_s")),
        BlockLayout(BLOCK_FORMATS["iq4_xs"], _read_iq4_xs, _side_iq4_xs, 1),
        *(BlockLayout(BLOCK_FORMATS[name], _read_half) for name in ("tq1_0", "tq2_0")),
        BlockLayout(BLOCK_FORMATS["nvfp4"], _read_nvfp4, has_integer_form=False),
        BlockLayout(BLOCK_FORMATS["q4_z"], _read_q4_z, _side_q4_z, 1),
        BlockLayout(BLOCK_FORMATS["e4m3_s"], _read_float, number=_e4m3_or_nan, has_integer_form=False),
        BlockLayout(BLOCK_FORMATS["e5m2_s"], _read_float, number=_e5m2, has_integer_form=False),
    )
}
"""The layout of every format that is not in `formats_blocks.py`."""
