"""`Executable`: a compiled program that is called with arrays and gives arrays.

exe = rlx.compile(graph)
exe(x=array)["y"]
exe.text["mir"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.codegen import assembly, emit_module
from rlx.backends.cpu.module import CpuModule, empty
from rlx.backends.cpu.target import Target
from rlx.compiler import Stages, level_of, to_text
from rlx.core.bind import bind_inputs, concrete_shape
from rlx.core.graph import Graph
from rlx.core.type import numpy_shape
from rlx.lir.program import Program

Array = NDArray[Any]


class StageTexts(Mapping[str, str]):
    """The text of every level, made when it is asked for: flow-independent `hir`, `mir`, `lir`, `llvm`, `asm`."""

    def __init__(self, stages: Stages, program: Program, target: Target) -> None:
        self._makers: dict[str, Callable[[], str]] = {
            **{level: (lambda stage=stage: to_text(stage)) for level, stage in stages.graphs.items()},
            "llvm": lambda: emit_module(program.kernels, target),
            "asm": lambda: assembly(program.kernels, target),
        }

    def __getitem__(self, level: str) -> str:
        return self._makers[level]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Executable:
    """A graph compiled for the CPU.

    Attributes:
        text: the text of each level.
        module: the loaded program.
    """

    def __init__(self, graph: Graph, program: Program, stages: Stages, module: CpuModule) -> None:
        self.graph, self.program, self.module = graph, program, module
        self.text = StageTexts(stages, program, module.target)
        self._inputs = dict(program.inputs)
        self._updated = {name for name, buffer in program.inputs if program.buffers[buffer].updated}

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run it.

        Args:
            inputs: one array for each input of the graph, of its dtype and shape; packed inputs as bytes.

        Raises:
            InputError: an input is missing, unknown, or has another dtype or shape; an index is out of its table.
        """
        dims, memory = self._bound(inputs)
        self.module.run(dims, memory)
        return {name: self._result(name, buffer, dims, memory) for name, buffer in self.program.outputs}

    def seconds(self, times: int, **inputs: Array) -> float:
        """Run it `times` over in one native call; gives the seconds of one run, with no Python in between."""
        return self.module.seconds(*self._bound(inputs), times)

    def _bound(self, inputs: Mapping[str, Array]) -> tuple[dict[str, int], dict[int, Array]]:
        """The value of every symbol, and memory for every input and output."""
        dims = bind_inputs(self.graph.inputs, inputs)
        memory: dict[int, Array] = {}
        for name, buffer in self._inputs.items():
            array = np.ascontiguousarray(inputs[name])
            # an input that the program updates in place stays the caller's own
            memory[buffer] = array.copy() if name in self._updated else array
        for _, buffer in self.program.outputs:
            if buffer not in memory and self.program.buffers[buffer].kind == "output":
                memory[buffer] = empty(self.program.buffers[buffer], dims)
        return dims, memory

    def _result(self, name: str, buffer: int, dims: Mapping[str, int], memory: Mapping[int, Array]) -> Array:
        value = dict(self.graph.outputs)[name]
        array = memory[buffer] if buffer in memory else self.module.held(buffer)
        shape = numpy_shape(value.type, concrete_shape(value.type, dims))
        result = array.view(value.type.dtype.numpy).reshape(shape)
        return result if self.program.buffers[buffer].kind == "output" else result.copy()

    def close(self) -> None:
        """End the worker threads."""
        self.module.close()


class Interpreted:
    """A graph that a backend without machine code runs: the NumPy reference, or the one that runs nothing.

    It is called like an `Executable`; its only text is that of the graph.
    """

    def __init__(self, graph: Graph, weights: Any, backend: str) -> None:
        self.graph, self._weights, self._backend = graph, weights, backend
        self.text: Mapping[str, str] = {level_of(graph): to_text(graph)}

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run it; see `Executable.__call__`. The reference computes in float32."""
        if self._backend == "null":
            from rlx.backends.null import NullBackend

            return NullBackend().run_graph(self.graph, inputs, level_of(self.graph))
        from rlx.backends.reference import run_graph

        return run_graph(self.graph, inputs, self._weights, dtype=np.float32)

    def close(self) -> None:
        """Nothing is held."""
