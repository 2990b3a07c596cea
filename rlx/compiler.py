"""THE pipeline: one function, one line for each stage.

    ModelFlow -> HIR -> (step program) -> MIR -> LIR; the backend makes machine code of the LIR.

Each stage is verified, and its text goes to `RLX_DUMP` if that is set. A pass that fails leaves a reproducer. Next: the
passes it names, in order.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rlx.config import settings
from rlx.core.backend import Backend
from rlx.core.graph import Graph, Node
from rlx.core.text import print_graph
from rlx.core.verify import verify
from rlx.errors import CompileError, RlxError, StorageError
from rlx.hir.simplify import simplify
from rlx.lir.lower import lower
from rlx.lir.overlap_steps import overlap_steps
from rlx.lir.plan_memory import plan_memory
from rlx.lir.program import Program
from rlx.lir.text import print_program
from rlx.mir.fuse_elementwise import fuse_elementwise
from rlx.mir.fuse_residual import fuse_residual
from rlx.mir.fuse_rope import fuse_rope
from rlx.mir.legalize import legalize
from rlx.mir.quantize_activations import fuse_quantize, quantize_activations
from rlx.mir.round_attention import round_attention
from rlx.ops.op import HIR, lookup

T = TypeVar("T", Graph, Program)


@dataclass(frozen=True, slots=True)
class KeptStage:
    """What one pass gave: its name, the level, the graph or program."""

    name: str
    level: str
    result: Graph | Program


@dataclass(slots=True)
class Stages:
    """Runs the passes of one compilation and keeps what each level looked like."""

    dump: Path | None
    graphs: dict[str, Graph | Program] = field(default_factory=dict[str, "Graph | Program"])
    count: int = 0
    trusted: set[tuple[str, Node]] = field(default_factory=set[tuple[str, Node]])
    watch: Callable[[KeptStage], object] | None = None

    def run(self, name: str, level: str, source: Graph, function: Callable[[Graph], T]) -> T:
        """Apply a pass, verify what it gives, and write it down."""
        try:
            result = function(source)
        except RlxError:
            raise
        except Exception as error:
            path = self._reproducer(name, source)
            raise CompileError(
                f"the pass {name} failed: {type(error).__name__}: {error}",
                where=str(path) if path else name,
                fix="report it with this file, which holds the graph the pass was given" if path else None,
            ) from error
        return self.keep(name, level, result)

    def keep(self, name: str, level: str, result: T) -> T:
        """Verify and write down a stage."""
        if isinstance(result, Graph):
            verify(result, level, after=name, trusted=self.trusted)
        self.graphs[level] = result
        if self.watch is not None:
            self.watch(KeptStage(name, level, result))
        if self.dump is not None:
            self._write(f"{self.count:02d}-{level}-{name}.txt", to_text(result))
        self.count += 1
        return result

    def write_code(self, name: str, make: Callable[[], str]) -> None:
        """Write down what a backend made of the program (`llvm.ll`, `asm.s`); it is made only if it is wanted."""
        if self.dump is not None:
            self._write(f"{self.count:02d}-{name}", make())
            self.count += 1

    def _write(self, name: str, text: str) -> None:
        try:
            if self.dump is not None:
                self.dump.mkdir(parents=True, exist_ok=True)
                (self.dump / name).write_text(text)
        except OSError as error:
            raise StorageError("a stage cannot be written", where=str(self.dump), found=str(error)) from error

    @staticmethod
    def _reproducer(name: str, source: Graph) -> Path | None:
        """Where the graph was written; None where nothing can be written, so that the failure itself is seen."""
        safe = re.sub(r"\W+", "_", name)
        try:
            with tempfile.NamedTemporaryFile("w", prefix=f"rlx-{safe}-", suffix=".txt", delete=False) as file:
                file.write(f"# pass: {name}\n{to_text(source)}")
        except OSError:
            return None
        return Path(file.name)


def to_text(stage: Graph | Program) -> str:
    """The text of any stage."""
    return print_graph(stage) if isinstance(stage, Graph) else print_program(stage)


def level_of(graph: Graph) -> str:
    """ "hir", or "mir" for a graph with ops that only exist there."""
    return "hir" if all(HIR in lookup(node.op).levels for node in graph.nodes) else "mir"


def compile_graph(
    graph: Graph,
    backend: Backend,
    *,
    precision: str = "fast",
    fusion: bool = True,
    keep: Callable[[KeptStage], object] | None = None,
) -> tuple[Program, Stages]:
    """HIR to an LIR program for a backend.

    Args:
        graph: a HIR graph, plain or derived by `rlx.hir.derive_step`.
        backend: whose kernels to use.
        precision: "fast" quantises the activations of products with quantised weights and lets attention over a
            bfloat16 cache round to it, "exact" computes in float32.
        fusion: whether to make one loop of several elementwise ops, and one step of a product and a sum, or of
            the rotation and the storing of keys.
        keep: is given what each pass made.
    """
    stages = Stages(settings().dump, watch=keep)
    level = level_of(graph)
    hir = stages.keep("input", level, graph)
    hir = stages.run("simplify", level, hir, simplify)
    mir = stages.run("legalize", "mir", hir, lambda g: legalize(g, backend))
    if fusion:
        mir = stages.run("fuse_residual", "mir", mir, lambda g: fuse_residual(g, backend))
        mir = stages.run("fuse_rope", "mir", mir, lambda g: fuse_rope(g, backend))
        mir = stages.run("fuse_elementwise", "mir", mir, fuse_elementwise)
    if precision == "fast":
        mir = stages.run("quantize_activations", "mir", mir, lambda g: quantize_activations(g, backend))
        mir = stages.run("fuse_quantize", "mir", mir, lambda g: fuse_quantize(g, backend))
        mir = stages.run("round_attention", "mir", mir, lambda g: round_attention(g, backend))
    mir = stages.run("simplify", "mir", mir, simplify)
    program = stages.run("lower", "lir", mir, lambda g: lower(g, backend))
    if fusion:
        program = stages.keep("overlap_steps", "lir", overlap_steps(program))
    program = stages.keep("plan_memory", "lir", plan_memory(program))
    return program, stages
