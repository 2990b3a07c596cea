"""Quantised weights in the `rows16` layout on every instruction set: size, every unpacked bit, the integer formula.

Weights are random bytes with finite factors, so that every level, scale and minimum that a file may hold occurs. The
formula is evaluated in float64 on parts that `core/storage_blocks.py` gives, whose values are tested against gguf.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.kernels.formats import FORMATS, pack_rows16, packed_bytes
from rlx.backends.cpu.kernels.formats_blocks import LAYOUTS
from rlx.backends.cpu.target import resolve
from rlx.core.dim import Dim
from rlx.core.dtype import (
    ACTIVATION_TERMS,
    DTYPES,
    PACKED_WEIGHTS,
    WITHOUT_INTEGERS,
    DType,
    activation_format,
    f32,
    q4_k,
    q6_k,
    q8_act,
    q8k_act,
)
from rlx.core.storage import decode, encode, split_term
from rlx.core.storage_blocks import BLOCK_FORMATS
from rlx.core.type import TensorType, tensor
from rlx.flow.weights import DictWeights
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, Array, compiled, one_op, same_bits
from tests.ops.sample_inputs import random_bytes, set_factors

U = 2.0**-24
NEW = [dtype for dtype in PACKED_WEIGHTS if dtype.name not in ("q4_0", "q4_1", "q8_0")]
"""Those that `test_linear.py` does not hold."""
OUT = 37
every_format = pytest.mark.parametrize("dtype", PACKED_WEIGHTS, ids=str)
every_new_format = pytest.mark.parametrize("dtype", NEW, ids=str)
INTEGERS = [dtype for dtype in NEW if dtype not in WITHOUT_INTEGERS]
every_integer_format = pytest.mark.parametrize("dtype", INTEGERS, ids=str)
every_target = pytest.mark.parametrize("target", TARGETS)


def width_of(dtype: DType) -> int:
    return max(96, 2 * dtype.block_size)


@cache
def weight_of(dtype: DType) -> NDArray[np.uint8]:
    raw = random_bytes(dtype, (OUT, width_of(dtype)), np.random.default_rng(11))
    if dtype.name == "mxfp4":
        raw[:: dtype.block_bytes] = 110 + raw[:: dtype.block_bytes] % 16  # exponents near 0, as the others' factors
    return raw


def seeded(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


def product(target: str, dtype: DType, activation: DType, raw: Array, out: int, threads: int = 1) -> Executable:
    k = raw.size // out // dtype.block_bytes * dtype.block_size
    weight = TensorType(dtype, (out, k))
    graph = one_op("linear", {"x": tensor(activation, Dim("n"), k)}, {"w": weight})
    return compiled(graph, target, DictWeights({"w": (weight, raw)}), threads=threads)


def quantised(activation: DType, values: NDArray[np.float32]) -> Array:
    return encode(activation, values).reshape(len(values), -1)


GROWTH = {"iq3_s": 1.26, "iq3_xxs": 1.41, "iq2_s": 1.3, "iq2_xs": 1.44, "iq2_xxs": 1.61, "iq1_m": 1.9, "iq1_s": 2.13}
GROWTH |= {"tq1_0": 1.23}
"""A codebook does not fit into a register: its vectors are laid out as levels, at 3 or 4 bits (`formats_tables.py`)."""


@every_format
def test_packed_weights_are_no_larger_than_the_file_by_three_per_cent(dtype: DType) -> None:
    packed = pack_rows16(dtype, random_bytes(dtype, (48, 512), np.random.default_rng(0)), (48, 512))
    assert packed.size == packed_bytes(dtype, (48, 512))
    assert dtype.nbytes(48 * 512) <= packed.size <= GROWTH.get(dtype.name, 1.03) * dtype.nbytes(48 * 512)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if FORMATS[name].pack != LAYOUTS[name].pack])
def test_the_fast_packings_give_what_the_layout_says(name: str) -> None:
    dtype = DTYPES[name]
    raw = random_bytes(dtype, (32, 160), np.random.default_rng(1)).reshape(32, -1)
    assert np.array_equal(FORMATS[name].pack(raw), LAYOUTS[name].pack(raw))


@pytest.mark.parametrize("name", ["q3_k", "q5_1"])
def test_packing_in_slabs_is_packing_at_once(name: str) -> None:
    """A matrix larger than a slab, against each group of 16 rows alone."""
    dtype, rows, k = DTYPES[name], 176, 8192
    raw = random_bytes(dtype, (rows, k), np.random.default_rng(2)).reshape(rows, -1)
    groups = [pack_rows16(dtype, raw[row : row + 16], (16, k)) for row in range(0, rows, 16)]
    assert raw.nbytes > 1 << 19
    assert np.array_equal(pack_rows16(dtype, raw, (rows, k)), np.concatenate(groups))


@every_target
@every_format
def test_unpacked_weights_have_every_bit_of_the_decoded_file(dtype: DType, target: str) -> None:
    """Products of scales and levels are exact, so that fusing the minimum's addition changes nothing."""
    raw, shape = weight_of(dtype), (OUT, width_of(dtype))
    weight = TensorType(dtype, shape)
    exe = compiled(one_op("dequantize", {}, {"w": weight}), target, DictWeights({"w": (weight, raw)}))
    found = exe()["y0"]
    exe.close()
    assert same_bits(found, decode(dtype, raw, shape))


