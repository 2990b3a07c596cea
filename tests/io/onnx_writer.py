"""A small ONNX writer for tests: messages from plain values, and the graph an exporter makes of a tiny DINOv2.

In: arrays and node descriptions. Out: bytes. It shares no code with the reader. Source: onnx.proto of the ONNX project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"float32": 1, "uint8": 2, "int64": 7, "float16": 10}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def tensor(name: str, array: NDArray[Any], data_field: int = 9) -> bytes:
    dims = b"".join(number(1, size) for size in array.shape)
    return dims + number(2, TYPES[str(array.dtype)]) + message(8, name) + message(data_field, array.tobytes())


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> bytes:
    parts = [message(1, value) for value in inputs] + [message(2, output), message(3, output), message(4, op)]
    for name, value in attributes.items():
        content = message(1, name)
        if isinstance(value, np.ndarray):
            content += message(5, tensor("", value))
        else:
            content += b"".join(number(8, item) for item in value)
        parts.append(message(5, content))
    return b"".join(parts)


def model(nodes: Sequence[bytes], tensors: Mapping[str, NDArray[Any]] | Sequence[bytes]) -> bytes:
    stored = [tensor(*item) for item in tensors.items()] if isinstance(tensors, Mapping) else tensors
    graph = b"".join(message(1, item) for item in nodes) + message(2, "main")
    graph += b"".join(message(5, item) for item in stored)
    return number(1, 7) + message(2, "tests") + message(7, graph) + message(8, number(2, 14))


class _Graph:
    """Nodes and initialisers under construction; each value is named after a count."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.tensors: dict[str, NDArray[Any]] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"value_{len(self.nodes)}"
        self.nodes.append(node(op, inputs, output, **attributes))
        return output

    def constant(self, value: float | int) -> str:
        dtype = np.float32 if isinstance(value, float) else np.int64
        return self.add("Constant", value=np.array(value, dtype))

    def linear(self, x: str, weight: NDArray[Any], bias: str) -> str:
        name = f"onnx::MatMul_{len(self.tensors)}"
        self.tensors[name] = np.ascontiguousarray(weight.T)
        return self.add("Add", bias, self.add("MatMul", x, name))


def dinov2(
    weights: Mapping[str, NDArray[Any]], layers: int, head_dim: int, patch: int, eps: float = 1e-6
) -> tuple[list[bytes], dict[str, NDArray[Any]]]:
    """Nodes and initialisers of a DINOv2 with a prefix, as far as they say what the model is."""
    graph = _Graph()
    prefix, table = "backbone.", weights["embeddings.position_embeddings"]
    plain = {key: value for key, value in weights.items() if value.ndim != 2 and "position" not in key}
    graph.tensors |= {prefix + key: value for key, value in plain.items()}
    graph.tensors |= {"onnx::Concat_1": table[:, :1], "onnx::Reshape_2": table[:, 1:]}
    kernel = f"{prefix}embeddings.patch_embeddings.projection"
    rows = graph.add("Conv", "pixels", f"{kernel}.weight", f"{kernel}.bias", strides=(patch, patch), pads=(0, 0, 0, 0))
    cls = graph.add("Expand", f"{prefix}embeddings.cls_token", graph.constant(1))
    rows = graph.add("Concat", cls, rows)
    resized = graph.add("Resize", graph.add("Reshape", "onnx::Reshape_2", graph.constant(1)))
    x = graph.add("Add", rows, graph.add("Concat", "onnx::Concat_1", resized))

    def norm(x: str) -> str:
        return graph.add("Sqrt", graph.add("Add", x, graph.constant(eps)))

    for index in range(layers):
        layer = f"encoder.layer.{index}."

        def linear(x: str, name: str, layer: str = layer) -> str:
            return graph.linear(x, weights[f"{layer}{name}.weight"], f"{prefix}{layer}{name}.bias")

        x = norm(x)
        for name in ("key", "value", "query"):
            made = linear(x, f"attention.attention.{name}")
            sizes = graph.add("Concat", made, graph.constant(6), graph.constant(head_dim))
            made = graph.add("Reshape", made, sizes)
        x = norm(linear(graph.add("Softmax", made), "attention.output.dense"))  # pyright: ignore[reportPossiblyUnbound]
        x = linear(graph.add("Erf", linear(x, "mlp.fc1")), "mlp.fc2")
    norm(x)
    return graph.nodes, graph.tensors
