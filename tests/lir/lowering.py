"""Programs for the tests of LIR: random graphs and a small step program, lowered for the portable CPU target."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.target import resolve
from rlx.compiler import Stages, compile_graph
from rlx.core.graph import Graph
from rlx.hir.derive_step import derive_step
from rlx.lir.program import Program
from tests.hir.test_derive_step import CONFIG, llama_weights
from tests.models.small_llama import llama_flow

BACKEND = CpuBackend(resolve("portable"))
"""The one target that every machine has, so that golden texts are the same everywhere."""

ONE_LAYER = replace(CONFIG, num_layers=1)
WEIGHTS = llama_weights(ONE_LAYER)


def lowered(graph: Graph, precision: str = "exact") -> Program:
    """A graph as a planned program."""
    return compile_graph(graph, BACKEND, precision=precision)[0]


@cache
def step_graph() -> Graph:
    """The step program of a model with one layer."""
    return derive_step(llama_flow(ONE_LAYER).build(WEIGHTS)).graph


@cache
def step_program() -> tuple[Program, Stages]:
    """The same, compiled."""
    return compile_graph(step_graph(), BACKEND, precision="exact")
