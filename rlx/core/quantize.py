"""Quantising weights well: scales and minimums searched for by weighted least squares, then the levels rounded.

In goes float32 `[..., k]`, out come bytes of a format of `storage.py`. What is minimised is the squared error of each
value times a weight that grows with its magnitude: the large values of a row are the ones that a product notices. A
search tries the plain scale and its neighbours; for the levels each gives, the best scale (and minimum) are a least
squares solution. A super-block then rounds the scales of its sub-blocks to small integers, and fits its own factors
once more. Source of the idea: the k-quants of ggml, whose layouts these are. Formats without a search here are those of
`storage.encode`. Next: `quantize_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlx.core import quantize_blocks as blocks
from rlx.core.block_format import Bytes, Floats
from rlx.core.dtype import DType
from rlx.core.storage import encode
from rlx.errors import InputError, ShapeError

_PIECE = 1 << 16
"""Values that are quantised at once: small enough for the caches."""

_SEARCHES: dict[str, Callable[[Floats], Bytes]] = {
    "q2_k": blocks.encode_q2_k,
    "q3_k": blocks.encode_q3_k,
    "q4_k": blocks.encode_q4_k,
    "q5_k": blocks.encode_q5_k,
    "q6_k": blocks.encode_q6_k,
    "iq4_nl": blocks.encode_iq4_nl,
}


def quantize(dtype: DType, values: Floats) -> Bytes:
    """Weights in a storage format.

    Args:
        dtype: a format with a search above, or one that `storage.encode` writes.
        values: float32 of any shape whose last axis is a multiple of the block.

    Returns:
        The bytes, flat, in row-major order of the blocks. The same values always give the same bytes.

    Raises:
        InputError: a value is NaN or infinite, or RLX does not write the format.
        ShapeError: the last axis is not a multiple of the block.
    """
    search = _SEARCHES.get(dtype.name)
    if search is None:
        return encode(dtype, values)
    if not values.shape or values.shape[-1] % dtype.block_size:
        raise ShapeError(
            f"the shape does not fit the blocks of {dtype}",
            found=values.shape,
            expected=f"a last axis that is a multiple of {dtype.block_size}",
        )
    if not np.isfinite(values).all():
        raise InputError(f"{dtype} cannot hold NaN or infinity", expected="finite values")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1, dtype.block_size)
    result = np.empty((len(flat), dtype.block_bytes), np.uint8)
    step = max(1, _PIECE // dtype.block_size)
    for start in range(0, len(flat), step):
        result[start : start + step] = search(flat[start : start + step])
    return result.reshape(-1)
