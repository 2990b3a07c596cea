"""The integer form of `linear`: 16 outputs for a few rows of int8 activations, in one order whatever the rows.

With u the unsigned bytes of a weight and x the activations, sums of integers being exact:

    formats in blocks of 32      total = fma(sum((u - zero) x), scale * x_scale, total)
                                 total = fma(minimum, x_sum, total)                          where there is one

    super-blocks of 256          value = scale * sum over sub-blocks of (scales[s] * sum((u - zero) x))
                                 value = fma(sum of (minimums[s] * sum(x)), minimum, value)  where there are any
                                 total = fma(value, x_scale, total)

The zero goes into the sums as what they start with, `-zero * sum(x)`, which the activations bring along. What limits
these loops on x86 are the two pipes that multiply: a chunk of 32 k takes 8 dot products for each row, and whatever else
multiplies comes on top of them (2 and 3 for blocks of 32; per chunk of a super-block 1.4 to 2.4). Conversions, shifts
and additions go beside them for free. The largest sum of a super-block is Q6_K's, 256 * 128 * 32 * 127 < 2^31.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from rlx.backends.cpu.dot import Rows, Words, dot_words
from rlx.backends.cpu.emit import F32, I32, VF, VI, Emit, Val, Var
from rlx.backends.cpu.kernels.byte_ops import dot2, pair16
from rlx.backends.cpu.kernels.formats_blocks import CHUNK, BlockLayout, IntegerChunk
from rlx.core.dtype import ACTIVATION_TERMS, DType, q8_act

SCALE, SUM, START = 32, 36, 40
"""Bytes of a block of `q8_act` before its scale, its sum, and -8 times the sum of its quants."""
LARGE_SCALE, SUMS_OF_32, SUMS_OF_16 = 320, 324, 340
"""Bytes of a block of `q8k_act` before its scale and its int16 sums."""
CHUNK_BYTES = 40
"""Bytes of a chunk in such a block: the quants, then -32 times the sums of both halves."""
PAIRED_LEVEL = 32767 // (16 * 127)
"""The largest level whose sums over 16 k fit int16, so that one instruction scales two of them."""


def integer_tile(
    activation: DType, layout: BlockLayout, e: Emit, x: Sequence[Val], weight: Val, blocks: Val
) -> list[Val]:
    """16 outputs of each row.

    Args:
        activation: the format of the rows.
        layout: of the weights.
        e: the emitter.
        x: addresses of the rows.
        weight: address of a group of 16 outputs.
        blocks: of the weight, in a row (i64).
    """
    terms, stride = ACTIVATION_TERMS[activation.name], blocks * activation.block_bytes
    totals = [e.var(0.0, VF) for _ in x]
    if activation.block_size == q8_act.block_size:
        with e.loop(0, blocks) as block:
            rows = _rows_of_block(e, activation, x, block)
            address = e.at(weight, block * layout.block_bytes)
            chunk = layout.integer(e, layout.place(e, address, e.i64(0)))
            for term in range(terms):
                _add_chunk(e, layout, chunk, Rows(rows[term::terms], stride), totals)
    else:
        with e.loop(0, blocks) as block:
            rows = _rows_of_block(e, activation, x, block)
            values = _super_block(e, layout, Rows(rows, stride), e.at(weight, block * layout.block_bytes))
            for index, (row, value) in enumerate(zip(rows, values, strict=True)):
                total = totals[index // terms]
                total.set(e.fma(value, e.splat(e.load(e.at(row, LARGE_SCALE), F32)), total.get()))
    return [total.get() for total in totals]


def _rows_of_block(e: Emit, activation: DType, x: Sequence[Val], block: Val) -> list[Val]:
    """The addresses of a block of all rows, and of all terms of each."""
    terms, offset = ACTIVATION_TERMS[activation.name], block * activation.block_bytes
    term_bytes = activation.block_bytes // terms
    return [e.at(e.at(row, offset), term * term_bytes) for row in x for term in range(terms)]


def _start(e: Emit, row: Val, offset: int, factor: float) -> Val:
    """What sums start with, from the activations' own, which are for another zero; the factor is a power of two."""
    start = e.load(e.at(row, offset), I32)
    return e.splat(start * int(factor) if factor >= 1 else start.shift_right_signed(round(1 / factor).bit_length() - 1))


