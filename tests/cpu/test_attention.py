"""Paged attention: the bits of a row depend on its sequence alone, and its value is that of the reference.

A row is compared with itself alone, in tiles of its own sequence, between rows of other sequences, over shuffled pages,
in caches with more pages, after garbage in masked slots, and with other numbers of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from rlx.backends.cpu.target import resolve
from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import DType, bf16, bf16_act, f16, f32, i32, q8_0, q8_act, q8k_act, q8x2_act
from rlx.core.graph import Graph
from rlx.core.storage import encode
from rlx.core.type import TensorType, tensor
from rlx.errors import InputError, ShapeError
from rlx.ops.paged_attention import cache_types, write_cache
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, Array, as_bytes, compiled, one_op, same_bits

PAGE = 16
LENGTHS = (45, 20, 7)
"""Positions of the three sequences; the last page of each is not full."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The static side of one attention."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float | None = None
    page: int = PAGE
    cache: DType = f32
    products: str = "f32"
    result: DType = f32

    def graph(self) -> Graph:
        tokens = Dim("T", max=256)
        k_cache, v_cache = cache_types(Dim("N", max=64), self.kv_heads, self.head_dim, self.page, self.cache)
        inputs = {
            "q": tensor(f32, tokens, self.heads * self.head_dim),
            "k_cache": k_cache,
            "v_cache": v_cache,
            "positions": tensor(i32, tokens),
            "sequences": tensor(i32, tokens),
            "page_table": tensor(i32, Dim("S", max=8), Dim("P", max=16)),
        }
        attrs: dict[str, Any] = {"num_heads": self.heads, "num_kv_heads": self.kv_heads, "scale": self.head_dim**-0.5}
        attrs |= {"dtype": self.cache, "products": self.products, "result": self.result}
        return one_op("paged_attention", inputs, window=self.window, softcap=self.softcap, **attrs)


SHAPES = (
    Shape(2, 1, 8),
    Shape(2, 2, 24),
    Shape(4, 2, 64),
    Shape(9, 3, 64, page=32),
    Shape(3, 1, 80),
    Shape(2, 1, 128, softcap=5.0),
    Shape(2, 1, 256),
    Shape(4, 2, 24, window=5),
    Shape(4, 4, 64, window=17, softcap=2.0),
    Shape(2, 1, 8, window=1),
    Shape(16, 1, 32, page=32),
    Shape(4, 2, 24, window=5, cache=f16),
    Shape(4, 2, 64, page=48, cache=f16),
    Shape(4, 2, 24, window=5, cache=bf16),
    Shape(3, 1, 64, cache=bf16),
    Shape(4, 2, 32, window=7, cache=q8_0),
    Shape(3, 1, 96, page=32, cache=q8_0),
    Shape(4, 1, 80, window=5, cache=bf16, products="bf16"),
    Shape(9, 3, 64, page=32, cache=bf16, products="bf16"),
    Shape(2, 1, 6, softcap=2.0, cache=bf16, products="bf16"),
)


def stored(dtype: DType, values: Array) -> Array:
    """Values as the elements of a cache; what is too large becomes infinite."""
    values = np.ascontiguousarray(values, np.float32)
    with np.errstate(over="ignore"):
        if dtype.is_packed:
            return encode(dtype, values).reshape(*values.shape[:-1], -1)
        return values.astype(dtype.numpy)


