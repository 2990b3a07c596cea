"""Cross attention in a step program: keys and values of a source are computed once and kept in pages.

In: the nodes of a plain forward pass with an input `source: f32[batch, frames, width]`, and the step program under
construction. Out: a program of its own over the U rows of any sources,

    source: f32[U, width]   positions, sequences: i32[U]   page_table: i32[W, Q]   k_source.i, v_source.i -> the same

and, in the step program, attention over those pages. Its further inputs say what each token reads: `sources: i32[T]`
(a row of `source_table: i32[W, Q]`) and `source_last: i32[T]` (the position of the last row of that source). A token
that sees every row of its source is a token that stands at its last row, so the kernels of the KV cache do both. Next:
`derive_step.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.core.dim import Dim
from rlx.core.dtype import DType, f32, i32
from rlx.core.graph import AttrValue, Graph, GraphBuilder, Node, Value
from rlx.core.type import TensorType
from rlx.hir.collapse import collapsed, key_shape
from rlx.hir.row_kinds import Kind, RowKinds, is_cross_attention, refuse
from rlx.ops.op import Emitter
from rlx.ops.paged_attention import cache_types

TOKENS, ROWS, SOURCES = Dim("T"), Dim("U"), Dim("W")
PAGES_OF_SOURCE, PAGES = Dim("Q"), Dim("M")


@dataclass(slots=True)
class _SourceCache:
    """The pages of all layers with one shape of keys: in the step program, and in the source program as they change."""

    layers: int
    used: int
    read: tuple[Value, Value]
    written: tuple[Value, Value]


class SourceDerivation:
    """The source program under construction, and the attention of the step program that reads what it writes.

    Args:
        graph, rows: the plain forward pass.
        step: the step program under construction.
        page_size, cache_dtype: as for `derive_step`.
    """

    def __init__(self, graph: Graph, rows: RowKinds, step: GraphBuilder, page_size: int, cache_dtype: DType) -> None:
        self.graph, self.rows, self.step = graph, rows, step
        self.page_size, self.cache_dtype = page_size, cache_dtype
        self.builder = GraphBuilder(f"{graph.name}_source")
        self.values: dict[Value, Value] = {}
        if rows.source is not None:
            self.values[rows.source] = self.builder.input("source", TensorType(f32, (ROWS, *rows.inner(rows.source))))
        per_row, table = TensorType(i32, (ROWS,)), TensorType(i32, (SOURCES, PAGES_OF_SOURCE))
        self.written_at = (
            self.builder.input("positions", per_row),
            self.builder.input("sequences", per_row),
            self.builder.input("page_table", table),
        )
        self.read_at = (
            step.input("source_last", TensorType(i32, (TOKENS,))),
            step.input("sources", TensorType(i32, (TOKENS,))),
            step.input("source_table", table),
        )
        self.caches: dict[tuple[int, int], _SourceCache] = {}

    def derive(self, node: Node) -> None:
        """Emit a node that is static or has rows of the source; others belong to the step program alone."""
        kind = self.rows[node.outputs[0]]
        if kind is Kind.STATIC:
            types = [value.type for value in node.outputs]
            operands = [self.values[value] for value in node.inputs]
            made = self.builder.append(node.op, operands, node.attrs, types, node.location)
        elif kind is Kind.SOURCE:
            operands = [self.values[value] for value in node.inputs]
            made = collapsed(Emitter(self.builder, node.location), node, operands, self.rows, ROWS)
        else:
            return
        self.values.update(zip(node.outputs, made, strict=True))

    def attend(self, node: Node, q: Value) -> Value:
        """Let the source program keep the keys and values; gives the attention of the step program over them."""
        if len(node.inputs) > 3:
            refuse(node, "attention to a source takes neither sinks nor what a mask adds")
        cache = self._cache_of(key_shape(node))
        pages: dict[str, AttrValue] = {"page_step": cache.layers, "page_offset": cache.used}
        keys, values = (self.values[value] for value in node.inputs[1:])
        append = Emitter(self.builder, node.location)
        updated = append.many(
            "cache_append", *cache.written, keys, values, *self.written_at, dtype=self.cache_dtype, **pages
        )
        cache.written, cache.used = (updated[0], updated[1]), cache.used + 1
        attrs = {name: node.attrs[name] for name in ("num_heads", "num_kv_heads", "scale", "softcap")}
        emit = Emitter(self.step, node.location)
        return emit("paged_attention", q, *cache.read, *self.read_at, **attrs, dtype=self.cache_dtype, **pages)

    def build(self) -> Graph:
        """The source program."""
        for index, cache in enumerate(self.caches.values()):
            for half, value in zip("kv", cache.written, strict=True):
                self.builder.output(f"{half}_source.{index}", value)
        return self.builder.build()

    def _cache_of(self, shape: tuple[int, int]) -> _SourceCache:
        if shape not in self.caches:
            crossing = [node for node in self.graph.nodes if is_cross_attention(node, self.rows)]
            layers, index = sum(key_shape(node) == shape for node in crossing), len(self.caches)
            types = cache_types(PAGES * layers, *shape, self.page_size, self.cache_dtype)
            read, written = (
                tuple(b.input(f"{half}_source.{index}", type_) for half, type_ in zip("kv", types, strict=True))
                for b in (self.step, self.builder)
            )
            self.caches[shape] = _SourceCache(layers, 0, (read[0], read[1]), (written[0], written[1]))
        return self.caches[shape]
