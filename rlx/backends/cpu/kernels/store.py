"""The quantised store that kernels share: `q8_act` blocks of 32, in one term or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlx.backends.cpu.emit import F32, I8, LANES, VI, Emit, Val
from rlx.core.dtype import q8_act


def store_quantised(e: Emit, values: Sequence[Val], address: Val, terms: int) -> None:
    """One block of 32 float32 (two vectors) in `terms` terms, each of what the one before left over."""
    for term in range(terms):
        values = _store_term(e, values, e.at(address, term * QUANTISED_BYTES))


def _store_term(e: Emit, values: Sequence[Val], address: Val) -> list[Val]:
    """The block as 32 int8, the scale and the float32 sum (see `core/storage.py`); gives what the rounding left over.

    A block with a NaN or an infinity gets quants 0 and a scale that is not finite, so that the fault stays visible.
    """
    largest = _largest_magnitude(e, values)
    scale = largest / 127.0
    inverse = e.like(127.0, largest) / largest
    # infinite for a block of zeros or one below 3.8e-37: its quants are 0
    inverse = e.splat(e.select(inverse < math.inf, inverse, e.like(0.0, inverse)))
    scaled = [value * inverse for value in values]
    # not-a-number compares false, and has no integer
    bounded = [e.select(e.abs(value) <= 127.5, value, 0.0) for value in scaled]
    rounded = [e.round_even(value).to_int() for value in bounded]
    for index, quants in enumerate(rounded):
        e.store(quants.trunc(I8), e.at(address, index * LANES))
    total = e.reduce(rounded[0] + rounded[1], lambda a, b: a + b)
    e.store(scale, e.at(address, 32))
    e.store(total.to_float(F32) * scale, e.at(address, 36))
    return [value - quants.to_float() * e.splat(scale) for value, quants in zip(values, rounded, strict=True)]


def _largest_magnitude(e: Emit, values: Sequence[Val]) -> Val:
    """The largest |x|; magnitudes compare as integers, where not-a-number is larger than infinity."""
    bits = [value.bitcast(VI) & 0x7FFFFFFF for value in values]
    return e.reduce(e.maximum(*bits), e.maximum).bitcast(F32)


QUANTISED_BLOCK = q8_act.block_size
QUANTISED_BYTES = q8_act.block_bytes