@every_target
@every_new_format
def test_the_float_product_is_within_its_error_bound(dtype: DType, target: str) -> None:
    """A sum of k multiply-adds in order: at most k + 2 roundings of the sum of magnitudes, as in `test_linear.py`."""
    raw, k = weight_of(dtype), width_of(dtype)
    x, weight = seeded(11, k), decode(dtype, raw, (OUT, k)).astype(np.float64)
    exe = product(target, dtype, f32, raw, OUT)
    found = exe(x=x)["y0"]
    exe.close()
    wide = x.astype(np.float64)
    assert (np.abs(found - wide @ weight.T) <= (k + 2) * U * (np.abs(wide) @ np.abs(weight).T)).all()


def formula(dtype: DType, raw: Array, x: Array, k: int) -> tuple[Array, Array]:
    """The integer product in float64, and the sum of the magnitudes of what it adds up; x holds the terms of blocks."""
    fmt = BLOCK_FORMATS[dtype.name]
    blocks = raw.reshape(-1, dtype.block_bytes)
    parts, factors = fmt.split(blocks), [factor.astype(np.float64) for factor in fmt.factors(blocks)]
    levels = parts.levels.astype(np.int64) - fmt.zero
    if fmt.table:
        levels = np.array(fmt.table)[parts.levels]
    halves = dtype.block_size // 16

    def spread(integers: Array | None, factor: Array) -> Array:
        small = np.ones((1, 1)) if integers is None else integers.astype(np.float64)
        per_half = np.broadcast_to(factor * small, (len(blocks), small.shape[1]))
        return np.repeat(per_half, halves // small.shape[1], axis=1).reshape(OUT, -1)

    scale = spread(parts.scales, factors[0])
    minimum = np.zeros_like(scale)
    if len(factors) == 2:
        minimum = spread(parts.minimums, factors[1]) * (1 if parts.minimums is None else -1)
    term = q8k_act if dtype.block_size == q8k_act.block_size else q8_act
    quants, x_scale = split_term(term, x.reshape(-1, term.block_bytes))
    terms = x.shape[1] // term.block_bytes * term.block_size // k
    # rows, blocks, terms, chunks, halves, 16 k: the terms of a block come to each chunk
    values = quants.astype(np.int64).reshape(len(x), -1, terms, term.block_size // 32, 2, 16)
    values = values.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), -1, terms, 2, 16)
    x_scale = np.repeat(x_scale.astype(np.float64).reshape(len(x), -1, 1, terms), term.block_size // 32, axis=2)
    x_scale = x_scale.reshape(len(x), -1, terms)
    levels = levels.reshape(OUT, -1, 2, 16)
    dots = np.einsum("ochk,rcthk->rocth", levels, values)
    sums = values.sum(axis=-1)[:, None]
    by_scale = scale.reshape(1, OUT, -1, 1, 2) * x_scale[:, None, :, :, None]
    by_minimum = minimum.reshape(1, OUT, -1, 1, 2) * x_scale[:, None, :, :, None]
    magnitude = np.abs(by_scale * dots) + np.abs(by_minimum * sums)
    return (by_scale * dots + by_minimum * sums).sum(axis=(2, 3, 4)), magnitude.sum(axis=(2, 3, 4))


# without vector instructions for them, two terms take seconds to compile: two formats stand for the two forms of scales
INTEGER_CASES = [
    (dtype, activation_format(dtype, terms), target)
    for dtype in INTEGERS
    for terms in (1, 2)
    for target in TARGETS
    if terms == 1 or target != "portable" or dtype in (q4_k, q6_k)
]


@pytest.mark.parametrize(("dtype", "activation", "target"), INTEGER_CASES, ids=str)
def test_the_integer_product_is_its_formula(dtype: DType, activation: DType, target: str) -> None:
    """Integer sums are exact; per term of a block the scales, a conversion and two multiply-adds round.

    What is rounded in a super-block is its sum, which is no larger than the magnitudes of its chunks.
    """
    raw, k = weight_of(dtype), width_of(dtype)
    x = quantised(activation, seeded(13, k))
    exe = product(target, dtype, activation, raw, OUT)
    found = exe(x=x)["y0"]
    exe.close()
    true, magnitude = formula(dtype, raw, x, k)
    assert (np.abs(found - true) <= (2 * ACTIVATION_TERMS[activation.name] * k // 32 + 4) * U * magnitude).all()


@every_target
@every_integer_format
def test_extreme_bytes_do_not_overflow(dtype: DType, target: str) -> None:
    """Levels and integer scales at their ends, times 127: the largest sums that any step meets."""
    k = width_of(dtype)
    activation = activation_format(dtype, 1)
    x = quantised(activation, np.repeat(np.array([[127.0], [-127.0]], np.float32), k, axis=1))
    for fill in (0x00, 0xFF, 0x80, 0x7F):
        raw = np.full((OUT, k // dtype.block_size, dtype.block_bytes), fill, np.uint8)
        set_factors(dtype, raw.reshape(-1, dtype.block_bytes), 1.0)
        exe = product(target, dtype, activation, raw.reshape(-1), OUT)
        found = exe(x=x)["y0"]
        exe.close()
        weight = decode(dtype, raw.reshape(-1), (OUT, k)).astype(np.float64)
        true = np.array([[127.0], [-127.0]]) * weight.sum(axis=1)
        # chunks are whole numbers, exact below 2^24; sums of 16 chunks of Q6_K may pass that and round
        assert np.abs(found - true).max() <= 16 * U * np.abs(true).max()


@every_target
@pytest.mark.parametrize("terms", [0, 1, 2])
@every_new_format
def test_a_row_does_not_depend_on_its_neighbours(dtype: DType, terms: int, target: str) -> None:
    """Bit for bit: alone, in batches that mix the tiles of 8, 4 and 1 in any way, and split over threads."""
    if terms == 2 and target == "portable" and dtype not in (q4_k, q6_k):
        pytest.skip("takes seconds to compile; the other targets and formats stand for it")
    if terms and dtype in WITHOUT_INTEGERS:
        pytest.skip("the format has no integer form")
    raw, rows = weight_of(dtype), 21
    activation = activation_format(dtype, terms) if terms else f32
    floats = seeded(rows, width_of(dtype))
    x = floats if activation == f32 else quantised(activation, floats)
    exe, threaded = (product(target, dtype, activation, raw, OUT, threads) for threads in (1, 3))
    alone = np.concatenate([exe(x=x[row : row + 1])["y0"] for row in range(rows)])
    for start, stop in ((0, 21), (0, 8), (8, 20), (15, 20), (1, 15)):
        for program in (exe, threaded):
            assert same_bits(program(x=x[start:stop])["y0"], alone[start:stop])
    exe.close()
    threaded.close()


@pytest.mark.parametrize("terms", [1, 2])
@every_integer_format
def test_the_integer_product_has_the_same_bits_with_avx512_and_avx2(dtype: DType, terms: int) -> None:
    if not {"avx512", "avx2"} <= set(TARGETS):
        pytest.skip("needs a host with AVX-512")
    activation = activation_format(dtype, terms)
    x = quantised(activation, seeded(13, width_of(dtype)))
    results: list[Array] = []
    for target in ("avx512", "avx2"):
        exe = product(target, dtype, activation, weight_of(dtype), OUT)
        results.append(exe(x=x)["y0"])
        exe.close()
    assert same_bits(*results)


@every_format
def test_formats_of_integers_have_an_integer_form(dtype: DType) -> None:
    assert CpuBackend(resolve(TARGETS[0])).quantizes(dtype) == (dtype not in WITHOUT_INTEGERS)
