"""Dot products of bytes: 16 lanes of i32, four bytes in each, by the instruction of the target that is made for it.

    target              unsigned x signed                                            signed x signed
    AVX-512 and AVX     vpdpbusd                                                     (unsigned form)
      VNNI
    AMX, 16 rows        tdpbsud                                                      (unsigned form)
    AVX2                vpmaddubsw, whose pairs are 16 bits, and vpmaddwd            |weight| x (x with its sign)
    AArch64 i8mm        usdot                                                        sdot
    AArch64 dotprod     sdot, for bytes below 128                                    sdot
    portable            four products of 32 bits                                     the same

All of them are exact, so that every target computes the same integers. Next: `kernels/linear.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeAlias

from rlx.backends.cpu import tiles
from rlx.backends.cpu.emit import I1, I8, I16, I32, LANES, VI, Emit, Val, vec

TOP_BITS = 0x80808080 - (1 << 32)
"""The top bit of each byte of a lane; an unsigned byte u with it turned over is u - `SIGNED_ZERO` as a signed one."""
SIGNED_ZERO = 128
_OCTETS = vec(I8, 32)


def dot4(e: Emit, accumulator: Val, unsigned: Val, signed: Val, small: bool) -> Val:
    """accumulator[i] + the sum of the products of the four bytes of lane i, exact.

    Args:
        e: the emitter.
        accumulator: 16 x i32.
        unsigned: bytes 0..255, or 0..127 when `small`.
        signed: bytes -127..127.
        small: see there.
    """
    target = e.target
    if target.vnni:
        return _by_parts(e, "llvm.x86.avx512.vpdpbusd.512", 16, accumulator, unsigned, signed)
    if target.avx_vnni:
        return _by_parts(e, "llvm.x86.avx512.vpdpbusd.256", 8, accumulator, unsigned, signed)
    if target.i8mm:
        return _by_parts(e, "llvm.aarch64.neon.usdot.v4i32.v16i8", 4, accumulator, unsigned, signed)
    if small and target.dotprod:
        return _by_parts(e, "llvm.aarch64.neon.sdot.v4i32.v16i8", 4, accumulator, unsigned, signed)
    if small and target.avx2:
        return _by_halves(e, accumulator, unsigned, signed, turned=False)
    if target.mixed_bytes:
        return _portable(e, accumulator, unsigned, signed)
    # u x = (u - 128) x + 128 x, the last as twice 64
    doubled = dot4(e, e.typed(0, VI), e.typed(0x40404040, VI), signed, small=True) << 1
    return dot4_signed(e, accumulator + doubled, unsigned ^ TOP_BITS, signed)


Words: TypeAlias = Sequence[tuple[int, Callable[[], Val]]]
"""(first k, what gives 4 bytes of 16 outputs as 16 x i32, emitted where it is needed), of at most 8 words."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Signed bytes of some rows: their addresses at k = 0, and the bytes from each to the next."""

    addresses: Sequence[Val]
    stride: Val

    def load(self, e: Emit, row: int, k: int) -> Val:
        """Four bytes as an i32."""
        return e.load(e.at(self.addresses[row], k), I32)


def dot_words(e: Emit, words: Words, x: Rows, starts: Sequence[Val], largest: int | None) -> list[Val]:
    """For every row its start plus its products with several words.

    Args:
        e: the emitter.
        words: of 16 outputs.
        x: the activations.
        starts: 16 x i32 for each row.
        largest: of the unsigned bytes; None if the bytes are signed.
    """
    if e.target.amx and len(starts) == tiles.TILE_ROWS:
        return _dot_words_amx(e, words, x, starts)
    if e.target.vector_bits == 256:
        return _dot_words_256(e, words, x, starts, largest)
    # two chains of sums hide the latency where a tile has few rows
    chains = [list(starts), [e.typed(0, VI)] * len(starts)][: 2 if len(starts) < 4 else 1]
    for index, (k, word) in enumerate(words):
        weight, sums = word(), chains[index % len(chains)]
        for row, total in enumerate(sums):
            signed = e.splat(x.load(e, row, k))
            sums[row] = (
                dot4(e, total, weight, signed, largest < 128) if largest else dot4_signed(e, total, weight, signed)
            )
    return [reduce(add, parts) for parts in zip(*chains, strict=True)]


