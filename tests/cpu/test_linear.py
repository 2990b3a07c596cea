"""linear on random sizes: error bounds from the arithmetic, the integer formula, and rows that do not see each other.

Error analysis, u = 2^-24 (half a unit in the last place of float32): a sum of K fused multiply-adds in order is off by
at most K u sum |x| |w| to first order (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); without fusion
each product is rounded too, which adds one u.
"""

from __future__ import annotations

from itertools import product as product_of

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.core.dim import Dim
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, DType, f32, q8_act
from rlx.core.storage import decode, encode
from rlx.core.type import TensorType, tensor
from rlx.flow.weights import DictWeights
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, Array, compiled, one_op, same_bits, stored, summed_product

U = 2.0**-24
FLOAT_FORMATS = ("f32", "f16", "bf16", "q4_0", "q4_1", "q8_0")
INTEGER_FORMATS = ("q4_0", "q4_1", "q8_0")
ACTIVATIONS = ("q8_act", "q8x2_act")
"""What weights in blocks of 32 are multiplied with."""
BLOCK = 32


def seeded(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def product(
    target: str, x: TensorType, dtype: DType, weight: Array, bias: Array | None, threads: int = 1
) -> Executable:
    type_, raw = stored(dtype, weight)
    tensors = {"w": (type_, raw)}
    if bias is not None:
        tensors["b"] = (tensor(f32, len(bias)), bias.view(np.uint8))
    graph = one_op("linear", {"x": x}, {name: type_ for name, (type_, _) in tensors.items()})
    return compiled(graph, target, DictWeights(tensors), threads=threads)


def decoded(dtype: DType, weight: NDArray[np.float32]) -> NDArray[np.float64]:
    return decode(dtype, encode(dtype, weight), weight.shape).astype(np.float64)


@st.composite
def sizes(draw: st.DrawFn, packed: bool) -> tuple[int, int, int]:
    """Rows, outputs (any), inputs (whole blocks for packed formats)."""
    k = BLOCK * draw(st.integers(1, 9)) if packed else draw(st.integers(1, 200))
    return draw(st.integers(1, 40)), draw(st.integers(1, 70)), k


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FLOAT_FORMATS)
@given(data=st.data())
@settings(max_examples=12)
def test_the_float_product_is_within_its_error_bound(target: str, name: str, data: st.DataObject) -> None:
    dtype = DTYPES[name]
    rows, out, k = data.draw(sizes(dtype.is_packed))
    seed, biased = data.draw(st.integers(0, 999)), data.draw(st.booleans())
    x, weight, bias = seeded(rows, k, seed=seed), seeded(out, k, seed=seed), seeded(out, seed=seed)
    exe = product(target, tensor(f32, Dim("n"), k), dtype, weight, bias if biased else None)
    found = exe(x=x)["y0"].astype(np.float64)
    exe.close()
    exact, wide = decoded(dtype, weight), x.astype(np.float64)
    true = wide @ exact.T + (bias if biased else 0.0)
    bound = (k + 2) * U * (np.abs(wide) @ np.abs(exact).T + np.abs(bias) * biased)
    if name == "q4_1":
        # unpacking adds the minimum to scale * quant with two roundings; each is up to 3 times the block's largest
        largest = np.repeat(np.abs(exact).reshape(out, -1, BLOCK).max(axis=2), BLOCK, axis=1)
        bound += 6 * U * (np.abs(wide) @ largest.T)
    assert (np.abs(found - true) <= bound + 1e-37).all()


def integer_parts(name: str, raw: NDArray[np.uint8], out: int) -> tuple[Array, Array, Array]:
    """Quants u [out, blocks, 32], scale and minimum [out, blocks], w = scale * u + minimum, by the GGML layout."""
    blocks = raw.reshape(out, -1, DTYPES[name].block_bytes)
    half = np.ascontiguousarray(blocks[..., :4]).view(np.float16).astype(np.float64)
    if name == "q8_0":
        quants = blocks[..., 2:].view(np.int8).astype(np.int64) + 128
        return quants, half[..., 0], half[..., 0] * -128
    packed = blocks[..., 4:] if name == "q4_1" else blocks[..., 2:]
    quants = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int64)
    return quants, half[..., 0], half[..., 1] if name == "q4_1" else half[..., 0] * -8


