"""linear on float32 and on bfloat16 rows: blocks of k and of rows, tiles with edges, and bits that none of them moves.

Error analysis as in `test_linear.py`, with u = 2^-24. A product of two bfloat16 has 16 bits and is exact in float32, so
that a sum of K of them in any order is off by at most K u sum |x| |w|.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.kernels.float_tiles import BLOCK_ROWS, BLOCK_WORDS
from rlx.backends.cpu.target import resolve
from rlx.compiler import compile_graph
from rlx.core.dim import Dim
from rlx.core.dtype import DTYPES, DType, bf16, bf16_act, f32
from rlx.core.graph import Graph, GraphBuilder
from rlx.core.storage import decode, encode
from rlx.core.type import TensorType, tensor
from rlx.flow.weights import DictWeights
from rlx.ops.op import Emitter
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, Array, compiled, one_op, parameter, same_bits, stored

U = 2.0**-24
FORMATS = ("f32", "f16", "bf16")
BF16_TARGETS = [name for name in TARGETS if resolve(name).bf16]
needs_bf16 = pytest.mark.skipif(not BF16_TARGETS, reason="the host has no products of bfloat16")


def seeded(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def product(
    target: str, dtype: DType, x: DType, weight: Array, bias: Array | None = None, threads: int = 1
) -> Executable:
    tensors = {"w": stored(dtype, weight)}
    if bias is not None:
        tensors["b"] = (tensor(f32, len(bias)), bias.view(np.uint8))
    rows = tensor(x, Dim("n"), weight.shape[1])
    graph = one_op("linear", {"x": rows}, {name: type_ for name, (type_, _) in tensors.items()})
    return compiled(graph, target, DictWeights(tensors), threads=threads)


def as_activation(x: NDArray[np.float32], dtype: DType) -> Array:
    return x if dtype == f32 else encode(dtype, x).reshape(len(x), -1)


def rounded(x: NDArray[np.float32], dtype: DType) -> NDArray[np.float64]:
    return (x if dtype == f32 else decode(dtype, encode(dtype, x), x.shape)).astype(np.float64)


CASES = [
    *((target, name, f32) for target in TARGETS for name in FORMATS),
    *((target, "bf16", bf16_act) for target in TARGETS),
]


@pytest.mark.parametrize(("target", "name", "activation"), CASES, ids=str)
@given(data=st.data())
@settings(max_examples=10)
def test_a_product_of_several_blocks_is_within_its_error_bound(
    target: str, name: str, activation: DType, data: st.DataObject
) -> None:
    """Sizes around the blocks of k and rows, where a tile is cut off and a total is stored and taken up again."""
    near = st.sampled_from([BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 2 * BLOCK_WORDS + 7, 5, 1])
    k = (
        data.draw(near)
        if activation == f32
        else 32 * data.draw(st.sampled_from([1, BLOCK_WORDS // 16 - 1, BLOCK_WORDS // 16, BLOCK_WORDS // 16 + 1]))
    )
    rows = data.draw(st.integers(1, 40) | st.integers(BLOCK_ROWS - 1, BLOCK_ROWS + 14))
    out, seed, biased = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 999)), data.draw(st.booleans())
    dtype = DTYPES[name]
    x, weight, bias = seeded(rows, k, seed=seed), seeded(out, k, seed=seed), seeded(out, seed=seed)
    exe = product(target, dtype, activation, weight, bias if biased else None)
    found = exe(x=as_activation(x, activation))["y0"].astype(np.float64)
    exe.close()
    left, right = rounded(x, activation), rounded(weight, dtype)
    true = left @ right.T + bias * biased
    bound = (k + 2) * U * (np.abs(left) @ np.abs(right).T + np.abs(bias) * biased)
    assert (np.abs(found - true) <= bound + 1e-37).all()


@pytest.mark.parametrize(("target", "name", "activation"), CASES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(target: str, name: str, activation: DType) -> None:
    """Alone (streamed), in every count up to 40 and beyond a block of rows, and with the groups split over threads."""
    k, out, count = 2 * BLOCK_WORDS + 32, 88, BLOCK_ROWS + 23
    x, weight, bias = seeded(count, k, seed=1), seeded(out, k, seed=2), seeded(out, seed=3)
    rows = as_activation(x, activation)
    exe = product(target, DTYPES[name], activation, weight, bias)
    threaded = product(target, DTYPES[name], activation, weight, bias, threads=3)
    alone = np.concatenate([exe(x=rows[r : r + 1])["y0"] for r in range(count)])
    for size in (*range(2, 41), BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, count):
        part = rows[count - size :]
        assert same_bits(exe(x=part)["y0"], alone[count - size :]), size
        assert same_bits(threaded(x=part)["y0"], alone[count - size :]), size
    exe.close()
    threaded.close()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 21])
def test_avx512_and_avx2_give_the_same_bits(name: str, rows: int) -> None:
    """Both fuse, and take k in order."""
    if not {"avx512", "avx2"} <= set(TARGETS):
        pytest.skip("needs a host with AVX-512")
    x, weight = seeded(rows, 301, seed=4), seeded(37, 301, seed=5)
    results: list[Array] = []
    for target in ("avx512", "avx2"):
        exe = product(target, DTYPES[name], f32, weight)
        results.append(exe(x=x)["y0"])
        exe.close()
    assert same_bits(*results)


@pytest.mark.parametrize("target", TARGETS)
def test_rows_beside_one_with_infinities_are_not_touched(target: str) -> None:
    """Tiles that take a row twice, or a group, must not mix what they take."""
    x, weight = seeded(13, 40, seed=6), seeded(20, 40, seed=7)
    exe = product(target, f32, f32, weight)
    clean = exe(x=x)["y0"]
    x[12] = np.inf
    with_fault = exe(x=x)["y0"]
    exe.close()
    assert same_bits(with_fault[:12], clean[:12])
    assert not np.isfinite(with_fault[12]).any()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(5, 7), (17, 8), (33, 1), (9,)], ids=str)
def test_bfloat16_tables_unpack_whether_rows_are_pairs_or_odd(target: str, shape: tuple[int, ...]) -> None:
    weight = seeded(*shape, seed=8)
    type_, raw = stored(bf16, weight)
    exe = compiled(one_op("dequantize", {}, {"w": type_}), target, DictWeights({"w": (type_, raw)}))
    assert same_bits(exe()["y0"], decode(bf16, raw, shape))
    exe.close()


def two_products(k: int) -> Graph:
    """The second product leaves the graph."""
    builder = GraphBuilder("two")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, Dim("n"), k))
    inner = emit("linear", x, parameter(builder, "a", TensorType(bf16, (k, k))))
    builder.output("y", emit("linear", inner, parameter(builder, "b", TensorType(bf16, (48, k)))))
    return builder.build()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k", [64, 33])
@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_where_bfloat16_rows_are_used(target: str, k: int, precision: str) -> None:
    """In `fast`, where the target multiplies them and rows are whole blocks; never for what leaves the graph."""
    _, stages = compile_graph(two_products(k), CpuBackend(resolve(target)), precision=precision)
    mir = stages.graphs["mir"]
    assert isinstance(mir, Graph)
    found = [node.inputs[0].type.dtype for node in mir.nodes if node.op == "linear"]
    rounds = precision == "fast" and k == 64 and target in BF16_TARGETS
    assert found == [bf16_act if rounds else f32, f32]


@needs_bf16
@pytest.mark.parametrize("target", BF16_TARGETS)
def test_fast_products_are_those_of_rounded_rows(target: str) -> None:
    k = 64
    x, a, b = seeded(9, k, seed=9), seeded(k, k, seed=10), seeded(48, k, seed=11)
    weights = DictWeights({"a": stored(bf16, a), "b": stored(bf16, b)})
    fast = compiled(two_products(k), target, weights, precision="fast")
    found = fast(x=x)["y"]
    fast.close()
    first = product(target, bf16, bf16_act, a)
    second = product(target, bf16, f32, b)
    assert same_bits(found, second(x=first(x=as_activation(x, bf16_act))["y0"])["y0"])
    first.close()
    second.close()
