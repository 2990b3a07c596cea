"""AMX: products of tiles of bytes, 16 rows of activations times 16 outputs.

The tile of weights has the layout that `rows16` gives: one row of 64 bytes for each four k, four bytes for each output.
LLVM configures the tiles by itself. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1,
chapter 18 (programming with Intel AMX). Products of bfloat16 are not made this way: `tdpbf16ps` sums in another order
than `vdpbf16ps`, and a row would not have the bits that it has alone. Used by `dot.py`.
"""

from __future__ import annotations

from typing import Any

from rlx.backends.cpu.emit import I16, LANES, Emit, Val
from rlx.backends.cpu.llvm import ir

TILE_ROWS = 16
"""Rows of activations in a tile; with fewer, the vector form is as fast."""
ROW_BYTES = 4 * LANES


class _TileType(ir.types.Type):
    """LLVM's type of a tile, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "x86_amx"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TileType)

    def __hash__(self) -> int:
        return hash(_TileType)


_TILE: Any = _TileType()


def multiply_tile(e: Emit, x: Val, stride: Val, weights: Val, words: int, result: Val) -> None:
    """Products of 16 rows of signed bytes with the unsigned bytes of 16 outputs, exact, as i32 [16, 16].

    Args:
        e: the emitter.
        x: address of the first row's `4 * words` bytes.
        stride: bytes from row to row (i64).
        weights: address of `words` rows of 64 bytes.
        words: 1 to 16.
        result: address of 16 x 16 i32.
    """
    rows, columns, k_bytes, k_words = (e.typed(n, I16) for n in (TILE_ROWS, ROW_BYTES, 4 * words, words))
    pitch = e.i64(ROW_BYTES)
    left = e.call("llvm.x86.tileloadd64.internal", _TILE, rows, k_bytes, x, stride)
    right = e.call("llvm.x86.tileloadd64.internal", _TILE, k_words, columns, weights, pitch)
    zero = e.call("llvm.x86.tilezero.internal", _TILE, rows, columns)
    sums = e.call("llvm.x86.tdpbsud.internal", _TILE, rows, columns, k_bytes, zero, left, right)
    e.void_call("llvm.x86.tilestored64.internal", rows, columns, result, pitch, sums)
