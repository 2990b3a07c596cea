"""How each weight format lies in memory for the kernels (layout `rows16`), and how it is unpacked.

Groups of 16 output rows, one row per vector lane; K is walked in order, in blocks of one k for float32 and half (16
elements each), of two for bfloat16 (a pair in a 32-bit lane, unless the rows are odd), and as `formats_blocks.py` says
for quantised formats. Next: `formats_blocks.py`, then `linear.py`.

A new quantised format is a `DType`, a `BlockFormat` in `core/storage_blocks.py` (how a block splits), a `BlockLayout`
in `formats_blocks.py` or `formats_tables.py` (how its scales are read), and its number in `io/ggml_types.py`; the
kernels stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.emit import F32, I16, LANES, VF, VI, Emit, Val, vec
from rlx.backends.cpu.kernels.formats_blocks import CHUNK, LAYOUTS, BlockLayout, Place
from rlx.backends.cpu.kernels.formats_tables import TABLE_LAYOUTS
from rlx.core.dtype import DType, bf16, f16, f32
from rlx.core.type import TensorType

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One storage format in the `rows16` layout.

    Attributes:
        dtype: the format in the file.
        block: k per block.
        block_bytes: bytes of one block of a group of 16 rows.
        pack: raw bytes [rows, bytes of a row] with rows a multiple of 16, to the layout.
        floats: (e, chunk, k within the chunk) to the 16 rows' float32 values.
        row: (e, chunk, row within the group as i64) to the chunk's values of one row: vectors of 16, or a scalar.
        chunk: k per chunk, which is what kernels unpack at once.
        layout: of quantised formats, what their integer form is made from.
    """

    dtype: DType
    block: int
    block_bytes: int
    pack: Callable[[Bytes], Bytes]
    floats: Callable[[Emit, Place, int], Val]
    row: Callable[[Emit, Place, Val], list[Val]]
    chunk: int = 1
    layout: BlockLayout | None = None

    @property
    def has_integers(self) -> bool:
        """Whether there is an integer form of products."""
        return self.layout is not None and self.layout.has_integer_form

    @contextmanager
    def chunks(self, e: Emit, weight: Val, blocks: Val) -> Generator[tuple[Place, Val]]:
        """A loop over the chunks of a group's blocks in order: (where it lies, its number among all of them)."""
        layout, zero = self.layout, e.i64(0)
        with e.loop(0, blocks) as block:
            address = e.at(weight, block * self.block_bytes)
            if layout is None:
                yield Place(address, address, address, zero), block
            elif layout.chunks == 1:
                yield layout.place(e, address, zero), block
            else:
                with e.loop(0, layout.chunks) as index:
                    yield layout.place(e, address, index), block * layout.chunks + index

    def words(self, e: Emit, address: Val) -> list[Val]:
        """The float32 values of 16 rows for each k of a block of a float format."""
        place = Place(address, address, address, e.i64(0))
        return [self.floats(e, place, k) for k in range(self.block)]


