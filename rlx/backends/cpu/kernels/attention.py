"""cache_append and paged_attention: online softmax over the pages of a sequence.

A unit is one query row of one head. Rows of one sequence that read the same KV head are taken four at a time, so that a
page is read once for them; what a row computes does not depend on its neighbours. Blocks of 128 positions are walked in
order, and a block is reduced in one order (dims in order for the scores, 16 lanes along the block and a fixed tree for
the sum, keys in order for the values), so the bits do not depend on the chunking of a prompt, on the batch or on the
threads. Source of the recurrence: Milakov and Gimelshein 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlx.backends.cpu import vmath
from rlx.backends.cpu.emit import F32, I16, I32, I64, LANES, VF, Emit, Val, Var, vec
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.graph import Node
from rlx.ops.attention import LARGEST_HALF
from rlx.ops.op import float_attr, int_attr, optional_float, static_axis

ROWS = 4
BLOCK = 128
"""Positions whose weights are made at once: enough to hide the latency of a maximum, a sum and a correction."""
NEG_INFINITY = float("-inf")


def _cache_sizes(node: Node, first: int) -> tuple[int, int, int]:
    cache = node.inputs[first].type
    return tuple(static_axis(cache, axis, "a cache axis") for axis in (1, 2, 3))  # type: ignore[return-value]


def _page_numbers(node: Node) -> tuple[int, int]:
    """Step and offset from pages of the layer to pages of the cache: sizes, so that layers share one kernel."""
    return int_attr(node.attrs, "page_step"), int_attr(node.attrs, "page_offset")


def _plan_append(node: Node, target: Target) -> KernelPlan:
    heads, head_dim, page = _cache_sizes(node, 0)
    tokens, table = node.inputs[4].type, node.inputs[6].type
    config: dict[str, Setting] = {
        "kv_heads": heads,
        "head_dim": head_dim,
        "page": page,
        "cache": str(node.inputs[0].type.dtype),
    }
    sizes = (*table.shape, node.inputs[0].type.shape[0], *_page_numbers(node))
    return KernelPlan("rows", config, sizes, tokens.shape[0], {}, {0: 0, 1: 1})


@kernel("cache_append", "rows", help="one token at a time, in place", when=always, plan=_plan_append)
def build_append(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: k_cache, v_cache, k, v, positions, sequences, page_table.

    Sizes: sequences, pages of the table, pages of the cache, page step, page offset.
    """
    e = body.e
    heads, head_dim, page = (int(config[name]) for name in ("kv_heads", "head_dim", "page"))
    k_cache, v_cache, k, v, positions, sequences, table = (body.buffer(i) for i in range(7))
    width, cache = heads * head_dim, str(config["cache"])
    with e.loop(body.begin, body.end) as row:
        position = body.checked_index(e.load(positions, I32, row).sext(I64), body.size(1) * page)
        entry = _table_entry(body, e.load(sequences, I32, row).sext(I64), position // page)
        base = _physical_page(body, table, entry, 3) * (width * page)
        slot = position % page
        with e.loop(0, heads) as head:
            source = row * width + head * head_dim
            target = base + head * (head_dim * page)
            with e.loop(0, head_dim) as d:
                e.store(_to_cache(e, e.load(k, F32, source + d), cache), k_cache, target + d * page + slot)
                e.store(_to_cache(e, e.load(v, F32, source + d), cache), v_cache, target + slot * head_dim + d)


def _physical_page(body: Body, table: Val, entry: Val, step: int) -> Val:
    """The page of the cache behind an entry of the table; page step and offset are the sizes from `step` on."""
    page = body.e.load(table, I32, entry).sext(I64)
    return body.checked_index(page * body.size(step) + body.size(step + 1), body.size(2))


def _to_cache(e: Emit, value: Val, cache: str) -> Val:
    if cache == "f32":
        return value
    if cache == "bf16":
        return e.float_to_bf16(value)
    # held at the ends of the range: an infinite key or value would make every later row not-a-number
    value = e.select(value > LARGEST_HALF, e.like(LARGEST_HALF, value), value)
    return e.float_to_half(e.select(value < -LARGEST_HALF, e.like(-LARGEST_HALF, value), value))


def _from_cache(e: Emit, cache: str, address: Val, lanes: int, index: Val) -> Val:
    """`lanes` elements of a cache as float32."""
    if cache == "f32":
        return e.load(address, vec(F32, lanes), index, F32)
    bits = e.load(address, vec(I16, lanes), index, I16)
    return e.half_to_float(bits) if cache == "f16" else e.bf16_to_float(bits)


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
        "cache": str(node.inputs[1].type.dtype),
    }
    tokens, table = node.inputs[3].type, node.inputs[5].type
    sizes = (*table.shape, node.inputs[1].type.shape[0], tokens.shape[0], *_page_numbers(node))
    return KernelPlan("online", config, sizes, heads * tokens.shape[0])


