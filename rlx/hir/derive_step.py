"""From one plain causal forward pass to the step program of generation: cached, ragged, batched.

In: a graph `tokens: i32[batch, seq] -> logits`. Out: a graph over T tokens of any mix of sequences,

    tokens, positions, sequences: i32[T]   page_table: i32[S, P]   logit_rows: i32[R]   k_cache.i, v_cache.i
    -> logits: f32[R, vocab]   k_cache.i, v_cache.i   and every tap

`[batch, seq, ...]` collapses to `[T, ...]`, attention becomes an append to the paged cache and attention over its
pages, positions become an input. Attention to the keys and values of an earlier layer reads that layer's pages. An op
that carries a state from row to row takes its step form; the program then has the inputs `bounds: i32[S + 1]`,
`slots: i32[S]` and `state: f32[C, width]` besides, and gives the state back. Cross attention over an input `source`
reads pages that a program of its own fills once for each source (`derive_source.py`). A value that only the logits need
is computed for their R rows alone, from the last op that mixes rows on. Which values have rows is found by
`row_kinds.py`; next: `rlx/mir/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rlx.core.dim import Dim, Size
from rlx.core.dtype import DType, f32, i32
from rlx.core.graph import AttrValue, Graph, GraphBuilder, Location, Node, Value
from rlx.core.rewrite import eliminate_dead
from rlx.core.type import TensorType
from rlx.errors import FlowError
from rlx.hir.collapse import collapsed, key_shape
from rlx.hir.derive_source import SourceDerivation
from rlx.hir.row_kinds import Kind, RowKinds, is_cross_attention, row_kinds
from rlx.ops.op import Emitter, int_attr
from rlx.ops.paged_attention import cache_types
from rlx.ops.recurrent_state import STATE_FORMS

TOKENS, SEQUENCES, PAGES_OF_SEQUENCE = Dim("T"), Dim("S"), Dim("P")
LOGIT_ROWS, PAGES, SLOTS = Dim("R", min=0), Dim("N"), Dim("C")
STATE_ALIGNMENT = 16
"""Floats: the state of an op starts on a cache line."""


_Kept: TypeAlias = "tuple[Value, Value, int]"
"""Keys, values and number of KV heads, which say what the cache holds for an attention node."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The cache of one attention layer.

    Attributes:
        num_kv_heads, head_dim: sizes of a page entry.
        window: keys a query sees, its own included; None for all.
    """

    num_kv_heads: int
    head_dim: int
    window: int | None


@dataclass(slots=True)
class _SharedCache:
    """The cache of all layers with one shape of keys: its number, its values now, and how many layers came by."""

    index: int
    layers: int
    used: int
    values: tuple[Value, Value]


@dataclass(slots=True)
class _SharedState:
    """The states of all ops of a sequence side by side: which rows and slots, the values now, columns given away."""

    index: tuple[Value, Value, Value]
    values: Value
    used: int = 0


@dataclass(frozen=True, slots=True)
class DerivedStep:
    """A derived step.

    Attributes:
        graph: the step program.
        layers: what each attention layer with keys and values of its own caches, in order. Layers whose keys have one
            shape share the caches `k_cache.i` and `v_cache.i`, page by page, so that a short text fills memory from one
            end.
        page_size: positions per page.
        cache_dtype: element type of the caches.
        state_width: floats of recurrent state of one sequence, in all layers; 0 for a flow without.
        source: the program that fills the pages of a source; None for a flow without cross attention.
    """

    graph: Graph
    layers: tuple[LayerCache, ...]
    page_size: int
    cache_dtype: DType = f32
    state_width: int = 0
    source: Graph | None = None

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page in all layers, keys and values."""
        return sum(
            2 * self.cache_dtype.nbytes(layer.num_kv_heads * layer.head_dim * self.page_size) for layer in self.layers
        )

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of the recurrent state of one sequence."""
        return 4 * self.state_width


def derive_step(graph: Graph, page_size: int = 32, cache_dtype: DType = f32) -> DerivedStep:
    """The step program of a plain causal forward pass.

    Args:
        graph: one input `tokens`, an output `logits`, causal or sliding attention; other outputs (taps) stay and have
            a row for each of the T tokens. A further input `source: f32[batch, frames, width]` is for cross attention.
        page_size: positions per page of the cache.
        cache_dtype: element type of the cache: f32, f16, bf16 or q8_0.

    Raises:
        FlowError: the flow cannot be stepped; the message names the node that stands in the way.
    """
    graph = eliminate_dead(graph)
    rows = row_kinds(graph)
    outputs = dict(graph.outputs)
    logits = outputs.get("logits")
    if logits is None or rows[logits] not in (Kind.TOKEN, Kind.LAST) or len(rows.inner(logits)) != 1:
        raise FlowError(
            "a step program needs logits for each token",
            where=graph.name,
            found=", ".join(f"{name}: {value.type}" for name, value in graph.outputs),
            expected="logits: f32[batch, seq, vocab]",
            fix="end the flow with .lm_head(...)",
        )
    return _Derivation(graph, rows, page_size, cache_dtype).run()


def needed_for_all(graph: Graph, rows: RowKinds) -> set[Value]:
    """The values that have to be computed for all T tokens: attention and taps need them, directly or not.

    Attention to keys and values that are in the cache already does not: it can be computed for some rows alone.
    """
    readers = _readers(graph, rows)
    wide = {value for name, value in graph.outputs if name != "logits" and rows[value] is not Kind.LAST}
    for node in reversed(graph.nodes):
        mixes = node.op in STATE_FORMS or (node.op == "attention" and node not in readers)
        if mixes or any(value in wide for value in node.outputs):
            wide.update(value for value in node.inputs if rows[value] is not Kind.STATIC)
    return wide


def _readers(graph: Graph, rows: RowKinds) -> set[Node]:
    """The attention nodes whose keys and values of the tokens an earlier one has appended to the cache."""
    appended: set[_Kept] = set()
    readers: set[Node] = set()
    for node in graph.nodes:
        if node.op == "attention" and not is_cross_attention(node, rows):
            if _kept(node) in appended:
                readers.add(node)
            appended.add(_kept(node))
    return readers


def _kept(node: Node) -> _Kept:
    return node.inputs[1], node.inputs[2], int_attr(node.attrs, "num_kv_heads")


class _Derivation:
    """The step graph under construction.

    `full` has the plain values at all T tokens (or static), `few` those at the R logit rows; some are in both.
    """

    def __init__(self, graph: Graph, rows: RowKinds, page_size: int, cache_dtype: DType) -> None:
        self.graph, self.rows, self.page_size, self.cache_dtype = graph, rows, page_size, cache_dtype
        self.builder = GraphBuilder(f"{graph.name}_step")
        self.full: dict[Value, Value] = {rows.tokens: self.builder.input("tokens", TensorType(i32, (TOKENS,)))}
        self.few: dict[Value, Value] = {}
        self.positions = self.builder.input("positions", TensorType(i32, (TOKENS,)))
        self.sequences = self.builder.input("sequences", TensorType(i32, (TOKENS,)))
        self.page_table = self.builder.input("page_table", TensorType(i32, (SEQUENCES, PAGES_OF_SEQUENCE)))
        self.logit_rows = self.builder.input("logit_rows", TensorType(i32, (LOGIT_ROWS,)))
        self.layers: list[LayerCache] = []
        self.caches: dict[tuple[int, int], _SharedCache] = {}
        self.state: _SharedState | None = None
        self.readers = _readers(graph, rows)
        self.pages: dict[_Kept, dict[str, AttrValue]] = {}
        self.index_of_rows: tuple[Value, Value] | None = None
        self.source = (
            None if rows.source is None else SourceDerivation(graph, rows, self.builder, page_size, cache_dtype)
        )

    def run(self) -> DerivedStep:
        """Emit every node, then name the outputs."""
        wide = needed_for_all(self.graph, self.rows)
        for node in self.graph.nodes:
            self.derive(node, wide)
        producers = self.graph.producers()
        for name, value in self.graph.outputs:
            few = name == "logits" or self.rows[value] is Kind.LAST
            location = producers[value].location if value in producers else Location(name)
            self.builder.output(name, self.at_logit_rows(value, location) if few else self.full[value])
        for cache in self.caches.values():
            for half, value in zip("kv", cache.values, strict=True):
                self.builder.output(f"{half}_cache.{cache.index}", value)
        width = 0
        if self.state is not None:
            width = self.state.used
            self.builder.output("state", self.state.values)
        source = None if self.source is None else self.source.build()
        return DerivedStep(self.builder.build(), tuple(self.layers), self.page_size, self.cache_dtype, width, source)

    def derive(self, node: Node, wide: set[Value]) -> None:
        """The node of the step program for a node of the plain one."""
        if self.source is not None:
            self.source.derive(node)
        if self.rows[node.outputs[0]] is Kind.SOURCE:
            return
        if self.rows[node.outputs[0]] is Kind.STATIC:
            types = [value.type for value in node.outputs]
            operands = [self.full[value] for value in node.inputs]
            made = self.builder.append(node.op, operands, node.attrs, types, node.location)
            self.full.update(zip(node.outputs, made, strict=True))
        elif node.op == "positions":
            self.full[node.output] = self.positions
        elif node.op == "last_token":
            self.few[node.output] = self.at_logit_rows(node.inputs[0], node.location)
        elif self.source is not None and is_cross_attention(node, self.rows):
            self.full[node.output] = self.source.attend(node, self.full[node.inputs[0]])
        elif node.op == "attention":
            if node not in self.readers:
                self.append_to_cache(node)
            if node in self.readers and node.output not in wide:
                self.few[node.output] = self.cached_attention(node, few=True)
            else:
                self.full[node.output] = self.cached_attention(node)
        elif node.op in STATE_FORMS:
            self.full[node.output] = self.stepped_state(node)
        elif any(value in wide for value in node.outputs):
            operands = [self.full[value] for value in node.inputs]
            self.full.update(zip(node.outputs, self.collapsed(node, operands, TOKENS), strict=True))
        else:
            operands = [self.at_logit_rows(value, node.location) for value in node.inputs]
            self.few.update(zip(node.outputs, self.collapsed(node, operands, LOGIT_ROWS), strict=True))

    def at_logit_rows(self, value: Value, location: Location) -> Value:
        """A value at the logit rows; gathered once if it exists for all tokens."""
        if self.rows[value] is Kind.STATIC:
            return self.full[value]
        if value not in self.few:
            self.few[value] = Emitter(self.builder, location)("take_rows", self.full[value], self.logit_rows)
        return self.few[value]

    def collapsed(self, node: Node, operands: list[Value], count: Size) -> tuple[Value, ...]:
        """The node over `[count, inner...]` in place of `[batch, seq, inner...]`."""
        return collapsed(Emitter(self.builder, node.location), node, operands, self.rows, count)

    def append_to_cache(self, node: Node) -> None:
        """Append k and v of the tokens to the cache, in pages of the layer's own."""
        _, k, v = node.inputs[:3]
        num_kv_heads, head_dim = key_shape(node)
        cache = self.cache_of((num_kv_heads, head_dim))
        pages: dict[str, AttrValue] = {"page_step": cache.layers, "page_offset": cache.used}
        index = (self.positions, self.sequences, self.page_table)
        operands = (*cache.values, self.full[k], self.full[v], *index)
        updated = Emitter(self.builder, node.location).many("cache_append", *operands, dtype=self.cache_dtype, **pages)
        cache.values, cache.used = (updated[0], updated[1]), cache.used + 1
        self.pages[_kept(node)] = pages
        self.layers.append(LayerCache(num_kv_heads, head_dim, _window(node)))

    def cached_attention(self, node: Node, few: bool = False) -> Value:
        """Attend over the pages that hold k and v, from all tokens or from the logit rows alone."""
        caches, q = self.cache_of(key_shape(node)).values, node.inputs[0]
        attrs = {name: node.attrs[name] for name in ("num_heads", "num_kv_heads", "scale", "softcap")}
        attrs |= {"window": _window(node), "dtype": self.cache_dtype, **self.pages[_kept(node)]}
        queries, index = self.full.get(q), (self.positions, self.sequences)
        if few or queries is None:
            queries, index = self.at_logit_rows(q, node.location), self.index_at_logit_rows(node.location)
        operands = (queries, *caches, *index, self.page_table, *(self.full[sinks] for sinks in node.inputs[3:]))
        return Emitter(self.builder, node.location)("paged_attention", *operands, **attrs)

    def index_at_logit_rows(self, location: Location) -> tuple[Value, Value]:
        """Position and sequence of the logit rows; gathered once."""
        if self.index_of_rows is None:
            emit = Emitter(self.builder, location)
            position, sequence = (emit("take_rows", x, self.logit_rows) for x in (self.positions, self.sequences))
            self.index_of_rows = position, sequence
        return self.index_of_rows

    def cache_of(self, shape: tuple[int, int]) -> _SharedCache:
        """The cache of all layers with this number of KV heads and this head_dim; made when the first one is met."""
        if shape not in self.caches:
            own = (n for n in self.graph.nodes if n.op == "attention" and not is_cross_attention(n, self.rows))
            layers = sum(key_shape(node) == shape for node in own if node not in self.readers)
            index = len(self.caches)
            key_type, value_type = cache_types(PAGES * layers, *shape, self.page_size, self.cache_dtype)
            keys = self.builder.input(f"k_cache.{index}", key_type)
            values = self.builder.input(f"v_cache.{index}", value_type)
            self.caches[shape] = _SharedCache(index, layers, 0, (keys, values))
        return self.caches[shape]

    def stepped_state(self, node: Node) -> Value:
        """Go on from the state of each sequence, which takes the next free columns of its slot."""
        state = self.shared_state()
        operands = (*(self.full[value] for value in node.inputs), state.values, *state.index)
        form, emit = STATE_FORMS[node.op], Emitter(self.builder, node.location)
        result, state.values = emit.many(form.step, *operands, **node.attrs, offset=state.used)
        state.used += _state_width(node)
        return result

    def shared_state(self) -> _SharedState:
        """The states of all layers; made when the first op that has one is met."""
        if self.state is None:
            width = sum(_state_width(node) for node in self.graph.nodes if node.op in STATE_FORMS)
            bounds = self.builder.input("bounds", TensorType(i32, (SEQUENCES + 1,)))
            slots = self.builder.input("slots", TensorType(i32, (SEQUENCES,)))
            values = self.builder.input("state", TensorType(f32, (SLOTS, width)))
            self.state = _SharedState((bounds, self.positions, slots), values)
        return self.state


def _state_width(node: Node) -> int:
    """Floats of state of one sequence, in whole cache lines."""
    width = STATE_FORMS[node.op].width(tuple(value.type for value in node.inputs), node.attrs)
    return -(-width // STATE_ALIGNMENT) * STATE_ALIGNMENT


def _window(node: Node) -> int | None:
    return int_attr(node.attrs, "window") if node.attrs["mask"] == "sliding" else None
