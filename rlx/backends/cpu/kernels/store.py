"""Row stores shared by kernels: float32 as it is, or quantised to `q8_act` blocks of 32."""

from __future__ import annotations

from collections.abc import Sequence

from rlx.backends.cpu.emit import F32, I8, LANES, Emit, Val
from rlx.core.dtype import q8_act


def store_quantised(e: Emit, values: Sequence[Val], address: Val) -> None:
    """One block of 32 float32 (two vectors) as 32 int8, the scale and the float32 sum (see `core/storage.py`)."""
    largest = e.reduce(e.maximum(e.abs(values[0]), e.abs(values[1])), e.maximum)
    scale = largest / 127.0
    inverse = e.select(largest > 0.0, e.like(127.0, largest) / largest, e.like(0.0, largest))
    rounded = [e.round_even(value * e.splat(inverse)).to_int() for value in values]
    for index, quants in enumerate(rounded):
        e.store(quants.trunc(I8), e.at(address, index * LANES))
    total = e.reduce(rounded[0] + rounded[1], lambda a, b: a + b)
    e.store(scale, e.at(address, 32))
    e.store(total.to_float(F32) * scale, e.at(address, 36))


QUANTISED_BLOCK = q8_act.block_size
QUANTISED_BYTES = q8_act.block_bytes