def _attention_why_not(node: Node, target: Target) -> str | None:
    page = _cache_sizes(node, 1)[2]
    return f"a page has to be whole vectors of {LANES} positions, not {page}" if page % LANES else None


@kernel(
    "paged_attention",
    "online",
    help="online softmax, four rows at a time",
    when=_attention_why_not,
    plan=_plan_attention,
)
def build_attention(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: q, k_cache, v_cache, positions, sequences, page_table, out.

    Sizes: sequences, pages of the table, pages of the cache, tokens, page step, page offset.
    """
    e = body.e
    frame = _Frame(body, config)
    unit = e.var(body.begin)
    with e.loop_while(lambda: unit.get() < body.end):
        kv_head, first = unit.get() // frame.entries, unit.get() % frame.entries
        limit = e.minimum(e.minimum(body.end - unit.get(), frame.entries - first), ROWS)
        sequence = e.load(frame.sequences, I32, first // frame.group).sext(I64)
        run = e.var(e.i64(1))
        with e.loop_while(
            lambda: (run.get() < limit) & _follows(frame, e.minimum(first + run.get(), frame.entries - 1), first)
        ):
            run.set(run.get() + 1)
        with e.either(run.get() > 1) as (several, one):
            with several:
                _tile(frame, ROWS, kv_head, first, run.get(), sequence)
            with one:
                _tile(frame, 1, kv_head, first, run.get(), sequence)
        unit.set(unit.get() + run.get())


def _follows(frame: _Frame, entry: Val, first: Val) -> Val:
    """Whether an entry belongs into the tile that starts at `first`: same sequence, positions ascending."""
    e = frame.e
    row, start, before = entry // frame.group, first // frame.group, e.maximum(entry - 1, first) // frame.group
    later = e.load(frame.positions, I32, row) > e.load(frame.positions, I32, before)
    return e.load(frame.sequences, I32, row).equals(e.load(frame.sequences, I32, start)) & (row.equals(before) | later)


class _Frame:
    """Everything of a call that does not change from tile to tile."""

    def __init__(self, body: Body, config: Mapping[str, Setting]) -> None:
        self.body, self.e = body, body.e
        self.heads, self.kv_heads, self.head_dim, self.page, self.window = (
            int(config[name]) for name in ("heads", "kv_heads", "head_dim", "page", "window")
        )
        self.cache = str(config["cache"])
        self.scale, self.softcap = float(config["scale"]), float(config["softcap"])
        self.q, self.k, self.v, self.positions, self.sequences, self.table, self.out = (
            body.buffer(i) for i in range(7)
        )
        self.group = self.heads // self.kv_heads
        self.entries = body.size(3) * self.group  # of one KV head: its query heads of each token
        self.block_pages = max(1, BLOCK // self.page)
        self.block = self.block_pages * self.page
        self.weights = body.e.local(F32, ROWS * self.block)
        self.sums = body.e.local(F32, ROWS * self.head_dim)


@dataclass(slots=True)
class _Row:
    """One query row of a tile: its position, addresses, and the running maximum and sum."""

    position: Val
    query: Val
    out: Val
    maximum: Var
    total: Var
    largest: Var


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


def _tile(frame: _Frame, count: int, kv_head: Val, first: Val, run: Val, sequence: Val) -> None:
    e, page = frame.e, frame.page
    rows = [_row(frame, kv_head, e.minimum(first + i, first + run - 1) if i else first) for i in range(count)]
    with e.loop(0, count * frame.head_dim) as i:
        e.store(e.typed(0.0, F32), frame.sums, i)
    begin = e.i64(0)
    if frame.window:
        begin = e.maximum(rows[0].position - (frame.window - 1), 0) // page
    end = rows[-1].position // page + 1
    with e.loop(begin // frame.block_pages, (end - 1) // frame.block_pages + 1) as block:
        base = block * frame.block_pages
        pages = (e.maximum(begin, base), e.minimum(end, base + frame.block_pages))
        _scores(frame, rows, kv_head, sequence, base, pages)
        width = (pages[1] - base) * page
        corrections = [_softmax(frame, row, index, (pages[0] - base) * page, width) for index, row in enumerate(rows)]
        for index, correction in enumerate(corrections):
            _rescale(frame, index, correction)
        with e.loop(pages[0], pages[1]) as logical:
            values = _page_address(frame, frame.v, kv_head, sequence, logical)
            with e.either(_all_seen(frame, rows, logical * page)) as (whole, part):
                with whole:
                    _accumulate(frame, count, values, (logical - base) * page, e.i64(page), masked=False)
                with part:
                    stop = e.minimum(rows[-1].position + 1 - logical * page, page)
                    _accumulate(frame, count, values, (logical - base) * page, stop, masked=True)
    for index, row in enumerate(rows):
        with e.when(run > index):
            _finish(frame, row, index)


def _all_seen(frame: _Frame, rows: Sequence[_Row], first: Val) -> Val:
    """Whether every row sees every key of the page that starts at position `first`."""
    seen = rows[0].position >= first + (frame.page - 1)
    return seen & (rows[-1].position - first < frame.window) if frame.window else seen


def _finish(frame: _Frame, row: _Row, index: int) -> None:
    """Divide by the sum of the weights and write the row."""
    e = frame.e
    for start, lanes in _pieces(frame.head_dim):
        offset = start
        for width in lanes:
            value = e.load(frame.sums, vec(F32, width), e.i64(index * frame.head_dim + offset), F32)
            e.store(value / e.splat(row.total.get(), width), e.at(row.out, offset, F32))
            offset += width


def _page_address(frame: _Frame, cache: Val, kv_head: Val, sequence: Val, logical: Val) -> Val:
    e = frame.e
    entry = _table_entry(frame.body, sequence, logical)
    physical = _physical_page(frame.body, frame.table, entry, 4)
    return e.at(
        cache,
        (physical * frame.kv_heads + kv_head) * (frame.head_dim * frame.page),
        I16 if frame.cache != "f32" else F32,
    )


def _row(frame: _Frame, kv_head: Val, entry: Val) -> _Row:
    e = frame.e
    token, head = entry // frame.group, kv_head * frame.group + entry % frame.group
    base = (token * frame.heads + head) * frame.head_dim
    return _Row(
        frame.body.checked_index(e.load(frame.positions, I32, token).sext(I64), frame.body.size(1) * frame.page),
        e.at(frame.q, base, F32),
        e.at(frame.out, base, F32),
        e.var(NEG_INFINITY, F32),
        e.var(0.0, F32),
        e.var(NEG_INFINITY, VF),
    )


def _scores(
    frame: _Frame, rows: Sequence[_Row], kv_head: Val, sequence: Val, base: Val, pages: tuple[Val, Val]
) -> None:
    """Scaled, capped and masked scores of a block of pages into `frame.weights`; the largest into `row.largest`."""
    e, vectors = frame.e, frame.page // LANES
    for row in rows:
        row.largest.set(e.typed(NEG_INFINITY, VF))
    with e.loop(*pages) as logical:
        keys = _page_address(frame, frame.k, kv_head, sequence, logical)
        sums = [[e.var(0.0, VF) for _ in range(vectors)] for _ in rows]
        with e.loop(0, frame.head_dim) as d:
            loaded = [_from_cache(e, frame.cache, keys, LANES, d * frame.page + v * LANES) for v in range(vectors)]
            for row, totals in zip(rows, sums, strict=True):
                query = e.splat(e.load(row.query, F32, d))
                for key, total in zip(loaded, totals, strict=True):
                    total.set(e.fma(key, query, total.get()))
        for index, (row, totals) in enumerate(zip(rows, sums, strict=True)):
            distance = (row.position - logical * frame.page).trunc(I32)
            for v, total in enumerate(totals):
                score = _masked(frame, total.get(), distance, v * LANES)
                row.largest.set(e.maximum(row.largest.get(), score))
                slot = (logical - base) * frame.page + (index * frame.block + v * LANES)
                e.store(score, frame.weights, slot)


def _masked(frame: _Frame, score: Val, distance: Val, first: int) -> Val:
    """Scale, then cap, then mask. `distance` is how far the query stands behind the first key of the page."""
    e = frame.e
    value = score * frame.scale
    if frame.softcap > 0:
        value = vmath.tanh(e, value / frame.softcap) * frame.softcap
    behind = e.splat(distance) - e.table(I32, [first + i for i in range(LANES)])
    seen = behind >= 0
    if frame.window:
        seen = seen & (behind < frame.window)
    return e.select(seen, value, NEG_INFINITY)


def _softmax(frame: _Frame, row: _Row, index: int, start: Val, stop: Val) -> Val:
    """Scores of the block to weights, in place; gives the factor of what was summed before."""
    e = frame.e
    new = e.maximum(row.maximum.get(), e.reduce(row.largest.get(), e.maximum))
    # nothing seen yet: any shift will do, and every weight is 0
    shift = e.select(new > NEG_INFINITY, new, e.like(0.0, new))
    correction = e.lane(vmath.exp(e, e.splat(row.maximum.get() - shift, 4)), 0)
    total = e.var(0.0, VF)
    with e.loop(start, stop, LANES) as key:
        slot = key + index * frame.block
        weight = vmath.exp(e, e.load(frame.weights, VF, slot) - e.splat(shift))
        e.store(weight, frame.weights, slot)
        total.set(total.get() + weight)
    block_total = e.reduce(total.get(), lambda a, b: a + b)
    row.total.set(e.fma(row.total.get(), correction, block_total))
    row.maximum.set(new)
    return correction


def _rescale(frame: _Frame, index: int, correction: Val) -> None:
    """Multiply what a row has summed by the correction."""
    e = frame.e
    for start, lanes in _pieces(frame.head_dim):
        offset = start
        for width in lanes:
            address = e.at(frame.sums, index * frame.head_dim + offset, F32)
            e.store(e.load(address, vec(F32, width)) * e.splat(correction, width), address)
            offset += width


def _accumulate(frame: _Frame, count: int, values: Val, first: Val, stop: Val, *, masked: bool) -> None:
    """Add weight * value of the keys before `stop`, in order.

    Where some rows do not see a key (`masked`), its weight is 0 for them, and 0 stands for its value: what a later
    token or an earlier owner of the page left there may be infinite.
    """
    e = frame.e
    for start, lanes in _pieces(frame.head_dim):
        offsets = [start + sum(lanes[:i]) for i in range(len(lanes))]
        sums = [
            [
                e.var(e.load(frame.sums, vec(F32, width), e.i64(r * frame.head_dim + offset), F32))
                for offset, width in zip(offsets, lanes, strict=True)
            ]
            for r in range(count)
        ]
        with e.loop(0, stop) as key:
            loaded = [
                _from_cache(e, frame.cache, values, width, key * frame.head_dim + offset)
                for offset, width in zip(offsets, lanes, strict=True)
            ]
            for r in range(count):
                weight = e.load(frame.weights, F32, first + key + r * frame.block)
                for variable, value in zip(sums[r], loaded, strict=True):
                    seen = e.select(weight > 0.0, value, 0.0) if masked else value
                    variable.set(e.fma(seen, e.splat(weight, _lanes(value)), variable.get()))
        for r in range(count):
            for variable, offset in zip(sums[r], offsets, strict=True):
                e.store(variable.get(), e.at(frame.sums, r * frame.head_dim + offset, F32))


def _lanes(value: Val) -> int:
    return int(value.type.count) if hasattr(value.type, "count") else 1
