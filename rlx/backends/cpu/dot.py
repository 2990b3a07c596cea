"""Dot products of bytes: 16 lanes of i32, four bytes in each, by the instruction of the target that is made for it.

    target              unsigned x signed                                            signed x signed
    AVX-512 and AVX     vpdpbusd                                                     (unsigned form)
      VNNI
    AVX2                vpmaddubsw, whose pairs are 16 bits, and vpmaddwd            |weight| x (x with its sign)
    AArch64 i8mm        usdot                                                        sdot
    AArch64 dotprod     sdot, for bytes below 128                                    sdot
    portable            four products of 32 bits                                     the same

All of them are exact, so that every target computes the same integers. Next: `kernels/linear.py`.
"""

from __future__ import annotations

from rlx.backends.cpu.emit import I1, I8, I16, I32, LANES, VI, Emit, Val, vec

TOP_BITS = 0x80808080 - (1 << 32)
"""The top bit of each byte of a lane; an unsigned byte u with it turned over is u - 128 as a signed one."""


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
    if small and target.avx2:  # a pair of products is at most 2 * 127 * 127, which a signed 16-bit lane holds
        return accumulator + widen_pairs(e, multiply_pairs(e, unsigned, signed))
    if target.mixed_bytes:
        return _portable(e, accumulator, unsigned, signed)
    # u x = (u - 128) x + 128 x, the last as twice 64
    doubled = dot4(e, e.typed(0, VI), e.typed(0x40404040, VI), signed, small=True) << 1
    return dot4_signed(e, accumulator + doubled, unsigned ^ TOP_BITS, signed)


def dot4_signed(e: Emit, accumulator: Val, weight: Val, signed: Val) -> Val:
    """`dot4` of signed bytes -128..127 with signed bytes -127..127, for targets without `mixed_bytes`."""
    if e.target.dotprod:
        return _by_parts(e, "llvm.aarch64.neon.sdot.v4i32.v16i8", 4, accumulator, weight, signed)
    # a pair is at most 2 * 128 * 127, which 16 bits hold; |-128| is 128 as an unsigned byte
    parts: list[Val] = []
    for start in (0, 8):
        w, x = (e.part(value, start, 8).bitcast(vec(I8, 32)) for value in (weight, signed))
        magnitude = e.call("llvm.abs.v32i8", w.type, w, e.typed(0, I1))
        turned = e.call("llvm.x86.avx2.psign.b", w.type, x, w)
        parts.append(e.call("llvm.x86.avx2.pmadd.ub.sw", vec(I16, 16), magnitude, turned))
    return accumulator + widen_pairs(e, e.join(*parts))


def multiply_pairs(e: Emit, unsigned: Val, signed: Val) -> Val:
    """32 x i16: sums of two products of bytes, AVX2; they must not pass 32767."""
    name, shorts = "llvm.x86.avx2.pmadd.ub.sw", vec(I16, 16)
    halves = [[e.part(value, start, 8).bitcast(vec(I8, 32)) for value in (unsigned, signed)] for start in (0, 8)]
    return e.join(*(e.call(name, shorts, *half) for half in halves))


def widen_pairs(e: Emit, pairs: Val) -> Val:
    """16 x i32: sums of two of 32 x i16, AVX2."""
    name = "llvm.x86.avx2.pmadd.wd"
    halves = [e.part(pairs, start, 16) for start in (0, 16)]
    return e.join(*(e.call(name, vec(I32, 8), half, e.typed(1, half.type)) for half in halves))


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
