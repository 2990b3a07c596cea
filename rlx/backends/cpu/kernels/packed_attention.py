"""attention and packed_attention: online softmax over whole sequences in memory, one lane for each query row.

    for each tile of 32 (or 16) query rows of one head       lanes: queries
      for each block of 128 keys
        scores[key] = sum over dims of k[key, dim] * q[dim]    keys and dims are broadcast, 8 keys at once
        weights     = exp(scores - maximum), maximum and sum lane by lane
        out[dim]    = out[dim] * correction + sum over keys of v[key, dim] * weight[key]      8 dims at once

No lane ever meets another one, and every sum runs in the order of dims or keys from the start of its own sequence, so
the bits depend neither on the tile nor on what else is in the batch. Where rounding is fine, both products multiply
pairs of bfloat16, of dims and of keys (`paired_keys.py`); scores and sums stay float32. Source of the recurrence:
Milakov and Gimelshein 2018. Both forms differ in how a row finds its sequence only (`_find_sequence`). Next:
`pooling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rlx.backends.cpu import vmath
from rlx.backends.cpu.emit import F32, I32, I64, LANES, VF, Emit, Val, Var
from rlx.backends.cpu.kernels.float_tiles import BFLOAT16, FLOAT32
from rlx.backends.cpu.kernels.paired_keys import PairedKeys, pair_of
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.kernels.transpose import transpose
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.attention import WINDOWED, WITH_OPERAND
from rlx.ops.op import float_attr, int_attr, optional_float, static_axis

KEY_BLOCK = 128
"""Keys whose weights are made at once: scores of 32 queries are then half of the first-level cache."""
NEG_INFINITY = float("-inf")
UNMASKED = ("none", "bias", "relative")
"""Masks that let every query see every key, as far as shapes tell."""


def _config(node: Node) -> dict[str, Setting]:
    cap, window = optional_float(node.attrs, "softcap"), node.attrs["window"]
    heads = int_attr(node.attrs, "num_heads")
    mask = str(node.attrs["mask"])
    columns = {"columns": static_axis(node.inputs[3].type, -1, "the mask")} if mask == "relative" else {}
    return {
        **columns,
        "heads": heads,
        "kv_heads": int_attr(node.attrs, "num_kv_heads"),
        "head_dim": static_axis(node.inputs[0].type, -1, "the width of q") // heads,
        "scale": float_attr(node.attrs, "scale"),
        "softcap": cap if cap is not None else 0.0,
        "mask": mask,
        "window": window if isinstance(window, int) and mask in WINDOWED else 0,
        "products": str(node.attrs.get("products", "f32")),
    }


def _packed_why_not(node: Node, target: Target) -> str | None:
    if node.attrs["products"] != "bf16":
        return None
    if not target.bf16:
        return "the target has no bfloat16 products"
    if node.attrs["mask"] not in ("none", "relative"):
        return "bfloat16 products are for rows that see every key"
    head_dim = static_axis(node.inputs[0].type, -1, "the width of q") // int_attr(node.attrs, "num_heads")
    return "bfloat16 products take dims in pairs" if head_dim % 2 else None


def _plan_packed(node: Node, target: Target) -> KernelPlan:
    config = {**_config(node), "packed": True}
    rows, bounds = node.inputs[0].type.shape[0], node.inputs[-1].type.shape[0]
    return KernelPlan("lanes", config, (rows, bounds), rows * int_attr(node.attrs, "num_heads"))


def _plan_plain(node: Node, target: Target) -> KernelPlan:
    q, k = node.inputs[0].type, node.inputs[1].type
    config = {**_config(node), "packed": False}
    rows = product(q.shape[:-1])
    return KernelPlan("lanes", config, (rows, q.shape[-2], k.shape[-2]), rows * int_attr(node.attrs, "num_heads"))


HELP = "32 query rows of a head at a time, a lane each"


@kernel("packed_attention", "lanes", help=HELP, when=_packed_why_not, plan=_plan_packed)
def build_packed(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: q, k, v, (what the mask adds), bounds, out. Sizes: rows, number of bounds. Units: rows, head by head."""
    _build(_Frame(body, config))


