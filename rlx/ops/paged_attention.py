"""cache_append, paged_attention: attention over a paged KV cache, as the step program has it.

What a page holds, for each element type, is said by `cache_types`. Next: `rlx/hir/derive_step.py`, which makes these
ops of plain attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Size
from rlx.core.dtype import ACTIVATION_TERMS, DType, bf16, bf16_act, f16, f32, i32, q8_0, q8_act, q8x2_act
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.attention import HEAD_ATTRIBUTES, SEQ, causal_mask, check_heads, check_sinks, grouped_attention
from rlx.ops.op import (
    ATTENDED,
    CACHED,
    Array,
    Attribute,
    Cost,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    check_index,
    int_attr,
    lookup,
    register,
    static_axis,
)

PAGE_ATTRIBUTES = (
    Attribute("page_step", "layers that share the cache: page p of one is page p * page_step + page_offset of it", 1),
    Attribute("page_offset", "which of those layers this is", 0),
)
CACHE_DTYPE = Attribute("dtype", "element type of the caches: f32, f16, bf16 or q8_0", f32)
CACHE_DTYPES = (f32, f16, bf16, q8_0)
"""Element types a KV cache may have."""
PRODUCTS = ("f32", "bf16")
"""What scores and weighted sums are computed in; bf16 rounds queries and weights to it, sums are float32."""
LARGEST_HALF = 65504.0


def cache_types(
    pages: Size, num_kv_heads: int, head_dim: int, page_size: int, dtype: DType = f32
) -> tuple[TensorType, TensorType]:
    """Types of the key cache [pages, heads, head_dim, page_size] and value cache [pages, heads, page_size, head_dim].

    Keys lie transposed within a page, so that one vector holds the same dim of consecutive positions. In bfloat16 pairs
    of neighbours in the order of reduction lie together, as the processors' products take them: keys
    [pages, heads, head_dim / 2, page_size, 2 dims], values [pages, heads, page_size / 2, head_dim, 2 positions], the
    last two axes as one. In q8_0 both are [pages, heads, page_size, head_dim], whose blocks run along head_dim.

    Raises:
        ShapeError: head_dim or page_size does not fit the blocks or pairs.
    """
    if dtype == q8_0:
        if head_dim % q8_0.block_size:
            raise ShapeError(
                "a q8_0 cache needs head_dim in whole blocks",
                found=f"head_dim {head_dim}",
                expected=f"a multiple of {q8_0.block_size}",
                fix="choose kv_cache f16 or bf16",
            )
        type_ = TensorType(dtype, (pages, num_kv_heads, page_size, head_dim))
        return (type_, type_)
    if dtype == bf16:
        if head_dim % 2 or page_size % 2:
            raise ShapeError(
                "a bf16 cache needs an even head_dim and page size",
                found=f"head_dim {head_dim}, page size {page_size}",
                fix="choose kv_cache f16 or f32",
            )
        return (
            TensorType(dtype, (pages, num_kv_heads, head_dim // 2, 2 * page_size)),
            TensorType(dtype, (pages, num_kv_heads, page_size // 2, 2 * head_dim)),
        )
    return (
        TensorType(dtype, (pages, num_kv_heads, head_dim, page_size)),
        TensorType(dtype, (pages, num_kv_heads, page_size, head_dim)),
    )


def cache_sizes(k_cache: TensorType) -> tuple[int, int, int]:
    """KV heads, head_dim and page_size of a key cache; see `cache_types`."""
    heads, rows, columns = (static_axis(k_cache, axis, "a cache axis") for axis in (1, 2, 3))
    if k_cache.dtype == q8_0:
        return heads, columns, rows
    return (heads, rows * 2, columns // 2) if k_cache.dtype == bf16 else (heads, rows, columns)


def read_cache(k_cache: Array, v_cache: Array, dtype: DType) -> tuple[Array, Array]:
    """Whatever the layout of `cache_types`: both as [pages, heads, page_size, head_dim]."""
    if dtype == q8_0:
        return k_cache, v_cache
    if dtype == bf16:
        return _split_pairs(k_cache).swapaxes(2, 3), _split_pairs(v_cache)
    return k_cache.swapaxes(2, 3), v_cache


def write_cache(keys: Array, values: Array, dtype: DType) -> tuple[Array, Array]:
    """The other way round."""
    if dtype == q8_0:
        return keys, values
    if dtype == bf16:
        return _join_pairs(keys.swapaxes(2, 3)), _join_pairs(values)
    return keys.swapaxes(2, 3), values


def _split_pairs(x: Array) -> Array:
    """[.., n, 2 m] of pairs to [.., 2 n, m]."""
    n, m = x.shape[-2], x.shape[-1] // 2
    return x.reshape(*x.shape[:-2], n, m, 2).swapaxes(-1, -2).reshape(*x.shape[:-2], 2 * n, m)


def _join_pairs(x: Array) -> Array:
    n, m = x.shape[-2] // 2, x.shape[-1]
    return x.reshape(*x.shape[:-2], n, 2, m).swapaxes(-1, -2).reshape(*x.shape[:-2], n, 2 * m)


def _check_cache(k_cache: TensorType, v_cache: TensorType, attrs: Attrs, index: Types) -> tuple[int, int, int]:
    if k_cache.dtype != v_cache.dtype or k_cache.dtype not in CACHE_DTYPES:
        expected = " or ".join(str(dtype) for dtype in CACHE_DTYPES) + ", both alike"
        raise ShapeError("a cache has another dtype", found=f"{k_cache.dtype}", expected=expected)
    if attrs["dtype"] != k_cache.dtype:
        raise ShapeError("dtype has to be that of the caches", found=f"{attrs['dtype']}", expected=f"{k_cache.dtype}")
    sizes = cache_sizes(k_cache)
    if (k_cache, v_cache) != cache_types(k_cache.shape[0], *sizes, k_cache.dtype):
        raise ShapeError("key and value cache do not fit", found=f"{k_cache} and {v_cache}")
    positions, sequences, page_table = index
    if any(type_.dtype != i32 for type_ in index) or positions != sequences or page_table.rank != 2:
        raise ShapeError("positions and sequences are i32[tokens], page_table i32[sequences, pages]")
    return sizes


def _check_pages(attrs: Attrs) -> None:
    step, offset = int_attr(attrs, "page_step"), int_attr(attrs, "page_offset")
    if not 0 <= offset < step:
        raise ShapeError("page_offset has to be one of the layers that share the cache", found=f"{offset} of {step}")


def _pages(table: Array, attrs: Mapping[str, Any], count: int) -> Array:
    """Entries of a page table as pages of the cache, checked."""
    pages = table * attrs["page_step"] + attrs["page_offset"]
    check_index(table, max(count, 1), "a page")
    check_index(pages, count, "a page")
    return pages


def _infer_cache_append(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 7, 9)
    _check_pages(attrs)
    k_cache, v_cache, k, v = types[:4]
    heads, head_dim, _ = _check_cache(k_cache, v_cache, attrs, types[4:7])
    if (attrs["rotation"] is None) != (len(types) == 7):
        raise ShapeError("a rotation of the keys goes with tables", found=repr(attrs["rotation"]))
    if len(types) == 9:
        lookup("rope").infer((k, *types[7:]), {"num_heads": heads, "style": attrs["rotation"]})
        if types[7].shape[0] != types[4].shape[0]:
            raise ShapeError("the tables have a row for each token", found=str(types[7]), expected=str(types[4].shape))
    if k != TensorType(f32, (types[4].shape[0], heads * head_dim)) or v != k:
        raise ShapeError("k and v have to be f32[tokens, kv_heads*head_dim]", found=f"{k} and {v}")
    return (k_cache, v_cache)


def _reference_cache_append(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    k_cache, v_cache, k, v, positions, sequences, page_table = inputs[:7]
    if len(inputs) == 9:
        rope = {"num_heads": k_cache.shape[1], "style": attrs["rotation"]}
        (k,) = lookup("rope").reference((k, *inputs[7:]), rope)
    keys, values = (x.copy() for x in read_cache(k_cache, v_cache, attrs["dtype"]))
    page_size = keys.shape[2]
    check_index(sequences, len(page_table), "a sequence")
    check_index(positions, page_table.shape[1] * page_size, "a position")
    pages = _pages(page_table[sequences, positions // page_size], attrs, len(keys))
    slots = positions % page_size
    shape = (len(positions), keys.shape[1], keys.shape[3])
    keys[pages, :, slots, :], values[pages, :, slots, :] = (
        _as_stored(x.reshape(shape), attrs["dtype"]) for x in (k, v)
    )
    return write_cache(keys, values, attrs["dtype"])


def _as_stored(x: Array, dtype: DType) -> Array:
    """Rounded to the elements of the cache; the scales of q8_0 and float16 are held at the ends of the range."""
    if dtype == f32:
        return x
    if dtype in (f16, q8_0):
        largest = LARGEST_HALF * (127 if dtype == q8_0 else 1)
        x = np.clip(x, -largest, largest)
    from rlx.core.storage import decode, encode

    return decode(dtype, encode(dtype, np.ascontiguousarray(x, np.float32)), x.shape).astype(x.dtype)


def _paged_index(rows: int) -> dict[int, Any]:
    """Three sequences over shuffled pages: rows of a prefill chunk, a decode and another chunk."""
    return {
        -3: lambda: np.array([*range(3, rows - 1), 20, 7][:rows], np.int32),
        -2: lambda: np.array([*[0] * (rows - 4), 1, 2][:rows], np.int32),
        -1: lambda: np.array([[3, 0], [5, 1], [2, 4]], np.int32),
    }


_SAMPLE_INDEX = (TensorType(i32, (SEQ,)), TensorType(i32, (SEQ,)), TensorType(i32, (3, 2)))


def _cache_append_samples() -> Sequence[Sample]:
    arrays = {4 + 3 + key: make for key, make in _paged_index(9).items()}
    cases: list[Sample] = []
    for dtype in CACHE_DTYPES:
        head_dim = 32 if dtype == q8_0 else 16
        kv = TensorType(f32, (SEQ, 2 * head_dim))
        types = (*cache_types(6, 2, head_dim, 16, dtype), kv, kv, *_SAMPLE_INDEX)
        cases.append(Sample(f"ragged_{dtype}", types, {"dtype": dtype}, {"seq": 7}, arrays=arrays))
    kv = TensorType(f32, (SEQ, 32))
    shared = (*cache_types(18, 2, 16, 16), kv, kv, *_SAMPLE_INDEX)
    attrs = {"page_step": 3, "page_offset": 2}
    for rotation in ("half", "interleaved"):
        types = (*cache_types(6, 2, 16, 16), kv, kv, *_SAMPLE_INDEX, *[TensorType(f32, (SEQ, 6))] * 2)
        cases.append(Sample(f"rotated_{rotation}", types, {"rotation": rotation}, {"seq": 7}, arrays=arrays))
    return (*cases, Sample("shared", shared, attrs, {"seq": 7}, arrays=arrays))


def _cache_append_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """The rows of the tokens: read, rotated where there are tables, and written in the form of the cache."""
    keys = inputs[2]
    written = keys.with_dtype(inputs[0].dtype).nbytes
    rotated = 3 * keys.num_elements if attrs["rotation"] is not None else 0
    return Cost(rotated, 2 * keys.nbytes + 2 * written)


cache_append = register(
    OpDef(
        "cache_append",
        "Write the keys (rotated, with tables) and values of the tokens to their pages; a program does it in place.",
        _infer_cache_append,
        _reference_cache_append,
        Missing("primitive"),
        _cache_append_samples,
        (
            CACHE_DTYPE,
            Attribute("rotation", "style of the rope by the last two operands, tables", None),
            *PAGE_ATTRIBUTES,
        ),
        cost=_cache_append_cost,
    )
)


def _infer_paged_attention(types: Types, attrs: Attrs) -> Types:
    check_sinks(types, 6, attrs)
    _check_pages(attrs)
    q, k_cache, v_cache = types[:3]
    heads, head_dim, _ = _check_cache(k_cache, v_cache, attrs, types[3:6])
    if check_heads(q, None, attrs) != head_dim or attrs["num_kv_heads"] != heads or q.rank != 2:
        raise ShapeError("q has to be f32[tokens, heads*head_dim] over the heads of the cache", found=str(q))
    if attrs["products"] not in PRODUCTS:
        raise ShapeError("unknown products", found=repr(attrs["products"]), expected=" or ".join(PRODUCTS))
    result = attrs["result"]
    if not isinstance(result, DType) or (result != f32 and result.name not in ACTIVATION_TERMS):
        raise ShapeError("the result is float32 or in an activation format", found=str(result))
    return (q.with_dtype(result),)


def _reference_paged_attention(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    """Without the rounding of queries and weights that `products` bf16 allows."""
    q, k_cache, v_cache, positions, sequences, page_table = inputs[:6]
    sinks = inputs[6] if len(inputs) == 7 else None
    result = np.empty_like(q)
    all_keys, all_values = read_cache(k_cache, v_cache, attrs["dtype"])
    page_size = all_keys.shape[2]
    check_index(sequences, len(page_table), "a sequence")
    check_index(positions, page_table.shape[1] * page_size, "a position")
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        pages = _pages(page_table[sequence, : position // page_size + 1], attrs, len(all_keys))
        width = all_keys.shape[1] * all_keys.shape[3]
        keys, values = (x[pages].swapaxes(1, 2).reshape(-1, width) for x in (all_keys, all_values))
        seen = causal_mask(np.array([position]), np.arange(len(keys)), attrs["window"])
        result[row : row + 1] = grouped_attention(q[row : row + 1], keys, values, seen, attrs, sinks)
    if attrs["result"] == f32:
        return (result,)
    return lookup("quantize").reference((result,), {"dtype": attrs["result"]})


def _paged_attention_samples() -> Sequence[Sample]:
    def case(name: str, dtype: DType = f32, tolerance: float = 1e-5, extra: Types = (), **attrs: Any) -> Sample:
        caches = cache_types(6 * attrs.get("page_step", 1), 2, 32, 16, dtype)
        arrays = {3 + 3 + key: make for key, make in _paged_index(9).items()}
        complete = {"num_heads": 6, "num_kv_heads": 2, "scale": 0.2, "dtype": dtype, **attrs}
        types = (TensorType(f32, (SEQ, 6 * 32)), *caches, *_SAMPLE_INDEX, *extra)
        return Sample(name, types, complete, {"seq": 7}, arrays=arrays, tolerance=tolerance)

    sinks = (TensorType(f32, (6,)),)
    plain = (case("causal"), case("window", window=5), case("softcap", softcap=1.5))
    sinking = (
        case("sinks", extra=sinks),
        case("sinks_window", f16, extra=sinks, window=5),
        case("sinks_q8_0", q8_0, extra=sinks, softcap=1.5),
        case("sinks_bf16", bf16, 2**-6, extra=sinks, products="bf16"),
    )
    # bfloat16 has 8 bits: a weight is off by 2^-9 at most, and a score of a few units by some 2^-8
    products = case("bf16_products", bf16, 2**-6, products="bf16")
    formats = (case("f16", f16), case("bf16", bf16), case("q8_0", q8_0), products)
    # the last bit of a value may round it to the next level of its block
    rounded = [case(str(dtype), f32, 1 / 126, result=dtype) for dtype in (q8_act, q8x2_act, bf16_act)]
    return (*plain, *sinking, *formats, *rounded, case("shared", page_step=3, page_offset=1))


def _paged_attention_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """Two products of each query with the keys it sees; the keys and values of a sequence are read once."""
    heads, head_dim, _ = cache_sizes(inputs[1])
    row = TensorType(inputs[1].dtype, (CACHED, heads * head_dim)).nbytes
    moved = inputs[0].nbytes + 2 * row + outputs[0].nbytes
    return Cost(4 * int_attr(attrs, "num_heads") * head_dim * ATTENDED, moved)


paged_attention = register(
    OpDef(
        "paged_attention",
        "Causal attention of each token over the pages of its sequence, up to its own position; sinks may come last.",
        _infer_paged_attention,
        _reference_paged_attention,
        Missing("primitive"),
        _paged_attention_samples,
        (
            *HEAD_ATTRIBUTES,
            CACHE_DTYPE,
            Attribute("products", "f32, or bf16 where rounding is fine", "f32"),
            Attribute("result", "f32, or the activation format that rows are rounded to", f32),
            *PAGE_ATTRIBUTES,
        ),
        cost=_paged_attention_cost,
    )
)
