"""paged_attention: query rows gathered into tiles that read the same pages.

A unit is one query row of one head. Rows of one sequence that read the same KV head go into one tile, up to 64 of them,
so that a page is read once for all; what a row computes does not depend on its neighbours (`attention_tile.py`). Next:
`cache_append.py`, which writes the pages.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, I32, I64, LANES, PTR, Val
from rlx.backends.cpu.kernels import attention_tile
from rlx.backends.cpu.kernels.attention_operands import BF16_DOTS, BF16_PAIRS, FLOATS, HALVES, Operands
from rlx.backends.cpu.kernels.attention_tile import Scores, Tile, register_tile
from rlx.backends.cpu.kernels.page_table import physical_page, table_entry
from rlx.backends.cpu.kernels.quantised_pages import unpack_keys, unpack_values
from rlx.backends.cpu.kernels.registry import Body, Setting, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dtype import DTYPES, q8_0
from rlx.core.graph import Node
from rlx.ops.op import float_attr, int_attr, optional_float
from rlx.ops.paged_attention import cache_sizes

OPERANDS = {"f32": FLOATS, "f16": HALVES, "bf16": BF16_PAIRS, "q8_0": FLOATS}


def _plan_attention(node: Node, target: Target) -> KernelPlan:
    kv_heads, head_dim, page = cache_sizes(node.inputs[1].type)
    cap, window = optional_float(node.attrs, "softcap"), node.attrs["window"]
    heads = int_attr(node.attrs, "num_heads")
    config: dict[str, Setting] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "page": page,
        "scale": float_attr(node.attrs, "scale"),
        "softcap": cap if cap is not None else 0.0,
        "window": window if isinstance(window, int) else 0,
        "cache": str(node.inputs[1].type.dtype),
        "products": str(node.attrs["products"]),
        "out": str(node.attrs["result"]),
        **({"sinks": True} if len(node.inputs) == 7 else {}),
    }
    tokens, table = node.inputs[3].type, node.inputs[5].type
    pages = (int_attr(node.attrs, "page_step"), int_attr(node.attrs, "page_offset"))
    sizes = (*table.shape, node.inputs[1].type.shape[0], tokens.shape[0], *pages)
    return KernelPlan("online", config, sizes, heads * tokens.shape[0])


def _attention_why_not(node: Node, target: Target) -> str | None:
    _, head_dim, page = cache_sizes(node.inputs[1].type)
    result = node.output.type.dtype
    if head_dim % result.block_size:
        return f"a head of {head_dim} is not in whole blocks of {result}"
    if page % LANES:
        return f"a page has to be whole vectors of {LANES} positions, not {page}"
    if node.attrs["products"] == "bf16":
        if not target.bf16:
            return "the target has no bfloat16 products"
        if str(node.inputs[1].type.dtype) != "bf16":
            return "bfloat16 products need a bf16 cache"
    return None


@kernel(
    "paged_attention",
    "online",
    help="online softmax, rows of a sequence in tiles",
    when=_attention_why_not,
    plan=_plan_attention,
)
def build_attention(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: q, k_cache, v_cache, positions, sequences, page_table, (sinks), out.

    Sizes: sequences, pages of the table, pages of the cache, tokens, page step, page offset.
    """
    e = body.e
    frame = _Frame(body, config)
    unit = e.var(body.begin)
    with e.loop_while(lambda: unit.get() < body.end):
        kv_head, first = unit.get() // frame.entries, unit.get() % frame.entries
        limit = e.minimum(e.minimum(body.end - unit.get(), frame.entries - first), frame.large.most)
        run = _run_length(frame, first, limit)
        if frame.small is None:
            _attend(frame, frame.large, kv_head, first, run)
        else:
            with e.either(run > frame.small.rows) as (many, few):
                with many:
                    _attend(frame, frame.large, kv_head, first, run)
                with few:
                    _attend(frame, frame.small, kv_head, first, run)
        unit.set(unit.get() + run)