@kernel("attention", "lanes", help=HELP, when=always, plan=_plan_plain)
def build_plain(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: q, k, v, (what the mask adds), out. Sizes: rows of q, queries and keys of a sequence. Units as above."""
    _build(_Frame(body, config))


class _Frame:
    """Everything of a call that does not change from tile to tile."""

    def __init__(self, body: Body, config: Mapping[str, Setting]) -> None:
        self.body, self.e = body, body.e
        self.heads, self.kv_heads, self.head_dim, self.window = (
            int(config[name]) for name in ("heads", "kv_heads", "head_dim", "window")
        )
        self.scale, self.softcap = float(config["scale"]), float(config["softcap"])
        self.mask, self.packed = str(config["mask"]), bool(config["packed"])
        self.q, self.k, self.v = (body.buffer(i) for i in range(3))
        self.columns = int(config.get("columns", 0))
        after = 3 + (self.mask in WITH_OPERAND)
        self.added, self.bounds, self.out = body.buffer(3), body.buffer(after), body.buffer(after + self.packed)
        self.rows = body.size(0)
        wide = body.e.target.vector_bits >= 512
        self.widths, self.keys_at_once = ((2, 1), 8) if wide else ((1,), 4)
        lanes = self.widths[0] * LANES
        self.padded_dim = -(-self.head_dim // LANES) * LANES
        self.query = body.e.local(F32, self.padded_dim * lanes)
        self.scores = body.e.local(F32, KEY_BLOCK * lanes)
        self.sums = body.e.local(F32, self.padded_dim * lanes)
        self.column = body.e.local(F32, LANES)
        self.pairs = PairedKeys(body.e, KEY_BLOCK, self.head_dim) if config["products"] == "bf16" else None


@dataclass(slots=True)
class _Sequence:
    """Where the sequence of a row lies: rows of q and of k, and how far the first query stands behind the first key."""

    first_query: Val
    query_stop: Val
    first_key: Val
    keys: Val
    offset: Val


@dataclass(slots=True)
class _Tile:
    """Query rows `row` to `row + count - 1` of one head in `width` vectors of lanes, all of one sequence."""

    frame: _Frame
    width: int
    head: Val
    row: Val
    count: Val
    sequence: _Sequence
    maximum: list[Var]
    total: list[Var]
    largest: list[Var]

    @property
    def lanes(self) -> int:
        """Floats between neighbouring keys of the scores, or dims of query and sums."""
        return self.width * LANES

    @property
    def first_position(self) -> Val:
        """Of the first lane, in keys of its sequence."""
        return self.row - self.sequence.first_query + self.sequence.offset


def _build(frame: _Frame) -> None:
    body, e = frame.body, frame.e
    unit = e.var(body.begin)
    with e.loop_while(lambda: unit.get() < body.end):
        head, row = unit.get() // frame.rows, unit.get() % frame.rows
        sequence = _find_sequence(frame, row)
        left = e.minimum(body.end - unit.get(), sequence.query_stop - row)
        if len(frame.widths) == 1:
            count = e.minimum(left, LANES)
            _tile(frame, 1, head, row, count, sequence)
            unit.set(unit.get() + count)
        else:
            with e.either(left > LANES) as (wide, narrow):
                with wide:
                    count = e.minimum(left, 2 * LANES)
                    _tile(frame, 2, head, row, count, sequence)
                    unit.set(unit.get() + count)
                with narrow:
                    _tile(frame, 1, head, row, left, sequence)
                    unit.set(unit.get() + left)


def _find_sequence(frame: _Frame, row: Val) -> _Sequence:
    body, e = frame.body, frame.e
    if not frame.packed:
        queries, keys = body.size(1), body.size(2)
        index = row // queries
        return _Sequence(index * queries, (index + 1) * queries, index * keys, keys, keys - queries)
    last = body.size(1) - 1
    number = e.var(e.i64(0))
    with e.loop_while(lambda: (number.get() + 1 < last) & (_bound(frame, e.minimum(number.get() + 1, last)) <= row)):
        number.set(number.get() + 1)
    start = body.checked_index(_bound(frame, number.get()), row + 1)
    # a bound that does not lie behind the row is a fault; the row alone is then its sequence
    stop = row + 1 + body.checked_index(_bound(frame, e.minimum(number.get() + 1, last)) - row - 1, frame.rows - row)
    return _Sequence(start, stop, start, stop - start, e.i64(0))


def _bound(frame: _Frame, index: Val) -> Val:
    return frame.e.load(frame.bounds, I32, index).sext(I64)


def _tile(frame: _Frame, width: int, head: Val, row: Val, count: Val, sequence: _Sequence) -> None:
    e = frame.e
    maximum = [e.var(NEG_INFINITY, VF) for _ in range(width)]
    total = [e.var(0.0, VF) for _ in range(width)]
    largest = [e.var(NEG_INFINITY, VF) for _ in range(width)]
    tile = _Tile(frame, width, head, row, count, sequence, maximum, total, largest)
    _load_queries(tile)
    first, stop = _visible_keys(tile)
    # blocks start at multiples of their size, wherever the window begins
    with e.loop(first // KEY_BLOCK, (stop + (KEY_BLOCK - 1)) // KEY_BLOCK) as block:
        begin, end = e.maximum(first, block * KEY_BLOCK), e.minimum(stop, (block + 1) * KEY_BLOCK)
        for variable in largest:
            variable.set(e.typed(NEG_INFINITY, VF))
        if frame.pairs:
            row_width = frame.kv_heads * frame.head_dim
            frame.pairs.fill(frame.k, frame.v, _key_row(tile, begin), end - begin, row_width)
        _in_groups(e, begin, end, frame.keys_at_once, lambda key, n: _scores(tile, block * KEY_BLOCK, key, n))
        corrections = _weights(tile, begin - block * KEY_BLOCK, end - block * KEY_BLOCK)
        _accumulate(tile, block * KEY_BLOCK, begin, end, corrections)
    _store_rows(tile)


def _in_groups(e: Emit, begin: Val, end: Val, size: int, call: Callable[[Val, int], None]) -> None:
    """`call(i, size)` for whole groups, then `call(i, 1)` for the rest."""
    whole = begin + (end - begin) // size * size
    with e.loop(begin, whole, size) as index:
        call(index, size)
    with e.loop(whole, end) as index:
        call(index, 1)


def _visible_keys(tile: _Tile) -> tuple[Val, Val]:
    """The range of keys that any row of the tile sees."""
    frame, e, keys = tile.frame, tile.frame.e, tile.sequence.keys
    if frame.mask in UNMASKED:
        return e.i64(0), keys
    first = e.maximum(tile.first_position - (frame.window - 1), 0) if frame.window else e.i64(0)
    behind = frame.window - 1 if frame.mask == "around" else 0
    return first, e.minimum(tile.first_position + tile.count + behind, keys)


def _columns(frame: _Frame) -> Iterator[tuple[int, int]]:
    """head_dim in vectors: (first dim, how many)."""
    for start in range(0, frame.head_dim, LANES):
        yield start, min(LANES, frame.head_dim - start)


def _row_address(tile: _Tile, base: Val, lane: int) -> Val:
    """Of a lane's row of q or out; the last row stands in for lanes behind it."""
    frame, e = tile.frame, tile.frame.e
    row = tile.row + (e.minimum(e.i64(lane), tile.count - 1) if lane else 0)
    return e.at(base, (row * frame.heads + tile.head) * frame.head_dim, F32)


def _load_queries(tile: _Tile) -> None:
    """q, scaled and transposed to `[dim][lane]`, and sums of zero."""
    frame, e = tile.frame, tile.frame.e
    for vector in range(tile.width):
        rows = [_row_address(tile, frame.q, vector * LANES + lane) for lane in range(LANES)]
        for start, count in _columns(frame):
            mask = e.tail_mask(e.i64(count))
            addresses = [e.at(row, start, F32) for row in rows]
            loaded = [e.load(a, VF) if count == LANES else e.masked_load(a, VF, mask) for a in addresses]
            columns = [column * frame.scale for column in transpose(e, loaded)[:count]]
            for dim in range(count):
                e.store(e.typed(0.0, VF), frame.sums, e.i64((start + dim) * tile.lanes + vector * LANES))
            first = start
            if frame.pairs:
                columns = [pair_of(e, *pair) for pair in zip(columns[::2], columns[1::2], strict=True)]
                first = start // 2
            for index, column in enumerate(columns):
                e.store(column, frame.query, e.i64((first + index) * tile.lanes + vector * LANES))


def _key_row(tile: _Tile, key: Val) -> Val:
    """The row of k and v, as `[keys * kv_heads, head_dim]`, that the tile's head reads for a key."""
    frame = tile.frame
    return (tile.sequence.first_key + key) * frame.kv_heads + tile.head // (frame.heads // frame.kv_heads)


def _scores(tile: _Tile, base: Val, key: Val, count: int) -> None:
    """Capped and masked scores of `count` keys from `key`; the largest into `tile.largest`."""
    frame, e = tile.frame, tile.frame.e
    product, steps = FLOAT32, frame.head_dim
    rows = [e.at(frame.k, _key_row(tile, key + i) * frame.head_dim, F32) for i in range(count)]
    if frame.pairs:
        product, steps = BFLOAT16, frame.head_dim // 2
        rows = [frame.pairs.key(key + i - base) for i in range(count)]
    sums = [[e.var(0.0, VF) for _ in range(tile.width)] for _ in rows]
    with e.loop(0, steps) as step:
        queries = [product.panel(e, e.at(frame.query, step * tile.lanes + v * LANES, F32)) for v in range(tile.width)]
        for row, totals in zip(rows, sums, strict=True):
            word = product.word(e, e.at(row, step, F32))
            for query, total in zip(queries, totals, strict=True):
                total.set(product.add(e, total.get(), query, word))
    for i, totals in enumerate(sums):
        for v, total in enumerate(totals):
            score = _masked(tile, total.get(), key + i, v)
            tile.largest[v].set(e.maximum(tile.largest[v].get(), score))
            e.store(score, frame.scores, (key + i - base) * tile.lanes + v * LANES)


def _masked(tile: _Tile, score: Val, key: Val, vector: int) -> Val:
    """Cap, then mask (the scale is in q)."""
    frame, e = tile.frame, tile.frame.e
    if frame.softcap > 0:
        score = vmath.tanh(e, score / frame.softcap) * frame.softcap
    if frame.mask == "none":
        return score
    if frame.mask == "bias":
        return score + _bias(tile, key, vector)
    if frame.mask == "relative":
        return score + _bias_of_distance(tile, key, vector)
    # how far the query of a lane stands behind the key
    distance = e.splat((tile.first_position - key).trunc(I32)) + e.table(
        I32, [vector * LANES + lane for lane in range(LANES)]
    )
    seen = distance > -frame.window if frame.mask == "around" else distance >= 0
    if frame.window:
        seen = seen & (distance < frame.window)
    return e.select(seen, score, NEG_INFINITY)


def _bias(tile: _Tile, key: Val, vector: int) -> Val:
    """The column of the additive mask `[query, key]` that belongs to a key."""
    frame, e = tile.frame, tile.frame.e
    query = tile.row - tile.sequence.first_query
    column = e.typed(0.0, VF)
    for lane in range(LANES):
        row = query + (e.minimum(e.i64(vector * LANES + lane), tile.count - 1) if vector + lane else 0)
        column = e.with_lane(column, e.load(frame.added, F32, row * tile.sequence.keys + key), lane)
    return column


def _bias_of_distance(tile: _Tile, key: Val, vector: int) -> Val:
    """What the distances of the lanes' queries to a key add: neighbours of the head's row of `[heads, columns]`."""
    frame, e = tile.frame, tile.frame.e
    row = e.at(frame.added, tile.head * frame.columns, F32)
    first = tile.first_position - key + (frame.columns // 2 + vector * LANES)
    result, last = e.var(0.0, VF), frame.columns - 1
    with e.either((first >= 0) & (first <= last - (LANES - 1))) as (inside, beyond):
        with inside:
            result.set(e.load(row, VF, first))
        with beyond:
            with e.loop(0, LANES) as lane:
                e.store(e.load(row, F32, e.minimum(e.maximum(first + lane, 0), last)), frame.column, lane)
            result.set(e.load(frame.column, VF))
    return result.get()


def _weights(tile: _Tile, begin: Val, end: Val) -> list[Val]:
    """Scores of the block to weights, in place; gives the factors of what was summed before."""
    frame, e = tile.frame, tile.frame.e
    shifts: list[Val] = []
    corrections: list[Val] = []
    for v in range(tile.width):
        new = e.maximum(tile.maximum[v].get(), tile.largest[v].get())
        # nothing seen yet: any shift will do, and every weight is 0
        shift = e.select(new > NEG_INFINITY, new, 0.0)
        corrections.append(vmath.exp_nonpositive(e, tile.maximum[v].get() - shift))
        tile.total[v].set(tile.total[v].get() * corrections[v])
        tile.maximum[v].set(new)
        shifts.append(shift)

    def weight_of(slot: Val, v: int) -> Val:
        score = e.load(frame.scores, VF, slot * tile.lanes + v * LANES)
        weight = vmath.exp_nonpositive(e, score - shifts[v])
        tile.total[v].set(tile.total[v].get() + weight)
        return weight

    if not frame.pairs:
        with e.loop(begin, end) as slot:
            for v in range(tile.width):
                e.store(weight_of(slot, v), frame.scores, slot * tile.lanes + v * LANES)
        return corrections
    # the blocks of these begin at slot 0; pairs take the places of scores that have been read
    with e.loop(0, end // 2) as pair:
        for v in range(tile.width):
            weights = [weight_of(pair * 2 + i, v) for i in range(2)]
            e.store(pair_of(e, *weights), frame.scores, pair * tile.lanes + v * LANES)
    with e.when(end % 2 > 0):
        for v in range(tile.width):
            alone = pair_of(e, weight_of(end - 1, v), e.typed(0.0, VF))
            e.store(alone, frame.scores, end // 2 * tile.lanes + v * LANES)
    return corrections


def _accumulate(tile: _Tile, base: Val, begin: Val, end: Val, corrections: list[Val]) -> None:
    """Add weight * value of the keys of a block to the corrected sums, 8 dims at a time."""
    frame, e = tile.frame, tile.frame.e
    whole_begin, whole_end = _seen_by_all(tile, begin, end)
    group, start = frame.keys_at_once, 0
    whole = frame.head_dim // group * group
    if whole:
        with e.loop(0, whole, group) as dim:
            _add_values(tile, dim, group, base, (begin, whole_begin, whole_end, end), corrections)
        start = whole
    if start < frame.head_dim:
        rest = frame.head_dim - start
        _add_values(tile, e.i64(start), rest, base, (begin, whole_begin, whole_end, end), corrections)


def _seen_by_all(tile: _Tile, begin: Val, end: Val) -> tuple[Val, Val]:
    """The part of a range of keys that every row of the tile sees for certain."""
    frame, e = tile.frame, tile.frame.e
    if frame.mask in ("none", "relative"):
        return begin, end
    if frame.mask == "bias":
        return end, end
    ahead = frame.window if frame.mask == "around" else 1
    stop = e.maximum(e.minimum(end, tile.first_position + ahead), begin)
    if not frame.window:
        return begin, stop
    first = tile.first_position + (tile.count - frame.window)
    return e.minimum(e.maximum(begin, first), stop), stop


def _add_values(
    tile: _Tile, dim: Val, count: int, base: Val, ranges: tuple[Val, Val, Val, Val], corrections: list[Val]
) -> None:
    """Dims `dim` to `dim + count - 1`. Keys outside of the middle range have weight 0 for some rows, and there 0 stands
    for their values: what a row must not see may be infinite.
    """
    frame, e = tile.frame, tile.frame.e
    row_width = frame.kv_heads * frame.head_dim
    values = e.at(frame.v, _key_row(tile, e.i64(0)) * frame.head_dim + dim, F32)
    places = [[(dim + i) * tile.lanes + v * LANES for v in range(tile.width)] for i in range(count)]
    sums = [
        [e.var(e.load(frame.sums, VF, place) * factor) for place, factor in zip(row, corrections, strict=True)]
        for row in places
    ]

    def add(first: Val, stop: Val, masked: bool) -> None:
        with e.loop(first, stop) as key:
            weights = [e.load(frame.scores, VF, (key - base) * tile.lanes + v * LANES) for v in range(tile.width)]
            address = e.at(values, key * row_width, F32)
            for i, totals in enumerate(sums):
                value = e.splat(e.load(address, F32, i))
                for weight, total in zip(weights, totals, strict=True):
                    seen = e.select(weight > 0.0, value, 0.0) if masked else value
                    total.set(e.fma(seen, weight, total.get()))

    def add_pairs(pairs: PairedKeys, stop: Val) -> None:
        with e.loop(0, stop) as pair:
            place = e.at(frame.scores, pair * tile.lanes, F32)
            weights = [BFLOAT16.panel(e, e.at(place, v * LANES, F32)) for v in range(tile.width)]
            address = e.at(pairs.values_of(pair), dim, F32)
            for i, totals in enumerate(sums):
                word = BFLOAT16.word(e, e.at(address, i, F32))
                for weight, total in zip(weights, totals, strict=True):
                    total.set(BFLOAT16.add(e, total.get(), weight, word))

    begin, whole_begin, whole_end, end = ranges
    if frame.pairs:
        add_pairs(frame.pairs, (end - begin + 1) // 2)
    if frame.window or frame.mask == "bias":
        add(begin, whole_begin, masked=True)
    if frame.mask != "bias" and not frame.pairs:
        add(whole_begin, whole_end, masked=False)
    if frame.mask not in UNMASKED:
        add(whole_end, end, masked=True)
    for row, totals in zip(places, sums, strict=True):
        for place, total in zip(row, totals, strict=True):
            e.store(total.get(), frame.sums, place)


def _store_rows(tile: _Tile) -> None:
    """Divide by the sums of the weights, transpose, and write the rows that there are."""
    frame, e = tile.frame, tile.frame.e
    for v in range(tile.width):
        factor = e.typed(1.0, VF) / tile.total[v].get()
        for start, count in _columns(frame):
            columns = [
                e.load(frame.sums, VF, e.i64((start + dim) * tile.lanes + v * LANES)) * factor for dim in range(count)
            ]
            columns += [columns[-1]] * (LANES - count)
            for lane, row in enumerate(transpose(e, columns)):
                with e.when(tile.count > v * LANES + lane):
                    address = e.at(_row_address(tile, frame.out, v * LANES + lane), start, F32)
                    if count == LANES:
                        e.store(row, address)
                    else:
                        e.masked_store(row, address, e.tail_mask(e.i64(count)))
