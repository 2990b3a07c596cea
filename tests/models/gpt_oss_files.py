"""A tiny gpt-oss as it is published: experts in MXFP4, two neighbours a byte, everything else in 16 bits.

In: the recorded weights. Out: those of a folder. Next: `test_gpt_oss.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlx.core.dtype import mxfp4
from rlx.core.storage import decode, encode


def published(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The experts `[experts, in, out]` as blocks of two neighbours a byte, and scales, a row for each output."""
    result: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in weights.items():
        if array.ndim != 3:
            result[name] = array.astype(np.float16)
            continue
        rows = np.ascontiguousarray(np.swapaxes(array, 1, 2))
        packed = encode(mxfp4, rows).reshape(*rows.shape[:2], -1, 17)
        levels = np.concatenate([packed[..., 1:] & 15, packed[..., 1:] >> 4], axis=-1)  # in the order of k
        result[f"{name}_blocks"] = levels[..., 0::2] | levels[..., 1::2] << 4
        result[f"{name}_scales"] = np.ascontiguousarray(packed[..., 0])
    return result


def rounded(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The same values as floats."""

    def experts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows = np.ascontiguousarray(np.swapaxes(array, 1, 2))
        return np.ascontiguousarray(np.swapaxes(decode(mxfp4, encode(mxfp4, rows), rows.shape), 1, 2))

    return {name: experts(array) if array.ndim == 3 else array.astype(np.float16) for name, array in weights.items()}
