"""A block of keys and values as pairs of bfloat16, for `packed_attention.py` on targets that multiply those.

In: rows of float32 k and v of one head. Out: 32-bit words, the first of a pair in the low half: for a key, pairs of
neighbouring dims; for two neighbouring keys, their values of each dim. An odd last key has 0 beside its values. The
tiles of a sequence follow each other, and find their block filled.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlx.backends.cpu.emit import F32, I32, LANES, VF, Emit, Val


def pair_of(e: Emit, low: Val, high: Val) -> Val:
    """Two vectors of float32, rounded to bfloat16, as a vector of pairs."""
    return e.round_to_bf16(low).zext(I32) | e.round_to_bf16(high).zext(I32) << 16


class PairedKeys:
    """The block of a kernel call.

    Args:
        e: the emitter.
        keys: room for that many.
        head_dim: of k and v, even.
    """

    def __init__(self, e: Emit, keys: int, head_dim: int) -> None:
        self._e, self._head_dim = e, head_dim
        self._padded = -(-head_dim // LANES) * LANES
        self._keys = e.local(I32, keys * self._padded // 2)
        self._values = e.local(I32, keys * self._padded // 2)
        self._filled_from = e.var(e.i64(-1))

    def key(self, slot: Val) -> Val:
        """The address of a key's words, one for each pair of dims."""
        return self._e.at(self._keys, slot * (self._padded // 2), F32)

    def values_of(self, pair: Val) -> Val:
        """The address of the words of keys `2 * pair` and `2 * pair + 1`, one for each dim."""
        return self._e.at(self._values, pair * self._padded, F32)

    def fill(self, k: Val, v: Val, row: Val, count: Val, row_width: int) -> None:
        """Take `count` keys, unless they are the ones that were taken last.

        Args:
            k, v: addresses of float32 in rows of `head_dim`, one for each key and head.
            row: of the first key. It tells which block this is: blocks do not overlap, and every tile of a sequence
                sees the same ones.
            count: how many keys.
            row_width: floats from a key to the next.
        """
        e, is_there = self._e, self._filled_from.get().equals(row)
        k, v = (e.at(address, row * self._head_dim, F32) for address in (k, v))
        with e.when(is_there ^ e.like(1, is_there)):
            self._filled_from.set(row)
            with e.loop(0, count) as slot:
                for start, lanes in self._columns():
                    words = e.round_to_bf16(self._load(e.at(k, slot * row_width + start, F32), lanes))
                    e.store(words, self.key(slot), start)
            with e.loop(0, count // 2) as pair:
                for start, lanes in self._columns():
                    low, high = (self._load(e.at(v, (pair * 2 + i) * row_width + start, F32), lanes) for i in range(2))
                    e.store(pair_of(e, low, high), self.values_of(pair), start)
            with e.when(count % 2 > 0):
                for start, lanes in self._columns():
                    last = self._load(e.at(v, (count - 1) * row_width + start, F32), lanes)
                    e.store(pair_of(e, last, e.typed(0.0, VF)), self.values_of(count // 2), start)

    def _columns(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._head_dim, LANES):
            yield start, min(LANES, self._head_dim - start)

    def _load(self, address: Val, lanes: int) -> Val:
        if lanes == LANES:
            return self._e.load(address, VF)
        return self._e.masked_load(address, VF, self._e.tail_mask(self._e.i64(lanes)))
