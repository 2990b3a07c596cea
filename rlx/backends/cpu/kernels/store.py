"""The quantised store that kernels share: a block of float32 in one of the formats of `ACTIVATION_TERMS`.

The formats are in `core/dtype.py`, and what they hold in `core/storage.py`, to which this is equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from rlx.backends.cpu.emit import F32, I8, I16, LANES, VF, VI, Emit, Val, ir, vec
from rlx.core.dtype import ACTIVATION_TERMS, DType, bf16_act, q8_act, q8k_act

ValuesAt: TypeAlias = Callable[[Val], Val]
"""Gives 16 float32 of a block, from an element (i64, a multiple of 16) on."""

TOGETHER = 4
"""Blocks that `store_quantised_blocks` takes at once."""


def store_quantised(e: Emit, values_at: ValuesAt, address: Val, dtype: DType) -> None:
    """One block in all terms of a format, each of which holds what the one before left over."""
    terms = ACTIVATION_TERMS[dtype.name]
    if dtype == bf16_act:
        for start in range(0, dtype.block_size, LANES):
            e.store(e.float_to_bf16(values_at(e.i64(start))), address, start)
        return
    if dtype.block_size == q8_act.block_size:
        values = [values_at(e.i64(start)) for start in (0, LANES)]
        for term in range(terms):
            values = _store_term(e, values, e.at(address, term * q8_act.block_bytes))
        return
    # too many for registers, and too much code to have it once for each vector
    scratch = e.local(F32, dtype.block_size)
    with e.loop(0, dtype.block_size, LANES) as start:
        e.store(values_at(start), scratch, start)
    for term in range(terms):
        _store_large_term(e, scratch, e.at(address, term * q8k_act.block_bytes), keep_rest=term + 1 < terms)


def store_quantised_blocks(e: Emit, values_at: ValuesAt, address: Val, count: Val, dtype: DType) -> None:
    """`count` blocks (i64) side by side; `values_at` takes an element from the first block on.

    Blocks of `q8_act` go four at a time: most of a block's work is a handful of reductions and divisions, which four
    of them can share.
    """
    whole = count - count % TOGETHER if dtype == q8_act else e.i64(0)
    with e.loop(0, whole, TOGETHER) as block:
        places = [e.at(address, (block + i) * dtype.block_bytes) for i in range(TOGETHER)]
        firsts = [(block + i) * dtype.block_size for i in range(TOGETHER)]
        _store_four(e, [[values_at(first + start) for start in (0, LANES)] for first in firsts], places)
    with e.loop(whole, count) as block:

        def of_block(k: Val, first: Val = block * dtype.block_size) -> Val:
            return values_at(first + k)

        store_quantised(e, of_block, e.at(address, block * dtype.block_bytes), dtype)


def _store_four(e: Emit, blocks: Sequence[Sequence[Val]], places: Sequence[Val]) -> None:
    """Four blocks of `q8_act`, with the bits of `_store_term`."""
    largest = [e.maximum(*(_magnitude(value) for value in values)) for values in blocks]
    scales, inverses = _scale(e, _reduce_four(e, largest, e.maximum))
    sums: list[Val] = []
    for index, (values, place) in enumerate(zip(blocks, places, strict=True)):
        rounded = [_round(e, value, e.splat(e.lane(inverses, index))) for value in values]
        for half, quants in enumerate(rounded):
            e.store(quants.trunc(I8), e.at(place, half * LANES))
        sums.append(rounded[0] + rounded[1])
    totals = _reduce_four(e, sums, lambda a, b: a + b)
    for offset, words in ((32, scales), (36, totals.to_float() * scales), (40, totals * -8)):
        for index, place in enumerate(places):
            e.store(e.lane(words, index), e.at(place, offset))


def _reduce_four(e: Emit, vectors: Sequence[Val], combine: Callable[[Val, Val], Val]) -> Val:
    """Four vectors of 16 to a vector of the four results; `combine` may be applied in any order."""

    def folded(left: Val, right: Val, low: Sequence[int]) -> Val:
        """Lanes `low` of every four, of `left` below 4 and of `right` from there on, with those two places higher."""
        orders = [
            [lane % 4 + lane // 4 * LANES + four + up for four in range(0, LANES, 4) for lane in low] for up in (0, 2)
        ]
        return combine(*(e.shuffle(left, right, order) for order in orders))

    pairs = [folded(vectors[0], vectors[1], (0, 4, 1, 5)), folded(vectors[2], vectors[3], (0, 4, 1, 5))]
    quarters = folded(pairs[0], pairs[1], (0, 1, 4, 5))
    halves = combine(e.part(quarters, 0, 8), e.part(quarters, 8, 8))
    return combine(e.part(halves, 0, 4), e.part(halves, 4, 4))


def _store_term(e: Emit, values: Sequence[Val], address: Val) -> list[Val]:
    """A term of `q8_act`; gives what the rounding left over."""
    scale, inverse = _scale(e, e.reduce(e.maximum(*(_magnitude(value) for value in values)), e.maximum))
    rounded = [_round(e, value, e.splat(inverse)) for value in values]
    for index, quants in enumerate(rounded):
        e.store(quants.trunc(I8), e.at(address, index * LANES))
    total = e.reduce(rounded[0] + rounded[1], lambda a, b: a + b)
    e.store(scale, e.at(address, 32))
    e.store(total.to_float(F32) * scale, e.at(address, 36))
    e.store(total * -8, e.at(address, 40))
    return [value - quants.to_float() * e.splat(scale) for value, quants in zip(values, rounded, strict=True)]


def _store_large_term(e: Emit, scratch: Val, address: Val, keep_rest: bool) -> None:
    """A term of `q8k_act` from the values in `scratch`, where the rest is put."""
    largest, chunks = e.var(0, VI), q8k_act.block_size // 32
    with e.loop(0, q8k_act.block_size, LANES) as start:
        largest.set(e.maximum(_magnitude(e.load(scratch, VF, start)), largest.get()))
    scale, inverse = _scale(e, e.reduce(largest.get(), e.maximum))
    inverse = e.splat(inverse)
    e.store(scale, e.at(address, 40 * chunks))
    with e.loop(0, chunks) as chunk:
        place, halves = e.at(address, chunk * 40), list[Val]()
        for half in range(2):
            start = chunk * 32 + half * LANES
            value = e.load(scratch, VF, start)
            quants = _round(e, value, inverse)
            e.store(quants.trunc(I8), e.at(place, half * LANES))
            if keep_rest:
                e.store(value - quants.to_float() * e.splat(scale), scratch, start)
            halves.append(e.reduce(quants, lambda a, b: a + b))
            e.store(halves[half] * -32, e.at(place, 32 + 4 * half))
            e.store(halves[half].trunc(I16), e.at(address, chunk * 4 + (40 * chunks + 20 + 2 * half)))
        e.store((halves[0] + halves[1]).trunc(I16), e.at(address, chunk * 2 + (40 * chunks + 4)))


def _magnitude(value: Val) -> Val:
    """|x| as an integer: magnitudes compare as integers, where not-a-number is larger than infinity."""
    return value.bitcast(VI) & 0x7FFFFFFF


def _scale(e: Emit, largest: Val) -> tuple[Val, Val]:
    """The scale of a block, and its inverse; `largest` may be a vector of those of several blocks.

    A block with a NaN or an infinity gets quants 0 and a scale that is not finite, so that the fault stays visible.
    """
    is_vector = isinstance(largest.type, ir.VectorType)
    magnitude = largest.bitcast(vec(F32, largest.type.count) if is_vector else F32)
    inverse = e.like(127.0, magnitude) / magnitude
    # infinite for a block of zeros or one below 3.8e-37: its quants are 0
    inverse = e.select(inverse < math.inf, inverse, e.like(0.0, inverse))
    return magnitude / 127.0, inverse


def _round(e: Emit, value: Val, inverse: Val) -> Val:
    """The quants of 16 values."""
    scaled = value * inverse
    # not-a-number compares false, and has no integer
    return e.round_even(e.select(e.abs(scaled) <= 127.5, scaled, 0.0)).to_int()