def pack_rows16(dtype: DType, raw: Bytes, shape: tuple[int, ...]) -> Bytes:
    """A weight [rows, k] or [experts, rows, k], or a vector [k], as the file has it, in the layout.

    A last group of each matrix is filled up with zeros.
    """
    rows, fmt = shape[-2] if len(shape) > 1 else 1, find_format(format_name(TensorType(dtype, shape)))
    matrix = raw.reshape(-1, rows, raw.size // (rows * (shape[0] if len(shape) > 2 else 1)))
    if rows % LANES:
        padding = np.zeros((len(matrix), -rows % LANES, matrix.shape[-1]), np.uint8)
        matrix = np.concatenate([matrix, padding], axis=1)
    return fmt.pack(matrix.reshape(-1, matrix.shape[-1]))


def packed_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """The size of a packed weight [rows, k]."""
    fmt = find_format(format_name(TensorType(dtype, shape)))
    return -(-shape[0] // LANES) * (shape[1] // fmt.block) * fmt.block_bytes


def format_name(weight: TensorType) -> str:
    """What `find_format` knows the layout of a weight [rows, k] or vector [k] by."""
    last = weight.shape[-1]
    return "bf16_odd" if weight.dtype == bf16 and isinstance(last, int) and last % 2 else weight.dtype.name


def find_format(name: str) -> WeightFormat:
    """The format that `format_name` names."""
    return _ODD_BF16 if name == "bf16_odd" else FORMATS[name]


def _pack_words(words: int) -> Callable[[Bytes], Bytes]:
    """A block of whole words, each of which moves as it is (a faster form of `BlockLayout.pack`)."""

    def pack(raw: Bytes) -> Bytes:
        moved = raw.view(np.uint32).reshape(raw.shape[0] // LANES, LANES, -1, words).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(moved).view(np.uint8).reshape(-1)

    return pack


def _pack_scaled(words: int, offset: int) -> Callable[[Bytes], Bytes]:
    """A half and whole words (a faster form of `BlockLayout.pack`)."""

    def pack(raw: Bytes) -> Bytes:
        groups = raw.shape[0] // LANES
        blocks = raw.reshape(groups, LANES, -1, 2 + 4 * words)
        result = np.empty((groups, blocks.shape[2], LANES * (2 + 4 * words)), np.uint8)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.uint16)[..., 0]
        result[..., : 2 * LANES].view(np.uint16)[...] = scales.transpose(0, 2, 1)
        quants = np.ascontiguousarray(blocks[..., 2:])
        if offset:
            quants ^= np.uint8(offset)
        moved = quants.view(np.uint32).transpose(0, 2, 3, 1)
        result[..., 2 * LANES :].view(np.uint32)[...] = moved.reshape(groups, moved.shape[1], -1)
        return result.reshape(-1)

    return pack


_FAST_PACKS: dict[str, Callable[[Bytes], Bytes]] = {
    "q4_0": _pack_scaled(4, 0),
    "iq4_nl": _pack_scaled(4, 0),
    "q4_1": _pack_words(5),
    "q8_0": _pack_scaled(8, 128),
}
"""Formats whose bytes lie in the file as in the layout, row by row."""


def _quantised(name: str, layout: BlockLayout) -> WeightFormat:
    return WeightFormat(
        layout.fmt.dtype,
        layout.fmt.dtype.block_size,
        layout.block_bytes,
        _FAST_PACKS.get(name, layout.pack),
        layout.floats,
        layout.row,
        CHUNK,
        layout,
    )


def _plain(dtype: DType, element: Any, convert: Callable[[Emit, Val], Val]) -> WeightFormat:
    """A float format: a block is one k."""
    stored: Any = np.dtype(f"u{dtype.block_bytes}")

    def pack(raw: Bytes) -> Bytes:
        moved = raw.view(stored).reshape(raw.shape[0] // LANES, LANES, -1).transpose(0, 2, 1)
        return np.ascontiguousarray(moved).view(np.uint8).reshape(-1)

    def floats(e: Emit, place: Place, k: int) -> Val:
        return convert(e, e.load(place.quants, vec(element)))

    def row(e: Emit, place: Place, lane: Val) -> list[Val]:
        return [convert(e, e.load(place.quants, element, lane))]

    return WeightFormat(dtype, 1, LANES * dtype.block_bytes, pack, floats, row)


def _paired_bf16() -> WeightFormat:
    """Pairs of k as 32-bit words, the first k in the low half: what the dot products of bfloat16 take."""

    def floats(e: Emit, place: Place, k: int) -> Val:
        words = e.load(place.quants, VI)
        return (words & -65536 if k else words << 16).bitcast(VF)

    def row(e: Emit, place: Place, lane: Val) -> list[Val]:
        return [e.bf16_to_float(e.load(place.quants, vec(I16, 2), lane * 2))]

    return WeightFormat(bf16, 2, 2 * LANES * bf16.block_bytes, _pack_words(1), floats, row, chunk=2)


FORMATS: dict[str, WeightFormat] = {
    fmt.dtype.name: fmt
    for fmt in (
        _plain(f32, F32, lambda e, x: x),
        _plain(f16, I16, lambda e, x: e.half_to_float(x)),
        _paired_bf16(),
        *(_quantised(name, layout) for name, layout in (LAYOUTS | TABLE_LAYOUTS).items()),
    )
}
"""By the name of the element type or storage format."""

_ODD_BF16 = _plain(bf16, I16, lambda e, x: e.bf16_to_float(x))
