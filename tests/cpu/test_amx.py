"""AMX: its instructions in the machine code, and the tile form's bits with the tile instruction emulated.

No machine that runs these tests need have AMX. What stands in for the instruction is written here from its definition:
sums of products of signed bytes of a row with unsigned bytes of an output, four k after the other.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from rlx.backends.cpu import tiles
from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.codegen import assembly
from rlx.backends.cpu.emit import I8, I32, Emit, Val
from rlx.backends.cpu.module import CpuModule
from rlx.backends.cpu.target import Target, describe
from rlx.compiler import compile_graph
from rlx.core.dim import Dim
from rlx.core.dtype import PACKED_WEIGHTS, WITHOUT_INTEGERS, DType, activation_format
from rlx.core.graph import Graph
from rlx.core.storage import encode
from rlx.core.type import TensorType, tensor
from rlx.flow.weights import DictWeights
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, compiled, same_bits, summed_product
from tests.cpu.test_block_formats import OUT, weight_of, width_of

INTEGERS = [dtype for dtype in PACKED_WEIGHTS if dtype not in WITHOUT_INTEGERS]
every_format = pytest.mark.parametrize("dtype", INTEGERS, ids=str)


def product_graph(dtype: DType) -> tuple[Graph, DictWeights]:
    weight = TensorType(dtype, (OUT, width_of(dtype)))
    x = tensor(activation_format(dtype, 1), Dim("n"), width_of(dtype))
    return summed_product(x, {"w": weight}), DictWeights({"w": (weight, weight_of(dtype))})


@every_format
def test_many_rows_take_tiles(dtype: DType) -> None:
    target = describe("amx")
    program, _ = compile_graph(product_graph(dtype)[0], CpuBackend(target), precision="exact")
    text = assembly(program.kernels, target)
    for instruction in ("ldtilecfg", "tileloadd", "tilezero", "tdpbsud", "tilestored"):
        assert re.search(rf"\b{instruction}\b", text), instruction
    assert re.search(r"vpdpbusd.*zmm", text), "few rows take the vector form"


def emulated_tile(e: Emit, x: Val, stride: Val, weights: Val, words: int, result: Val) -> None:
    """`tiles.multiply_tile` byte by byte."""
    with e.loop(0, tiles.TILE_ROWS) as row, e.loop(0, 16) as output:
        total = e.var(0, I32)
        with e.loop(0, 4 * words) as k:
            signed = e.load(e.at(x, row * stride + k), I8).sext(I32)
            unsigned = e.load(e.at(weights, k // 4 * 64 + output * 4 + k % 4), I8).zext(I32)
            total.set(total.get() + signed * unsigned)
        e.store(total.get(), result, row * 16 + output)


@every_format
def test_the_tile_form_has_the_bits_of_the_vector_form(dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 37 rows: two tiles of 16, then 4 and 1 of the form that each row has alone."""
    if "avx512" not in TARGETS:
        pytest.skip("the forms for few rows need a host with AVX-512")
    graph, weights = product_graph(dtype)
    act = activation_format(dtype, 1)
    x = encode(act, np.random.default_rng(5).standard_normal((37, width_of(dtype))).astype(np.float32)).reshape(37, -1)
    residual = np.random.default_rng(6).standard_normal((37, OUT)).astype(np.float32)
    vectors = compiled(graph, "avx512", weights)
    expected = vectors(x=x, r=residual)["y0"]
    vectors.close()
    emulations: list[int] = []

    def multiply(e: Emit, x: Val, stride: Val, weights: Val, words: int, result: Val) -> None:
        emulations.append(words)
        emulated_tile(e, x, stride, weights, words, result)

    monkeypatch.setattr(tiles, "multiply_tile", multiply)
    here = describe("avx512")
    target: Target = dataclasses.replace(here, name="amx", flags=(*here.flags, "amx-tile", "amx-int8"))
    program, stages = compile_graph(graph, CpuBackend(target), precision="exact")
    exe = Executable(graph, program, stages, CpuModule(program, weights, target, 2, None))
    assert emulations
    assert same_bits(exe(x=x, r=residual)["y0"], expected)
    exe.close()