def integer_formula(name: str, raw: NDArray[np.uint8], x: NDArray[np.uint8], out: int) -> tuple[Array, Array]:
    """The product in float64 and the sum of the magnitudes of its terms; `x` has one or more int8 terms for a block.

    The offset is that of the formula with a minimum, which is at least as large as what starting with it makes.
    """
    quants, scale, minimum = integer_parts(name, raw, out)
    blocks = x.reshape(len(x), scale.shape[1], -1, q8_act.block_bytes)
    values = blocks[..., :32].view(np.int8).astype(np.int64)
    factors = np.ascontiguousarray(blocks[..., 32:40]).view(np.float32).astype(np.float64)
    dots = np.einsum("obk,rbtk->robt", quants, values).astype(np.float64)
    main = dots * scale[None, :, :, None] * factors[:, None, :, :, 0]
    offset = minimum[None, :, :, None] * factors[:, None, :, :, 1]
    return (main + offset).sum(axis=(2, 3)), (np.abs(main) + np.abs(offset)).sum(axis=(2, 3))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", INTEGER_FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(data=st.data())
@settings(max_examples=8)
def test_the_integer_product_is_its_formula(target: str, activation: str, name: str, data: st.DataObject) -> None:
    """Sums of bytes are exact; per term of a block a product of scales and two multiply-adds round, and the bias."""
    dtype, act, terms = DTYPES[name], DTYPES[activation], ACTIVATION_TERMS[activation]
    rows, out, k = data.draw(sizes(packed=True))
    seed, biased = data.draw(st.integers(0, 999)), data.draw(st.booleans())
    weight, bias = seeded(out, k, seed=seed), seeded(out, seed=seed)
    x = encode(act, seeded(rows, k, seed=seed)).reshape(rows, -1)
    exe = product(target, tensor(act, Dim("n"), k), dtype, weight, bias if biased else None)
    found = exe(x=x)["y0"].astype(np.float64)
    exe.close()
    true, magnitude = integer_formula(name, encode(dtype, weight), x, out)
    true, magnitude = true + bias * biased, magnitude + np.abs(bias) * biased
    assert (np.abs(found - true) <= (2 * terms * k // BLOCK + 4) * U * magnitude).all()


@pytest.mark.parametrize("name", INTEGER_FORMATS)
def test_extreme_bytes_do_not_overflow(name: str) -> None:
    """All quants at the ends of their range: the largest sums the 16-bit steps of AVX2 can meet."""
    dtype, out, k = DTYPES[name], 17, 64
    raw = np.full((out, k // BLOCK, dtype.block_bytes), 0xFF, np.uint8)
    raw[..., :2] = np.array([1.0], np.float16).view(np.uint8)
    if name == "q4_1":
        raw[..., 2:4] = np.array([-2.0], np.float16).view(np.uint8)
    if name == "q8_0":
        raw[::2, :, 2:], raw[1::2, :, 2:] = 127, 128  # 127 and -128: unsigned 255 and 0
    x = np.zeros((3, k // BLOCK, q8_act.block_bytes), np.uint8)
    for row, value in enumerate((127, -127, 1)):
        x[row, :, :32] = np.int8(value).view(np.uint8)
        x[row, :, 32:40] = np.array([1.0, 32.0 * value], np.float32).view(np.uint8)
        x[row, :, 40:] = np.array([-8 * 32 * value], np.int32).view(np.uint8)
    x = x.reshape(3, -1)
    true, _ = integer_formula(name, raw.reshape(-1), x, out)
    for target in TARGETS:
        graph = one_op("linear", {"x": tensor(q8_act, 3, k)}, {"w": TensorType(dtype, (out, k))})
        exe = compiled(graph, target, DictWeights({"w": (TensorType(dtype, (out, k)), raw.reshape(-1))}))
        # every term is a whole number below 2^24, so that float32 is exact
        assert np.array_equal(exe(x=x)["y0"], true), target
        exe.close()


COMBINATIONS = [*((name, "f32") for name in FLOAT_FORMATS), *product_of(INTEGER_FORMATS, ACTIVATIONS)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "activation"), COMBINATIONS)
def test_a_row_does_not_depend_on_its_neighbours(target: str, name: str, activation: str) -> None:
    """Bit for bit: alone, in every batch size that uses another mix of tiles, and split over threads."""
    k, out, rows = 96, 40, 40
    floats = seeded(rows, k, seed=1)
    x = floats if activation == "f32" else encode(DTYPES[activation], floats).reshape(rows, -1)
    type_ = tensor(DTYPES[activation], Dim("n"), k)
    weight, bias = seeded(out, k, seed=2), seeded(out, seed=3)
    exe = product(target, type_, DTYPES[name], weight, bias)
    threaded = product(target, type_, DTYPES[name], weight, bias, threads=3)
    alone = np.concatenate([exe(x=x[r : r + 1])["y0"] for r in range(rows)])
    for count in (2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 33, 40):
        for start in (0, rows - count):
            part = x[start : start + count]
            assert same_bits(exe(x=part)["y0"], alone[start : start + count])
            assert same_bits(threaded(x=part)["y0"], alone[start : start + count])
    exe.close()
    threaded.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "activation"), [*COMBINATIONS, ("bf16", "bf16_act")])
@pytest.mark.parametrize("biased", [False, True])
def test_a_residual_is_added_to_the_product_bit_for_bit(target: str, name: str, activation: str, biased: bool) -> None:
    """Every tile of rows, streamed and in blocks of k; 40 outputs end within a vector."""
    dtype, act = DTYPES[name], DTYPES[activation]
    k, out = (2 * dtype.block_size if dtype.is_packed else 1088), 40
    tensors = {"w": stored(dtype, seeded(out, k, seed=1))}
    if biased:
        tensors["b"] = (tensor(f32, out), seeded(out, seed=2).view(np.uint8))
    weights, types = DictWeights(tensors), {key: type_ for key, (type_, _) in tensors.items()}
    plain = compiled(one_op("linear", {"x": tensor(act, Dim("n"), k)}, types), target, weights)
    summed = compiled(summed_product(tensor(act, Dim("n"), k), types), target, weights, threads=2)
    for rows in (1, 3, 21, 33):
        floats = seeded(rows, k, seed=3)
        x = floats if act == f32 else encode(act, floats).reshape(rows, -1)
        residual = seeded(rows, out, seed=4)
        assert same_bits(summed(x=x, r=residual)["y0"], plain(x=x)["y0"] + residual), rows
    plain.close()
    summed.close()


@pytest.mark.parametrize("name", INTEGER_FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 3, 21])
def test_the_integer_product_has_the_same_bits_with_avx512_and_avx2(name: str, activation: str, rows: int) -> None:
    """Both have fused multiply-add and take blocks in the order of k."""
    if not {"avx512", "avx2"} <= set(TARGETS):
        pytest.skip("needs a host with AVX-512")
    k, out = 160, 37
    act = DTYPES[activation]
    x, weight = encode(act, seeded(rows, k, seed=4)).reshape(rows, -1), seeded(out, k, seed=5)
    results: list[Array] = []
    for target in ("avx512", "avx2"):
        exe = product(target, tensor(act, Dim("n"), k), DTYPES[name], weight, None)
        results.append(exe(x=x)["y0"])
        exe.close()
    assert same_bits(*results)
