"""An ONNX file: its initialisers as a checkpoint's tensors, and its nodes, which tell what anonymous ones are.

In: a path. Out: an `OnnxFile`. Nothing of the graph is run: a recipe knows what the model computes, and asks the nodes
which tensor is which and whether the graph is the one it knows. Tensors stay where they lie in the file (`raw_data`,
packed `float_data`); what is kept in other files is refused by name. Source: onnx.proto of the ONNX project. Next:
`rlx/models/dinov2_onnx.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlx.core import dtype
from rlx.core.dtype import DType
from rlx.errors import FileFormatError, UnsupportedModelError
from rlx.io.checkpoint import TensorInfo, check_ranges, usable_tensor
from rlx.io.identity import Identity, identity_of
from rlx.io.mapped_file import MappedFile
from rlx.io.protobuf import Field, Span, fields, integers

MAX_AXES = 64
MAX_NODES = 1 << 20
_DTYPES = {
    1: dtype.f32,
    2: dtype.u8,
    3: dtype.i8,
    5: dtype.i16,
    6: dtype.i32,
    7: dtype.i64,
    9: dtype.boolean,
    10: dtype.f16,
    11: dtype.f64,
    16: dtype.bf16,
}
_FLOAT_DATA, _RAW_DATA, _OTHER_DATA = 4, 9, (5, 6, 7, 10, 11)


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node of the graph.

    Attributes:
        op: the operator, such as MatMul.
        name: of the node.
        inputs, outputs: names of values; an input that is left out is empty.
        numbers: attributes that are whole numbers, one or several.
        constant: the tensor of a Constant, or None.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]
    constant: NDArray[Any] | None


class OnnxFile:
    """An open ONNX file; implements `Checkpoint`.

    Attributes:
        path: the file.
        metadata: what it says of itself.
        tensors: its initialisers by name.
        nodes: the nodes of its graph.
        inputs: shapes of the graph's inputs by name; None for a size that is not fixed.
        file_size: its length in bytes.
    """

    kind: Literal["onnx"] = "onnx"

    def __init__(
        self,
        file: MappedFile,
        metadata: Mapping[str, object],
        tensors: dict[str, TensorInfo],
        nodes: tuple[OnnxNode, ...],
        inputs: Mapping[str, tuple[int | None, ...]],
    ) -> None:
        self.path, self.metadata, self.tensors, self.nodes, self.inputs = file.path, metadata, tensors, nodes, inputs
        self.file_size, self._file = file.size, file

    def data(self, name: str) -> NDArray[np.uint8]:
        """See `Checkpoint.data`."""
        info = usable_tensor(self.tensors, name, self.path)
        return self._file.view(info.offset, info.nbytes)

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        info = usable_tensor(self.tensors, name, self.path)
        self._file.release(info.offset, info.nbytes)

    def identity(self) -> Identity:
        """See `Checkpoint.identity`."""
        return identity_of(self.path.name, [self._file], self.tensors.values())


def open_onnx(path: str | Path) -> OnnxFile:
    """Open an ONNX file and read all but its tensors.

    Raises:
        ModelNotFoundError: the file is missing.
        FileFormatError: it is damaged.
        UnsupportedModelError: it keeps tensors in other files.
    """
    file = MappedFile(Path(path))
    try:
        return _Reader(file).run()
    except FileFormatError as error:
        raise FileFormatError(
            error.what, where=str(path), found=error.found, expected=error.expected, fix=error.fix
        ) from None


class _Reader:
    """The parts of the file while it is read."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.metadata: dict[str, object] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.nodes: list[OnnxNode] = []
        self.inputs: dict[str, tuple[int | None, ...]] = {}
        self.graphs = 0

    def run(self) -> OnnxFile:
        """Read the whole file."""
        for field in fields(Span(memoryview(self.file.buffer), 0, self.file.size)):
            self._model_field(field)
        if self.graphs != 1:
            raise FileFormatError("this is no ONNX file", found=f"{self.graphs} graphs", expected="one graph")
        check_ranges(self.file.path, self.file.size, self.tensors)
        return OnnxFile(self.file, self.metadata, self.tensors, tuple(self.nodes), self.inputs)

    def _model_field(self, field: Field) -> None:
        if field.number == 1:
            self.metadata["ir_version"] = field.integer()
        elif field.number in (2, 3):
            self.metadata["producer_name" if field.number == 2 else "producer_version"] = field.span().text()
        elif field.number == 7:
            self.graphs += 1
            for part in fields(field.span()):
                self._graph_field(part)
        elif field.number == 8:
            version = [part.integer() for part in fields(field.span()) if part.number == 2]
            self.metadata["opset"] = version[-1] if version else 0

    def _graph_field(self, field: Field) -> None:
        if field.number == 1:
            if len(self.nodes) == MAX_NODES:
                raise FileFormatError("the graph has too many nodes", expected=f"at most {MAX_NODES}")
            self.nodes.append(_node(field.span(), self.file.path))
        elif field.number == 2:
            self.metadata["graph"] = field.span().text()
        elif field.number == 5:
            info = _tensor(field.span(), self.file.path)
            if info.name in self.tensors:
                raise FileFormatError("two initialisers have one name", found=repr(info.name))
            self.tensors[info.name] = info
        elif field.number == 11:
            name, shape = _value(field.span())
            self.inputs[name] = shape
        elif field.number == 15:
            raise UnsupportedModelError("RLX cannot read sparse initialisers", where=str(self.file.path))


