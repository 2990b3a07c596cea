"""Products of float rows with panels of weights: the loops and register tiles that linear and matmul share.

A panel is 16 outputs over a range of k: 16 lanes for each 32-bit word of a row, which is one float32 or a pair of
bfloat16. Two loops, which give the same bits, since each output is one chain in the order of k (what is stored between
two blocks of k is the float32 that was in the register):

    `stream`, few rows: for some groups of 16 outputs, for each word of k: a multiply-add for each row
    `blocked`, many:    for 96 rows, for 512 words of k (the rows are copied, so that they lie apart in the first-level
                        cache), for a few panels, for a register tile of rows: load, multiply-add over the words, store

Weights then come from memory once for each 96 rows, and stay in the second-level cache while tiles of rows pass.
Next: `linear_float.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from rlx.backends.cpu.emit import F32, I32, LANES, VF, VI, Emit, Val, Var
from rlx.backends.cpu.target import Target

Words: TypeAlias = AbstractContextManager[list[tuple[Val, list[Val]]]]
WORD = 4
BLOCK_WORDS = 512
"""With 256, taking up totals that lie far apart costs 5%."""
BLOCK_ROWS = 96
ROW_STRIDE = BLOCK_WORDS * WORD + 64
"""Bytes between rows that were copied. A power of two would put all of them into one set of the cache."""
AHEAD = 2048
"""Bytes that weights are asked for before they are used: a core alone needs it to fill its queue of misses."""


@dataclass(frozen=True, slots=True)
class WordProduct:
    """How 16 words of a panel meet one word of a row."""

    word: Callable[[Emit, Val], Val]
    panel: Callable[[Emit, Val], Val]
    add: Callable[[Emit, Val, Val, Val], Val]


def _add_pair(e: Emit, total: Val, panel: Val, word: Val) -> Val:
    """Both products of a pair of bfloat16, with one instruction where the target has it."""
    if e.target.bf16:
        return e.dot_bf16(total, panel, word)
    halves = [((words << 16).bitcast(VF), (words & -65536).bitcast(VF)) for words in (panel, word)]
    for weight, x in zip(*halves, strict=True):
        total = e.fma(weight, x, total)
    return total


FLOAT32 = WordProduct(
    lambda e, address: e.splat(e.load(address, F32)),
    lambda e, address: e.load(address, VF),
    lambda e, total, panel, word: e.fma(panel, word, total),
)
BFLOAT16 = WordProduct(
    lambda e, address: e.splat(e.load(address, I32)),
    lambda e, address: e.load(address, VI),
    _add_pair,
)


@dataclass(frozen=True, slots=True)
class Registers:
    """What fits the registers of a target.

    Attributes:
        groups: groups of 16 outputs of a tile.
        rows: rows of the tiles of `blocked`, the largest first.
        streams: rows of the tiles of `stream`, and how many groups each has.
    """

    groups: int
    rows: tuple[int, ...]
    streams: tuple[tuple[int, int], ...]


def registers(target: Target) -> Registers:
    """The tiles for a target: accumulators, the words of a panel and one of a row, and no spills."""
    if target.vector_bits == 512:
        return Registers(2, (12, 8, 4), ((1, 4), (2, 4), (4, 4), (8, 2)))
    if target.vector_bits == 256:
        return Registers(1, (6, 4, 2), ((1, 4), (2, 2), (4, 1)))
    if target.triple.startswith("x86"):  # 16 registers of 128 bits
        return Registers(1, (2, 1), ((1, 2), (2, 1)))
    return Registers(1, (6, 4, 2), ((1, 4), (2, 2), (4, 1)))


@dataclass(frozen=True, slots=True)
class Operands:
    """A product: `rows` rows of `words` words with the groups of 16 outputs from `begin` to `end`.

    Attributes:
        row: (row) to the address of its first word.
        panel: (group, first word, words, slot) to the address of those words of a panel; `slot` is the panel's place
            among those that are used together, for panels that have to be made.
        load: (row, group) to the totals that `store` put there.
        store: (totals, row, group, is_last) for a range of k; `is_last` (i1) when it was the last one.
    """

    rows: Val
    words: Val
    begin: Val
    end: Val
    row: Callable[[Val], Val]
    panel: Callable[[Val, Val, Val, int], Val]
    load: Callable[[Val, Val], Val]
    store: Callable[[Val, Val, Val, Val], None]


def blocked(e: Emit, product: WordProduct, operands: Operands) -> None:
    """The loops over blocks of rows and of k."""
    o, tiles = operands, registers(e.target)
    copy = e.local(I32, BLOCK_ROWS * ROW_STRIDE // WORD)
    with e.loop(0, o.rows, BLOCK_ROWS) as first:
        count = e.minimum(o.rows - first, BLOCK_ROWS)
        # once for no words at all, which gives zeros
        with e.loop(0, e.maximum(o.words, 1), BLOCK_WORDS) as start:
            words = e.minimum(o.words - start, BLOCK_WORDS)
            # the last row again for what the last tile takes too much
            with e.loop(0, count + (tiles.rows[0] - 1)) as row, e.when(row < BLOCK_ROWS):
                source = o.row(first + e.minimum(row, count - 1))
                _copy_words(e, e.at(source, start, I32), e.at(copy, row * ROW_STRIDE), words)
            with e.loop(o.begin, o.end, tiles.groups) as group:
                groups = [e.minimum(group + i, o.end - 1) for i in range(tiles.groups)]
                panels = [o.panel(g, start, words, slot) for slot, g in enumerate(groups)]
                _row_tiles(e, tiles.rows, _Block(product, o, copy, first, count, start, words, groups, panels))


@dataclass(frozen=True, slots=True)
class _Block:
    """Where `blocked` is. The last groups of a range may be one twice, which then gets the same totals twice."""

    product: WordProduct
    operands: Operands
    copy: Val
    first: Val
    count: Val
    start: Val
    words: Val
    groups: Sequence[Val]
    panels: Sequence[Val]


def _copy_words(e: Emit, source: Val, target: Val, words: Val) -> None:
    whole = words - words % LANES
    with e.loop(0, whole, LANES) as i:
        e.store(e.load(source, VI, i), target, i)
    with e.loop(whole, words) as i:
        e.store(e.load(source, I32, i), target, i)


def _row_tiles(e: Emit, sizes: Sequence[int], block: _Block) -> None:
    """Tiles of the largest size while more rows are left than the next one takes."""
    done = e.var(e.i64(0))
    for size, smaller in zip(sizes, (*sizes[1:], 0), strict=True):
        with e.loop_while(lambda smaller=smaller: block.count - done.get() > smaller):
            _tile(e, size, block, done.get())
            done.set(done.get() + size)


def _tile(e: Emit, size: int, block: _Block, row: Val) -> None:
    """The totals of some rows and groups, over a range of k."""
    o = block.operands
    places = [(block.first + e.minimum(row + r, block.count - 1), g) for r in range(size) for g in block.groups]
    totals = [e.var(0.0, VF) for _ in places]
    with e.when(block.start > 0):
        for total, place in zip(totals, places, strict=True):
            total.set(o.load(*place))
    base = e.at(block.copy, row * ROW_STRIDE)
    with e.loop(0, block.words) as word:
        panels = [block.product.panel(e, e.at(panel, word * (LANES * WORD))) for panel in block.panels]
        here = e.at(base, word, I32)
        _add_words(e, block.product, [e.at(here, r * ROW_STRIDE) for r in range(size)], panels, totals)
    is_last = block.start + block.words >= o.words
    for total, place in zip(totals, places, strict=True):
        o.store(total.get(), *place, is_last)


def _add_words(
    e: Emit, product: WordProduct, rows: Sequence[Val], panels: Sequence[Val], totals: Sequence[Var]
) -> None:
    """One word of every row with one of every panel; totals row by row."""
    each = iter(totals)
    for row in rows:
        word = product.word(e, row)
        for panel in panels:
            total = next(each)
            total.set(product.add(e, total.get(), panel, word))


@dataclass(frozen=True, slots=True)
class Stream:
    """What `stream` reads: groups of weights as they lie in memory.

    Attributes:
        rows: how many rows there are, at most the largest of `registers(target).streams`.
        begin, end: groups of 16 outputs.
        row: (row) to the address of its first word.
        group: (group) to the address of its weights.
        walk: (groups' addresses) a loop that gives, for each word of k, the word's number and 16 words of each group.
        store: (total, row, group).
    """

    rows: Val
    begin: Val
    end: Val
    row: Callable[[Val], Val]
    group: Callable[[Val], Val]
    walk: Callable[[Sequence[Val]], Words]
    store: Callable[[Val, Val, Val], None]


def stream(e: Emit, product: WordProduct, operands: Stream, sizes: Sequence[tuple[int, int]]) -> None:
    """The smallest tile that takes all rows, walked along the groups; the last row and group may be there twice."""
    o, smaller = operands, 0
    for size, together in sizes:
        with e.when((o.rows > smaller) & (o.rows <= size)):
            rows = [e.minimum(e.i64(r), o.rows - 1) for r in range(size)]
            sources = [o.row(r) for r in rows]
            with e.loop(o.begin, o.end, together) as group:
                groups = [e.minimum(group + i, o.end - 1) for i in range(together)]
                totals = [e.var(0.0, VF) for _ in range(size * together)]
                with o.walk([o.group(g) for g in groups]) as steps:
                    for word, panels in steps:
                        _add_words(e, product, [e.at(source, word, I32) for source in sources], panels, totals)
                for total, (r, g) in zip(totals, [(r, g) for r in rows for g in groups], strict=True):
                    o.store(total.get(), r, g)
        smaller = size
