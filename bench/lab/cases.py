"""The kernels of the lab: what each one is given, what it costs, and the plain form it stands beside.

Out: `Case`s, made when they are run. A case is a graph of one op (or a chain that becomes one kernel), compiled like
any graph. Where weights or caches come from memory in real use, the graph has the op several times with operands of
their own, so that together they are larger than any cache. Next: `timing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.target import resolve
from rlx.core.dim import Dim
from rlx.core.dtype import (
    DTYPES,
    GGUF_WEIGHTS,
    WITHOUT_INTEGERS,
    DType,
    activation_format,
    bf16,
    bf16_act,
    f16,
    f32,
    i32,
    q4_0,
    q8_act,
)
from rlx.core.graph import Graph, GraphBuilder, Value
from rlx.core.storage import STORAGE_FORMATS, decode, encode
from rlx.core.storage_blocks import BLOCK_FORMATS
from rlx.core.type import TensorType, tensor
from rlx.flow.profile import Profile
from rlx.ops.op import REGISTRY, Emitter
from rlx.ops.paged_attention import cache_types

Array = NDArray[Any]
STREAMED = 160_000_000  # bytes of operands that no cache holds
HIDDEN, FFN = 2048, 8192
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 64
FORMATS = (f32, f16, bf16, *GGUF_WEIGHTS)


@dataclass(frozen=True, slots=True)
class Built:
    """A case with its data.

    Attributes:
        graph: what is compiled.
        inputs: its arrays.
        weights: its weights: type and bytes, as `DictWeights` takes them.
        copies: how often the graph has the op; the figures below are for one of them.
        operations: floating-point or integer operations.
        moved: bytes read and written.
        resident: bytes of all copies together, which says what level of memory they come from.
        peak: which limit of arithmetic holds: "f32", "bf16" or "int8".
        plain: the same in NumPy, for one copy, whose result is the oracle.
        tolerance: largest allowed difference, as the norm of the difference over that of the result.
    """

    graph: Graph
    inputs: Mapping[str, Array]
    operations: int
    moved: int
    resident: int
    plain: Callable[[], Array]
    tolerance: float
    weights: Mapping[str, tuple[TensorType, Array]] = field(default_factory=dict[str, "tuple[TensorType, Array]"])
    copies: int = 1
    peak: str = "f32"


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table.

    Attributes:
        group, name: such as "linear, 1 row" and "q4_0 2048x2048".
        build: makes the data.
        product: (rows, out, k, dtype) if torch has the same product.
    """

    group: str
    name: str
    build: Callable[[], Built]
    product: tuple[int, int, int, str] | None = None


def all_cases() -> Iterator[Case]:
    """Every case, in the order of the table."""
    for rows in (1, 8):
        for dtype in FORMATS:
            yield _linear_case(rows, HIDDEN, HIDDEN, dtype)
    for out in (HIDDEN, FFN):
        for dtype in FORMATS:
            yield _linear_case(512, out, HIDDEN, dtype)
    yield Case("matmul", "512x2048x2048", lambda: matmul((512, HIDDEN), (HIDDEN, HIDDEN)))
    yield Case("matmul", "32 of 512x64x512", lambda: matmul((32, 512, 64), (32, 64, 512)))
    for context in (512, 2048, 8192):
        yield Case("attention", f"decode, {context} cached", lambda context=context: attention(1, context))
    for context in (0, 1536, 7680):
        name = f"prefill of 512, {context} cached"
        yield Case("attention", name, lambda context=context: attention(512, context))
    for rows in (1, 512):
        yield Case("state", f"gated_delta {rows} row{'s' * (rows > 1)}", lambda rows=rows: gated_delta(rows))
        yield Case("state", f"causal_conv {rows} row{'s' * (rows > 1)}", lambda rows=rows: causal_conv(rows))
    yield from _row_cases()


def _linear_case(rows: int, out: int, k: int, dtype: DType) -> Case:
    torch = dtype.name if dtype in (f32, bf16) else None
    group = f"linear, {rows} row{'s' if rows > 1 else ''}"
    product = (rows, out, k, torch) if torch else None
    return Case(group, f"{dtype} {out}x{k}", lambda: linear(rows, out, k, dtype), product)