class _Frame:
    """Everything of a call that does not change from tile to tile."""

    def __init__(self, body: Body, config: Mapping[str, Setting]) -> None:
        self.body, self.e = body, body.e
        self.heads, self.kv_heads, self.window = (int(config[name]) for name in ("heads", "kv_heads", "window"))
        head_dim, page = int(config["head_dim"]), int(config["page"])
        self.scores = Scores(head_dim, page, float(config["scale"]), float(config["softcap"]), self.window > 0)
        self.cache, self.dtype = str(config["cache"]), DTYPES[str(config["out"])]
        self.operands: Operands = BF16_DOTS if config["products"] == "bf16" else OPERANDS[self.cache]
        self.q, self.k, self.v, self.positions, self.sequences, self.table = (body.buffer(i) for i in range(6))
        self.sinks = body.buffer(6) if config.get("sinks") else None
        self.out = body.buffer(6 if self.sinks is None else 7)
        self.group = self.heads // self.kv_heads
        self.entries = body.size(3) * self.group  # of one KV head: its query heads of each token
        rows, _ = register_tile(body.e.target)
        most = min(attention_tile.MOST_ROWS, max(rows, attention_tile.SUMS // head_dim // rows * rows))
        self.large = Tile(body.e, self.scores, self.operands, rows, most)
        # a single token's rows, which are all there is in a step of decode
        self.small = Tile(body.e, self.scores, self.operands, self.group, self.group) if self.group < rows else None
        self.addresses = [body.e.local(I64, self.scores.block_pages) for _ in range(2)]
        halves = range(2 if self.cache == "q8_0" else 0)
        self.unpacked = [body.e.local(F32, self.scores.block * head_dim) for _ in halves]


class _CachePages:
    """The pages of one sequence and KV head; the addresses of a block's are looked up once for all rows of a tile."""

    def __init__(self, frame: _Frame, kv_head: Val, sequence: Val) -> None:
        self.frame, self.kv_head, self.sequence = frame, kv_head, sequence

    def _find(self, cache: Val, logical: Val) -> Val:
        frame, body = self.frame, self.frame.body
        page = physical_page(body, frame.table, table_entry(body, self.sequence, logical), 4)
        size = frame.scores.head_dim * frame.scores.page
        number = page * frame.kv_heads + self.kv_head
        if frame.unpacked:
            return body.e.at(cache, number * q8_0.nbytes(size))
        return frame.operands.address(body.e, cache, number * (size // frame.operands.step))

    def _found(self, half: int, logical: Val) -> Val:
        e = self.frame.e
        return e.load(self.frame.addresses[half], PTR, logical % self.frame.scores.block_pages)

    def keys(self, logical: Val) -> Val:
        """The address of a page of keys."""
        return self._found(0, logical)

    def values(self, logical: Val) -> Val:
        """The address of a page of values."""
        return self._found(1, logical)

    def coming(self, logical: Val) -> tuple[Val, ...]:
        """The pages to prefetch for `logical`, which is read later."""
        if self.frame.unpacked:
            return ()
        return self._find(self.frame.k, logical), self._find(self.frame.v, logical)

    def fetch(self, first: Val, stop: Val) -> None:
        """Find the pages first..stop-1 of a block, and unpack them if they are packed."""
        frame, e = self.frame, self.frame.e
        sizes = (frame.scores.head_dim, frame.scores.page)
        with e.loop(first, stop) as logical:
            slot = logical % frame.scores.block_pages
            found = [self._find(cache, logical) for cache in (frame.k, frame.v)]
            if frame.unpacked:
                packed, found = found, [e.at(memory, slot * (sizes[0] * sizes[1]), F32) for memory in frame.unpacked]
                unpack_keys(e, packed[0], found[0], *sizes)
                unpack_values(e, packed[1], found[1], *sizes)
            for address, addresses in zip(found, frame.addresses, strict=True):
                e.store(address, addresses, slot)


def _run_length(frame: _Frame, first: Val, limit: Val) -> Val:
    """How many entries from `first` on go into one tile: of one sequence, with positions that do not descend."""
    e, group = frame.e, frame.group
    token = e.var(first // group)
    end = (first + limit - 1) // group  # the last token there is room for

    def follows() -> Val:
        after = e.minimum(token.get() + 1, end)
        later = e.load(frame.positions, I32, after) >= e.load(frame.positions, I32, token.get())
        same = e.load(frame.sequences, I32, after).equals(e.load(frame.sequences, I32, token.get()))
        return (token.get() < end) & later & same

    with e.loop_while(follows):
        token.set(token.get() + 1)
    return e.minimum(limit, (token.get() + 1) * group - first)


def _attend(frame: _Frame, tile: Tile, kv_head: Val, first: Val, run: Val) -> None:
    """The tile of the entries first..first+run-1; the last one is repeated up to whole register tiles."""
    e = frame.e
    padded = (run + (tile.rows - 1)) // tile.rows * tile.rows
    with e.loop(0, padded) as row:
        token, head, address = _place(frame, kv_head, first + e.minimum(row, run - 1))
        limit = frame.body.size(1) * frame.scores.page
        position = frame.body.checked_index(e.load(frame.positions, I32, token).sext(I64), limit)
        lower = e.maximum(position - (frame.window - 1), 0) if frame.window else None
        sink = None if frame.sinks is None else e.load(frame.sinks, F32, head)
        tile.set_row(row, e.at(frame.q, address, F32), lower, position + 1, sink)
    sequence = e.load(frame.sequences, I32, first // frame.group).sext(I64)
    tile.run(_CachePages(frame, kv_head, sequence), padded)
    dtype = frame.dtype
    with e.loop(0, run) as row:
        _, _, address = _place(frame, kv_head, first + row)
        tile.finish_row(row, e.at(frame.out, address // dtype.block_size * dtype.block_bytes), dtype)


def _place(frame: _Frame, kv_head: Val, entry: Val) -> tuple[Val, Val, Val]:
    """The token and the head of an entry, and where its row of q and of the result begins."""
    token = entry // frame.group
    head = kv_head * frame.group + entry % frame.group
    return token, head, (token * frame.heads + head) * frame.scores.head_dim
