"""Steps on packed vectors whose form depends on the target: a table of 16 bytes, and products of pairs of int16.

Like the primitives of `emit.py`, on which they are built; only packed weights need them. Used by `formats_blocks.py`
and `linear_integer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlx.backends.cpu.emit import I8, I16, I32, LANES, VI, Emit, Val, vec

BYTES = 0x01010101
"""A byte in each of the four bytes of a 32-bit lane, as a factor."""


def lookup16(e: Emit, table: Sequence[int], indices: Val) -> Val:
    """table[i] for each of the 64 bytes (0..15) of 16 lanes of i32; the table holds 0..255."""
    if e.target.vnni:
        repeated = e.table(I8, [*table] * 4)
        picked = e.call("llvm.x86.avx512.pshuf.b.512", repeated.type, repeated, indices.bitcast(repeated.type))
        return picked.bitcast(VI)
    if e.target.avx2:
        repeated = e.table(I8, [*table] * 2)
        halves = [e.part(indices, start, 8).bitcast(vec(I8, 32)) for start in (0, 8)]
        found = [e.call("llvm.x86.avx2.pshuf.b", half.type, repeated, half).bitcast(vec(I32, 8)) for half in halves]
        return e.join(*found)
    if e.target.is_arm:
        values = e.table(I8, table)
        quarters = [e.part(indices, start, 4).bitcast(values.type) for start in range(0, LANES, 4)]
        name = "llvm.aarch64.neon.tbl1.v16i8"
        return e.join(*(e.call(name, values.type, values, quarter).bitcast(vec(I32, 4)) for quarter in quarters))
    # a tree of choices, the lowest bit of the index first; 255 times a bit is a mask of its byte
    level = [e.like(value * BYTES, indices) for value in table]
    for bit in range(4):
        mask = ((indices >> bit) & BYTES) * 255
        level = [a ^ (mask & (a ^ b)) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def dot2(e: Emit, accumulator: Val, left: Val, right: Val) -> Val:
    """accumulator[i] + left[i].low * right[i].low + left[i].high * right[i].high, lanes of i32 as pairs of int16."""
    shorts = vec(I16, 2 * LANES)
    if e.target.vnni:
        name = "llvm.x86.avx512.vpdpwssd.512"
        return e.call(name, VI, accumulator, left.bitcast(shorts), right.bitcast(shorts))
    if e.target.avx2:
        name, half = "llvm.x86.avx2.pmadd.wd", vec(I16, LANES)
        parts = [[e.part(x, i, 8).bitcast(half) for x in (left, right)] for i in (0, 8)]
        return accumulator + e.join(*(e.call(name, vec(I32, 8), *pair) for pair in parts))
    for shift in (16, 0):
        low, high = ((x << shift).shift_right_signed(16) for x in (left, right))
        accumulator = accumulator + low * high
    return accumulator


def pair16(low: Val, high: Val) -> Val:
    """Lanes of i32 that fit int16 as the pairs of int16 that `dot2` takes."""
    return low & 0xFFFF | high << 16
