"""The searches behind `quantize.py`: float32 `[blocks, block_size]` to uint8 `[blocks, block_bytes]`.

Three fits make all formats: `_fit_range` (scale and minimum), `_fit_signed` (scale alone), and the one for a table in
`encode_iq4_nl`. The layouts are the inverse of what `storage_blocks.py` takes apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.block_format import Bytes, Floats
from rlx.core.storage_codebooks import IQ4_NL_VALUES

_TINY = np.float32(1e-30)


def _dot(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Sums of products over the last axis."""
    return np.einsum("...k,...k->...", a, b)


def _ratio(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """a / b, and 0 where b is 0."""
    return np.where(np.abs(b) > _TINY, a / np.where(np.abs(b) > _TINY, b, np.float32(1)), np.float32(0))


def _weights(x: Floats) -> Floats:
    """The magnitude of each value, and twice that of its sub-block `[..., k]`."""
    return np.abs(x) + 2 * np.sqrt(np.mean(x * x, axis=-1, keepdims=True))


def _fit_range(x: Floats, largest: int) -> tuple[Floats, Floats]:
    """Scale and minimum (as what is taken off, 0 or more) of sub-blocks `[..., k]` for levels 0..largest."""
    w = _weights(x)
    low, high = np.minimum(x.min(axis=-1), np.float32(0)), x.max(axis=-1)
    spread = np.maximum(high - low, _TINY)
    above, wx = x - low[..., None], w * x
    sum_w, sum_x, best = w.sum(axis=-1), wx.sum(axis=-1), np.full(low.shape, np.inf, np.float32)
    best_scale, best_low = np.zeros_like(low), np.zeros_like(low)
    for offset in np.arange(-0.9, 1.2, 0.15, dtype=np.float32):
        q = np.rint(above * ((np.float32(largest) + offset) / spread)[..., None])
        np.minimum(q, np.float32(largest), out=q)
        wq = w * q
        sum_q, sum_qq, sum_xq = wq.sum(axis=-1), _dot(wq, q), _dot(wx, q)
        scale = _ratio(sum_w * sum_xq - sum_x * sum_q, sum_w * sum_qq - sum_q * sum_q)
        bottom = _ratio(sum_x - scale * sum_q, sum_w)
        positive = bottom > 0
        bottom = np.where(positive, np.float32(0), bottom)
        scale = np.where(positive, _ratio(sum_xq, sum_qq), scale)
        # the weighted squared error, less the sum of w x x, which all candidates share
        error = scale * (scale * sum_qq + 2 * (bottom * sum_q - sum_xq)) + bottom * (bottom * sum_w - 2 * sum_x)
        better = (error < best) & (scale >= 0)
        best = np.where(better, error, best)
        best_scale, best_low = np.where(better, scale, best_scale), np.where(better, bottom, best_low)
    return best_scale, -best_low


def _fit_signed(x: Floats, w: Floats, zero: int) -> Floats:
    """Scale of sub-blocks `[..., k]` for levels -zero..zero - 1, of either sign."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)
    extreme = np.where(np.abs(extreme) < _TINY, np.float32(1), extreme)
    wx = w * x
    best, best_scale = np.zeros(x.shape[:-1], np.float32), np.zeros(x.shape[:-1], np.float32)
    for offset in np.arange(-0.9, 1.0, 0.15, dtype=np.float32):
        q = np.rint(x * (-(np.float32(zero) + offset) / extreme))
        np.clip(q, -zero, zero - 1, out=q)
        sum_xq, sum_qq = _dot(wx, q), _dot(w * q, q)
        scale = _ratio(sum_xq, sum_qq)
        gain = scale * sum_xq
        best_scale = np.where(gain > best, scale, best_scale)
        best = np.maximum(gain, best)
    return best_scale


def _halves(column: Floats) -> tuple[Bytes, Floats]:
    """Half-precision bytes `[blocks, 2]` of one factor for each block, and the factors that they are."""
    with np.errstate(over="ignore"):
        half = column.astype(np.float16)
    return half.view(np.uint8).reshape(-1, 2), half.astype(np.float32)


def _small_integers(scales: Floats, factor: Floats, lowest: int, largest: int) -> Floats:
    return np.clip(np.rint(_ratio(scales, np.broadcast_to(factor[:, None], scales.shape))), lowest, largest)


def _ranged(blocks: Floats, sub: int, largest: int, scale_limit: int) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Super-blocks with minimums: factors `[blocks, 4]`, integer scales and minimums, levels `[blocks, 256]`."""
    x = blocks.reshape(len(blocks), -1, sub)
    w = _weights(x)
    scales, minimums = _fit_range(x, largest)
    limit = np.float32(scale_limit)
    factor, bottom = scales.max(axis=-1) / limit, minimums.max(axis=-1) / limit
    best = np.full(len(blocks), np.inf, np.float32)
    result: list[NDArray[Any]] = []
    for _ in range(3):
        factor_bytes, factor = _halves(factor)
        bottom_bytes, bottom = _halves(bottom)
        small = _small_integers(scales, factor, 0, scale_limit)
        small_bottom = _small_integers(minimums, bottom, 0, scale_limit)
        step, offset = factor[:, None] * small, bottom[:, None] * small_bottom
        q = np.clip(np.rint(_ratio(x + offset[..., None], np.broadcast_to(step[..., None], x.shape))), 0, largest)
        rest = q * step[..., None] - offset[..., None] - x
        error = _dot(w * rest, rest).sum(axis=-1)
        better = error < best
        parts = [np.concatenate([factor_bytes, bottom_bytes], axis=1), small, small_bottom, q]
        chosen = [part.astype(np.uint8) for part in parts]
        keep = [better.reshape(-1, *[1] * (part.ndim - 1)) for part in chosen]
        result = [np.where(k, c, r) for k, c, r in zip(keep, chosen, result, strict=True)] if result else chosen
        best = np.where(better, error, best)
        # for these levels and integers, the best two factors of the super-block
        a, b = q * small[..., None], np.broadcast_to(-small_bottom[..., None], q.shape)
        aa, ab, bb = (_dot(w * u, v).sum(axis=-1) for u, v in ((a, a), (a, b), (b, b)))
        ax, bx = _dot(w * a, x).sum(axis=-1), _dot(w * b, x).sum(axis=-1)
        determinant = aa * bb - ab * ab
        alone = determinant <= np.float32(1e-6) * aa * bb
        factor = np.where(alone, _ratio(ax, aa), _ratio(ax * bb - bx * ab, determinant))
        bottom = np.maximum(np.where(alone, np.float32(0), _ratio(bx * aa - ax * ab, determinant)), np.float32(0))
        factor = np.maximum(factor, np.float32(0))
    return result[0], result[1], result[2], result[3].reshape(len(blocks), -1)


def _signed(blocks: Floats, zero: int, scale_zero: int) -> tuple[Bytes, NDArray[np.int8], Bytes]:
    """Super-blocks of 16 sub-blocks without minimums: the factor `[blocks, 2]`, integer scales, levels from 0."""
    x = blocks.reshape(len(blocks), 16, 16)
    w = _weights(x)
    scales = _fit_signed(x, w, zero)
    extreme = np.take_along_axis(scales, np.abs(scales).argmax(axis=-1)[:, None], axis=-1)[:, 0]
    factor = extreme / np.float32(-scale_zero)
    best = np.full(len(blocks), np.inf, np.float32)
    result: list[NDArray[Any]] = []
    for _ in range(2):
        factor_bytes, factor = _halves(factor)
        small = _small_integers(scales, factor, -scale_zero, scale_zero - 1)
        step = np.broadcast_to((factor[:, None] * small)[..., None], x.shape)
        q = np.clip(np.rint(_ratio(x, step)), -zero, zero - 1)
        rest = q * step - x
        error = _dot(w * rest, rest).sum(axis=-1)
        better = error < best
        chosen: list[NDArray[Any]] = [factor_bytes, small.astype(np.int8), (q + np.float32(zero)).astype(np.uint8)]
        keep = [better.reshape(-1, *[1] * (part.ndim - 1)) for part in chosen]
        result = [np.where(k, c, r) for k, c, r in zip(keep, chosen, result, strict=True)] if result else chosen
        best = np.where(better, error, best)
        a = q * small[..., None]
        factor = _ratio(_dot(w * a, x).sum(axis=-1), _dot(w * a, a).sum(axis=-1))
    return result[0], result[1], result[2].reshape(len(blocks), 256)


def _pack(levels: Bytes, run: int, bits: int) -> Bytes:
    """The inverse of `bit_fields`: in each run all lowest fields come first, then all of the next."""
    fields = levels.reshape(len(levels), -1, 8 // bits, run)
    packed = np.zeros((len(levels), fields.shape[1], run), np.uint8)
    for index in range(8 // bits):
        packed |= (fields[:, :, index] & np.uint8((1 << bits) - 1)) << np.uint8(bits * index)
    return packed.reshape(len(levels), -1)


def _pack_six_bits(scales: Bytes, minimums: Bytes) -> Bytes:
    """8 scales and 8 minimums in 12 bytes, as `storage_blocks.py` reads them."""
    top = np.uint8(4)
    first = scales[:, :4] | (scales[:, 4:] >> top) << np.uint8(6)
    second = minimums[:, :4] | (minimums[:, 4:] >> top) << np.uint8(6)
    rest = (scales[:, 4:] & np.uint8(15)) | (minimums[:, 4:] & np.uint8(15)) << top
    return np.concatenate([first, second, rest], axis=1)


def encode_q2_k(blocks: Floats) -> Bytes:
    """Levels of 2 bits, scales and minimums of 4 for each 16."""
    factors, scales, minimums, levels = _ranged(blocks, 16, 3, 15)
    return np.concatenate([scales | minimums << np.uint8(4), _pack(levels, 32, 2), factors], axis=1)


def encode_q3_k(blocks: Floats) -> Bytes:
    """Levels of 3 bits, scales of 6 for each 16."""
    factor, scales, levels = _signed(blocks, 4, 32)
    raised = (scales + np.int8(32)).view(np.uint8)
    parts = [
        _pack(levels >> np.uint8(2), 32, 1),
        _pack(levels, 32, 2),
        _pack(raised, 8, 4),
        _pack(raised >> np.uint8(4), 4, 2),
    ]
    return np.concatenate([*parts, factor], axis=1)


def encode_q4_k(blocks: Floats) -> Bytes:
    """Levels of 4 bits, scales and minimums of 6 for each 32."""
    factors, scales, minimums, levels = _ranged(blocks, 32, 15, 63)
    return np.concatenate([factors, _pack_six_bits(scales, minimums), _pack(levels, 32, 4)], axis=1)


def encode_q5_k(blocks: Floats) -> Bytes:
    """Levels of 5 bits, scales and minimums of 6 for each 32."""
    factors, scales, minimums, levels = _ranged(blocks, 32, 31, 63)
    high = _pack(levels >> np.uint8(4), 32, 1)
    return np.concatenate([factors, _pack_six_bits(scales, minimums), high, _pack(levels, 32, 4)], axis=1)


def encode_q6_k(blocks: Floats) -> Bytes:
    """Levels of 6 bits, scales of 8 for each 16."""
    factor, scales, levels = _signed(blocks, 32, 128)
    parts = [_pack(levels, 64, 4), _pack(levels >> np.uint8(4), 32, 2), scales.view(np.uint8)]
    return np.concatenate([*parts, factor], axis=1)


def encode_iq4_nl(blocks: Floats) -> Bytes:
    """Levels of a table of 16 values, a scale for each 32."""
    table = np.array(IQ4_NL_VALUES, np.float32)
    between = (table[1:] + table[:-1]) / 2
    nearest = table[np.searchsorted(between, np.arange(-160, 161, dtype=np.float32))]  # fast, and near enough to search
    w = _weights(blocks)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    extreme = np.where(np.abs(extreme) < _TINY, np.float32(1), extreme)
    best, best_scale = np.zeros(len(blocks), np.float32), np.zeros(len(blocks), np.float32)
    for sign in (-1, 1):  # either end of the table may stand for the largest value
        end = table[0] if sign < 0 else table[-1]
        for offset in range(-8, 9, 2):
            q = nearest[np.rint(blocks * ((end + np.float32(offset)) / extreme)).astype(np.int16) + np.int16(160)]
            sum_xq = _dot(w * blocks, q)
            scale = _ratio(sum_xq, _dot(w * q, q))
            gain = scale * sum_xq
            best_scale = np.where(gain > best, scale, best_scale)
            best = np.maximum(gain, best)
    factor_bytes, factor = _halves(best_scale)
    scaled = _ratio(blocks, np.broadcast_to(factor[:, None], blocks.shape))
    levels = np.searchsorted(between, scaled).astype(np.uint8)
    return np.concatenate([factor_bytes, _pack(levels, 16, 4)], axis=1)
