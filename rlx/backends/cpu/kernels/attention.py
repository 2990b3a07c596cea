"""cache_append and paged_attention: online softmax over the pages of a sequence.

A unit is one query row of one head. Rows of one sequence are taken four at a time, so that a page is read once for
them; what a row computes does not depend on its neighbours. Pages are walked in the order of positions, and a page is
reduced in one order (dims in order for the scores, a fixed tree for the sum, keys in order for the values), so the bits
do not depend on the chunking of a prompt, on the batch or on the threads. Source of the recurrence: Milakov and
Gimelshein 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlx.core.backend import KernelPlan
from rlx.backends.cpu import vmath
from rlx.backends.cpu.emit import F32, I32, I64, LANES, VF, Val, Var, vec
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.graph import Node
from rlx.ops.op import float_attr, int_attr, optional_float, static_axis

ROWS = 4
NEG_INFINITY = float("-inf")


def _cache_sizes(node: Node, first: int) -> tuple[int, int, int]:
    cache = node.inputs[first].type
    return tuple(static_axis(cache, axis, "a cache axis") for axis in (1, 2, 3))  # type: ignore[return-value]


def _plan_append(node: Node, target: Target) -> KernelPlan:
    heads, head_dim, page = _cache_sizes(node, 0)
    tokens, table = node.inputs[4].type, node.inputs[6].type
    config: dict[str, Setting] = {"kv_heads": heads, "head_dim": head_dim, "page": page}
    sizes = (*table.shape, node.inputs[0].type.shape[0])
    return KernelPlan("rows", config, sizes, tokens.shape[0], {}, {0: 0, 1: 1})


@kernel("cache_append", "rows", help="one token at a time, in place", when=always, plan=_plan_append)
def build_append(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: k_cache, v_cache, k, v, positions, sequences, page_table; sizes sequences, table pages, cache pages."""
    e = body.e
    heads, head_dim, page = (int(config[name]) for name in ("kv_heads", "head_dim", "page"))
    k_cache, v_cache, k, v, positions, sequences, table = (body.buffer(i) for i in range(7))
    width = heads * head_dim
    with e.loop(body.begin, body.end) as row:
        position = body.checked_index(e.load(positions, I32, row).sext(I64), body.size(1) * page)
        entry = _table_entry(body, e.load(sequences, I32, row).sext(I64), position // page)
        base = body.checked_index(e.load(table, I32, entry).sext(I64), body.size(2)) * (width * page)
        slot = position % page
        with e.loop(0, heads) as head:
            source = row * width + head * head_dim
            target = base + head * (head_dim * page)
            with e.loop(0, head_dim) as d:
                e.store(e.load(k, F32, source + d), k_cache, target + d * page + slot)
                e.store(e.load(v, F32, source + d), v_cache, target + slot * head_dim + d)


def _table_entry(body: Body, sequence: Val, page: Val) -> Val:
    sequence = body.checked_index(sequence, body.size(0))
    return sequence * body.size(1) + body.checked_index(page, body.size(1))


def _plan_attention(node: Node, target: Target) -> KernelPlan:
    kv_heads, head_dim, page = _cache_sizes(node, 1)
    cap, window = optional_float(node.attrs, "softcap"), node.attrs["window"]
    heads = int_attr(node.attrs, "num_heads")
    config: dict[str, Setting] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "page": page,
        "scale": float_attr(node.attrs, "scale"),
        "softcap": cap if cap is not None else 0.0,
        "window": window if isinstance(window, int) else 0,
    }
    tokens, table = node.inputs[3].type, node.inputs[5].type
    sizes = (*table.shape, node.inputs[1].type.shape[0], tokens.shape[0])
    return KernelPlan("online", config, sizes, heads * tokens.shape[0])


def _attention_why_not(node: Node, target: Target) -> str | None:
    page = _cache_sizes(node, 1)[2]
    return f"a page has to be whole vectors of {LANES} positions, not {page}" if page % LANES else None


