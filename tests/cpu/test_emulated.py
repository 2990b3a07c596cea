"""The AArch64 targets, run under qemu: every kernel against its reference, the bits of a product, and the worker loop.

`tests/cpu/emulator` installs or finds qemu and a cross linker; a machine without them fails here rather than skips.
"""

from __future__ import annotations

import numpy as np
import pytest

from rlx.core.dim import Dim
from rlx.core.dtype import DTYPES, PACKED_WEIGHTS, WITHOUT_INTEGERS, DType, activation_format, f32
from rlx.core.storage import encode
from rlx.core.type import TensorType, tensor
from rlx.errors import InputError, UnsupportedOpError
from rlx.flow.weights import DictWeights
from tests.cpu.compiling import Array, compiled, one_op, same_bits, unary_graph
from tests.cpu.emulator import PROCESSORS, emulated
from tests.cpu.test_block_formats import OUT, weight_of, width_of
from tests.cpu.test_kernels import case_of, check
from tests.cpu.test_vmath import REFERENCES, ULPS, arguments, reference, ulps
from tests.ops.sample_inputs import CASE_NAMES, CASES

pytestmark = pytest.mark.slow
ROWS = 13


# products with weights have a test of their own below
SAMPLES = [index for index, (op, _) in enumerate(CASES) if op.name != "linear"]


@pytest.mark.parametrize("index", SAMPLES, ids=[CASE_NAMES[index] for index in SAMPLES])
def test_a_sample_is_what_the_reference_says(index: int) -> None:
    case = case_of(index)
    if case.sample.attrs.get("products") == "bf16":
        with pytest.raises(UnsupportedOpError, match="bfloat16"):
            emulated(case.graph, "neon", case.weights, threads=2)
        return
    exe = emulated(case.graph, "neon", case.weights, threads=2)
    inputs = case.inputs(case.sample.dims)
    check(case, exe(**inputs), inputs)
    exe.close()


# every format on the plainest processor; where the others differ is the product of bytes, which these four stand for
FLOATS = [DTYPES[name] for name in ("f32", "f16", "bf16")]
BYTES = [DTYPES[name] for name in ("q4_0", "q8_0", "q4_k", "q6_k")]
PRODUCTS = [(dtype, 0, "neon") for dtype in (*PACKED_WEIGHTS, *FLOATS)]
PRODUCTS += [(dtype, 1, "neon") for dtype in PACKED_WEIGHTS if dtype not in WITHOUT_INTEGERS]
PRODUCTS += [(dtype, 2, "neon") for dtype in BYTES]
PRODUCTS += [(dtype, 1, target) for dtype in BYTES for target in PROCESSORS if target != "neon"]


@pytest.mark.parametrize(("dtype", "terms", "target"), PRODUCTS, ids=str)
def test_a_product_has_the_bits_that_it_has_on_x86(dtype: DType, terms: int, target: str) -> None:
    """For all rows at once, which goes through every tile, and for some of them alone; terms are those of int8."""
    act, k = activation_format(dtype, terms) if terms else f32, width_of(dtype) if dtype.is_packed else 96
    floats = np.random.default_rng(1).standard_normal((ROWS, k)).astype(np.float32)
    x = floats if act == f32 else encode(act, floats).reshape(ROWS, -1)
    weight = TensorType(dtype, (OUT, k))
    raw = (
        weight_of(dtype)
        if dtype.is_packed
        else encode(dtype, np.random.default_rng(2).standard_normal((OUT, k)).astype(np.float32))
    )
    graph = one_op("linear", {"x": tensor(act, Dim("n"), k)}, {"w": weight})
    weights = DictWeights({"w": (weight, raw)})
    exe = emulated(graph, target, weights, threads=2)
    together = exe(x=x)["y0"]
    assert same_bits(np.concatenate([exe(x=x[row : row + 1])["y0"] for row in (0, 5, ROWS - 1)]), together[[0, 5, -1]])
    exe.close()
    here = compiled(graph, "native", weights)
    assert same_bits(here(x=x)["y0"], together)
    here.close()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_function_is_within_its_stated_error(name: str) -> None:
    x, true = arguments(), reference(name)
    exe = emulated(unary_graph(name, Dim("n")), "neon", threads=2)
    found = exe(x=x)["y0"]
    exe.close()
    # what is beyond float32 rounds to infinity
    kept = np.isfinite(x) & (np.abs(true) <= np.finfo(np.float32).max) & (x > -87 if name == "silu" else True)
    if name in ("sin", "cos"):
        kept &= np.abs(x) < 1.5e6
    x, found, true = x[kept], found[kept], true[kept]
    scale = np.maximum(np.abs(x.astype(np.float64)), np.abs(true)) if name.startswith("gelu") else true
    assert np.isfinite(found).all()
    assert ulps(found, true, scale).max() <= ULPS[name]


def test_threads_share_many_runs() -> None:
    """Claims, atomics, yields and the end of the workers: forty runs shared by three threads give the same bits."""
    x: Array = np.random.default_rng(3).standard_normal((24, 64)).astype(np.float32)
    weight = tensor(f32, 64, 64)
    raw = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32).view(np.uint8).reshape(-1)
    graph = one_op("linear", {"x": tensor(f32, Dim("n"), 64)}, {"w": weight})
    weights = DictWeights({"w": (weight, raw)})
    alone, shared = (emulated(graph, "neon", weights, threads=n, runs=m) for n, m in ((1, 1), (3, 40)))
    expected = alone(x=x)["y0"]
    for _ in range(5):
        assert same_bits(shared(x=x)["y0"], expected)
    assert getattr(shared.module, "took_part") > 1  # noqa: B009  # of the emulated module
    alone.close()
    shared.close()


def test_an_index_outside_of_its_table_is_an_error() -> None:
    table = tensor(f32, 8, 16)
    raw = np.ones((8, 16), np.float32).view(np.uint8).reshape(-1)
    ids = np.array([0, 8], np.int32)
    graph = one_op("embedding", {"x": tensor(DTYPES["i32"], Dim("n"))}, {"w": table})
    exe = emulated(graph, "neon", DictWeights({"w": (table, raw)}))
    with pytest.raises(InputError, match="outside of its table"):
        exe(x=ids)
    exe.close()
