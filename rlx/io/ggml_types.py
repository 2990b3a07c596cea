"""The numbers of the GGUF specification: tensor types and the types of metadata values.

Every tensor type of ggml is listed with its block, also those RLX cannot compute with, so that any file can be
inspected. Source: ggml.h (`enum ggml_type`) and docs/gguf.md of the ggml project. Used by `gguf.py`.
"""

from __future__ import annotations

import numpy as np

from rlx.core import dtype
from rlx.core.dtype import DType


def _listed(name: str, block_size: int, block_bytes: int) -> DType:
    """A type that is known by size only."""
    return DType(name, "packed", block_size, block_bytes)


GGML_TYPES: dict[int, DType] = {
    0: dtype.f32,
    1: dtype.f16,
    2: dtype.q4_0,
    3: dtype.q4_1,
    6: dtype.q5_0,
    7: dtype.q5_1,
    8: dtype.q8_0,
    9: _listed("q8_1", 32, 36),
    10: dtype.q2_k,
    11: dtype.q3_k,
    12: dtype.q4_k,
    13: dtype.q5_k,
    14: dtype.q6_k,
    15: _listed("q8_k", 256, 292),
    16: dtype.iq2_xxs,
    17: dtype.iq2_xs,
    18: dtype.iq3_xxs,
    19: dtype.iq1_s,
    20: dtype.iq4_nl,
    21: dtype.iq3_s,
    22: dtype.iq2_s,
    23: dtype.iq4_xs,
    24: dtype.i8,
    25: dtype.i16,
    26: dtype.i32,
    27: dtype.i64,
    28: dtype.f64,
    29: dtype.iq1_m,
    30: dtype.bf16,
    34: dtype.tq1_0,
    35: dtype.tq2_0,
    39: dtype.mxfp4,
    40: dtype.nvfp4,
    41: _listed("q1_0", 128, 18),
}

# Types of metadata values.
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS: dict[int, np.dtype] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
