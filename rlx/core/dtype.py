"""Element types, storage formats of packed weights among them.

A packed format stores `block_size` consecutive elements of the last axis in `block_bytes` bytes; how the bytes are
read is in `rlx/core/storage.py`. Next: `dim.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. Plain types are blocks of one element."""

    name: str
    kind: str  # "float", "int", "uint", "bool" or "packed"
    block_size: int
    block_bytes: int

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @property
    def is_packed(self) -> bool:
        """True for a storage format that has to be dequantised before arithmetic."""
        return self.kind == "packed"

    @property
    def is_float(self) -> bool:
        """True for floating-point element types (not for packed formats)."""
        return self.kind == "float"

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` elements; packed formats round up to whole blocks."""
        return -(-elements // self.block_size) * self.block_bytes

    @property
    def numpy(self) -> np.dtype:
        """The NumPy type of an element; packed formats are bytes."""
        return np.dtype(np.uint8) if self.is_packed else _NUMPY[self.name]


_NUMPY: dict[str, np.dtype] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}

f64 = DType("f64", "float", 1, 8)
f32 = DType("f32", "float", 1, 4)
f16 = DType("f16", "float", 1, 2)
bf16 = DType("bf16", "float", 1, 2)
i64 = DType("i64", "int", 1, 8)
i32 = DType("i32", "int", 1, 4)
i16 = DType("i16", "int", 1, 2)
i8 = DType("i8", "int", 1, 1)
u8 = DType("u8", "uint", 1, 1)
boolean = DType("bool", "bool", 1, 1)

# GGML block formats (32 elements): half scale, then (q4_1) half minimum, then the quants.
q4_0 = DType("q4_0", "packed", 32, 18)
q4_1 = DType("q4_1", "packed", 32, 20)
q8_0 = DType("q8_0", "packed", 32, 34)
q5_0 = DType("q5_0", "packed", 32, 22)
q5_1 = DType("q5_1", "packed", 32, 24)
# 4-bit indices into a table of 16 values, with a half scale or with a power of two (OCP Microscaling).
iq4_nl = DType("iq4_nl", "packed", 32, 18)
mxfp4 = DType("mxfp4", "packed", 32, 17)
# Super-blocks of 256: half scales, times a small integer scale of each sub-block of 16 or 32.
q2_k = DType("q2_k", "packed", 256, 84)
q3_k = DType("q3_k", "packed", 256, 110)
q4_k = DType("q4_k", "packed", 256, 144)
q5_k = DType("q5_k", "packed", 256, 176)
q6_k = DType("q6_k", "packed", 256, 210)
# Super-blocks of 256 whose levels are found in tables: 4-bit indices, or vectors of a codebook with their signs.
iq4_xs = DType("iq4_xs", "packed", 256, 136)
iq3_s = DType("iq3_s", "packed", 256, 110)
iq3_xxs = DType("iq3_xxs", "packed", 256, 98)
iq2_s = DType("iq2_s", "packed", 256, 82)
iq2_xs = DType("iq2_xs", "packed", 256, 74)
iq2_xxs = DType("iq2_xxs", "packed", 256, 66)
iq1_m = DType("iq1_m", "packed", 256, 56)
iq1_s = DType("iq1_s", "packed", 256, 50)
# Ternary super-blocks: five levels in a byte, or four.
tq1_0 = DType("tq1_0", "packed", 256, 54)
tq2_0 = DType("tq2_0", "packed", 256, 66)
# E2M1 with an E4M3 scale for each 16.
nvfp4 = DType("nvfp4", "packed", 64, 36)
# What the quantised checkpoints of Hugging Face are rearranged into (32 elements): a half scale, the level that stands
# for 0, and nibbles (GPTQ, AWQ); a float32 scale and 8-bit floats (FP8).
q4_z = DType("q4_z", "packed", 32, 19)
e4m3_s = DType("e4m3_s", "packed", 32, 36)
e5m2_s = DType("e5m2_s", "packed", 32, 36)
GGUF_WEIGHTS: tuple[DType, ...] = (
    *(q4_0, q4_1, q8_0, q5_0, q5_1, iq4_nl, mxfp4, q2_k, q3_k, q4_k, q5_k, q6_k),
    *(iq4_xs, iq3_s, iq3_xxs, iq2_s, iq2_xs, iq2_xxs, iq1_m, iq1_s, tq1_0, tq2_0, nvfp4),
)
"""Formats of quantised weights in GGUF files."""
PACKED_WEIGHTS: tuple[DType, ...] = (*GGUF_WEIGHTS, q4_z, e4m3_s, e5m2_s)
"""Formats of quantised weights."""
WITHOUT_INTEGERS: tuple[DType, ...] = (nvfp4, e4m3_s, e5m2_s)
"""Those of them whose levels, or scales within a block, are floats: products run on float activations."""
# Activations quantised in the step: 32 int8, then the float32 scale, the float32 sum of the dequantised block, and as
# int32 the sum of the quants times -8.
q8_act = DType("q8_act", "packed", 32, 44)
# For weights in super-blocks of 256, as ggml's q8_K: 8 times 32 int8 and the int32 sums of both halves times -32;
# then the float32 scale, the int16 sums of each 32, and the int16 sums of each 16.
q8k_act = DType("q8k_act", "packed", 256, 372)
# The same twice: the block, then what its rounding left over. About 15 bits, for the product that ends a model.
q8x2_act = DType("q8x2_act", "packed", 32, 2 * q8_act.block_bytes)
q8kx2_act = DType("q8kx2_act", "packed", 256, 2 * q8k_act.block_bytes)
# For bfloat16 weights: 32 bfloat16.
bf16_act = DType("bf16_act", "packed", 32, 64)
ACTIVATION_TERMS: dict[str, int] = {"q8_act": 1, "q8k_act": 1, "q8x2_act": 2, "q8kx2_act": 2, "bf16_act": 1}
"""Formats that activations are rounded to in a step, and how many terms each has."""


def activation_format(weight: DType, terms: int) -> DType:
    """The format of what is multiplied with a weight: of one term, or of two or what is as good (float32)."""
    if weight == bf16:
        return bf16_act if terms == 1 else f32
    if weight.block_size == q8k_act.block_size:
        return q8k_act if terms == 1 else q8kx2_act
    return q8_act if terms == 1 else q8x2_act


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        f64,
        f32,
        f16,
        bf16,
        i64,
        i32,
        i16,
        i8,
        u8,
        boolean,
        *PACKED_WEIGHTS,
        bf16_act,
        q8_act,
        q8k_act,
        q8x2_act,
        q8kx2_act,
    )
}


def from_numpy(dtype: np.dtype) -> DType:
    """The element type of a NumPy array.

    Raises:
        KeyError: RLX has no such type.
    """
    for name, numpy_dtype in _NUMPY.items():
        if numpy_dtype == dtype:
            return DTYPES[name]
    raise KeyError(str(dtype))
