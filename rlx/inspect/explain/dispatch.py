"""Who runs what, and why nobody else: the choices of `legalize`, and of the table of kernels.

In: the HIR graph before it was legalised, the last MIR graph, the backend. Out: `Decision`s by op, `Choice`s by kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.kernels.registry import KERNELS, find
from rlx.core.graph import Graph, GraphBuilder, Node
from rlx.inspect.steps import folded
from rlx.lir.program import Program
from rlx.mir.legalize import FREE, WeightAware, plain_tables
from rlx.ops.elementwise import SCALAR_OPS
from rlx.ops.op import Emitter, Missing, lookup

NATIVE, DECOMPOSED, REWRITTEN, UNSUPPORTED, IS_FREE = (
    "native",
    "decomposed",
    "rewritten",
    "unsupported",
    "no kernel needed",
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of an op.

    Attributes:
        op: its name.
        types: of its operands, as text.
        how: one of the words above.
        into: the ops it became.
        reason: why it is not run as it is; empty if it is.
        count: nodes of this kind.
        blocks: block paths they are in, layers folded.
    """

    op: str
    types: str
    how: str
    into: tuple[str, ...]
    reason: str
    count: int
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel of the op: why it was not taken; empty for the one that was."""

    variant: str
    help: str
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One kernel of the program: its number, where its code is written, and every kernel of its op."""

    kernel: int
    variant: str
    help: str
    source: str
    candidates: tuple[Candidate, ...]


def decisions(graph: Graph, backend: CpuBackend) -> list[Decision]:
    """What `legalize` does with each op, alike nodes together."""
    aware = WeightAware(backend, {node.output for node in graph.nodes if node.op == "parameter"})
    tables = plain_tables(graph)
    found: dict[tuple[str, str, str, tuple[str, ...], str], list[str]] = {}
    for node in graph.nodes:
        is_table = node.op == "embedding" and node.inputs[1] in tables
        how, into, reason = (
            (REWRITTEN, ("take_rows",), "its table is read by rows only") if is_table else _of(node, aware)
        )
        types = ", ".join(str(value.type) for value in node.inputs)
        found.setdefault((node.op, types, how, into, reason), []).append(folded(node.location.path))
    return [Decision(*key, len(blocks), tuple(dict.fromkeys(blocks))) for key, blocks in found.items()]


def _of(node: Node, backend: WeightAware) -> tuple[str, tuple[str, ...], str]:
    if node.op in FREE:
        return IS_FREE, (), ""
    if node.op in SCALAR_OPS:
        return REWRITTEN, ("elementwise",), "single operations become expressions of one loop"
    reason = backend.why_not(node)
    if reason is None:
        return NATIVE, (), ""
    rule = lookup(node.op).decompose
    if isinstance(rule, Missing):
        return UNSUPPORTED, (), f"{reason}; no decomposition: {rule.reason}"
    inner = GraphBuilder("inner")
    rule(Emitter(inner, node.location), node.inputs, node.attrs)
    return DECOMPOSED, tuple(dict.fromkeys(inside.op for inside in inner.nodes)), reason


def choices(nodes: Sequence[Node], program: Program, backend: CpuBackend) -> list[Choice]:
    """For each kernel of a program why it was taken, by the first node that it runs.

    Args:
        nodes: of every step, in order.
        program: with the kernels.
        backend: that chose them.
    """
    first: dict[int, Node] = {}
    for step, node in zip(program.steps, nodes, strict=True):
        first.setdefault(step.kernel, node)
    return [_choice(number, first[number], program, backend) for number in sorted(first)]


def _choice(number: int, node: Node, program: Program, backend: CpuBackend) -> Choice:
    kernel = program.kernels[number]
    taken = find(kernel.op, kernel.variant)
    candidates: list[Candidate] = []
    for definition in KERNELS[kernel.op]:
        is_taken = definition.variant == kernel.variant
        reason = "" if is_taken else definition.when(node, backend.target) or "it fits too; the one before it is faster"
        candidates.append(Candidate(definition.variant, definition.help, reason))
    code = getattr(taken.build, "__code__", None)
    source = f"kernels/{code.co_filename.rsplit('/', 1)[-1]}:{code.co_firstlineno}" if code is not None else ""
    return Choice(number, kernel.variant, taken.help, source, tuple(candidates))
