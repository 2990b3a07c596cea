"""attention, repeat_kv: scaled dot-product attention over grouped heads.

Order (Gemma 2 report; transformers' eager attention): scale, then soft cap, then mask, then softmax. Heads lie side
by side in the last axis; query head h reads KV head h // (num_heads / num_kv_heads). Masks: none, causal, sliding (the
last `window` keys), around (keys less than `window` away, before and after), bias (an additive operand of every query
and key) and relative (every key; an additive operand of each head and distance, as T5 and MPNet have). Next:
`paged_attention.py`, the form of the step program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim, Size, bounds
from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import InputError, ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Cost,
    Emitter,
    OpDef,
    Sample,
    Types,
    check_arity,
    float_attr,
    int_attr,
    optional_float,
    register,
    static_axis,
)

MASKS = ("none", "causal", "sliding", "around", "bias", "relative")
WINDOWED = ("sliding", "around")
WITH_OPERAND = ("bias", "relative")
SEQ = Dim("seq", max=64)

HEAD_ATTRIBUTES = (
    Attribute("num_heads", "query heads"),
    Attribute("num_kv_heads", "key and value heads"),
    Attribute("scale", "factor of the scores"),
    Attribute("softcap", "bound of the scores, none for no bound", None),
    Attribute("window", "keys a query sees on one side, its own included, for the masks sliding and around", None),
)


def check_heads(q: TensorType, kv_width: int | None, attrs: Attrs) -> int:
    """Check the head counts against the widths; gives head_dim.

    Raises:
        ShapeError: heads do not divide, there are no KV heads, or widths differ.
    """
    heads, kv_heads = int_attr(attrs, "num_heads"), int_attr(attrs, "num_kv_heads")
    width = static_axis(q, -1, "the width of q")
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise ShapeError("num_heads has to be a multiple of num_kv_heads", found=f"{heads} heads, {kv_heads} KV heads")
    if width % heads or (kv_width is not None and kv_width != width // heads * kv_heads):
        raise ShapeError("widths do not fit the heads", found=f"q {width}, k {kv_width}, {heads}/{kv_heads} heads")
    float_attr(attrs, "scale")
    cap, window = optional_float(attrs, "softcap"), attrs["window"]
    if cap is not None and not cap > 0:
        raise ShapeError("a soft cap has to be positive", found=repr(cap), fix="give none to cap nothing")
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise ShapeError("a window has to be a positive number of keys", found=repr(window))
    return width // heads


def _infer_attention(types: Types, attrs: Attrs) -> Types:
    mask = attrs["mask"]
    if mask not in MASKS:
        raise ShapeError("unknown mask kind", found=repr(mask), expected=", ".join(MASKS))
    if mask in WITH_OPERAND and len(types) != 4:
        raise ShapeError(f"the mask kind {mask} needs its operand", fix="pass what is added to the scores as 4th input")
    check_mask(attrs, types[3] if mask == "relative" else None)
    check_arity(types, 4 if mask in WITH_OPERAND else 3)
    q, k, v = types[:3]
    if any(type_.dtype != f32 or type_.rank < 2 for type_ in types[:3]) or k != v or q.shape[:-2] != k.shape[:-2]:
        raise ShapeError("attention takes float32 q, k, v [..., seq, heads*head_dim]")
    check_heads(q, static_axis(k, -1, "the width of k"), attrs)
    queries, keys = q.shape[-2], k.shape[-2]
    if mask in ("causal", "sliding") and _certainly_more(queries, keys):
        raise ShapeError("a causal mask needs at least as many keys as queries", found=f"{queries} > {keys}")
    if mask == "bias" and types[3] != TensorType(f32, (queries, keys)):
        raise ShapeError("the mask has to be f32[query, key]", found=str(types[3]))
    return (q,)


def check_mask(attrs: Attrs, distances: TensorType | None) -> None:
    """Check the window of a mask, and the operand of the kind relative.

    Raises:
        ShapeError: the window is missing, or the operand is not f32[num_heads, odd number of columns].
    """
    if attrs["mask"] in WINDOWED and attrs["window"] is None:
        raise ShapeError(f"the mask kind {attrs['mask']} needs its window", fix="give the attribute window")
    if distances is None:
        return
    shape, heads = distances.shape, int_attr(attrs, "num_heads")
    if distances.dtype != f32 or shape[:-1] != (heads,) or static_axis(distances, -1, "the mask") % 2 == 0:
        raise ShapeError(
            "the operand of the mask kind relative is not one number for each head and distance",
            found=str(distances),
            expected=f"f32[{heads}, an odd number]",
        )


def _certainly_more(left: Size, right: Size) -> bool:
    return bounds(left - right)[0] > 0


def causal_mask(positions: Array, keys: Array, window: int | None) -> Array:
    """True where a query at `positions[i]` sees the key at `keys[j]`."""
    distance = positions[:, None] - keys[None, :]
    return (distance >= 0) & (distance < (window if window is not None else np.iinfo(np.int32).max))


def mask_array(attrs: Mapping[str, Any], queries: Array, keys: Array, operand: Array | None) -> Array | None:
    """What a mask does to queries and keys at these positions: bool [Sq, Sk], or what is added, [Sq, Sk] or
    [heads, Sq, Sk]; None where every key is seen as it is.
    """
    mask = attrs["mask"]
    distance = queries[:, None] - keys[None, :]
    if operand is not None:
        columns = operand.shape[1]
        return operand if mask == "bias" else operand[:, np.clip(distance + columns // 2, 0, columns - 1)]
    if mask == "none":
        return None
    if mask == "around":
        return np.abs(distance) < attrs["window"]
    return causal_mask(queries, keys, attrs["window"] if mask == "sliding" else None)


def grouped_attention(q: Array, k: Array, v: Array, seen: Array | None, attrs: Mapping[str, Any]) -> Array:
    """q [Sq, heads*D], k and v [Sk, kv_heads*D], `seen` as `mask_array` gives it; gives [Sq, heads*D]."""
    heads, kv_heads = attrs["num_heads"], attrs["num_kv_heads"]
    group = heads // kv_heads
    queries = q.reshape(q.shape[0], kv_heads, group, q.shape[1] // heads)
    keys, values = (x.reshape(x.shape[0], kv_heads, x.shape[1] // kv_heads) for x in (k, v))
    scores = np.einsum("ihgd,jhd->hgij", queries, keys) * attrs["scale"]
    if attrs["softcap"] is not None:
        scores = attrs["softcap"] * np.tanh(scores / attrs["softcap"])
    if seen is not None:
        seen = seen.reshape(kv_heads, group, *seen.shape[1:]) if seen.ndim == 3 else seen
        scores = np.where(seen, scores, -np.inf) if seen.dtype == np.bool_ else scores + seen
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return np.einsum("hgij,jhd->ihgd", weights, values).reshape(q.shape).astype(q.dtype)


def _reference_attention(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    q, k, v = inputs[:3]
    queries, keys = q.shape[-2], k.shape[-2]
    if attrs["mask"] in ("causal", "sliding") and queries > keys:
        raise InputError("a causal mask needs at least as many keys as queries", found=f"{queries} > {keys}")
    index: Array = np.arange(int(keys))
    positions: Array = np.arange(int(keys - queries), int(keys))
    seen = mask_array(attrs, positions, index, inputs[3] if len(inputs) == 4 else None)
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)]
    rows = [grouped_attention(a, b, c, seen, attrs) for a, b, c in zip(*flat, strict=True)]
    return (np.stack(rows).reshape(q.shape),)


def _decompose_attention(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    q, k, v = inputs[:3]
    heads, kv_heads = int_attr(attrs, "num_heads"), int_attr(attrs, "num_kv_heads")
    head_dim = static_axis(q.type, -1, "the width of q") // heads
    group, lead = heads // kv_heads, q.type.shape[:-2]
    queries, keys = q.type.shape[-2], k.type.shape[-2]
    axes = tuple(range(len(lead)))
    n = len(lead)
    q = emit("reshape", q, shape=(*lead, queries, kv_heads, group, head_dim))
    q = emit("transpose", q, axes=(*axes, n + 1, n + 2, n, n + 3))
    k = emit("reshape", k, shape=(*lead, keys, kv_heads, 1, head_dim))
    k = emit("transpose", k, axes=(*axes, n + 1, n + 2, n + 3, n))
    v = emit("reshape", v, shape=(*lead, keys, kv_heads, 1, head_dim))
    v = emit("transpose", v, axes=(*axes, n + 1, n + 2, n, n + 3))
    scores = emit("mul", emit("matmul", q, k), _scalar(emit, float_attr(attrs, "scale")))
    cap = optional_float(attrs, "softcap")
    if cap is not None:
        scores = emit("soft_cap", scores, cap=cap)
    if attrs["mask"] == "bias":
        scores = emit("add", scores, inputs[3])
    elif attrs["mask"] != "none":
        scores = _masked(emit, scores, _distance(emit, queries, keys), inputs[3:], attrs)
    result = emit("matmul", emit("softmax", scores), v)
    result = emit("transpose", result, axes=(*axes, n + 2, n, n + 1, n + 3))
    return (emit("reshape", result, shape=(*lead, queries, heads * head_dim)),)


def _distance(emit: Emitter, queries: Size, keys: Size) -> Value:
    """How far each query stands behind each key, `f32[query, key]`."""
    row = emit("reshape", emit("cast", emit("iota", size=queries), dtype=f32), shape=(queries, 1))
    column = emit("reshape", emit("cast", emit("iota", size=keys), dtype=f32), shape=(1, keys))
    # the last query stands at the last key; a distance is exact in float32 up to 2^24 positions
    offset = emit("reduce_max", emit("reshape", column, shape=(1, keys)))
    last = emit("reduce_max", emit("reshape", row, shape=(1, queries)))
    return emit("sub", emit("add", row, emit("sub", offset, last)), column)


def _masked(emit: Emitter, scores: Value, distance: Value, operand: Sequence[Value], attrs: Attrs) -> Value:
    if attrs["mask"] == "relative":
        return emit("add", scores, _of_distances(emit, distance, operand[0], attrs))
    hidden = _scalar(emit, float("-inf"))
    if attrs["mask"] == "around":
        near = emit("less", emit("abs", distance), _scalar(emit, float(int_attr(attrs, "window"))))
        return emit("select", near, scores, hidden)
    scores = emit("select", emit("less_equal", _scalar(emit, 0.0), distance), scores, hidden)
    if attrs["mask"] == "sliding":
        scores = emit("select", emit("less", distance, _scalar(emit, float(int_attr(attrs, "window")))), scores, hidden)
    return scores


def _of_distances(emit: Emitter, distance: Value, table: Value, attrs: Attrs) -> Value:
    """The columns of `f32[num_heads, columns]` that distances stand for, `f32[kv_heads, group, query, key]`."""
    columns, kv_heads = static_axis(table.type, -1, "the mask"), int_attr(attrs, "num_kv_heads")
    shifted = emit("add", distance, _scalar(emit, float(columns // 2)))
    inside = emit("minimum", emit("maximum", shifted, _scalar(emit, 0.0)), _scalar(emit, float(columns - 1)))
    rows = emit("embedding", emit("cast", inside, dtype=i32), emit("transpose", table, axes=(1, 0)))
    by_head = emit("transpose", rows, axes=(2, 0, 1))
    return emit("reshape", by_head, shape=(kv_heads, int_attr(attrs, "num_heads") // kv_heads, *distance.type.shape))


def _scalar(emit: Emitter, value: float) -> Value:
    return emit("constant", dtype=f32, shape=(), values=(value,))


def attention_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """Two products of every query with every key, masked ones included."""
    q, k = inputs[:2]
    flops = 4 * q.num_elements * k.shape[-2]
    moved = q.nbytes + k.nbytes + inputs[2].nbytes + outputs[0].nbytes
    return Cost(flops, moved)


def _attention_samples() -> Sequence[Sample]:
    def case(name: str, queries: Size = SEQ, extra: Types = (), **attrs: Any) -> Sample:
        q, kv = TensorType(f32, (2, queries, 6 * 16)), TensorType(f32, (2, SEQ, 2 * 16))
        complete = {"num_heads": 6, "num_kv_heads": 2, "scale": 0.25, **attrs}
        return Sample(name, (q, kv, kv, *extra), complete, {"seq": 9}, tolerance=1e-5)

    return (
        case("full", mask="none"),
        case("causal"),
        case("sliding", mask="sliding", window=4),
        case("softcap", softcap=2.0),
        case("fewer_queries", queries=5),
        case("around", queries=5, mask="around", window=3),
        case("bias", mask="bias", extra=(TensorType(f32, (SEQ, SEQ)),)),
        case("relative", mask="relative", extra=(TensorType(f32, (6, 7)),)),
    )


attention = register(
    OpDef(
        "attention",
        "softmax(mask(cap(q k^T * scale))) v over grouped heads; fewer queries than keys stand at the end.",
        _infer_attention,
        _reference_attention,
        _decompose_attention,
        _attention_samples,
        (*HEAD_ATTRIBUTES, Attribute("mask", f"one of {', '.join(MASKS)}", "causal")),
        cost=attention_cost,
    )
)


def _infer_repeat_kv(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    heads, repeats = int_attr(attrs, "num_kv_heads"), int_attr(attrs, "repeats")
    width = static_axis(types[0], -1, "the width of k or v")
    if heads < 1 or width % heads or repeats < 1:
        raise ShapeError("num_kv_heads has to divide the width", found=f"{heads} of {width}")
    return (types[0].with_shape((*types[0].shape[:-1], width * repeats)),)


def _reference_repeat_kv(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    lead, width, heads = inputs[0].shape[:-1], inputs[0].shape[-1], attrs["num_kv_heads"]
    x = inputs[0].reshape(*lead, heads, width // heads)
    return (np.repeat(x, attrs["repeats"], axis=-2).reshape(*lead, width * attrs["repeats"]),)


def _decompose_repeat_kv(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    lead, width = inputs[0].type.shape[:-1], static_axis(inputs[0].type, -1, "the width of k or v")
    heads, repeats = int_attr(attrs, "num_kv_heads"), int_attr(attrs, "repeats")
    x = emit("reshape", inputs[0], shape=(*lead, heads, 1, width // heads))
    x = emit("broadcast", x, shape=(*lead, heads, repeats, width // heads))
    return (emit("reshape", x, shape=(*lead, width * repeats)),)


repeat_kv = register(
    OpDef(
        "repeat_kv",
        "Each KV head repeated for its query heads, for backends that cannot index.",
        _infer_repeat_kv,
        _reference_repeat_kv,
        _decompose_repeat_kv,
        lambda: (Sample("heads", (TensorType(f32, (SEQ, 24)),), {"num_kv_heads": 2, "repeats": 3}, {"seq": 5}),),
        (Attribute("num_kv_heads", "KV heads in the operand"), Attribute("repeats", "query heads per KV head")),
    )
)
