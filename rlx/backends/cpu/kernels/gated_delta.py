"""gated_delta and gated_delta_step: 32 value dims of one head of one sequence at a time, its rows in order.

The value dims of a state do not depend on each other, so a unit keeps its part of the state (16 KB for 128 key dims) in
the first-level cache over all rows of the call. A lane is a value dim; the sums over key dims run in four chains, which
are then added, so that they do not wait for each other. A row costs two passes: one that reads the state for `S^T k`,
one that updates it and reads `S^T q` of what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlx.backends.cpu.emit import F32, LANES, VF, Emit, Val
from rlx.backends.cpu.kernels.ragged_rows import SequenceFrame, SequenceRows, ragged_rows
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.kernels.rows import load_tail, reduce_row
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.graph import Node
from rlx.ops.gated_delta import delta_sizes
from rlx.ops.op import float_attr, optional_float

CHAINS = 4
"""Sums that run beside each other; a multiplication and addition takes four cycles."""


def _plan(node: Node, target: Target) -> KernelPlan:
    sizes = delta_sizes(tuple(value.type for value in node.inputs), node.attrs)
    rows, group = ragged_rows(node, 3), 2 if sizes.blocks % 2 == 0 else 1
    eps = optional_float(node.attrs, "norm_eps")
    config: dict[str, Setting] = {
        "key_heads": sizes.key_heads,
        "key_dim": sizes.key_dim,
        "value_heads": sizes.value_heads,
        "value_dim": sizes.value_dim,
        "group": group,
        "scale": float_attr(node.attrs, "scale"),
        "norm": eps is not None,
        "eps": eps or 0.0,
        "tiled": bool(node.attrs["tiled"]),
        **rows.config,
    }
    units = rows.sequences * (sizes.value_heads * (sizes.blocks // group))
    return KernelPlan("columns", config, rows.sizes, units, {}, rows.in_place)


@kernel("gated_delta", "columns", help="rows in order, a lane for each value dim", when=always, plan=_plan)
def build_plain(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: mixed, decay, beta, out; sizes rows of a sequence; units are parts of heads of sequences."""
    _build(body, config)


