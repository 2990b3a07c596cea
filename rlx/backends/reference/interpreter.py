"""What a graph means: `OpDef.reference` for each node, in order, in float64 or float32.

In go a graph, input arrays and weights; out come the named results. Packed and half-precision values are held by what
they mean, as floats of the run's width, so rounding happens only where an op says so (`quantize`). Weights are decoded
when first read and dropped after their last use. Next: `rlx/ops/op.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rlx.core.bind import bind_inputs, concrete_shape
from rlx.core.dim import Dim, evaluate
from rlx.core.graph import Attrs, AttrValue, Graph, Node, Value
from rlx.core.storage import STORAGE_FORMATS, decode
from rlx.core.type import TensorType
from rlx.errors import InputError, MissingTensorError, RlxError, TensorShapeError
from rlx.ops.op import lookup

Array = NDArray[Any]


class Weights(Protocol):
    """Where parameters come from."""

    def raw(self, key: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, flat, as the checkpoint stores them."""
        ...

    def type_of(self, key: str) -> TensorType:
        """Its element type or storage format, and its shape."""
        ...


def run_graph(
    graph: Graph,
    inputs: Mapping[str, Array],
    weights: Weights | None = None,
    *,
    dtype: DTypeLike = np.float64,
) -> dict[str, Array]:
    """Run a graph of any level.

    Args:
        graph: what to run.
        inputs: an array for each input; a packed one as `uint8` with the last axis in bytes. Where the graph says f32,
            float64 is taken too.
        weights: the parameters; may be left out for a graph that has none.
        dtype: float width of the run, `np.float64` or `np.float32`.

    Returns:
        The outputs by name. Float outputs, and packed ones decoded, are floats of `dtype`; others have their own dtype.

    Raises:
        InputError: an input does not fit the graph, or an index in it leads out of a table.
        MissingTensorError, TensorShapeError: a parameter is not there or has another type.
    """
    width = np.dtype(dtype)
    if width not in (np.dtype(np.float64), np.dtype(np.float32)):
        raise InputError("the interpreter runs in float64 or float32", found=width)
    symbols = bind_inputs(graph.inputs, inputs, allow_wide=True)
    run = _Run(graph, weights, width, symbols)
    for name, value in graph.inputs:
        run.values[value] = run.loaded(value.type, inputs[name])
    for node in graph.nodes:
        run.step(node)
    return {name: run.read(value) for name, value in graph.outputs}


class _Run:
    """The live values of one run."""

    def __init__(self, graph: Graph, weights: Weights | None, width: np.dtype, symbols: Mapping[str, int]) -> None:
        self.weights, self.width, self.symbols = weights, width, symbols
        self.values: dict[Value, Array] = {}
        self.pending: dict[Value, Node] = {}
        self.uses = graph.uses()

    def step(self, node: Node) -> None:
        """Run one node and drop the operands that nobody reads again."""
        if node.op == "parameter":
            self.pending[node.output] = node
            return
        operands = tuple(self.read(value) for value in node.inputs)
        attrs = evaluate_attrs(node.attrs, self.symbols)
        try:
            # IEEE arithmetic is the definition: an overflow gives infinity, it does not warn
            with np.errstate(all="ignore"):
                results = lookup(node.op).reference(operands, attrs)
        except RlxError as error:
            if error.where is None:
                raise type(error)(
                    error.what, where=f"{node.op}, {node.location}", found=error.found, expected=error.expected
                ) from None
            raise
        for value, result in zip(node.outputs, results, strict=True):
            if self.uses.get(value):
                self.values[value] = self.held(value.type, result)
        for value in node.inputs:
            self.uses[value] -= 1
            if not self.uses[value]:
                self.values.pop(value, None)

    def read(self, value: Value) -> Array:
        """A value; a parameter is loaded when it is first read."""
        if value in self.pending:
            self.values[value] = self.parameter(self.pending.pop(value))
        return self.values[value]

    def held(self, type_: TensorType, array: Array) -> Array:
        """A value in the form the run keeps it in."""
        if type_.dtype.is_float or type_.dtype.is_packed:
            return np.asarray(array, self.width)
        return np.asarray(array, type_.dtype.numpy)

    def loaded(self, type_: TensorType, array: Array) -> Array:
        """An array from outside, decoded if it is packed."""
        if type_.dtype.is_packed:
            flat = np.ascontiguousarray(array).reshape(-1)
            array = decode(type_.dtype, flat, concrete_shape(type_, self.symbols))
        return self.held(type_, array)

    def parameter(self, node: Node) -> Array:
        """A weight from the checkpoint, decoded."""
        key, expected = str(node.attrs["key"]), node.output.type
        if self.weights is None:
            raise MissingTensorError(
                f"no weights are given for {key}", where=str(node.location), expected=str(expected)
            )
        found = self.weights.type_of(key)
        if found != expected:
            raise TensorShapeError(
                f"the tensor {key} has another type", where=str(node.location), found=str(found), expected=str(expected)
            )
        raw, shape = self.weights.raw(key), concrete_shape(expected, {})
        if expected.dtype.name in STORAGE_FORMATS:
            return self.held(expected, decode(expected.dtype, raw, shape))
        return self.held(expected, np.ascontiguousarray(raw).view(expected.dtype.numpy).reshape(shape))


def evaluate_attrs(attrs: Attrs, symbols: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with every symbolic size replaced by its number."""
    return {name: _evaluated(value, symbols) for name, value in attrs.items()}


def _evaluated(value: AttrValue, symbols: Mapping[str, int]) -> Any:
    if isinstance(value, Dim):
        return evaluate(value, symbols)
    if isinstance(value, tuple):
        return tuple(_evaluated(item, symbols) for item in value)
    return value