def _add_chunk(e: Emit, layout: BlockLayout, chunk: IntegerChunk, x: Rows, totals: Sequence[Var]) -> None:
    """A chunk that has one scale, and perhaps a minimum."""
    zero, scales, rows = e.typed(0, VI), chunk.scales, x.addresses
    starts = [_start(e, row, START, chunk.zero // 8) if chunk.zero else zero for row in rows]
    for row, integer, total in zip(rows, _dots(e, layout, chunk.words, x, starts), totals, strict=True):
        x_scale = e.splat(e.load(e.at(row, SCALE), F32))
        result = e.fma(integer.to_float(), scales.scale * x_scale, total.get())
        if scales.minimum is not None:
            result = e.fma(scales.minimum, e.splat(e.load(e.at(row, SUM), F32)), result)
        total.set(result)


def _super_block(e: Emit, layout: BlockLayout, rows: Rows, weight: Val) -> list[Val]:
    """A super-block times rows, but for the rows' scales."""
    sums = [e.var(0, VI) for _ in rows.addresses]
    with e.loop(0, layout.chunks) as index:
        chunk = layout.integer(e, layout.place(e, weight, index))
        x = Rows([e.at(row, index * CHUNK_BYTES) for row in rows.addresses], rows.stride)
        scale_chunk = _scale_whole if len(chunk.scales.scales) == 1 else _scale_halves
        scale_chunk(e, layout, chunk, x, sums)
    scales = layout.scales(e, layout.place(e, weight, e.i64(0)))
    values = [total.get().to_float() * scales.scale for total in sums]
    if scales.minimum is None:
        return values
    offsets = _sum_minimums(e, layout, rows.addresses, weight)
    return [e.fma(offset.to_float(), scales.minimum, value) for offset, value in zip(offsets, values, strict=True)]


def _sum_minimums(e: Emit, layout: BlockLayout, rows: Sequence[Val], weight: Val) -> list[Val]:
    """The sums of the integer minimums times the activations below them, two at a time; empty where there are none."""
    minimums = [layout.scales(e, layout.place(e, weight, e.i64(index))).minimums for index in range(layout.chunks)]
    flat = [minimum for of_chunk in minimums for minimum in of_chunk]
    first = SUMS_OF_32 if len(flat) == len(minimums) else SUMS_OF_16
    pairs = [pair16(low, high) for low, high in zip(islice(flat, 0, None, 2), islice(flat, 1, None, 2), strict=True)]
    sums = [e.typed(0, VI) for _ in rows]
    for index, pair in enumerate(pairs):
        x_sums = [e.splat(e.load(e.at(row, first + 4 * index), I32)) for row in rows]
        sums = [dot2(e, total, pair, x_sum) for total, x_sum in zip(sums, x_sums, strict=True)]
    return sums


def _scale_whole(e: Emit, layout: BlockLayout, chunk: IntegerChunk, x: Rows, sums: Sequence[Var]) -> None:
    """A chunk with one integer scale; `x` are its activations."""
    starts = [e.typed(0, VI)] * len(x.addresses)
    if chunk.zero:
        halves = [[_start(e, row, CHUNK + 4 * half, chunk.zero / 32) for row in x.addresses] for half in range(2)]
        starts = [low + high for low, high in zip(*halves, strict=True)]
    dots = _dots(e, layout, chunk.words, x, starts)
    for dot, total in zip(dots, sums, strict=True):
        total.set(total.get() + dot * chunk.scales.scales[0])


def _scale_halves(e: Emit, layout: BlockLayout, chunk: IntegerChunk, x: Rows, sums: Sequence[Var]) -> None:
    """A chunk with integer scales of both halves."""
    scales, halves = chunk.scales.scales, list[list[Val]]()
    paired = layout.largest_level <= PAIRED_LEVEL
    for half, words in enumerate((chunk.words[:4], chunk.words[4:])):
        starts = [e.typed(0, VI)] * len(x.addresses)
        if chunk.zero:
            starts = [_start(e, row, CHUNK + 4 * half, chunk.zero / 32) for row in x.addresses]
        halves.append(_dots(e, layout, words, x, starts))
        if not paired:
            for dot, total in zip(halves[half], sums, strict=True):
                total.set(total.get() + dot * scales[half])
    if paired:
        pair = pair16(*scales)
        for low, high, total in zip(*halves, sums, strict=True):
            total.set(dot2(e, total.get(), pair16(low, high), pair))


def _dots(e: Emit, layout: BlockLayout, words: Words, x: Rows, starts: Sequence[Val]) -> list[Val]:
    """For every row the sum of the products with words of a chunk, which `x` points at."""
    return dot_words(e, words, x, starts, None if layout.signed(e.target) else layout.largest)