def _row_cases() -> Iterator[Case]:
    for rows in (1, 512):
        shape = (rows, HIDDEN)
        yield Case("rows", f"rms_norm {rows}x{HIDDEN}", lambda shape=shape: rms_norm(*shape))
        yield Case("rows", f"quantize {rows}x{HIDDEN}", lambda shape=shape: quantize(*shape))
        yield Case("rows", f"rope {rows}x{HIDDEN}", lambda rows=rows: rope(rows))
        yield Case("rows", f"silu(x) * y {rows}x{FFN}", lambda rows=rows: chain(rows, FFN, deep=False))
        yield Case("rows", f"chain of 6 {rows}x{FFN}", lambda rows=rows: chain(rows, FFN, deep=True))
        yield Case("rows", f"embedding q4_0 {rows}x{HIDDEN}", lambda rows=rows: embedding(rows))
        yield Case("rows", f"cache_append {rows}x{KV_HEADS * HEAD_DIM}", lambda rows=rows: cache_append(rows))


# ---- data ----


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def weight_bytes(dtype: DType, out: int, k: int) -> tuple[Array, NDArray[np.float32]]:
    """A weight in its format, and what it stands for. 64 rows over and over: the values do not change the work."""
    rows = min(out, 64)
    if dtype.is_packed and STORAGE_FORMATS[dtype.name].encode_blocks is None:
        raw = _random_blocks(dtype, rows * k)
    else:
        raw = encode(dtype, floats(rows, k, seed=1)).reshape(-1)
    values = decode(dtype, raw, (rows, k)).astype(np.float32)
    return np.tile(raw, out // rows), np.tile(values, (out // rows, 1))


def _random_blocks(dtype: DType, elements: int) -> Array:
    """Any bytes but for the factors of a block: for formats that RLX reads and does not write."""
    blocks = np.random.default_rng(1).integers(
        0, 256, (elements // dtype.block_size, dtype.block_bytes), dtype=np.uint8
    )
    layout = BLOCK_FORMATS[dtype.name]
    for byte in layout.halves:
        blocks[:, byte : byte + 2] = np.array([0.01], np.float16).view(np.uint8)
    if not layout.halves:  # a power of two in the first byte
        blocks[:, 0] = 120
    return blocks.reshape(-1)


def reference(op: str, *inputs: Array, output: int = 0, **attrs: Any) -> Callable[[], Array]:
    """The NumPy rule of an op, on float32."""
    definition = REGISTRY[op]
    complete = definition.complete(attrs)
    return lambda: definition.reference(inputs, complete)[output]


class _Builder:
    """A graph with inputs and weights by name."""

    def __init__(self, name: str) -> None:
        self._graph = GraphBuilder(name)
        self.emit = Emitter(self._graph)
        self.weights: dict[str, tuple[TensorType, Array]] = {}

    def input(self, name: str, type_: TensorType) -> Value:
        return self._graph.input(name, type_)

    def weight(self, key: str, type_: TensorType, raw: Array) -> Value:
        self.weights[key] = (type_, raw)
        return self.emit("parameter", key=key, dtype=type_.dtype, shape=type_.shape)

    def output(self, name: str, value: Value) -> None:
        self._graph.output(name, value)

    def build(self) -> Graph:
        return self._graph.build()


# ---- one function for each op ----


def linear(rows: int, out: int, k: int, dtype: DType) -> Built:
    """x @ weight.T; packed weights take activations that are quantised already."""
    raw, values = weight_bytes(dtype, out, k)
    x = floats(rows, k)
    given: Array = x
    act = f32
    integers = dtype.is_packed and dtype not in WITHOUT_INTEGERS
    if integers or (dtype == bf16 and resolve("native").bf16):
        act = activation_format(dtype, 1) if integers else bf16_act
        given = encode(act, x).reshape(rows, -1)
        x = decode(act, given.reshape(-1), x.shape).astype(np.float32)
    copies = -(-STREAMED // raw.nbytes) if rows < 64 else 1
    builder = _Builder("linear")
    value = builder.input("x", TensorType(act, (Dim("rows", max=1024), k)))
    for i in range(copies):
        weight = builder.weight(f"w{i}", TensorType(dtype, (out, k)), raw)
        builder.output(f"y{i}", builder.emit("linear", value, weight))
    # as many float32 copies as NumPy needs to read them from memory too
    plain_weights = [values.copy() for _ in range(-(-STREAMED // values.nbytes) if rows < 64 else 1)]
    turn = iter(range(1 << 60))
    return Built(
        builder.build(),
        {"x": given},
        operations=2 * rows * out * k,
        moved=given.nbytes + raw.nbytes + 4 * rows * out,
        resident=copies * raw.nbytes,
        plain=lambda: x @ plain_weights[next(turn) % len(plain_weights)].T,
        # bfloat16 products round each activation to 8 bits of mantissa, the others sum float32 in another order
        tolerance=4e-3 if dtype == bf16 else 1e-5,
        weights=builder.weights,
        copies=copies,
        peak="int8" if integers else "bf16" if dtype == bf16 else "f32",
    )


def matmul(left: tuple[int, ...], right: tuple[int, ...]) -> Built:
    """A product of two activations."""
    a, b = floats(*left), floats(*right, seed=1)
    builder = _Builder("matmul")
    values = (builder.input("a", tensor(f32, *left)), builder.input("b", tensor(f32, *right)))
    builder.output("y0", builder.emit("matmul", *values))
    result = a.size * right[-1]
    moved = a.nbytes + b.nbytes + 4 * result // left[-1]
    return Built(builder.build(), {"a": a, "b": b}, 2 * result, moved, moved, lambda: np.matmul(a, b), tolerance=1e-5)


def attention(rows: int, context: int) -> Built:
    """`rows` tokens of one sequence after `context` cached ones, over float16 pages as `fast` has them."""
    profile = Profile()
    total, page_size = context + rows if rows > 1 else context, profile.page_size
    pages = -(-total // page_size)
    types = cache_types(pages, KV_HEADS, HEAD_DIM, page_size, f16)
    caches = [
        floats(pages, *(int(str(n)) for n in t.shape[1:]), seed=s).astype(np.float16) for s, t in enumerate(types)
    ]
    one = sum(cache.nbytes for cache in caches)
    copies = min(16, -(-STREAMED // one)) if rows == 1 else 1
    q = floats(rows, HEADS * HEAD_DIM, seed=3)
    positions = np.arange(total - rows, total, dtype=np.int32)
    index = (positions, np.zeros(rows, np.int32), np.arange(pages, dtype=np.int32)[None])
    builder = _Builder("attention")
    query = builder.input("q", tensor(f32, *q.shape))
    names = ("positions", "sequences", "page_table")
    tables = [builder.input(name, tensor(i32, *array.shape)) for name, array in zip(names, index, strict=True)]
    inputs: dict[str, Array] = {"q": q, **dict(zip(names, index, strict=True))}
    attrs = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "scale": HEAD_DIM**-0.5}
    for i in range(copies):
        pair = [builder.input(f"{kind}{i}", type_) for kind, type_ in zip("kv", types, strict=True)]
        inputs |= {f"{kind}{i}": cache.copy() for kind, cache in zip("kv", caches, strict=True)}
        builder.output(f"y{i}", builder.emit("paged_attention", query, *pair, *tables, **attrs))
    seen = int((positions.astype(np.int64) + 1).sum())
    # pages in the order of positions, [heads, head_dim, positions] and [heads, positions, head_dim]
    keys = np.concatenate(list(caches[0].astype(np.float32)), axis=-1)
    values = np.concatenate(list(caches[1].astype(np.float32)), axis=-2)
    return Built(
        builder.build(),
        inputs,
        operations=4 * HEADS * HEAD_DIM * seen,
        moved=2 * total * KV_HEADS * HEAD_DIM * 2 + 2 * q.nbytes,
        resident=copies * one,
        plain=lambda: dense_attention(q, keys[..., :total], values[:, :total], positions),
        # a kernel may round weights and values to bfloat16; the softmax averages that over the keys
        tolerance=1e-2,
        copies=copies,
    )


def dense_attention(q: Array, keys: Array, values: Array, positions: Array) -> Array:
    """Causal attention as whole matrix products: q [rows, heads*D], keys [kv, D, n], values [kv, n, D]."""
    rows, group = len(q), HEADS // KV_HEADS
    queries = q.reshape(rows, KV_HEADS, group, HEAD_DIM).transpose(1, 2, 0, 3).reshape(KV_HEADS, group * rows, HEAD_DIM)
    scores = (queries @ keys * np.float32(HEAD_DIM**-0.5)).reshape(KV_HEADS, group, rows, -1)
    scores = np.where(np.arange(scores.shape[-1]) <= positions[:, None], scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    result = weights.reshape(KV_HEADS, group * rows, -1) @ values
    return result.reshape(KV_HEADS, group, rows, HEAD_DIM).transpose(2, 0, 1, 3).reshape(q.shape)


def _rowwise(
    op: str, inputs: Mapping[str, Array], operations: int, moved: int, tolerance: float = 1e-5, **attrs: Any
) -> Built:
    """An op whose operands are all activations."""
    builder = _Builder(op)
    types = {np.dtype(np.float32): f32, np.dtype(np.int32): i32}
    values = [builder.input(name, tensor(types[array.dtype], *array.shape)) for name, array in inputs.items()]
    builder.output("y0", builder.emit.many(op, *values, **attrs)[0])
    plain = reference(op, *inputs.values(), **attrs)
    return Built(builder.build(), inputs, operations, moved, moved, plain, tolerance)


KEY_HEADS, VALUE_HEADS, STATE_DIM = 16, 32, 128


def _one_sequence(rows: int, width: int) -> dict[str, Array]:
    """The state operands of a sequence that goes on."""
    index = {"bounds": np.array([0, rows]), "positions": np.arange(5, 5 + rows), "slots": np.zeros(1)}
    return {"state": floats(1, width, seed=9), **{name: array.astype(np.int32) for name, array in index.items()}}


def gated_delta(rows: int) -> Built:
    """A layer of Qwen3.5-9B: seven operations for an element of the state and a row."""
    values, state = VALUE_HEADS * STATE_DIM, VALUE_HEADS * STATE_DIM * STATE_DIM
    gates = {name: np.abs(np.tanh(floats(rows, VALUE_HEADS, seed=seed))) for seed, name in enumerate(("decay", "beta"))}
    mixed = floats(rows, 2 * KEY_HEADS * STATE_DIM + values, seed=4)
    inputs = {"mixed": mixed, **gates, **_one_sequence(rows, state)}
    heads = {"key_heads": KEY_HEADS, "key_dim": STATE_DIM, "scale": STATE_DIM**-0.5, "norm_eps": 1e-6}
    moved = 8 * state + mixed.nbytes + 4 * rows * values
    return _rowwise("gated_delta_step", inputs, 7 * rows * state, moved, **heads)


def causal_conv(rows: int) -> Built:
    """The filter in front of it: four taps and a SiLU."""
    channels, taps = (2 * KEY_HEADS + VALUE_HEADS) * STATE_DIM, 4
    x = floats(rows, channels)
    inputs = {"x": x, "w": floats(channels, taps, seed=1), **_one_sequence(rows, (taps - 1) * channels)}
    moved = 2 * x.nbytes + 4 * channels * (taps + 2 * (taps - 1))
    return _rowwise("causal_conv_step", inputs, 24 * x.size, moved, activation="silu")


def rms_norm(rows: int, width: int) -> Built:
    """Four operations for an element."""
    x = floats(rows, width)
    return _rowwise("rms_norm", {"x": x, "w": floats(width, seed=1)}, 4 * x.size, 2 * x.nbytes, eps=1e-5)


def rope(rows: int) -> Built:
    """Six operations for a pair of elements."""
    x = floats(rows, HEADS * HEAD_DIM)
    angles = floats(rows, HEAD_DIM // 2, seed=1)
    inputs: dict[str, Array] = {"x": x, "cos": np.cos(angles), "sin": np.sin(angles)}
    return _rowwise("rope", inputs, 3 * x.size, 2 * x.nbytes + 2 * angles.nbytes, num_heads=HEADS)


def quantize(rows: int, width: int) -> Built:
    """float32 to int8 blocks; the plain form is the codec in NumPy, and bytes are compared as numbers."""
    x = floats(rows, width)
    builder = _Builder("quantize")
    builder.output("y0", builder.emit("quantize", builder.input("x", tensor(f32, *x.shape)), dtype=q8_act))
    moved = x.nbytes + q8_act.nbytes(x.size)
    return Built(
        builder.build(), {"x": x}, 4 * x.size, moved, moved, lambda: encode(q8_act, x).reshape(rows, -1), tolerance=1e-2
    )


def chain(rows: int, width: int, *, deep: bool) -> Built:
    """An elementwise chain, one kernel after fusion; an exponential or a hyperbolic tangent counts as one operation."""
    x, y = floats(rows, width), floats(rows, width, seed=1)
    builder = _Builder("chain")
    left, right = (builder.input(name, tensor(f32, *x.shape)) for name in ("x", "y"))
    result = builder.emit("mul", builder.emit("silu", left), right)
    if deep:
        result = builder.emit(
            "add", builder.emit("tanh", result), builder.emit("mul", left, builder.emit("exp", right))
        )
    builder.output("y0", result)

    def plain() -> Array:
        result = x / (1 + np.exp(-x)) * y
        return np.tanh(result) + x * np.exp(y) if deep else result

    moved = 3 * x.nbytes
    return Built(builder.build(), {"x": x, "y": y}, (6 if deep else 2) * x.size, moved, moved, plain, tolerance=1e-5)


def embedding(rows: int) -> Built:
    """Rows of a packed table, spread over it."""
    count = 32768
    raw, values = weight_bytes(q4_0, count, HIDDEN)
    tokens = np.random.default_rng(2).integers(0, count, rows).astype(np.int32)
    builder = _Builder("embedding")
    table = builder.weight("w", TensorType(q4_0, (count, HIDDEN)), raw)
    builder.output("y0", builder.emit("embedding", builder.input("x", tensor(i32, rows)), table))
    moved = rows * (q4_0.nbytes(HIDDEN) + 4 * HIDDEN)
    plain = reference("embedding", tokens, values)
    size = rows * HIDDEN
    return Built(builder.build(), {"x": tokens}, size, moved, moved, plain, 1e-6, builder.weights)


def cache_append(rows: int) -> Built:
    """Keys and values of `rows` tokens into float16 pages."""
    page_size = Profile().page_size
    pages = -(-rows // page_size)
    types = cache_types(pages, KV_HEADS, HEAD_DIM, page_size, f16)
    width = KV_HEADS * HEAD_DIM
    empty = [np.zeros([int(str(n)) for n in type_.shape], np.float16) for type_ in types]
    new = [floats(rows, width, seed=seed) for seed in range(2)]
    index = (np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32), np.arange(pages, dtype=np.int32)[None])
    names = ("k_cache", "v_cache", "k", "v", "positions", "sequences", "page_table")
    inputs: dict[str, Array] = dict(zip(names, (*empty, *new, *index), strict=True))
    builder = _Builder("cache_append")
    kinds = (*types, *(tensor(f32, rows, width),) * 2, *(tensor(i32, *array.shape) for array in index))
    values = [builder.input(name, type_) for name, type_ in zip(names, kinds, strict=True)]
    for i, value in enumerate(builder.emit.many("cache_append", *values, dtype=f16)):
        builder.output(f"y{i}", value)
    moved = 2 * rows * width * (4 + 2)
    plain = reference("cache_append", *inputs.values(), dtype=DTYPES["f16"])
    return Built(builder.build(), inputs, 2 * rows * width, moved, moved, plain, tolerance=1e-6)
