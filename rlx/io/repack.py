"""The pieces of quantised Hugging Face weights put together as blocks of a storage format, without a rounding.

In: the stored arrays of one weight, shapes checked by the caller. Out: its bytes as `core/storage.py` reads them. A
ValueError says what does not fit. Used by `quantized_folder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType, f32
from rlx.core.storage import decode

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]

_BLOCK = 32
_IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column that each nibble of a word holds, lowest nibble first."""


@dataclass(frozen=True, slots=True)
class NibbleLayout:
    """How the 4-bit levels of a checkpoint lie.

    Attributes:
        is_gptq: eight inputs in a word, `qweight [in / 8, out]`; else (AWQ) eight outputs, `qweight [in, out / 8]`.
        first_zero: what a stored zero of 0 stands for: GPTQ's first format stores one less.
        group_size: inputs that share a scale, -1 for all.
        symmetric: every zero is 8.
        act_order: `g_idx` names the group of each input, in any order.
    """

    is_gptq: bool
    first_zero: int
    group_size: int
    symmetric: bool
    act_order: bool

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Inputs and outputs of a weight whose `qweight` has this shape."""
        return (shape[0] * 8, shape[1]) if self.is_gptq else (shape[0], shape[1] * 8)


def _nibbles_of(words: Words, order: tuple[int, ...]) -> Bytes:
    """`[..., n]` words to `[..., 8n]` levels; `order[j]` is the place of nibble j among its eight."""
    shifts = 4 * np.argsort(order).astype(np.uint32)
    return (words[..., None] >> shifts & np.uint32(15)).astype(np.uint8).reshape(*words.shape[:-1], -1)


def _in_order(count: int, group: int) -> NDArray[np.int64]:
    """The group of each of `count` neighbours."""
    return np.repeat(np.arange(-(-count // group), dtype=np.int64), group)[:count]


def nibbles(
    layout: NibbleLayout, words: Words, zeros: Words, scales: NDArray[Any], order: NDArray[Any] | None
) -> Bytes:
    """A GPTQ or AWQ weight `[out, in]`: q4_0 if symmetric, float32 in act-order, else q4_z.

    Args:
        layout: see there.
        words: qweight.
        zeros: qzeros, `[groups, out / 8]`.
        scales: `[groups, out]`, float16, or another type whose values are halves.
        order: g_idx, `[in]`, or None.

    Raises:
        ValueError: the zeros, scales or groups are not what the layout says.
    """
    word_order = _IN_ORDER if layout.is_gptq else _AWQ_ORDER
    # [out, in]: GPTQ's words run along the inputs
    levels = _nibbles_of(words.T, word_order) if layout.is_gptq else _nibbles_of(words, word_order).T
    zero = (_nibbles_of(zeros, word_order) + np.uint8(layout.first_zero)).T
    factors = np.ascontiguousarray(scales.astype(np.float32).T)
    columns, group = levels.shape[1], levels.shape[1] // zero.shape[1]
    if layout.act_order:
        groups: NDArray[Any] = _in_order(columns, group) if order is None else order
        if (groups < 0).any() or (groups >= zero.shape[1]).any():
            raise ValueError(f"g_idx names a group outside 0 to {zero.shape[1] - 1}")
        signed = levels.astype(np.float32) - zero[:, groups].astype(np.float32)
        return (signed * factors[:, groups]).reshape(-1).view(np.uint8)
    if order is not None and not np.array_equal(order, _in_order(columns, group)):
        raise ValueError("g_idx is not in order, and desc_act is not true")
    with np.errstate(over="ignore"):
        halves = factors.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), factors):
        raise ValueError("the scales are no half-precision numbers")
    if layout.symmetric and (zero != 8).any():
        raise ValueError("a zero that is not 8, and sym is true")
    rows, blocks = len(levels), columns // _BLOCK
    pairs = levels.reshape(rows, blocks, 2, 16)
    packed = pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)
    repeats = group // _BLOCK
    pieces = [np.repeat(halves, repeats, axis=1).view(np.uint8).reshape(rows, blocks, 2)]
    if not layout.symmetric:
        pieces.append(np.repeat(zero, repeats, axis=1)[..., None])
    return np.concatenate([*pieces, packed], axis=2).reshape(-1)


def exponents(codes: Bytes) -> NDArray[np.float32]:
    """E8M0 scales `2 ** (e - 127)` as float32."""
    return np.ldexp(np.float32(1), codes.astype(np.int32) - 127).astype(np.float32)


def float8(storage: DType, dtype: DType, codes: Bytes, factors: NDArray[np.float32], block: tuple[int, int]) -> Bytes:
    """An FP8 weight `[out, in]` with a scale for each block of its rows and columns.

    Args:
        storage: e4m3_s or e5m2_s, by the type of the codes.
        dtype: the same, or float32 for a weight whose blocks do not fit.
        codes: `[out, in]`.
        factors: `[1 or more, 1 or more]`.
        block: rows and columns that share a scale.
    """
    rows, columns = codes.shape
    of_rows = factors[np.minimum(_in_order(rows, block[0]), len(factors) - 1)]
    if dtype == f32:
        blocks = np.zeros((codes.size, 36), np.uint8)
        blocks[:, :4] = np.ones(1, np.float32).view(np.uint8)
        blocks[:, 4] = codes.reshape(-1)
        values = decode(storage, blocks.reshape(-1), (codes.size, 32))[:, 0].reshape(rows, columns)
        of_columns = of_rows[:, np.minimum(_in_order(columns, block[1]), factors.shape[1] - 1)]
        return (values * of_columns).reshape(-1).view(np.uint8)
    starts = np.minimum(_in_order(columns, block[1])[::_BLOCK], factors.shape[1] - 1)
    scales = np.ascontiguousarray(of_rows[:, starts]).view(np.uint8).reshape(rows, -1, 4)
    return np.concatenate([scales, codes.reshape(rows, -1, _BLOCK)], axis=2).reshape(-1)


def microscaled(blocks: Bytes, scales: Bytes) -> Bytes:
    """MXFP4 as gpt-oss has it, two neighbours in a byte, `[..., blocks, 16]`, to ggml's order of the nibbles."""
    levels = np.stack([blocks & np.uint8(15), blocks >> np.uint8(4)], axis=-1).reshape(*blocks.shape[:-1], 32)
    packed = levels[..., :16] | levels[..., 16:] << np.uint8(4)
    return np.concatenate([scales.view(np.uint8)[..., None], packed], axis=-1).reshape(-1)
