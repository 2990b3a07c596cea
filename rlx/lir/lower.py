"""MIR graph -> LIR program: each node becomes a kernel call on buffers. Next: `overlap_steps.py`.

A reshape is another name for the same buffer. An in-place result (a KV cache) takes over the buffer of its input.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.core.backend import Backend, KernelPlan
from rlx.core.graph import Graph, Node, Value
from rlx.errors import VerifyError
from rlx.lir.program import Buffer, Kernel, Program, Step


def lower(graph: Graph, backend: Backend) -> Program:
    """Choose a kernel for every node and give every value a buffer.

    Raises:
        UnsupportedOpError: the backend has no kernel for a node (legalisation was left out).
        VerifyError: a value that is updated in place is read again later, or is not the program's to change.
    """
    return _Lowering(graph, backend).run()


class _Lowering:
    def __init__(self, graph: Graph, backend: Backend) -> None:
        self.graph, self.backend = graph, backend
        self.buffers: list[Buffer] = []
        self.kernels: dict[Kernel, int] = {}
        self.steps: list[Step] = []
        self.buffer_of: dict[Value, int] = {}
        self.weights: dict[tuple[str, str], int] = {}
        self.parameters: dict[Value, Node] = {}
        # both by the value that a chain of reshapes renames
        self.renamed: dict[Value, Value] = {}
        self.last_use: dict[Value, int] = {}

    def run(self) -> Program:
        """The whole program."""
        for name, value in self.graph.inputs:
            self.buffer_of[value] = self._add(Buffer("input", value.type, name))
        self._find_last_uses()
        for index, node in enumerate(self.graph.nodes):
            self._node(index, node)
        outputs = tuple((name, self._output(name, value)) for name, value in self.graph.outputs)
        return Program(self.graph.name, outputs, tuple(self.kernels), tuple(self.buffers), tuple(self.steps))

    def _find_last_uses(self) -> None:
        for index, node in enumerate(self.graph.nodes):
            if node.op == "reshape":
                self.renamed[node.output] = self._original(node.inputs[0])
            self.last_use.update((self._original(value), index) for value in node.inputs)
        self.last_use.update((self._original(value), len(self.graph.nodes)) for _, value in self.graph.outputs)

    def _original(self, value: Value) -> Value:
        return self.renamed.get(value, value)

    def _add(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _node(self, index: int, node: Node) -> None:
        if node.op == "parameter":
            self.parameters[node.output] = node
        elif node.op == "constant":
            values = node.attrs["values"]
            numbers = (
                tuple(float(v) for v in values if isinstance(v, (int, float))) if isinstance(values, tuple) else ()
            )
            self.buffer_of[node.output] = self._add(Buffer("constant", node.output.type, values=numbers))
        elif node.op == "reshape":
            self.buffer_of[node.output] = self._operand(node.inputs[0], "")
        else:
            self._kernel(index, node, self.backend.plan(node))

    def _kernel(self, index: int, node: Node, plan: KernelPlan) -> None:
        operands = [self._operand(value, plan.layouts.get(i, "")) for i, value in enumerate(node.inputs)]
        written: list[int] = []
        for position, value in enumerate(node.outputs):
            if position in plan.in_place:
                self.buffer_of[value] = self._taken_over(index, node, plan.in_place[position])
            else:
                self.buffer_of[value] = self._add(Buffer("arena", value.type))
                operands.append(self.buffer_of[value])
            written.append(self.buffer_of[value])
        kernel = Kernel(node.op, plan.variant, tuple(sorted(plan.config.items())))
        number = self.kernels.setdefault(kernel, len(self.kernels))
        step = Step(number, tuple(operands), plan.sizes, plan.units, node.location, tuple(sorted(set(written))))
        self.steps.append(step)

    def _taken_over(self, index: int, node: Node, position: int) -> int:
        """The buffer of an operand whose memory a result takes over."""
        original = self._original(node.inputs[position])
        buffer = self.buffer_of.get(original)
        if buffer is None or self.buffers[buffer].kind not in ("input", "arena"):
            raise VerifyError(f"{node.op} updates a weight or constant in place", where=str(node.location))
        if self.last_use[original] != index or sum(self._original(value) is original for value in node.inputs) > 1:
            raise VerifyError(f"{node.op} updates a value in place that is read later", where=str(node.location))
        self.buffers[buffer] = replace(self.buffers[buffer], updated=self.buffers[buffer].kind == "input")
        return buffer

    def _operand(self, value: Value, layout: str) -> int:
        if value in self.buffer_of:
            return self.buffer_of[value]
        key = str(self.parameters[value].attrs["key"])
        if (key, layout) not in self.weights:
            self.weights[key, layout] = self._add(Buffer("weight", value.type, key, layout))
        return self.weights[key, layout]

    def _output(self, name: str, value: Value) -> int:
        index = self._operand(value, "")
        if self.buffers[index].kind == "arena":
            # the caller sees the value's own type, whatever reshapes lie between
            self.buffers[index] = Buffer("output", value.type, name)
        return index
