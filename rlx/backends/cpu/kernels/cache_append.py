"""cache_append: keys and values of the step's tokens to their pages, in the layouts of `ops/paged_attention.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlx.backends.cpu.emit import F32, I8, I16, I32, I64, LANES, VF, Emit, Val, vec
from rlx.backends.cpu.kernels.attention_tile import vector_runs
from rlx.backends.cpu.kernels.page_table import physical_page, table_entry
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.kernels.rope import rotate_head
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dtype import q8_0
from rlx.core.graph import Node
from rlx.ops.op import int_attr, static_axis
from rlx.ops.paged_attention import LARGEST_HALF, cache_sizes


def _plan_append(node: Node, target: Target) -> KernelPlan:
    heads, head_dim, page = cache_sizes(node.inputs[0].type)
    tokens, table = node.inputs[4].type, node.inputs[6].type
    config: dict[str, Setting] = {
        "kv_heads": heads,
        "head_dim": head_dim,
        "page": page,
        "cache": str(node.inputs[0].type.dtype),
    }
    if node.attrs["rotation"] is not None:
        config |= {"rotation": str(node.attrs["rotation"]), "half": static_axis(node.inputs[7].type, 1, "the table")}
    pages = (int_attr(node.attrs, "page_step"), int_attr(node.attrs, "page_offset"))
    sizes = (*table.shape, node.inputs[0].type.shape[0], *pages)
    return KernelPlan("rows", config, sizes, tokens.shape[0], {}, {0: 0, 1: 1})


@kernel("cache_append", "rows", help="one token at a time, in place", when=always, plan=_plan_append)
def build_append(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: k_cache, v_cache, k, v, positions, sequences, page_table, (cos, sin).

    Sizes: sequences, pages of the table, pages of the cache, page step, page offset.
    """
    e = body.e
    heads, head_dim, page = (int(config[name]) for name in ("kv_heads", "head_dim", "page"))
    k_cache, v_cache, k, v, positions, sequences, table = (body.buffer(i) for i in range(7))
    write = _Writer(e, str(config["cache"]), head_dim, page)
    rotate = _rotation(body, config)
    with e.loop(body.begin, body.end) as row:
        position = body.checked_index(e.load(positions, I32, row).sext(I64), body.size(1) * page)
        entry = table_entry(body, e.load(sequences, I32, row).sext(I64), position // page)
        base = physical_page(body, table, entry, 3) * heads
        slot = position % page
        with e.loop(0, heads) as head:
            source = (row * heads + head) * head_dim
            write.token(rotate(row, e.at(k, source, F32)), e.at(v, source, F32), k_cache, v_cache, base + head, slot)


def _rotation(body: Body, config: Mapping[str, Setting]) -> Callable[[Val, Val], Val]:
    """(row, address of a head's key) to the address of the key as it is written."""
    if "rotation" not in config:
        return lambda row, key: key
    e, head_dim, half = body.e, int(config["head_dim"]), int(config["half"])
    rotated = e.local(F32, head_dim)

    def rotate(row: Val, key: Val) -> Val:
        cos, sin = (e.at(body.buffer(i), row * half, F32) for i in (7, 8))
        rotate_head(e, str(config["rotation"]), key, rotated, cos, sin, head_dim, half)
        return rotated

    return rotate


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the key and the value of one token and head into a page."""

    e: Emit
    cache: str
    head_dim: int
    page: int

    def token(self, key: Val, value: Val, k_cache: Val, v_cache: Val, page: Val, slot: Val) -> None:
        """`page` counts pages of one head."""
        e, size = self.e, self.head_dim * self.page
        if self.cache == "q8_0":
            blocks = (page * self.page + slot) * (self.head_dim // q8_0.block_size)
            for source, cache in ((key, k_cache), (value, v_cache)):
                with e.loop(0, self.head_dim // q8_0.block_size) as block:
                    target = e.at(cache, (blocks + block) * q8_0.block_bytes)
                    _write_q8_0(e, e.at(source, block * q8_0.block_size, F32), target)
            return
        element = F32 if self.cache == "f32" else I16
        keys, values = e.at(k_cache, page * size, element), e.at(v_cache, page * size, element)
        pairs = self.cache == "bf16"
        for start, (lanes,) in vector_runs(self.head_dim, 1):
            k, v = (self.converted(e.load(x, vec(F32, lanes), e.i64(start), F32)) for x in (key, value))
            if not pairs:
                e.store(v, values, slot * self.head_dim + start)
            for lane in range(lanes):
                d = start + lane
                place = slot * 2 + ((d // 2) * (2 * self.page) + d % 2) if pairs else slot + d * self.page
                e.store(e.lane(k, lane) if lanes > 1 else k, keys, place)
                if pairs:
                    place = slot // 2 * (2 * self.head_dim) + slot % 2 + 2 * d
                    e.store(e.lane(v, lane) if lanes > 1 else v, values, place)

    def converted(self, value: Val) -> Val:
        """As elements of the cache."""
        e = self.e
        if self.cache == "f32":
            return value
        if self.cache == "bf16":
            return e.float_to_bf16(value)
        # held at the ends of the range: an infinite key or value would make every later row not-a-number
        return e.float_to_half(_held(e, value, LARGEST_HALF))


def _held(e: Emit, value: Val, largest: float) -> Val:
    """Within +-largest; not-a-number stays."""
    value = e.select(value > largest, e.like(largest, value), value)
    return e.select(value < -largest, e.like(-largest, value), value)


def _write_q8_0(e: Emit, source: Val, target: Val) -> None:
    """A block of 32: the half scale, then int8 rounded half away from zero (see `core/storage.py`)."""
    halves = [_held(e, e.load(source, VF, e.i64(i), F32), LARGEST_HALF * 127) for i in (0, LANES)]
    largest = e.reduce(e.maximum(*(e.abs(value) for value in halves)), e.maximum)
    scale = largest / 127.0
    inverse = e.select(scale > 0.0, e.like(1.0, scale) / scale, e.like(0.0, scale))
    e.store(e.float_to_half(scale), target)
    for index, value in enumerate(halves):
        scaled = value * e.splat(inverse)
        magnitude = e.abs(scaled)
        # not-a-number compares false, and has no integer
        magnitude = e.select(magnitude <= 127.5, magnitude, 0.0)
        whole = magnitude.to_int()
        whole = whole + ((magnitude - whole.to_float()) >= 0.5).zext(I32)
        quants = e.select(scaled < 0.0, e.like(0, whole) - whole, whole)
        e.store(quants.trunc(I8), e.at(target, 2 + index * LANES))
