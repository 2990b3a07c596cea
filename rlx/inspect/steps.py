"""Which node each step of a program came from, and what it costs.

In: the last MIR graph of a compilation and the program that was lowered from it. Out: a `StepInfo` for each step. Next:
`roofline.py`, `timing.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlx.core.dim import Size
from rlx.core.dtype import ACTIVATION_TERMS, bf16_act
from rlx.core.graph import Graph, Location, Node
from rlx.errors import VerifyError
from rlx.lir.program import Kernel, Program
from rlx.mir.legalize import FREE
from rlx.ops.op import cost_of, lookup

CACHE_OPS = ("paged_attention", "cache_append")
LOOKUPS = ("embedding", "take_rows")


@dataclass(frozen=True, slots=True)
class Reach:
    """Which keys of its sequence a query sees: those up to its own position, or all; `window` of them at most."""

    is_causal: bool = True
    window: int | None = None

    def attended(self, start: int, count: int) -> int:
        """Pairs of a query and a key it sees, for the `count` queries from position `start` of a sequence."""
        end = start + count
        if not self.is_causal:
            return count * end
        if self.window is None or self.window >= end:
            return (start + 1 + end) * count // 2
        return sum(min(position + 1, self.window) for position in range(start, end))

    def cached(self, start: int, count: int) -> int:
        """Keys that any of these queries sees."""
        end = start + count
        return end if self.window is None else min(end, self.window + count - 1)


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step of a program and the node it runs.

    Attributes:
        index: its place in the program.
        node: of the last MIR graph.
        kernel: its number in the program.
        name: of the kernel, `op.variant`.
        arithmetic: what its products are made of: "f32", "bf16" or "int8".
        operations: floating-point or integer operations, two for a multiply-add, as in `Cost`.
        weight_bytes, cache_bytes, other_bytes: bytes it moves at least: of weights as they are packed, of the KV cache,
            and of activations.
        reach: which keys a query sees.
    """

    index: int
    node: Node
    kernel: int
    name: str
    arithmetic: str
    operations: Size
    weight_bytes: int
    cache_bytes: Size
    other_bytes: Size
    reach: Reach

    @property
    def location(self) -> Location:
        """Block path and source line."""
        return self.node.location

    @property
    def block(self) -> str:
        """The block path with layers folded: `layers.*.mlp`."""
        return folded(self.location.path)


def folded(path: str) -> str:
    """A block path without the number of its layer: `layers.3.mlp` is `layers.*.mlp`."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path) or "program"


def nodes_of_steps(graph: Graph, program: Program) -> tuple[Node, ...]:
    """The node of every step: `lower.py` makes a step of each that is not free, in order.

    Raises:
        VerifyError: the program is not that of the graph.
    """
    nodes = tuple(node for node in graph.nodes if node.op not in FREE)
    ops = [program.kernels[step.kernel].op for step in program.steps]
    if [node.op for node in nodes] != ops:
        raise VerifyError("a program is not the one of its graph", where=program.name, found=f"{len(ops)} steps")
    return nodes


def step_infos(graph: Graph, program: Program, packed_bytes: dict[int, int]) -> tuple[StepInfo, ...]:
    """What each step is.

    Args:
        graph: the last MIR graph.
        program: what became of it.
        packed_bytes: bytes of each weight buffer as it lies in memory.

    Raises:
        VerifyError: the program is not that of the graph.
    """
    nodes = nodes_of_steps(graph, program)
    return tuple(_info(index, node, program, packed_bytes) for index, node in enumerate(nodes))


def _info(index: int, node: Node, program: Program, packed_bytes: dict[int, int]) -> StepInfo:
    step = program.steps[index]
    kernel = program.kernels[step.kernel]
    inputs, outputs = (tuple(value.type for value in values) for values in (node.inputs, node.outputs))
    cost = cost_of(lookup(node.op), inputs, outputs, node.attrs)
    weights = [] if node.op in LOOKUPS else [b for b in step.buffers if program.buffers[b].kind == "weight"]
    in_file: Size = 0
    for buffer in weights:
        in_file = in_file + program.buffers[buffer].type.nbytes
    packed = sum(packed_bytes.get(buffer, 0) for buffer in weights)
    rest, none = cost.bytes - in_file, 0
    cache, other = (rest, none) if node.op in CACHE_OPS else (none, rest)
    window = node.attrs.get("window")
    return StepInfo(
        index,
        node,
        step.kernel,
        f"{kernel.op}.{kernel.variant}",
        arithmetic_of(node),
        cost.flops * terms_of(node),
        packed,
        cache,
        other,
        Reach(node.attrs.get("mask") != "none", window if isinstance(window, int) and window > 0 else None),
    )


def arithmetic_of(node: Node) -> str:
    """ "int8" or "bf16" for products of quantised or rounded operands, else "f32"."""
    first = node.inputs[0].type.dtype if node.inputs else None
    if node.op == "linear" and first is not None and first.name in ACTIVATION_TERMS:
        return "bf16" if first == bf16_act else "int8"
    return "bf16" if node.attrs.get("products") == "bf16" else "f32"


def terms_of(node: Node) -> int:
    """How many products a product is made of: two where an activation is the sum of two int8."""
    dtype = node.inputs[0].type.dtype if node.inputs else None
    return ACTIVATION_TERMS.get(dtype.name, 1) if node.op == "linear" and dtype is not None else 1


def kernel_text(kernel: Kernel) -> str:
    """A kernel with the settings that tell it from others: `linear.integer q4_1 x q8_act`."""
    settings = kernel.settings
    words = [f"{kernel.op}.{kernel.variant}"]
    if "weight" in settings:
        words += [str(settings["weight"]), *(["x", str(settings["x"])] if "x" in settings else [])]
    for name in ("expression", "style", "cache", "width", "products"):
        if name in settings:
            words.append(str(settings[name]))
    words += [f"-> {settings['out']}"] if "out" in settings else []
    words += ["+ residual"] if settings.get("residual") else []
    words += ["+ bias"] if settings.get("bias") else []
    return " ".join(words)
