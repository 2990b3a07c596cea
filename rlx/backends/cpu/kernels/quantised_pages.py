"""Pages of a q8_0 cache, `[page, head_dim]` in blocks of 32 along head_dim, to float32 pages of the layout of a tile.

A tile unpacks a block of positions once for all its rows. Keys are transposed on the way: 16 positions and 16 dims at a
time, in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlx.backends.cpu.emit import F32, I8, I16, I32, LANES, Emit, Val, vec
from rlx.core.dtype import q8_0


def unpack_keys(e: Emit, packed: Val, target: Val, head_dim: int, page: int) -> None:
    """To `[head_dim, page]`."""
    row_bytes = q8_0.nbytes(head_dim)
    with e.loop(0, page, LANES) as first, e.loop(0, head_dim // q8_0.block_size) as block:
        rows = [e.at(packed, (first + i) * row_bytes + block * q8_0.block_bytes) for i in range(LANES)]
        for half in range(2):
            columns = transpose(e, [_half_block(e, row, half) for row in rows])
            for d, column in enumerate(columns):
                place = (block * q8_0.block_size + (half * LANES + d)) * page + first
                e.store(column, e.at(target, place, F32))


def unpack_values(e: Emit, packed: Val, target: Val, head_dim: int, page: int) -> None:
    """To `[page, head_dim]`, which is the order they lie in."""
    with e.loop(0, page * head_dim // q8_0.block_size) as block:
        address = e.at(packed, block * q8_0.block_bytes)
        for half in range(2):
            place = block * q8_0.block_size + half * LANES
            e.store(_half_block(e, address, half), e.at(target, place, F32))


def _half_block(e: Emit, block: Val, half: int) -> Val:
    scale = e.half_to_float(e.load(block, I16))
    quants = e.load(e.at(block, 2 + half * LANES), vec(I8, LANES))
    return quants.sext(I32).to_float() * e.splat(scale)


def transpose(e: Emit, rows: Sequence[Val]) -> list[Val]:
    """16 vectors of 16 lanes: lane j of vector i to lane i of vector j, in four rounds of swapping."""
    vectors = list(rows)
    distance = LANES // 2
    while distance:
        for i in range(LANES):
            if i & distance:
                continue
            low, high = vectors[i], vectors[i + distance]
            first = [lane if not lane & distance else lane - distance + LANES for lane in range(LANES)]
            second = [lane + distance if not lane & distance else lane + LANES for lane in range(LANES)]
            vectors[i], vectors[i + distance] = e.shuffle(low, high, first), e.shuffle(low, high, second)
        distance //= 2
    return vectors
