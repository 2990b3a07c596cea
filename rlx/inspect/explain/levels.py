"""The text of every level, line by line, with the block each line belongs to and the lines it became.

In: graphs and the program. Out: plain lists for the page. Two lines of different levels belong together when a value of
one lives on in the other; a node that a pass took into another one belongs to that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlx.core.graph import Graph, Location, Node, Value
from rlx.core.text import print_graph
from rlx.flow.flow import ModelFlow
from rlx.flow.text import flow_lines
from rlx.lir.program import Program
from rlx.lir.text import print_program

MAX_LIST = 60  # characters of a list of numbers


@dataclass(slots=True)
class Index:
    """Block paths and source lines by number, each once."""

    blocks: dict[str, int] = field(default_factory=dict[str, int])
    sources: dict[str, int] = field(default_factory=dict[str, int])

    def of(self, location: Location) -> tuple[int, int]:
        """The numbers of a location's path and source."""
        return self.block(location.path), self.source(location.source)

    def block(self, path: str) -> int:
        """The number of a block path."""
        return self.blocks.setdefault(path, len(self.blocks))

    def source(self, source: str) -> int:
        """The number of a source line."""
        return self.sources.setdefault(source, len(self.sources))


def graph_level(graph: Graph, index: Index) -> dict[str, object]:
    """A graph: what stands before its nodes, a line for each node, its outputs."""
    lines = print_graph(graph, locations=False).splitlines()
    end = len(lines) - 1 - len(graph.outputs)
    start = end - len(graph.nodes)
    places = [index.of(node.location) for node in graph.nodes]
    return {
        "head": lines[1:start],
        "lines": [_shortened(line.strip()) for line in lines[start:end]],
        "tail": lines[end:-1],
        "block": [block for block, _ in places],
        "source": [source for _, source in places],
        "op": [node.op for node in graph.nodes],
    }


def program_level(program: Program, index: Index) -> dict[str, object]:
    """A program: its kernels and buffers, a line for each step, its slots and outputs."""
    lines = print_program(program, locations=False).splitlines()
    end = len(lines) - 1 - len(program.outputs) - len(program.slots)
    start = end - len(program.steps)
    first_buffer = start - len(program.buffers)
    first_kernel = first_buffer - len(program.kernels)
    places = [index.of(step.location) for step in program.steps]
    return {
        "head": lines[1:first_kernel],
        "kernels": [line.strip() for line in lines[first_kernel:first_buffer]],
        "buffers": [_shortened(line.strip()) for line in lines[first_buffer:start]],
        "lines": [line.strip() for line in lines[start:end]],
        "tail": lines[end:-1],
        "block": [block for block, _ in places],
        "source": [source for _, source in places],
        "kernel": [step.kernel for step in program.steps],
        "operands": [list(step.buffers) for step in program.steps],
        "group": list(program.groups),
    }


def flow_level(flow: ModelFlow, index: Index) -> list[list[object]]:
    """[depth, text, block path, source] of every line of a flow."""
    return [[line.depth, line.text, line.path, index.source(line.source)] for line in flow_lines(flow)]


def became(before: Graph, nodes: Sequence[Node]) -> list[int]:
    """For each node of a graph the number of the later node that does its work; -1 for none.

    Args:
        before: an earlier graph.
        nodes: of a later one, such as those of the steps.
    """
    maker = {value: number for number, node in enumerate(nodes) for value in node.outputs}
    readers: dict[Value, list[int]] = {}
    for number, node in enumerate(before.nodes):
        for value in node.inputs:
            readers.setdefault(value, []).append(number)
    result = [-1] * len(before.nodes)
    for number in reversed(range(len(before.nodes))):
        node = before.nodes[number]
        own = [maker[value] for value in node.outputs if value in maker]
        later = [result[reader] for value in node.outputs for reader in readers.get(value, ()) if result[reader] >= 0]
        if own or later:
            result[number] = min(own or later)
    return result


def _shortened(line: str) -> str:
    """Long lists of numbers cut."""
    return re.sub(rf"\[([-\d., einf]{{{MAX_LIST}}})[^\]]*\]", r"[\1…]", line)