class Caches:
    """Keys and values of the sequences, laid into pages in a random order."""

    def __init__(self, shape: Shape, order_seed: int, garbage: float = 0.0, spare: int = 2) -> None:
        rng = np.random.default_rng(7)
        self.shape = shape
        self.keys = [rng.standard_normal((n, shape.kv_heads, shape.head_dim)).astype(np.float32) for n in LENGTHS]
        self.values = [rng.standard_normal((n, shape.kv_heads, shape.head_dim)).astype(np.float32) for n in LENGTHS]
        self.queries = [rng.standard_normal((n, shape.heads * shape.head_dim)).astype(np.float32) for n in LENGTHS]
        pages = -(-max(LENGTHS) // shape.page)
        count = pages * len(LENGTHS) + spare
        order = np.random.default_rng(order_seed).permutation(count)
        self.table = order[: pages * len(LENGTHS)].reshape(len(LENGTHS), pages).astype(np.int32)
        keys = np.full((count, shape.kv_heads, shape.page, shape.head_dim), garbage, np.float32)
        values = np.full(keys.shape, -garbage, np.float32)
        for sequence, length in enumerate(LENGTHS):
            for position in range(length):
                page, slot = self.table[sequence, position // shape.page], position % shape.page
                keys[page, :, slot, :] = self.keys[sequence][position]
                values[page, :, slot, :] = self.values[sequence][position]
        self.k, self.v = (stored(shape.cache, x) for x in write_cache(keys, values, shape.cache))

    def inputs(self, rows: list[tuple[int, int]]) -> dict[str, Array]:
        """The arguments for (sequence, position) pairs."""
        return {
            "q": np.stack([self.queries[s][p] for s, p in rows]),
            "k_cache": self.k,
            "v_cache": self.v,
            "positions": np.array([p for _, p in rows], np.int32),
            "sequences": np.array([s for s, _ in rows], np.int32),
            "page_table": self.table,
        }


EVERY = [(s, p) for s, length in enumerate(LENGTHS) for p in range(length)]


@cache
def truth(shape: Shape) -> Array:
    return run_graph(shape.graph(), Caches(shape, 0).inputs(EVERY))["y0"]


def alone(exe: Executable, caches: Caches) -> Array:
    return np.concatenate([exe(**caches.inputs([row]))["y0"] for row in EVERY])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_wherever_it_stands(shape: Shape, target: str) -> None:
    if shape.products == "bf16" and not resolve(target).bf16:
        pytest.skip("the target has no bfloat16 products")
    exe = compiled(shape.graph(), target)
    caches = Caches(shape, 0)
    expected = alone(exe, caches)
    # 45 keys and head_dim terms per score: a few units in the last place of values around 1, or of bfloat16
    assert np.abs(expected - truth(shape)).max() <= (2e-2 if shape.products == "bf16" else 1e-5)
    # whole sequences, whose rows go in tiles
    assert same_bits(exe(**caches.inputs(EVERY))["y0"], expected)
    # chunks that start anywhere, so that tiles are cut at other rows
    for start, count in ((1, 2), (2, 3), (3, 4), (5, 9), (17, 6), (43, 2), (40, 30), (61, 11)):
        chunk = EVERY[start : start + count]
        assert same_bits(exe(**caches.inputs(chunk))["y0"], expected[start : start + count])
    # rows of the sequences mixed
    order = np.random.default_rng(1).permutation(len(EVERY))
    mixed = exe(**caches.inputs([EVERY[i] for i in order]))["y0"]
    assert same_bits(mixed, expected[order])
    # other pages, more pages, and finite garbage where no row may look
    for other in (Caches(shape, 5), Caches(shape, 6, garbage=1e30), Caches(shape, 7, garbage=-3e38, spare=9)):
        assert same_bits(exe(**other.inputs(EVERY))["y0"], expected)
    exe.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(9, 3, 64, result=q8_act),
        Shape(3, 1, 96, page=32, cache=q8_0, window=9, result=q8x2_act),
        Shape(2, 1, 256, result=q8k_act),
        Shape(4, 2, 32, cache=f16, result=bf16_act),
    ],
    ids=str,
)
def test_rows_are_rounded_as_quantize_does(shape: Shape, target: str) -> None:
    caches = Caches(shape, 0)
    plain, rounded = (compiled(s.graph(), target) for s in (replace(shape, result=f32), shape))
    for rows in (EVERY, EVERY[17:18]):
        expected = encode(shape.result, plain(**caches.inputs(rows))["y0"])
        assert same_bits(as_bytes(rounded(**caches.inputs(rows))["y0"]), as_bytes(expected))
    plain.close()
    rounded.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [f32, f16, bf16, q8_0], ids=str)
@pytest.mark.parametrize(("style", "half"), [("half", 16), ("half", 9), ("interleaved", 16), ("interleaved", 9)])
def test_rotated_keys_are_those_that_rope_makes(style: str, half: int, dtype: DType, target: str) -> None:
    heads, head_dim, rows = 2, 32, 5
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((rows, heads * head_dim)).astype(np.float32) for _ in "kv")
    tables = [rng.standard_normal((rows, half)).astype(np.float32) for _ in range(2)]
    caches = cache_types(Dim("N"), heads, head_dim, PAGE, dtype)
    index = (tensor(i32, Dim("T")), tensor(i32, Dim("T")), tensor(i32, Dim("S"), Dim("P")))
    row, table = tensor(f32, Dim("T"), heads * head_dim), tensor(f32, Dim("T"), half)
    types = dict[str, TensorType](zip(("kc", "vc", "k", "v", "p", "s", "t"), (*caches, row, row, *index), strict=True))
    rope = compiled(one_op("rope", {"k": row, "c": table, "s": table}, num_heads=heads, style=style), target)
    append = compiled(one_op("cache_append", types, dtype=dtype), target)
    both = compiled(one_op("cache_append", {**types, "c": table, "n": table}, dtype=dtype, rotation=style), target)
    empty = [
        stored(dtype, np.zeros([3 if i == 0 else int(str(n)) for i, n in enumerate(c.shape)], np.float32))
        for c in caches
    ]
    rest = {"v": v, "p": np.arange(13, 13 + rows, dtype=np.int32), "s": np.zeros(rows, np.int32)}
    rest["t"] = np.array([[2, 0]], np.int32)
    rotated = rope(k=k, c=tables[0], s=tables[1])["y0"]
    expected = append(kc=empty[0].copy(), vc=empty[1].copy(), k=rotated, **rest)
    found = both(kc=empty[0].copy(), vc=empty[1].copy(), k=k, c=tables[0], n=tables[1], **rest)
    assert all(same_bits(found[name], expected[name]) for name in ("y0", "y1"))
    assert found["y0"].any()
    for exe in (rope, append, both):
        exe.close()