@kernel("gated_delta_step", "columns", help="rows in order, a lane for each value dim", when=always, plan=_plan)
def build_step(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: mixed, decay, beta, state, bounds, positions, slots, out; sizes rows, slots, width of the state."""
    _build(body, config)


def _build(body: Body, config: Mapping[str, Setting]) -> None:
    e, frame = body.e, SequenceFrame(body, dict(config))
    key_heads, heads, value_dim = (int(config[name]) for name in ("key_heads", "value_heads", "value_dim"))
    key_dim, group = int(config["key_dim"]), int(config["group"])
    parts = -(-value_dim // LANES) // group
    scratch = e.local(F32, group * key_dim * LANES)
    keys, queries = e.local(F32, key_dim), e.local(F32, key_dim)
    with e.loop(body.begin, body.end) as unit:
        part, head = unit % parts, (unit // parts) % heads
        sequence = frame.sequence(unit // (parts * heads))
        within = (head * parts + part) * (group * key_dim * LANES)
        state = scratch if sequence.state is None else e.at(sequence.state, within, F32)
        with e.when(sequence.count > 0):
            _clear(e, sequence, state, group * key_dim * LANES)
        key_head = head % key_heads if config["tiled"] else head // (heads // key_heads)
        head_rows = _HeadRows(e, config, frame.out, [body.buffer(i) for i in range(3)], head, key_head, part)
        with e.loop(0, sequence.count) as index:
            row = sequence.first + index
            head_rows.prepare(row, keys, queries)
            head_rows.step(row, state, keys, queries)


def _clear(e: Emit, sequence: SequenceRows, state: Val, count: int) -> None:
    """Zeros, where the sequence starts from them."""
    with e.when(sequence.is_new), e.loop(0, count, LANES) as i:
        e.store(e.typed(0.0, VF), state, i)


@dataclass(frozen=True, slots=True)
class _HeadRows:
    """The rows of a part of a value head."""

    e: Emit
    config: Mapping[str, Setting]
    out: Val
    operands: list[Val]
    head: Val
    key_head: Val
    part: Val

    def prepare(self, row: Val, keys: Val, queries: Val) -> None:
        """k and q of a row, normalised and scaled."""
        key_dim, width = int(self.config["key_dim"]), int(self.config["key_heads"]) * int(self.config["key_dim"])
        start = self._mixed(row, self.key_head * key_dim)
        self._normalised(self.e.at(start, width, F32), keys, 1.0)
        self._normalised(start, queries, float(self.config["scale"]))

    def _mixed(self, row: Val, column: Val) -> Val:
        sizes = [int(self.config[name]) for name in ("key_heads", "key_dim", "value_heads", "value_dim")]
        return self.e.at(self.operands[0], row * (2 * sizes[0] * sizes[1] + sizes[2] * sizes[3]) + column, F32)

    def _normalised(self, source: Val, target: Val, scale: float) -> None:
        e, key_dim = self.e, int(self.config["key_dim"])
        factor = e.typed(scale, F32)
        if self.config["norm"]:
            squares = reduce_row(e, source, e.i64(key_dim), 0.0, lambda total, v: e.fma(v, v, total), 0.0)
            factor = factor / e.sqrt(e.reduce(squares, lambda a, b: a + b) + float(self.config["eps"]))
        whole, splat = key_dim // LANES * LANES, e.splat(factor)
        with e.loop(0, whole, LANES) as i:
            e.store(e.load(source, VF, i) * splat, target, i)
        if key_dim % LANES:
            rest = e.i64(key_dim % LANES)
            value = load_tail(e, e.at(source, whole, F32), rest, 0.0) * splat
            e.masked_store(value, e.at(target, whole, F32), e.tail_mask(rest))

    def step(self, row: Val, state: Val, keys: Val, queries: Val) -> None:
        """One row: the state decays, is corrected, and is read."""
        e, heads = self.e, int(self.config["value_heads"])
        decay, beta = (e.splat(e.load(x, F32, row * heads + self.head)) for x in self.operands[1:])

        def key_read(place: Val, block: int, total: Val) -> Val:
            return e.fma(self._at(state, place, block), e.splat(e.load(keys, F32, place)), total)

        found = self._sums(key_read)
        corrections = [(self._value(row, block) - decay * found[block]) * beta for block in range(len(found))]

        def update(place: Val, block: int, total: Val) -> Val:
            held = self._at(state, place, block) * decay
            held = e.fma(e.splat(e.load(keys, F32, place)), corrections[block], held)
            e.store(held, state, self._place(place, block))
            return e.fma(held, e.splat(e.load(queries, F32, place)), total)

        for block, value in enumerate(self._sums(update)):
            self._store(row, block, value)

    def _place(self, place: Val, block: int) -> Val:
        return place * LANES + block * int(self.config["key_dim"]) * LANES

    def _at(self, state: Val, place: Val, block: int) -> Val:
        return self.e.load(state, VF, self._place(place, block))

    def _sums(self, term: Callable[[Val, int, Val], Val]) -> list[Val]:
        """For each block of 16 value dims the sum over key dims, in chains that are added at the end."""
        e, key_dim, group = self.e, int(self.config["key_dim"]), int(self.config["group"])
        totals = [[e.var(0.0, VF) for _ in range(CHAINS)] for _ in range(group)]

        def add(place: Val, chain: int) -> None:
            for block in range(group):
                totals[block][chain].set(term(place, block, totals[block][chain].get()))

        whole = key_dim // CHAINS * CHAINS
        with e.loop(0, whole, CHAINS) as i:
            for chain in range(CHAINS):
                add(i + chain, chain)
        for chain in range(key_dim % CHAINS):
            add(e.i64(whole + chain), chain)
        sums = [[variable.get() for variable in block] for block in totals]
        return [(a + b) + (c + d) for a, b, c, d in sums]

    def _column(self, block: int) -> Val:
        """The first value dim of a block (i64)."""
        return (self.part * int(self.config["group"]) + block) * LANES

    def _left(self, block: int) -> Val:
        """Lanes of a block that are value dims."""
        return self.e.tail_mask(self.e.like(int(self.config["value_dim"]), self.part) - self._column(block))

    def _value(self, row: Val, block: int) -> Val:
        e, value_dim = self.e, int(self.config["value_dim"])
        keys = 2 * int(self.config["key_heads"]) * int(self.config["key_dim"])
        address = self._mixed(row, self.head * value_dim + keys + self._column(block))
        return e.load(address, VF) if value_dim % LANES == 0 else e.masked_load(address, VF, self._left(block))

    def _store(self, row: Val, block: int, value: Val) -> None:
        e, value_dim, heads = self.e, int(self.config["value_dim"]), int(self.config["value_heads"])
        address = e.at(self.out, (row * heads + self.head) * value_dim + self._column(block), F32)
        if value_dim % LANES == 0:
            e.store(value, address)
        else:
            e.masked_store(value, address, self._left(block))