def _texts(parts: Iterable[Field], number: int) -> tuple[str, ...]:
    return tuple(part.span().text() for part in parts if part.number == number)


def _node(span: Span, path: Path) -> OnnxNode:
    parts = list(fields(span))
    numbers: dict[str, tuple[int, ...]] = {}
    constant: NDArray[Any] | None = None
    for part in parts:
        if part.number != 5:
            continue
        attribute = list(fields(part.span()))
        name = "".join(_texts(attribute, 1)[:1])
        numbers[name] = tuple(value for item in attribute if item.number in (3, 8) for value in integers(item))
        for item in attribute:
            if item.number == 5 and name == "value":
                constant = _array(item.span(), path)
    op, name = ("".join(_texts(parts, number)[:1]) for number in (4, 3))
    return OnnxNode(op, name, _texts(parts, 1), _texts(parts, 2), numbers, constant)


def _array(span: Span, path: Path) -> NDArray[Any] | None:
    """A small tensor within a node; None for one of a type or place that no recipe asks about."""
    try:
        info = _tensor(span, path)
    except UnsupportedModelError:
        return None
    data = span.buffer[info.offset : info.offset + info.nbytes]
    return np.frombuffer(data, info.dtype.numpy).reshape(info.shape)


def _value(span: Span) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of an input."""
    parts = list(fields(span))
    shape: list[int | None] = []
    for part in parts:
        for field in _inside(_inside(_inside((part,), 2), 1), 2):
            if field.number == 1:
                sizes = [item.integer() for item in fields(field.span()) if item.number == 1]
                shape.append(sizes[-1] if sizes else None)
    return "".join(_texts(parts, 1)[:1]), tuple(shape)


def _inside(parts: Iterable[Field], number: int) -> list[Field]:
    """The fields of all messages under a number."""
    return [inner for part in parts if part.number == number for inner in fields(part.span())]


def _tensor(span: Span, path: Path) -> TensorInfo:
    """Name, type, shape and place of a tensor."""
    shape: list[int] = []
    places: list[Span] = []
    name, element, other = "", 0, ""
    for field in fields(span):
        if field.number == 1:
            shape += integers(field)
        elif field.number == 2:
            element = field.integer()
        elif field.number == 8:
            name = field.span().text()
        elif field.number in (_FLOAT_DATA, _RAW_DATA):
            places.append(field.span())
        elif field.number in _OTHER_DATA:
            other = "numbers outside of raw_data"
        elif field.number == 3:
            other = "a segment of a tensor"
        elif field.number == 13 or (field.number == 14 and field.integer() != 0):
            other = "external data"
    if other:
        raise UnsupportedModelError(
            f"RLX cannot read the tensor {name!r} of an ONNX file",
            where=str(path),
            found=other,
            expected="raw_data, or float_data of float32",
            fix="save the model again with its tensors inside",
        )
    return _placed(name, element, shape, places)


def _placed(name: str, element: int, shape: list[int], places: list[Span]) -> TensorInfo:
    kind: DType | None = _DTYPES.get(element)
    if kind is None:
        raise FileFormatError(f"the type of tensor {name!r} cannot be used", found=element, expected=sorted(_DTYPES))
    if len(shape) > MAX_AXES or any(not 0 <= size < 1 << 48 for size in shape):
        raise FileFormatError(f"the shape of tensor {name!r} cannot be used", found=str(shape)[:80])
    nbytes = math.prod(shape) * kind.block_bytes
    # numbers that are not packed come in one field each, and so in pieces
    if len(places) > 1 or (len(places[0]) if places else 0) != nbytes:
        found = sum(map(len, places))
        raise FileFormatError(
            f"the length of tensor {name!r} cannot be used",
            found=f"{found} bytes in {len(places)} pieces",
            expected=f"{nbytes} bytes for {kind}{shape}",
        )
    return TensorInfo(name, tuple(shape), kind, places[0].start if places else 0, nbytes)