@pytest.mark.parametrize("target", TARGETS)
def test_threads_do_not_change_a_bit(target: str) -> None:
    shape = Shape(4, 2, 64)
    caches = Caches(shape, 0)
    results: list[Array] = []
    for threads in (1, 2, 3):
        exe = compiled(shape.graph(), target, threads=threads)
        results.append(exe(**caches.inputs(EVERY))["y0"])
        exe.close()
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("target", TARGETS)
def test_a_large_score_does_not_overflow(target: str) -> None:
    """Scores of +-10^4, far beyond what exp takes: the online maximum has to keep them in range."""
    shape = Shape(2, 1, 64)
    exe = compiled(shape.graph(), target)
    caches = Caches(shape, 0)
    caches.queries = [q * np.float32(4e3) for q in caches.queries]
    found = exe(**caches.inputs(EVERY))["y0"]
    expected = run_graph(shape.graph(), caches.inputs(EVERY))["y0"]
    exe.close()
    # a score of 10^4 has a spacing of 10^-3 in float32, which is the relative error of its weight
    assert np.abs(found - expected).max() <= 3e-2
    assert np.isfinite(found).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("given_out", [True, False])
def test_appending_in_place_then_reading_is_the_reference(given_out: bool, target: str) -> None:
    """Both ops in one program, the cache updated in the same step that reads it; its new value an output, or not."""
    from rlx.core.graph import GraphBuilder
    from rlx.ops.op import Emitter

    heads, kv_heads, head_dim = 4, 2, 24
    tokens = Dim("T", max=64)
    builder = GraphBuilder("step")
    k_cache, v_cache = (
        builder.input(name, type_)
        for name, type_ in zip(("k_cache", "v_cache"), cache_types(Dim("N"), kv_heads, head_dim, PAGE), strict=True)
    )
    q = builder.input("q", tensor(f32, tokens, heads * head_dim))
    k, v = (builder.input(name, tensor(f32, tokens, kv_heads * head_dim)) for name in "kv")
    positions, sequences = (builder.input(name, tensor(i32, tokens)) for name in ("positions", "sequences"))
    table = builder.input("page_table", tensor(i32, Dim("S"), Dim("P")))
    emit = Emitter(builder)
    new_k, new_v = emit.many("cache_append", k_cache, v_cache, k, v, positions, sequences, table)
    attrs = {"num_heads": heads, "num_kv_heads": kv_heads, "scale": 0.2}
    builder.output("y", emit("paged_attention", q, new_k, new_v, positions, sequences, table, **attrs))
    if given_out:
        builder.output("new_k", new_k)
        builder.output("new_v", new_v)
    graph = builder.build()
    rng = np.random.default_rng(2)
    inputs: dict[str, Array] = {
        "k_cache": rng.standard_normal((6, kv_heads, head_dim, PAGE)).astype(np.float32),
        "v_cache": rng.standard_normal((6, kv_heads, PAGE, head_dim)).astype(np.float32),
        "q": rng.standard_normal((5, heads * head_dim)).astype(np.float32),
        "k": rng.standard_normal((5, kv_heads * head_dim)).astype(np.float32),
        "v": rng.standard_normal((5, kv_heads * head_dim)).astype(np.float32),
        "positions": np.array([14, 15, 16, 17, 3], np.int32),
        "sequences": np.array([0, 0, 0, 0, 1], np.int32),
        "page_table": np.array([[3, 1], [5, 0]], np.int32),
    }
    before = {name: array.copy() for name, array in inputs.items()}
    expected = run_graph(graph, inputs)
    exe = compiled(graph, target, threads=2)
    found = exe(**inputs)
    exe.close()
    for name in ("new_k", "new_v") if given_out else ():
        assert np.array_equal(found[name], expected[name].astype(np.float32))
    assert np.abs(found["y"] - expected["y"]).max() <= 1e-5
    # the caller's own arrays are not changed
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "bad"),
    [("positions", -1), ("positions", 48), ("sequences", 3), ("sequences", -1), ("page_table", 11), ("page_table", -1)],
)
def test_an_index_that_leads_out_of_a_table_is_refused(name: str, bad: int, target: str) -> None:
    shape = Shape(2, 1, 8)
    exe = compiled(shape.graph(), target)
    inputs = Caches(shape, 0).inputs([(0, 20), (1, 3)])
    inputs[name] = inputs[name].copy()
    inputs[name].flat[0] = bad
    with pytest.raises(InputError, match="outside"):
        exe(**inputs)
    exe.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("position", [-1, -15, -16, 32, 2**31 - 1])
