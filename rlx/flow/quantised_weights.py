"""Weights that are quantised when they are packed, for models whose files hold floats.

In: a weight source, and the keys of matrices. Out: a source that gives those as Q8_0 (ggml's format: 32 elements
share a half-precision scale, each is an int8), so that their products run on integers, in a quarter of the memory.
Whether that is allowed is `Profile.weights`. Next: `weights.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import bf16, f16, f32, q8_0
from rlx.core.graph import Graph
from rlx.core.storage import decode, encode
from rlx.core.type import TensorType
from rlx.flow.weights import WeightSource
from rlx.io.identity import Identity


def matrices_of_products(graph: Graph) -> frozenset[str]:
    """Keys of the float matrices that products alone read and whose rows are whole blocks of 32."""
    parameters = {node.output: node for node in graph.nodes if node.op == "parameter"}
    products = {node.inputs[1] for node in graph.nodes if node.op == "linear"}
    others = {
        value
        for node in graph.nodes
        for position, value in enumerate(node.inputs)
        if node.op != "linear" or position != 1
    }
    keys: set[str] = set()
    for value, node in parameters.items():
        width = value.type.shape[-1] if value.type.rank == 2 else None
        whole = isinstance(width, int) and width % q8_0.block_size == 0
        if value in products and value not in others and whole and value.type.dtype in (f32, f16, bf16):
            keys.add(str(node.attrs["key"]))
    return frozenset(keys)


class QuantisedWeights:
    """The weights of a source, those of `keys` as Q8_0.

    Args:
        source: the weights as they are.
        keys: float matrices whose rows are whole blocks of 32; see `matrices_of_products`.
    """

    def __init__(self, source: WeightSource, keys: Collection[str]) -> None:
        self._source, self._quantised = source, frozenset(keys)

    def type_of(self, key: str) -> TensorType:
        """See `WeightSource.type_of`."""
        type_ = self._source.type_of(key)
        return type_.with_dtype(q8_0) if key in self._quantised else type_

    def __contains__(self, key: object) -> bool:
        return key in self._source

    def keys(self) -> Iterable[str]:
        """Every key."""
        return self._source.keys()

    def raw(self, key: str) -> NDArray[np.uint8]:
        """See `WeightSource.raw`.

        Raises:
            InputError: a weight that is to be quantised holds a NaN or an infinity.
        """
        data = self._source.raw(key)
        if key not in self._quantised:
            return data
        type_ = self._source.type_of(key)
        shape = tuple(size for size in type_.shape if isinstance(size, int))
        return encode(q8_0, np.ascontiguousarray(decode(type_.dtype, data, shape), np.float32))

    def release(self, key: str) -> None:
        """See `WeightSource.release`."""
        self._source.release(key)

    def describe(self, key: str) -> str:
        """Where a weight is looked for, for a message."""
        return self._source.describe(key)

    def identity(self) -> Identity | None:
        """That of the source together with what is quantised."""
        source = self._source.identity()
        if source is None:
            return None
        digest = hashlib.sha256(f"{source.digest}\nq8_0 {sorted(self._quantised)}".encode())
        return Identity(digest.hexdigest(), source.name)