@kernel("paged_attention", "online", help="online softmax, four rows at a time", when=_attention_why_not, plan=_plan_attention)
def build_attention(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: q, k_cache, v_cache, positions, sequences, page_table, out; sizes sequences, table pages, cache pages, tokens."""
    e = body.e
    frame = _Frame(body, config)
    unit = e.var(body.begin)
    with e.loop_while(lambda: unit.get() < body.end):
        head, row = unit.get() // frame.tokens, unit.get() % frame.tokens
        limit = e.minimum(e.minimum(body.end - unit.get(), frame.tokens - row), ROWS)
        sequence = e.load(frame.sequences, I32, row)
        run = e.var(e.i64(1))
        with e.loop_while(lambda: (run.get() < limit) & _follows(frame, e.minimum(row + run.get(), frame.tokens - 1), row)):
            run.set(run.get() + 1)
        with e.either(run.get() > 1) as (several, one):
            with several:
                _tile(frame, ROWS, head, row, run.get(), sequence.sext(I64))
            with one:
                _tile(frame, 1, head, row, run.get(), sequence.sext(I64))
        unit.set(unit.get() + run.get())


def _follows(frame: _Frame, row: Val, first: Val) -> Val:
    """Whether a row belongs into the tile that starts at `first`: its sequence, and a later position than the row before."""
    e = frame.e
    before = e.load(frame.positions, I32, e.maximum(row - 1, first))
    return e.load(frame.sequences, I32, row).equals(e.load(frame.sequences, I32, first)) & (
        e.load(frame.positions, I32, row) > before
    )


class _Frame:
    """Everything of a call that does not change from tile to tile."""

    def __init__(self, body: Body, config: Mapping[str, Setting]) -> None:
        self.body, self.e = body, body.e
        self.heads, self.kv_heads, self.head_dim, self.page, self.window = (
            int(config[name]) for name in ("heads", "kv_heads", "head_dim", "page", "window")
        )
        self.scale, self.softcap = float(config["scale"]), float(config["softcap"])
        self.q, self.k, self.v, self.positions, self.sequences, self.table, self.out = (
            body.buffer(i) for i in range(7)
        )
        self.cache_pages, self.tokens = body.size(2), body.size(3)
        self.weights = body.e.local(F32, ROWS * self.page)
        self.sums = body.e.local(F32, ROWS * self.head_dim)


@dataclass(slots=True)
class _Row:
    """One query row of a tile: its position, addresses, and the running maximum and sum."""

    position: Val
    query: Val
    out: Val
    maximum: Var
    total: Var


def _pieces(head_dim: int) -> Iterator[tuple[int, list[int]]]:
    """head_dim as runs of up to four vectors: (start, lane counts); the rest in powers of two."""
    lanes: list[int] = [LANES] * (head_dim // LANES)
    rest, size = head_dim % LANES, LANES // 2
    while rest:
        if rest >= size:
            lanes.append(size)
            rest -= size
        size //= 2
    start = 0
    for i in range(0, len(lanes), 4):
        yield start, lanes[i : i + 4]
        start += sum(lanes[i : i + 4])


def _tile(frame: _Frame, count: int, head: Val, first: Val, run: Val, sequence: Val) -> None:
    e, page = frame.e, frame.page
    rows = [_row(frame, head, e.minimum(first + i, first + run - 1) if i else first) for i in range(count)]
    kv_head = head // (frame.heads // frame.kv_heads)
    with e.loop(0, count * frame.head_dim) as i:
        e.store(e.typed(0.0, F32), frame.sums, i)
    start = e.i64(0)
    if frame.window:
        start = e.maximum(rows[0].position - (frame.window - 1), 0) // page
    with e.loop(start, rows[-1].position // page + 1) as logical:
        entry = _table_entry(frame.body, sequence, logical)
        physical = frame.body.checked_index(e.load(frame.table, I32, entry).sext(I64), frame.cache_pages)
        base = (physical * frame.kv_heads + kv_head) * (frame.head_dim * page)
        scores = _scores(frame, rows, e.at(frame.k, base, F32))
        for index, (row, score) in enumerate(zip(rows, scores, strict=True)):
            correction, active = _softmax(frame, row, score, logical * page, index)
            _rescale(frame, index, correction, active)
        _accumulate(frame, count, e.at(frame.v, base, F32))
    for index, row in enumerate(rows):
        with e.when(run > index):
            for start_dim, lanes in _pieces(frame.head_dim):
                offset = start_dim
                for width in lanes:
                    value = e.load(frame.sums, vec(F32, width), e.i64(index * frame.head_dim + offset), F32)
                    e.store(value / e.splat(row.total.get(), width), e.at(row.out, offset, F32))
                    offset += width


def _row(frame: _Frame, head: Val, index: Val) -> _Row:
    e = frame.e
    base = (index * frame.heads + head) * frame.head_dim
    return _Row(
        frame.body.checked_index(e.load(frame.positions, I32, index).sext(I64), frame.body.size(1) * frame.page),
        e.at(frame.q, base, F32),
        e.at(frame.out, base, F32),
        e.var(NEG_INFINITY, F32),
        e.var(0.0, F32),
    )


def _scores(frame: _Frame, rows: Sequence[_Row], keys: Val) -> list[list[Val]]:
    """q . k for every row and the keys of the page: dims in order, lanes are positions."""
    e, vectors = frame.e, frame.page // LANES
    sums = [[e.var(0.0, VF) for _ in range(vectors)] for _ in rows]
    with e.loop(0, frame.head_dim) as d:
        loaded = [e.load(keys, VF, d * frame.page + v * LANES) for v in range(vectors)]
        for row, totals in zip(rows, sums, strict=True):
            query = e.splat(e.load(row.query, F32, d))
            for key, total in zip(loaded, totals, strict=True):
                total.set(e.fma(key, query, total.get()))
    return [[total.get() for total in totals] for totals in sums]


def _softmax(frame: _Frame, row: _Row, score: Sequence[Val], first: Val, index: int) -> tuple[Val, Val]:
    """Scale, cap, mask; store the weights of the page; give the factor of what was summed and whether a key is seen."""
    e = frame.e
    masked: list[Val] = []
    for v, raw in enumerate(score):
        value = raw * frame.scale
        if frame.softcap > 0:
            value = vmath.tanh(e, value / frame.softcap) * frame.softcap
        distance = (row.position - first).trunc(I32)
        lane = e.table(I32, [v * LANES + i for i in range(LANES)])
        behind = e.splat(distance) - lane
        seen = behind >= 0
        if frame.window:
            seen = seen & (behind < frame.window)
        masked.append(e.select(seen, value, NEG_INFINITY))
    largest = masked[0]
    for value in masked[1:]:
        largest = e.maximum(largest, value)
    page_maximum = e.reduce(largest, e.maximum)
    active = page_maximum > NEG_INFINITY
    new = e.maximum(row.maximum.get(), page_maximum)
    shift = e.select(new > NEG_INFINITY, new, e.like(0.0, new))
    correction = e.lane(vmath.exp(e, e.splat(row.maximum.get() - shift, 4)), 0)
    weights = [vmath.exp(e, value - e.splat(shift)) for value in masked]
    total = weights[0]
    for v, weight in enumerate(weights):
        e.store(weight, frame.weights, e.i64(index * frame.page + v * LANES))
        total = total + weight if v else total
    page_total = e.reduce(total, lambda a, b: a + b)
    row.total.set(e.select(active, e.fma(row.total.get(), correction, page_total), row.total.get()))
    row.maximum.set(new)
    return correction, active


def _rescale(frame: _Frame, index: int, correction: Val, active: Val) -> None:
    """Multiply what a row has summed by the correction, unless nothing of the page is seen."""
    e = frame.e
    factor = e.select(active, correction, e.like(1.0, correction))
    for start, lanes in _pieces(frame.head_dim):
        offset = start
        for width in lanes:
            address = e.at(frame.sums, index * frame.head_dim + offset, F32)
            e.store(e.load(address, vec(F32, width)) * e.splat(factor, width), address)
            offset += width


def _accumulate(frame: _Frame, count: int, values: Val) -> None:
    """Add weight * value, keys in order. A weight of 0 leaves a sum as it is (caches hold finite numbers)."""
    e = frame.e
    for start, lanes in _pieces(frame.head_dim):
        offsets = [start + sum(lanes[:i]) for i in range(len(lanes))]
        sums = [
            [e.var(e.load(frame.sums, vec(F32, width), e.i64(r * frame.head_dim + offset), F32)) for offset, width in zip(offsets, lanes, strict=True)]
            for r in range(count)
        ]
        with e.loop(0, frame.page) as key:
            loaded = [
                e.load(values, vec(F32, width), key * frame.head_dim + offset, F32)
                for offset, width in zip(offsets, lanes, strict=True)
            ]
            for r in range(count):
                weight = e.load(frame.weights, F32, key + r * frame.page)
                for variable, value in zip(sums[r], loaded, strict=True):
                    variable.set(e.fma(value, e.splat(weight, _lanes(value)), variable.get()))
        for r in range(count):
            for variable, offset in zip(sums[r], offsets, strict=True):
                e.store(variable.get(), e.at(frame.sums, r * frame.head_dim + offset, F32))


def _lanes(value: Val) -> int:
    return int(value.type.count) if hasattr(value.type, "count") else 1


