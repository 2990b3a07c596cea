"""A tile of attention: many query rows that read the same keys and values, block by block, with an online softmax.

    for each block of positions (128)
      for each `rows` rows of the tile                      what a register tile takes
        scores  = queries x keys                            positions are lanes
        weights = 2^(scores - maximum), sums = sums * correction
        sums   += weights x values                          dims are lanes

In: rows of queries and what each of them sees (`lower` <= position < `upper`, both ascending from row to row), pages of
keys and values by their logical number. Out: rows of results. A row is reduced in one order (dims in order for a score;
a fixed tree over a block for its sum of weights; positions in order for the values), and what it does not see adds
exactly nothing, so its bits depend neither on the tile nor on what else is in it. The scores are in units of log2 e.
Source of the recurrence: Milakov and Gimelshein 2018; of the tiling: Dao et al. 2022. Who calls it: `attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlx.backends.cpu import vmath
from rlx.backends.cpu.emit import F32, I16, I32, I64, LANES, VF, Emit, Val, Var, vec
from rlx.backends.cpu.kernels.attention_operands import Operands
from rlx.backends.cpu.kernels.store import store_quantised
from rlx.backends.cpu.target import Target
from rlx.core.dtype import DType, f32

BLOCK = 128
"""Positions whose weights are made at once: enough to hide the latency of a maximum, a sum and a correction."""
MOST_ROWS = 64
SUMS = 4096
"""Most rows of a tile, and most float32 of results they hold: a tile has to leave the caches to keys and values."""
NEG_INFINITY = float("-inf")


def register_tile(target: Target) -> tuple[int, int]:
    """Rows and vectors of 16 lanes whose sums stay in registers, with room for what they are multiplied by."""
    return {512: (8, 2), 256: (4, 1)}.get(target.vector_bits, (2, 1))


class Pages(Protocol):
    """Where keys and values come from."""

    def keys(self, logical: Val) -> Val:
        """The address of a page of keys."""
        ...

    def values(self, logical: Val) -> Val:
        """The address of a page of values."""
        ...

    def fetch(self, first: Val, stop: Val) -> None:
        """Called before the pages first..stop-1, of one block, are read."""
        ...

    def coming(self, logical: Val) -> tuple[Val, ...]:
        """The addresses to prefetch for a page that is read later, laid out like it."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """What is static of an attention: sizes, the factor and cap of the scores, and whether rows have a lower bound."""

    head_dim: int
    page: int
    scale: float
    softcap: float
    has_lower: bool

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by before the products."""
        return self.scale / self.softcap if self.softcap > 0 else self.scale * math.log2(math.e)

    @property
    def block_pages(self) -> int:
        """Pages of a block."""
        return max(1, BLOCK // self.page)

    @property
    def block(self) -> int:
        """Positions of a block."""
        return self.block_pages * self.page


def vector_runs(head_dim: int, most: int) -> Iterator[tuple[int, list[int]]]:
    """head_dim as runs of up to `most` vectors: (start, lane counts); the rest in powers of two."""
    lanes: list[int] = [LANES] * (head_dim // LANES)
    rest, size = head_dim % LANES, LANES // 2
    while rest:
        if rest >= size:
            lanes.append(size)
            rest -= size
        size //= 2
    start = 0
    for i in range(0, len(lanes), most):
        yield start, lanes[i : i + most]
        start += sum(lanes[i : i + most])


class Tile:
    """The scratch memory of tiles of one form, and the code that works on it.

    Args:
        rows: rows of the register tile.
        most: most rows of a tile, a multiple of `rows`.
    """

    def __init__(self, e: Emit, scores: Scores, operands: Operands, rows: int, most: int) -> None:
        self.e, self.scores, self.operands, self.rows, self.most = e, scores, operands, rows, most
        self.prefetches = most == rows  # more rows have work enough on a page for the next one to arrive
        self.vectors = register_tile(e.target)[1]
        self.lowers, self.uppers = e.local(I64, most), e.local(I64, most)
        self.queries = e.local(I16 if operands.dots else F32, most * scores.head_dim)
        self.sums = e.local(F32, most * scores.head_dim)
        self.maximums, self.totals = e.local(F32, most), e.local(F32, most)
        self.corrections = e.local(F32, rows)
        self.raw = e.local(F32, rows * scores.block)
        self.weights = e.local(I16, rows * scores.block) if operands.dots else self.raw

    def set_row(self, row: Val, query: Val, lower: Val | None, upper: Val, sink: Val | None = None) -> None:
        """Begin a row: the address of its query (float32), the positions it sees, and the score of its sink (f32)."""
        e, head_dim = self.e, self.scores.head_dim
        if lower is not None:
            e.store(lower, self.lowers, row)
        e.store(upper, self.uppers, row)
        # a sink is a first key, of weight 1 and without a value
        e.store(e.typed(NEG_INFINITY, F32) if sink is None else sink * math.log2(math.e), self.maximums, row)
        e.store(e.typed(0.0 if sink is None else 1.0, F32), self.totals, row)
        base = row * head_dim
        for start, (lanes,) in vector_runs(head_dim, 1):
            value = e.load(query, vec(F32, lanes), e.i64(start), F32) * self.scores.query_factor
            self.operands.keep(e, [value], self.queries, base + start)
            e.store(e.like(0.0, value), e.at(self.sums, base + start, F32))

    def finish_row(self, row: Val, out: Val, dtype: DType) -> None:
        """Divide by the sum of the weights and write the row, as float32 or in blocks of an activation format."""
        e, head_dim = self.e, self.scores.head_dim
        total = e.load(self.totals, F32, row)

        def result(start: Val, lanes: int) -> Val:
            value = e.load(e.at(self.sums, row * head_dim + start, F32), vec(F32, lanes))
            # adding 0 makes +0 of -0: the sign of a zero is the one thing that adding nothing may change
            return value / e.splat(total, lanes) + 0.0

        if dtype == f32:
            for start, (lanes,) in vector_runs(head_dim, 1):
                e.store(result(e.i64(start), lanes), e.at(out, start, F32))
            return
        with e.loop(0, head_dim // dtype.block_size) as block:
            first = block * dtype.block_size
            target = e.at(out, block * dtype.block_bytes)
            store_quantised(e, lambda k: result(first + k, LANES), target, dtype)

    def run(self, pages: Pages, count: Val) -> None:
        """Attend with the rows 0..count-1; `count` is a multiple of `rows`."""
        e, block = self.e, self.scores.block
        lowest, highest = self._bounds(e.i64(0), count)
        with e.loop(lowest // block, (highest - 1) // block + 1) as number:
            base = number * block
            first, stop = e.maximum(lowest, base), e.minimum(highest, base + block)
            pages.fetch(first // self.scores.page, (stop - 1) // self.scores.page + 1)
            with e.loop(0, count, self.rows) as start:
                lower, upper = self._bounds(start, start + self.rows)
                begin, end = e.maximum(lower, base), e.minimum(upper, base + block)
                with e.when(begin < end):
                    self._multiply_keys(pages, start, base, begin, end)
                    self._soften(start, base)
                    self._add_values(pages, start, base, begin, end)

    def _bounds(self, start: Val, stop: Val) -> tuple[Val, Val]:
        """The positions that any of the rows start..stop-1 sees."""
        e = self.e
        lower = e.load(self.lowers, I64, start) if self.scores.has_lower else e.i64(0)
        return lower, e.load(self.uppers, I64, stop - 1)

    def _common(self, start: Val, begin: Val, end: Val) -> tuple[Val, Val]:
        """The positions of begin..end-1 that all of the rows of a register tile see."""
        e = self.e
        first = begin
        if self.scores.has_lower:
            first = e.minimum(e.maximum(begin, e.load(self.lowers, I64, start + (self.rows - 1))), end)
        return first, e.maximum(first, e.minimum(end, e.load(self.uppers, I64, start)))

    @contextmanager
    def _pages_of(self, begin: Val, end: Val) -> Generator[tuple[Val, Val, Val]]:
        """For each page that has positions of begin..end-1: its number, and those positions within it."""
        e, page = self.e, self.scores.page
        with e.loop(begin // page, (end + (page - 1)) // page) as logical:
            origin = logical * page
            yield logical, e.maximum(begin - origin, 0), e.minimum(end - origin, page)

    # ---- queries x keys ----

    def _multiply_keys(self, pages: Pages, start: Val, base: Val, begin: Val, end: Val) -> None:
        """Scores of the pages that hold begin..end-1 into `raw`, by row and position of the block."""
        e, page, head_dim = self.e, self.scores.page, self.scores.head_dim
        queries = e.at(self.queries, start * head_dim, I16 if self.operands.dots else F32)
        with e.loop(begin // page, (end + (page - 1)) // page) as logical:
            keys = pages.keys(logical)
            coming = self._coming(pages, logical)
            for first in range(0, page // LANES, self.vectors):
                vectors = range(first, min(first + self.vectors, page // LANES))
                sums = [[e.var(0.0, VF) for _ in vectors] for _ in range(self.rows)]
                with e.loop(0, head_dim // self.operands.step) as step:
                    self._prefetch(coming, step * page + first * LANES, len(vectors))
                    self._key_step(keys, queries, step, first, sums)
                for row, totals in enumerate(sums):
                    for vector, total in zip(vectors, totals, strict=True):
                        at = row * self.scores.block + vector * LANES
                        e.store(total.get(), self.raw, logical * page - base + at)

    def _key_step(self, keys: Val, queries: Val, step: Val, first: int, sums: Sequence[Sequence[Var]]) -> None:
        e, operands, head_dim = self.e, self.operands, self.scores.head_dim
        word = step * self.scores.page
        stored = [operands.load(e, keys, word + (first + v) * LANES, LANES) for v in range(len(sums[0]))]
        for row, totals in enumerate(sums):
            scalars = operands.scalars(e, queries, step * operands.step + row * head_dim)
            for parts, total in zip(stored, totals, strict=True):
                total.set(operands.multiply_add(e, parts, scalars, total.get()))

    def _coming(self, pages: Pages, logical: Val) -> tuple[Val, ...]:
        """The pages that are read a block later."""
        if not self.prefetches:
            return ()
        _, upper = self._bounds(self.e.i64(0), self.e.i64(self.rows))
        later = self.e.minimum(logical + self.scores.block_pages, (upper - 1) // self.scores.page)
        return pages.coming(later)

    def _prefetch(self, pages: Sequence[Val], word: Val, vectors: int) -> None:
        """Ask for what lies at this place of other pages: they are too short for the processor to see them coming."""
        for address in pages:
            for line in range(0, vectors * LANES * self.operands.word_bytes, 64):
                self.e.prefetch(self.e.at(self.operands.address(self.e, address, word), line))

    # ---- softmax ----

    def _soften(self, start: Val, base: Val) -> None:
        """Scores of the block to weights, and the factor of what each row has summed before."""
        e, block = self.e, self.scores.block
        first, stop = self._common(start, base, base + block)
        with e.either((stop - first).equals(block)) as (whole, part):
            with whole, e.loop(0, self.rows) as row:
                self._soften_row(start + row, row, base, masked=False)
            with part, e.loop(0, self.rows) as row:
                self._soften_row(start + row, row, base, masked=True)

    def _soften_row(self, row: Val, index: Val, base: Val, *, masked: bool) -> None:
        e, block = self.e, self.scores.block
        scores = [e.load(self.raw, VF, index * block + v) for v in range(0, block, LANES)]
        if self.scores.softcap > 0:
            factor = self.scores.softcap * math.log2(math.e)
            scores = [vmath.tanh(e, score) * factor for score in scores]
        if masked:
            scores = self._masked(scores, row, base)
        old = e.load(self.maximums, F32, row)
        new = e.maximum(old, e.reduce(_tree(scores, e.maximum), e.maximum))
        # nothing seen yet: any shift will do, and every weight is 0
        shift = e.select(new > NEG_INFINITY, new, e.like(0.0, new))
        correction = e.lane(vmath.exp2_of_negative(e, e.splat(old - shift)), 0)
        weights = [vmath.exp2_of_negative(e, score - e.splat(shift)) for score in scores]
        # summed as they were rounded, so that they come to 1
        kept = self.operands.keep(e, weights, self.weights, index * block)
        total = e.reduce(_tree(kept, _add), _add)
        e.store(e.fma(e.load(self.totals, F32, row), correction, total), self.totals, row)
        e.store(new, self.maximums, row)
        e.store(correction, self.corrections, index)

    def _masked(self, scores: Sequence[Val], row: Val, base: Val) -> list[Val]:
        e = self.e

        def bound(bounds: Val) -> Val:
            return e.splat((e.load(bounds, I64, row) - base).trunc(I32))

        upper = bound(self.uppers)
        lower = bound(self.lowers) if self.scores.has_lower else None
        result: list[Val] = []
        for number, score in enumerate(scores):
            place = e.table(I32, range(number * LANES, (number + 1) * LANES))
            seen = place < upper
            if lower is not None:
                seen = seen & (place >= lower)
            result.append(e.select(seen, score, NEG_INFINITY))
        return result

    # ---- weights x values ----

    def _add_values(self, pages: Pages, start: Val, base: Val, begin: Val, end: Val) -> None:
        """Add the values: rows one by one where they do not all see a position, together where they do."""
        e, step = self.e, self.operands.step
        with e.loop(0, self.rows) as row:
            self._rescale(start + row, e.load(self.corrections, F32, row))
        first, stop = self._common(start, begin, end)
        # whole words
        first = (first + (step - 1)) // step * step
        stop = e.maximum(first, stop // step * step)
        if self.scores.has_lower:
            with e.loop(0, self.rows) as row:
                self._add_alone(pages, start, row, base, (begin, e.minimum(first, end)))
        with e.when(first < stop):
            for offset, lanes in vector_runs(self.scores.head_dim, self.vectors):
                self._add_together(pages, start, base, (first, stop), offset, lanes)
        with e.when(stop < end), e.loop(0, self.rows) as row:
            self._add_alone(pages, start, row, base, (stop, end))

    def _rescale(self, row: Val, correction: Val) -> None:
        e, head_dim = self.e, self.scores.head_dim
        for start, (lanes,) in vector_runs(head_dim, 1):
            address = e.at(self.sums, row * head_dim + start, F32)
            e.store(e.load(address, vec(F32, lanes)) * e.splat(correction, lanes), address)

    def _add_together(
        self, pages: Pages, start: Val, base: Val, bounds: tuple[Val, Val], offset: int, lanes: Sequence[int]
    ) -> None:
        """All rows of a register tile, for a run of dims."""
        e, operands, head_dim, block = self.e, self.operands, self.scores.head_dim, self.scores.block
        offsets = [offset + sum(lanes[:i]) for i in range(len(lanes))]
        rows = [e.at(self.sums, (start + row) * head_dim, F32) for row in range(self.rows)]
        sums = [
            [e.var(e.load(e.at(row, at, F32), vec(F32, n))) for at, n in zip(offsets, lanes, strict=True)]
            for row in rows
        ]
        with self._pages_of(*bounds) as (logical, first, stop):
            values = pages.values(logical)
            slot = logical * self.scores.page - base
            with e.loop(first // operands.step, stop // operands.step) as number:
                stored = [
                    operands.load(e, values, number * head_dim + at, n) for at, n in zip(offsets, lanes, strict=True)
                ]
                for row, totals in enumerate(sums):
                    weights = operands.scalars(e, self.weights, slot + number * operands.step + row * block)
                    for parts, total in zip(stored, totals, strict=True):
                        total.set(operands.multiply_add(e, parts, weights, total.get()))
        for row, totals in zip(rows, sums, strict=True):
            for at, total in zip(offsets, totals, strict=True):
                e.store(total.get(), e.at(row, at, F32))

    def _add_alone(self, pages: Pages, start: Val, index: Val, base: Val, bounds: tuple[Val, Val]) -> None:
        """One row, for the positions of `bounds` that it sees: of no others is anything read into its sums."""
        e, operands, head_dim = self.e, self.operands, self.scores.head_dim
        row = start + index
        begin, end = bounds[0], e.minimum(bounds[1], e.load(self.uppers, I64, row))
        if self.scores.has_lower:
            begin = e.maximum(begin, e.load(self.lowers, I64, row))
        runs = [(at, lanes) for at, (lanes,) in vector_runs(head_dim, 1)]
        address = e.at(self.sums, row * head_dim, F32)
        with e.when(begin < end):
            sums = [e.var(e.load(e.at(address, at, F32), vec(F32, lanes))) for at, lanes in runs]
            with self._pages_of(begin, end) as (logical, first, stop):
                values = pages.values(logical)
                slot = logical * self.scores.page - base + index * self.scores.block
                with e.loop(first // operands.step, (stop + (operands.step - 1)) // operands.step) as number:
                    position = number * operands.step
                    weights = operands.scalars(e, self.weights, slot + position)
                    kept = self._word_mask(position, first, stop) if operands.step > 1 else None
                    for (at, lanes), total in zip(runs, sums, strict=True):
                        stored = operands.load(e, values, number * head_dim + at, lanes, kept)
                        total.set(operands.multiply_add(e, stored, weights, total.get()))
            for (at, _), total in zip(runs, sums, strict=True):
                e.store(total.get(), e.at(address, at, F32))

    def _word_mask(self, position: Val, first: Val, stop: Val) -> Val:
        """The halves of a pair whose positions are in first..stop-1."""
        e = self.e
        low = e.select(position >= first, e.typed(0xFFFF, I32), 0)
        return low | e.select(position + 1 < stop, e.typed(-65536, I32), 0)


def _add(a: Val, b: Val) -> Val:
    return a + b


def _tree(values: Sequence[Val], combine: Callable[[Val, Val], Val]) -> Val:
    """Neighbours combined, then neighbours of these, and so on."""
    values = list(values)
    while len(values) > 1:
        pairs = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(values) // 2 * 2 :]
    return values[0]