def test_a_position_outside_of_the_page_table_writes_nothing_elsewhere(position: int, target: str) -> None:
    k_cache, v_cache = cache_types(Dim("N"), 1, 8, PAGE)
    row = tensor(f32, Dim("T"), 8)
    index = tensor(i32, Dim("T"))
    inputs = {"k_cache": k_cache, "v_cache": v_cache, "k": row, "v": row, "positions": index, "sequences": index}
    exe = compiled(one_op("cache_append", {**inputs, "page_table": tensor(i32, 1, 2)}), target)
    # the caches lie in the middle of larger memory, which has to stay as it is
    memory = np.zeros((4, 1, 8, PAGE), np.float32)
    arrays: dict[str, Array] = {
        "k_cache": memory[1:3],
        "v_cache": np.zeros((2, 1, PAGE, 8), np.float32),
        "k": np.ones((1, 8), np.float32),
        "v": np.ones((1, 8), np.float32),
        "positions": np.array([position], np.int32),
        "sequences": np.zeros(1, np.int32),
        "page_table": np.array([[0, 1]], np.int32),
    }
    with pytest.raises(InputError, match="outside"):
        exe.module.run({"N": 2, "T": 1}, {buffer: arrays[name] for name, buffer in exe.program.inputs})
    assert not memory[0].any()
    assert not memory[3].any()
    exe.close()


@pytest.mark.parametrize(("head_dim", "page", "dtype"), [(80, 16, q8_0), (7, 16, bf16), (8, 15, bf16)])
def test_a_cache_whose_blocks_or_pairs_do_not_fit_is_refused(head_dim: int, page: int, dtype: DType) -> None:
    with pytest.raises(ShapeError, match="head_dim"):
        cache_types(Dim("N"), 1, head_dim, page, dtype)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [f32, f16, bf16, q8_0], ids=str)
def test_what_is_appended_has_the_bits_of_the_format(dtype: DType, target: str) -> None:
    """Every value of a token against NumPy's rounding, ties, subnormals and the largest values among them."""
    k_cache, v_cache = cache_types(Dim("N"), 1, 64, PAGE, dtype)
    index, row = tensor(i32, Dim("T")), tensor(f32, Dim("T"), 64)
    inputs = {"k_cache": k_cache, "v_cache": v_cache, "k": row, "v": row, "positions": index, "sequences": index}
    exe = compiled(one_op("cache_append", {**inputs, "page_table": tensor(i32, 1, 1)}, dtype=dtype), target)
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((PAGE, 64)).astype(np.float32) for _ in range(2))
    k[0], v[1] = 0, 1e-6 * v[1]
    k[2, :3] = 1 + np.float32(2.0**-8), 1 + np.float32(2.0**-11), 0.5
    v[3, 0], v[4, 0] = 60000, 1e-40
    empty = stored(dtype, np.zeros((1, 1, PAGE, 64)))
    shapes = [x.shape for x in write_cache(empty, empty, dtype)]
    found = exe(
        k_cache=np.zeros(shapes[0], dtype.numpy),
        v_cache=np.zeros(shapes[1], dtype.numpy),
        k=k,
        v=v,
        positions=np.arange(PAGE, dtype=np.int32),
        sequences=np.zeros(PAGE, np.int32),
        page_table=np.zeros((1, 1), np.int32),
    )
    exe.close()
    keys, values = (stored(dtype, x[None, None]) for x in (k, v))
    expected = write_cache(keys, values, dtype)
    assert same_bits(found["y0"], np.ascontiguousarray(expected[0]))
    assert same_bits(found["y1"], np.ascontiguousarray(expected[1]))
