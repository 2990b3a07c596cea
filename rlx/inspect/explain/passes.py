"""What each pass did: how many nodes of each op there were before and after, and which lines differ.

In: two neighbouring stages. Out: a `PassDiff`. Lines are compared without the numbers of their values, which shift with
every node that comes or goes; blocks that differ alike, as layers do, are told once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

from rlx.core.graph import Graph, Node
from rlx.core.text import print_attrs
from rlx.inspect.steps import folded, kernel_text
from rlx.lir.program import Program, Step

Line = tuple[str, str]
"""("+", "-" or " ", text)."""
CONTEXT = 1  # lines shown beside a difference


@dataclass(frozen=True, slots=True)
class BlockDiff:
    """The lines of one block path that differ, and how many block paths differ so."""

    block: str
    times: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class PassDiff:
    """What one pass did.

    Attributes:
        name, level: of the stage it made.
        before, after: nodes, or steps.
        counts: (op, before, after) of the ops whose number changed.
        blocks: what differs.
        facts: what else there is to say, such as the number of groups.
    """

    name: str
    level: str
    before: int
    after: int
    counts: tuple[tuple[str, int, int], ...]
    blocks: tuple[BlockDiff, ...]
    facts: tuple[str, ...]


def pass_diff(name: str, level: str, before: Graph | Program, after: Graph | Program) -> PassDiff:
    """Compare a stage with the one before it."""
    old, new = _lines(before), _lines(after)
    counts = _counts(before), _counts(after)
    changed = [(op, counts[0][op], counts[1][op]) for op in sorted(counts[0] | counts[1])]
    # a program's lines are steps, a graph's are nodes: between the two every line differs and says nothing
    blocks = _folded_diffs(old, new) if isinstance(before, Graph) == isinstance(after, Graph) else ()
    return PassDiff(
        name,
        level,
        sum(counts[0].values()),
        sum(counts[1].values()),
        tuple(item for item in changed if item[1] != item[2]),
        blocks,
        _facts(after),
    )


def _counts(stage: Graph | Program) -> Counter[str]:
    if isinstance(stage, Graph):
        return Counter(node.op for node in stage.nodes)
    return Counter(stage.kernels[step.kernel].op for step in stage.steps)


def _facts(stage: Graph | Program) -> tuple[str, ...]:
    if isinstance(stage, Graph):
        return ()
    buffers = Counter(buffer.kind for buffer in stage.buffers)
    facts = [f"{len(stage.kernels)} kernels", f"{len(stage.steps)} steps"]
    groups = len(set(stage.groups))
    facts += [f"{groups} groups of steps"] if groups < len(stage.steps) else []
    facts += [f"{count} {kind} buffers" for kind, count in sorted(buffers.items())]
    return (*facts, *([f"{len(stage.slots)} slots of memory"] if stage.slots else []))


def _lines(stage: Graph | Program) -> dict[str, list[str]]:
    """The lines of each block path."""
    lines: dict[str, list[str]] = {}
    if isinstance(stage, Graph):
        for node in stage.nodes:
            lines.setdefault(node.location.path, []).append(_node_line(node))
    else:
        for step in stage.steps:
            lines.setdefault(step.location.path, []).append(_step_line(stage, step))
    return lines


def _node_line(node: Node) -> str:
    attrs = {name: value for name, value in node.attrs.items() if name != "values"}
    operands = ", ".join(str(value.type) for value in node.inputs)
    results = ", ".join(str(value.type) for value in node.outputs)
    return _without_layer(f"{node.op}({operands}) {print_attrs(attrs)} : {results}")


def _step_line(program: Program, step: Step) -> str:
    beside = "beside " if step.beside else ""
    return f"{beside}{kernel_text(program.kernels[step.kernel])} units {step.units}"


def _without_layer(text: str) -> str:
    return re.sub(r"page_offset=\d+", "page_offset=*", re.sub(r"\.\d+(?=[.\"])", ".*", text))


def _folded_diffs(old: dict[str, list[str]], new: dict[str, list[str]]) -> tuple[BlockDiff, ...]:
    found: dict[tuple[str, tuple[Line, ...]], int] = {}
    for path in dict.fromkeys((*old, *new)):
        lines = tuple(_diff(old.get(path, []), new.get(path, [])))
        if lines:
            found[folded(path), lines] = found.get((folded(path), lines), 0) + 1
    return tuple(BlockDiff(path, times, lines) for (path, lines), times in found.items())


def _diff(old: list[str], new: list[str]) -> Iterable[Line]:
    if old == new:
        return
    groups = SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(CONTEXT)
    for index, group in enumerate(groups):
        if index:
            yield (" ", "…")
        for kind, first, last, start, stop in group:
            if kind == "equal":
                yield from ((" ", line) for line in old[first:last])
            else:
                yield from (("-", line) for line in old[first:last])
                yield from (("+", line) for line in new[start:stop])
