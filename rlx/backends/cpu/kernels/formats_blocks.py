"""The `rows16` layout of block-quantised weights, made from `core/storage_blocks.py` and one `BlockLayout` each.

A block of 16 rows is a head, then for each chunk of 32 k its side and its quants. All is 16 lanes wide, one for
each row:

    head      the half factors, 16 x half or 16 x (half scale, half minimum); what else all chunks share
    side      16 bytes for each small integer of the chunk
    quants    a level of n bits in planes of 8, 4, 2 or 1 bits, lower bits first (5 is 4 and 1). A plane of b bits is b
              vectors of 16 x i32; the 4 levels k = 4w..4w+3 are the bytes of vector w % b, at bit b * (w // b). The
              vectors of all planes lie in the order in which words 0, 1, ... need them, since processors fetch ahead
              of loads whose addresses rise

so that a level is unpacked by a shift and a mask for each plane, whatever the chunk. The size is the file's, but for
the 6-bit scales of Q4_K and Q5_K, which take 8 bits (2.8% and 2.3% more). Next: `formats.py`, which holds the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.dot import SIGNED_ZERO, TOP_BITS
from rlx.backends.cpu.emit import F32, I8, I16, I32, LANES, VI, Emit, Val, vec
from rlx.backends.cpu.kernels.byte_ops import BYTES, lookup16
from rlx.backends.cpu.target import Target
from rlx.core.block_format import BlockFormat, Bytes, Parts
from rlx.core.storage_blocks import BLOCK_FORMATS

CHUNK = 32
"""k of a chunk, for which a scale holds, or one for each half."""
_SLAB_BYTES = 1 << 19
"""Blocks are taken apart in pieces of this size, which stay in the cache and need little memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """A chunk of 16 rows: the addresses of its block, its side and its quants, and its number in the block (i64)."""

    block: Val
    side: Val
    quants: Val
    index: Val


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a chunk: `w = scale * u + minimum`, or with integers for the chunk or each half of 16 k of it:

    `w = scale * scales[half] * u + minimum * minimums[half]`,

    or with a scale for each half that is no integer, `w = half_scales[half] * u`.
    """

    scale: Val
    minimum: Val | None = None
    scales: Sequence[Val] = ()
    minimums: Sequence[Val] = ()
    half_scales: Sequence[Val] = ()

    def of_half(self, half: int) -> tuple[Val, Val | None]:
        """Float32 scale and minimum of k 0..15 or 16..31."""
        if self.half_scales:
            return self.half_scales[half], None
        scale = self.scale * self.scales[half % len(self.scales)].to_float() if self.scales else self.scale
        if self.minimum is None or not self.minimums:
            return scale, self.minimum
        return scale, self.minimum * self.minimums[half % len(self.minimums)].to_float()


@dataclass(frozen=True, slots=True)
class IntegerChunk:
    """The integer form of a chunk, `u - zero` in place of the u of `scales`.

    Attributes:
        words: (first k, what gives 4 bytes of each row as 16 x i32) of all 8 words; unsigned but where the layout is
            `signed` for the target.
        scales: see there.
        zero: the byte that stands for 0.
    """

    words: Sequence[tuple[int, Callable[[], Val]]]
    scales: Scales
    zero: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Loads of a chunk for all 16 rows, or for one `lane` (i64) as scalars."""

    e: Emit
    place: Place
    lane: Val | None

    def load(self, address: Val, offset: int, element: Any) -> Val:
        """The 16 elements at `offset` bytes, or one of them."""
        address = self.e.at(address, offset)
        return self.e.load(address, vec(element)) if self.lane is None else self.e.load(address, element, self.lane)

    def head(self, offset: int, element: Any) -> Val:
        """From the head of the block."""
        return self.load(self.place.block, offset, element)

    def side(self, column: int) -> Val:
        """A byte of the chunk's side, as i32."""
        return self.load(self.place.side, column * LANES, I8).zext(I32)

    def half_pair(self) -> tuple[Val, Val]:
        """The factors of scale and minimum."""
        words = self.head(0, I32)
        return self.e.half_to_float(words.trunc(I16)), self.e.half_to_float((words >> 16).trunc(I16))

    def chunk_bits(self, word: Val, bits: int) -> Val:
        """The field of this chunk in a word that has one of `bits` bits for each chunk, in its lower bits."""
        shift = (self.place.index * bits).trunc(I32)
        return word >> (shift if self.lane is not None else self.e.splat(shift))


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How one format lies in `rows16`.

    Attributes:
        fmt: its parts.
        read: the scales of a chunk.
        side: integers of the sides, uint8 [blocks, chunks, columns], where there are any.
        columns: how many a side has.
        shared: one word for each block after the factors, uint32 [blocks], where there is one.
        number: a level (i32) to its value, where that is no integer; such a layout has no integer form.
        has_integer_form: whether the kernels may multiply the levels as integers.
    """

    fmt: BlockFormat
    read: Callable[[Reader], Scales]
    side: Callable[[Parts], Bytes] | None = None
    columns: int = 0
    shared: Callable[[Parts], NDArray[np.uint32]] | None = None
    number: Callable[[Emit, Val], Val] | None = None
    has_integer_form: bool = True

    @property
    def planes(self) -> list[int]:
        """Bits of the planes of a level, lower bits first."""
        return [bits for bits in (8, 4, 2, 1) if self.fmt.bits & bits]

    @property
    def vectors(self) -> dict[tuple[int, int], int]:
        """(bits of a plane, vector of it) to its place among the vectors of a chunk."""
        needed = [(bits, w % bits) for w in range(8) for bits in reversed(self.planes)]
        return {vector: place for place, vector in enumerate(dict.fromkeys(needed))}

    @property
    def head_bytes(self) -> int:
        """Bytes before the sides."""
        return LANES * (self.fmt.head_bytes + (4 if self.shared else 0))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the side and the quants of a chunk."""
        return LANES * (self.columns + 4 * self.fmt.bits)

    @property
    def chunks(self) -> int:
        """Chunks of a block."""
        return self.fmt.dtype.block_size // CHUNK

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of 16 rows."""
        return self.head_bytes + self.chunks * self.chunk_bytes

    @property
    def looks_up(self) -> bool:
        """Whether the levels are indices into `values`."""
        return bool(self.fmt.table) and self.number is None

    @property
    def values(self) -> tuple[int, ...]:
        """The table raised so that no value is negative, repeated up to 16 values."""
        raised = tuple(int(value + self.zero) for value in self.fmt.table)
        return raised * max(1, 16 // len(raised))

    @property
    def zero(self) -> int:
        """The unsigned byte that stands for 0: 0 or a power of two, which activations can be shifted to."""
        if not self.fmt.table:
            return self.fmt.zero
        lowest = int(-min(self.fmt.table))
        return 1 << (lowest - 1).bit_length() if lowest > 0 else 0

    @property
    def largest_level(self) -> int:
        """The largest magnitude of a level without its scale."""
        levels = self.values if self.looks_up else (0, (1 << self.fmt.bits) - 1)
        return max(abs(level - self.zero) for level in levels)

    @property
    def largest(self) -> int:
        """The largest unsigned byte."""
        return max(self.values) if self.looks_up else (1 << self.fmt.bits) - 1

    def signed(self, target: Target) -> bool:
        """Whether the bytes of the integer form are signed: they need all 8 bits, which is too much unsigned for it."""
        return self.largest > 127 and not target.mixed_bytes

    # ---- packing ----

    def pack(self, raw: Bytes) -> Bytes:
        """Raw bytes [rows, bytes of a row], rows a multiple of 16, in the layout."""
        groups = raw.shape[0] // LANES
        per_row = raw.shape[1] // self.fmt.dtype.block_bytes
        result = np.empty((groups, per_row, self.block_bytes), np.uint8)
        step = max(1, _SLAB_BYTES // (raw.shape[1] * LANES))
        for start in range(0, groups, step):
            piece = raw[start * LANES : (start + step) * LANES]
            self._pack_slab(piece.reshape(-1, self.fmt.dtype.block_bytes), result[start : start + step])
        return result.reshape(-1)

    def _pack_slab(self, blocks: Bytes, result: Bytes) -> None:
        parts, factors = self.fmt.split(blocks), self.fmt.head_of(blocks)
        end = _lay(result, factors.view(f"u{factors.shape[1]}"))
        if self.shared:
            _lay(result[..., end:], self.shared(parts)[:, None])
        chunks = result[..., self.head_bytes :].reshape(*result.shape[:2], self.chunks, self.chunk_bytes)
        if self.side:
            sides = self.side(parts)
            _lay(chunks, sides.reshape(-1, self.chunks, self.columns))
        self._lay_planes(chunks[..., self.columns * LANES :].view(np.uint32), parts.levels)

    def _lay_planes(self, result: NDArray[np.uint32], levels: Bytes) -> None:
        """Levels [rows * blocks, block] as planes, to `result` [groups, blocks, chunks, 16 words for each bit]."""
        words = np.empty((*result.shape[:3], 8 * LANES), np.uint32)
        _lay(words.view(np.uint8), np.ascontiguousarray(levels).view(np.uint32).reshape(-1, self.chunks, 8))
        position = 0
        for bits in self.planes:
            fields = (words >> np.uint32(position)) & np.uint32(((1 << bits) - 1) * BYTES)
            for number in range(bits):
                start = self.vectors[bits, number] * LANES
                vector = result[..., start : start + LANES]
                for place in range(8 // bits):
                    first = (place * bits + number) * LANES
                    field = fields[..., first : first + LANES]
                    vector[...] = field if not place else vector | field << np.uint32(place * bits)
            position += bits

    # ---- unpacking ----

    def place(self, e: Emit, block: Val, index: Val) -> Place:
        """Where chunk `index` (i64) of the block at an address lies."""
        side = e.at(block, index * self.chunk_bytes + self.head_bytes)
        return Place(block, side, e.at(side, self.columns * LANES), index)

    def word(self, r: Reader, w: int) -> Val:
        """The unsigned bytes of k = 4w..4w+3: i32 for each row."""
        position, word = 0, None
        for bits in self.planes:
            stored = r.load(r.place.quants, 64 * self.vectors[bits, w % bits], I32)
            move = position - bits * (w // bits)
            field = stored << move if move > 0 else stored >> -move if move else stored
            if bits < 8:
                field = field & (((1 << bits) - 1) * BYTES << position)
            word = field if word is None else word | field
            position += bits
        return word if word is not None else r.e.typed(0, VI)

    def bytes_of(self, r: Reader, w: int) -> Val:
        """`word` for all 16 rows, through the table where there is one."""
        word = self.word(r, w)
        return lookup16(r.e, self.values, word) if self.looks_up else word

    def floats(self, e: Emit, place: Place, k: int) -> Val:
        """Element k of a chunk of 16 rows."""
        reader = Reader(e, place, None)
        u = (self.bytes_of(reader, k // 4) >> (8 * (k % 4))) & 255
        return self._value(e, u, *self.read(reader).of_half(k // 16))

    def row(self, e: Emit, place: Place, lane: Val) -> list[Val]:
        """The chunk of one row: two vectors of 16."""
        reader = Reader(e, place, lane)
        words = e.typed(0, VI)
        for w in range(8):
            words = Val(e, e.b.insert_element(words.v, self.word(reader, w).v, e.typed(w, I32).v))
        if self.looks_up:
            words = lookup16(e, self.values, words)
        u, scales = words.bitcast(vec(I8, 64)), self.read(reader)
        halves: list[Val] = []
        for half in range(2):
            scale, minimum = scales.of_half(half)
            bottom = minimum if minimum is None else e.splat(minimum)
            halves.append(self._value(e, e.part(u, 16 * half, 16).zext(I32), e.splat(scale), bottom))
        return halves

    def _value(self, e: Emit, u: Val, scale: Val, minimum: Val | None) -> Val:
        if self.number is not None:
            return self.number(e, u) * scale
        signed = u.to_float() - float(self.zero) if self.zero else u.to_float()
        return signed * scale if minimum is None else e.fma(signed, scale, minimum)

    def integer(self, e: Emit, place: Place) -> IntegerChunk:
        """The integer form of a chunk of 16 rows."""
        reader, scales, first = Reader(e, place, None), self.scales(e, place), self.planes[0]
        # words that share a vector of the first plane follow each other, unless the halves have scales of their own
        order = range(8) if len(scales.scales) == 2 else sorted(range(8), key=lambda w: (w % first, w))
        turned = self.signed(e.target)

        def word(w: int) -> Val:
            return self.bytes_of(reader, w) ^ TOP_BITS if turned else self.bytes_of(reader, w)

        zero = self.zero - SIGNED_ZERO if turned else self.zero
        return IntegerChunk([(4 * w, partial(word, w)) for w in order], scales, zero)

    def scales(self, e: Emit, place: Place) -> Scales:
        """The scales of a chunk of 16 rows."""
        return self.read(Reader(e, place, None))


def _lay(result: Bytes, elements: NDArray[Any]) -> int:
    """Elements [rows * blocks, ...] to the front of `result` [groups, blocks, ..., bytes], 16 rows side by side.

    The last axis of both counts the columns. Gives the bytes written.
    """
    groups, per_row = result.shape[:2]
    rows = elements.reshape(groups, LANES, per_row, *elements.shape[1:])
    moved = np.moveaxis(rows, 1, -1)
    nbytes = moved.shape[-2] * LANES * elements.itemsize
    target = result[..., :nbytes].view(elements.dtype)
    target[...] = moved.reshape(*moved.shape[:-2], -1)
    return nbytes


# ---- the scales of each format ----


def _read_half(r: Reader) -> Scales:
    return Scales(r.e.half_to_float(r.head(0, I16)))


def _read_half_pair(r: Reader) -> Scales:
    return Scales(*r.half_pair())


def _read_mxfp4(r: Reader) -> Scales:
    exponent = r.head(0, I8).zext(I32)
    small = r.e.like(1 << 21, exponent) << exponent
    bits = r.e.select(exponent < 2, small, (exponent - 1) << 23)
    return Scales(bits.bitcast(F32 if r.lane is not None else vec(F32)))


def _read_q4_k(r: Reader) -> Scales:
    scale, minimum = r.half_pair()
    return Scales(scale, -minimum, [r.side(0)], [r.side(1)])


def _read_q2_k(r: Reader) -> Scales:
    scale, minimum = r.half_pair()
    sides = [r.side(half) for half in range(2)]
    return Scales(scale, -minimum, [side & 15 for side in sides], [side >> 4 for side in sides])


def _read_q3_k(r: Reader) -> Scales:
    low, high = r.side(0), r.chunk_bits(r.head(2 * LANES, I32), 4)
    pair = (low & 15 | (high & 3) << 4, low >> 4 | (high & 12) << 2)
    return Scales(r.e.half_to_float(r.head(0, I16)), None, [scale - 32 for scale in pair])


def _read_q6_k(r: Reader) -> Scales:
    scales = [(r.side(half) << 24).shift_right_signed(24) for half in range(2)]
    return Scales(r.e.half_to_float(r.head(0, I16)), None, scales)


def _scales_of(parts: Parts) -> Bytes:
    return parts.levels[:, :0] if parts.scales is None else parts.scales.view(np.uint8)


def _minimums_of(parts: Parts) -> Bytes:
    return parts.levels[:, :0] if parts.minimums is None else parts.minimums


def _chunked(integers: Bytes) -> Bytes:
    return integers.reshape(len(integers), -1, 2)


def _side_q4_k(parts: Parts) -> Bytes:
    return np.stack([_scales_of(parts), _minimums_of(parts)], axis=-1)


def _side_q2_k(parts: Parts) -> Bytes:
    return _chunked(_scales_of(parts) | _minimums_of(parts) << np.uint8(4))


def _six_bits(parts: Parts) -> Bytes:
    return _chunked(_scales_of(parts) + np.uint8(32))


def _side_q3_k(parts: Parts) -> Bytes:
    pairs = _six_bits(parts) & np.uint8(15)
    return pairs[..., :1] | pairs[..., 1:] << np.uint8(4)


def _shared_q3_k(parts: Parts) -> NDArray[np.uint32]:
    pairs = (_six_bits(parts) >> np.uint8(4)).astype(np.uint32)
    fields = pairs[..., 0] | pairs[..., 1] << np.uint32(2)
    return np.bitwise_or.reduce(fields << np.arange(0, 32, 4, dtype=np.uint32), axis=1)


def _side_q6_k(parts: Parts) -> Bytes:
    return _chunked(_scales_of(parts))


_NAMES = BLOCK_FORMATS
LAYOUTS: dict[str, BlockLayout] = {
    layout.fmt.dtype.name: layout
    for layout in (
        *(BlockLayout(_NAMES[name], _read_half) for name in ("q4_0", "q8_0", "q5_0", "iq4_nl")),
        *(BlockLayout(_NAMES[name], _read_half_pair) for name in ("q4_1", "q5_1")),
        BlockLayout(_NAMES["mxfp4"], _read_mxfp4),
        BlockLayout(_NAMES["q2_k"], _read_q2_k, _side_q2_k, 2),
        BlockLayout(_NAMES["q3_k"], _read_q3_k, _side_q3_k, 1, _shared_q3_k),
        *(BlockLayout(_NAMES[name], _read_q4_k, _side_q4_k, 2) for name in ("q4_k", "q5_k")),
        BlockLayout(_NAMES["q6_k"], _read_q6_k, _side_q6_k, 2),
    )
}
"""The layout of every format of quantised weights."""
