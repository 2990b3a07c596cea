"""Steps on vectors of bytes whose form depends on the target: a table of 16 bytes, and sums of 16 bytes.

Like the primitives of `emit.py`, on which they are built; only packed weights need them. Used by `formats_blocks.py`
and `linear.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlx.backends.cpu.emit import I8, I16, I32, LANES, VI, Emit, Val, vec
from rlx.backends.cpu.llvm import ir

BYTES = 0x01010101
"""A byte in each of the four bytes of a 32-bit lane, as a factor."""


def lookup16(e: Emit, table: Sequence[int], indices: Val) -> Val:
    """table[i] for each of the 64 bytes (0..15) of 16 lanes of i32; the table holds 0..255."""
    if e.target.vnni:
        repeated = e.table(I8, [*table] * 4)
        return _x86(e, "llvm.x86.avx512.pshuf.b.512", repeated, indices.bitcast(vec(I8, 64))).bitcast(VI)
    if e.target.avx2:
        repeated = e.table(I8, [*table] * 2)
        halves = [e.part(indices, start, 8).bitcast(vec(I8, 32)) for start in (0, 8)]
        found = [_x86(e, "llvm.x86.avx2.pshuf.b", repeated, half).bitcast(vec(I32, 8)) for half in halves]
        return e.join(*found)
    # a tree of choices, the lowest bit of the index first; 255 times a bit is a mask of its byte
    level = [e.like(value * BYTES, indices) for value in table]
    for bit in range(4):
        mask = ((indices >> bit) & BYTES) * 255
        level = [a ^ (mask & (a ^ b)) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def half_sums(e: Emit, address: Val, factor: int) -> tuple[Val, Val]:
    """`factor` (-127..127) times the sums of int8 bytes 0..15 and 16..31 behind `address`, in all lanes of i32."""
    if not e.target.avx2:
        halves = [e.load(e.at(address, start), vec(I8, LANES)).sext(I32) for start in (0, LANES)]
        low, high = (e.splat(e.reduce(half, lambda a, b: a + b) * factor) for half in halves)
        return low, high
    signed = e.load(address, vec(I8, 32))
    # the factor's magnitude has to be unsigned; its sign comes with the second step
    pairs = _x86(e, "llvm.x86.avx2.pmadd.ub.sw", e.like(abs(factor), signed), signed, result=vec(I16, 16))
    sums = _x86(e, "llvm.x86.avx2.pmadd.wd", pairs, e.like(-1 if factor < 0 else 1, pairs), result=vec(I32, 8))
    for order in ((1, 0, 3, 2, 5, 4, 7, 6), (2, 3, 0, 1, 6, 7, 4, 5)):
        sums = sums + e.shuffle(sums, sums, order)
    return e.shuffle(sums, sums, [0] * LANES), e.shuffle(sums, sums, [4] * LANES)


def _x86(e: Emit, name: str, *operands: Val, result: Any = None) -> Val:
    type_ = result or operands[0].type
    function = e.module.globals.get(name)
    if function is None:
        function = ir.Function(e.module, ir.FunctionType(type_, [operand.type for operand in operands]), name)
    return Val(e, e.b.call(function, [operand.v for operand in operands]))
