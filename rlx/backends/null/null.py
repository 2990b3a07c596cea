"""The null backend: everything around a program works, the arithmetic is left out.

In goes a MIR graph, out come arrays of zeros of the right shapes and dtypes. It exercises the pipeline, the runtime and
the input checks where no machine code can run. Next: `rlx/backends/reference/`, which runs the arithmetic in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.backend import KernelPlan
from rlx.core.bind import bind_inputs, concrete_shape
from rlx.core.dtype import DType
from rlx.core.graph import Graph, Node
from rlx.core.type import numpy_shape
from rlx.core.verify import verify
from rlx.ops.op import MIR


class NullBackend:
    """Accepts every graph that is valid on the MIR level (`rlx.core.backend.Backend` is the protocol)."""

    name = "null"

    def why_not(self, node: Node) -> str | None:
        """None: an op that is not run needs no kernel."""
        return None

    def plan(self, node: Node) -> KernelPlan:
        """A kernel without arguments that does nothing once."""
        return KernelPlan("null", {}, (), 1)

    def quantizes(self, weight: DType) -> bool:
        """False: nothing is gained where nothing is computed."""
        return False

    def run_graph(self, graph: Graph, inputs: Mapping[str, NDArray[Any]], level: str = MIR) -> dict[str, NDArray[Any]]:
        """Check the graph and its inputs and give zeros.

        Args:
            graph: a graph of the level.
            inputs: an array for each input; a packed one as `uint8` with the last axis in bytes.

        Returns:
            Zeros for each output, in the dtype of its type; packed ones as bytes.

        Raises:
            VerifyError: the graph breaks a rule of MIR.
            InputError: the inputs do not fit the graph.
        """
        verify(graph, level)
        symbols = bind_inputs(graph.inputs, inputs)
        results: dict[str, NDArray[Any]] = {}
        for name, value in graph.outputs:
            shape = numpy_shape(value.type, concrete_shape(value.type, symbols))
            results[name] = np.zeros(shape, value.type.dtype.numpy)
        return results