def _dot_words_256(e: Emit, words: Words, x: Rows, starts: Sequence[Val], largest: int | None) -> list[Val]:
    """`dot_words` with both halves of the outputs apart, and sixteen registers in mind."""
    sums = [e.part(start, lane, 8) for start in starts for lane in (0, 8)]  # 8 x i32, two for every row
    # without VNNI, pairs of products are added in 16 bits for as many words as cannot pass 32767
    paired = largest is not None and not e.target.avx_vnni
    together = 32767 // (2 * 127 * largest) if paired and largest else len(words)
    for first in range(0, len(words), together):
        totals: list[Val | None] = [None] * len(sums) if paired else list(sums)
        for k, word in words[first : first + together]:
            weight = word()
            halves = [_Half.of(e, e.part(weight, lane, 8), signed=largest is None) for lane in (0, 8)]
            for row in range(len(starts)):
                octets = e.splat(x.load(e, row, k), 8).bitcast(_OCTETS)
                for place, half in enumerate(halves, 2 * row):
                    totals[place] = half.add(e, totals[place], octets, paired)
            if len(starts) > 1:
                totals = list(e.keep_order([total for total in totals if total is not None]))
        if paired:
            totals = [a + _widen_pairs(e, b) for a, b in zip(sums, totals, strict=True) if b is not None]
        sums = [total for total in totals if total is not None]
    return [e.join(*sums[place : place + 2]) for place in range(0, len(sums), 2)]


def _dot_words_amx(e: Emit, words: Words, x: Rows, starts: Sequence[Val]) -> list[Val]:
    """`dot_words` of a tile of rows: the words go through memory, and the sums come back from there."""
    weights, sums = e.local(I32, 8 * LANES), e.local(I32, tiles.TILE_ROWS * LANES)
    first = min(k for k, _ in words)
    for k, word in words:
        e.store(word(), weights, e.i64((k - first) // 4 * LANES))
    tiles.multiply_tile(e, e.at(x.addresses[0], first), x.stride, weights, len(words), sums)
    return [start + e.load(sums, VI, row * LANES, I32) for row, start in enumerate(starts)]


@dataclass(frozen=True, slots=True)
class _Half:
    """Bytes of 8 outputs: unsigned, or signed ones as a magnitude and what has its sign."""

    magnitude: Val
    sign: Val | None

    @staticmethod
    def of(e: Emit, words: Val, signed: bool) -> _Half:
        octets = words.bitcast(_OCTETS)
        # |-128| is 128 as an unsigned byte
        return (
            _Half(e.call("llvm.abs.v32i8", _OCTETS, octets, e.typed(0, I1)), octets) if signed else _Half(octets, None)
        )

    def add(self, e: Emit, total: Val | None, x: Val, paired: bool) -> Val:
        """The products with the bytes of a row on top of a total of 8 x i32, or of 16 x i16 where they are `paired`."""
        if self.sign is None and not paired and total is not None:
            return e.call("llvm.x86.avx512.vpdpbusd.256", total.type, total, self.magnitude, x)
        factor = x if self.sign is None else e.call("llvm.x86.avx2.psign.b", _OCTETS, x, self.sign)
        # signed: at most 2 * 128 * 127, which 16 bits hold
        pairs = e.call("llvm.x86.avx2.pmadd.ub.sw", vec(I16, 16), self.magnitude, factor)
        product = pairs if paired else _widen_pairs(e, pairs)
        return product if total is None else total + product


def dot4_signed(e: Emit, accumulator: Val, weight: Val, signed: Val) -> Val:
    """`dot4` of signed bytes -128..127 with signed bytes -127..127, for targets without `mixed_bytes`."""
    if e.target.dotprod:
        return _by_parts(e, "llvm.aarch64.neon.sdot.v4i32.v16i8", 4, accumulator, weight, signed)
    return _by_halves(e, accumulator, weight, signed, turned=True)


def _by_halves(e: Emit, accumulator: Val, weight: Val, x: Val, turned: bool) -> Val:
    """AVX2; the weight's bytes are signed if `turned`, and below 128 otherwise."""
    halves = [(e.part(weight, lane, 8), e.part(x, lane, 8).bitcast(_OCTETS)) for lane in (0, 8)]
    pairs = [_Half.of(e, w, turned).add(e, None, octets, paired=True) for w, octets in halves]
    return accumulator + e.join(*(_widen_pairs(e, pair) for pair in pairs))


def _widen_pairs(e: Emit, pairs: Val) -> Val:
    """8 x i32: sums of two of 16 x i16, AVX2."""
    return e.call("llvm.x86.avx2.pmadd.wd", vec(I32, 8), pairs, e.typed(1, pairs.type))


def _by_parts(e: Emit, name: str, lanes: int, accumulator: Val, left: Val, right: Val) -> Val:
    """An instruction on registers of `lanes` i32."""
    words, octets = vec(I32, lanes), vec(I8, 4 * lanes)
    parts: list[Val] = []
    for start in range(0, LANES, lanes):
        total, *factors = (_slice(e, value, start, lanes) for value in (accumulator, left, right))
        parts.append(e.call(name, words, total, *(factor.bitcast(octets) for factor in factors)))
    return e.join(*parts)


def _slice(e: Emit, value: Val, start: int, lanes: int) -> Val:
    return value if lanes == LANES else e.part(value, start, lanes)


def _portable(e: Emit, accumulator: Val, unsigned: Val, signed: Val) -> Val:
    for shift in (0, 8, 16, 24):
        left = (unsigned >> shift) & 0xFF
        right = (signed << (24 - shift)).shift_right_signed(24)
        accumulator = accumulator + left * right
    return accumulator
