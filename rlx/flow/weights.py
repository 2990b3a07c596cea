"""Where a flow finds its weights: types at build time, bytes when a program is packed or run.

In: arrays, or an open checkpoint with its tensors renamed. Out: `WeightSource`, the one interface the compiler and the
reference interpreter read weights through. Keys are those the flow asks for. Next: `context.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import bf16, f16, f32, f64, from_numpy
from rlx.core.storage import decode
from rlx.core.type import TensorType
from rlx.errors import InputError, MissingTensorError
from rlx.flow.tensor_part import TensorPart, TensorStack
from rlx.io.checkpoint import Checkpoint, TensorInfo, usable_tensor
from rlx.io.identity import Identity


class WeightSource(Protocol):
    """Weights by key. A linear weight is `[out, in]`, as Hugging Face files have it."""

    def type_of(self, key: str) -> TensorType:
        """Element type or storage format, and shape in NumPy order.

        Raises:
            MissingTensorError: there is no such weight.
        """
        ...

    def __contains__(self, key: object) -> bool: ...

    def keys(self) -> Iterable[str]:
        """Every key."""
        ...

    def raw(self, key: str) -> NDArray[np.uint8]:
        """The stored bytes, flat.

        Raises:
            MissingTensorError: there is no such weight.
        """
        ...

    def release(self, key: str) -> None:
        """The bytes are not needed soon; the source may drop them from memory."""
        ...

    def describe(self, key: str) -> str:
        """Where the weight is looked for, for a message."""
        ...

    def identity(self) -> Identity | None:
        """What the source is known by, for what is kept on disk about it; None for one that can change unseen."""
        ...


Packed: TypeAlias = "tuple[TensorType, bytes | NDArray[np.uint8]]"


class DictWeights:
    """Weights held in memory.

    Args:
        tensors: key to a float32, float16 or bfloat16 array, or to the type and the bytes of a packed tensor.

    Raises:
        InputError: an array has a dtype RLX has no name for, or bytes do not fit their type.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any] | Packed]) -> None:
        self._types: dict[str, TensorType] = {}
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        for key, tensor in tensors.items():
            self._types[key], self._bytes[key] = (
                _array(key, tensor) if isinstance(tensor, np.ndarray) else _packed(key, tensor)
            )

    def type_of(self, key: str) -> TensorType:
        """See `WeightSource.type_of`."""
        return self._types[self._known(key)]

    def __contains__(self, key: object) -> bool:
        return key in self._types

    def keys(self) -> Iterable[str]:
        """Every key."""
        return self._types.keys()

    def raw(self, key: str) -> NDArray[np.uint8]:
        """See `WeightSource.raw`."""
        return self._bytes[self._known(key)]

    def release(self, key: str) -> None:
        """Nothing to do: the caller owns the memory."""

    def describe(self, key: str) -> str:
        """Where a weight is looked for, for a message."""
        return f"{key!r} in the given weights"

    def identity(self) -> Identity | None:
        """None: arrays in memory are never kept on disk."""
        return None

    def _known(self, key: str) -> str:
        if key not in self._types:
            raise MissingTensorError("there is no weight of this name", found=f"no {key!r}")
        return key


def _array(key: str, array: NDArray[Any]) -> tuple[TensorType, NDArray[np.uint8]]:
    try:
        dtype = from_numpy(array.dtype)
    except KeyError:
        raise InputError(
            f"the weight {key} has a dtype RLX does not know",
            found=array.dtype,
            expected="float32, float16 or bfloat16",
        ) from None
    return TensorType(dtype, array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _packed(key: str, tensor: Packed) -> tuple[TensorType, NDArray[np.uint8]]:
    type_, data = tensor
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
    if raw.size != type_.nbytes:
        raise InputError(
            f"the bytes of {key} do not fit {type_}", found=f"{raw.size} bytes", expected=f"{type_.nbytes} bytes"
        )
    return type_, raw


class MappedWeights:
    """The tensors of an open checkpoint under the keys of a flow; nothing is read before `raw`.

    A vector stored as float16 or bfloat16 (a norm's weight, a bias) is given as float32, and so are the filters of a
    convolution over one channel each, `[channels, 1, taps]`: they are small, and every reader computes with float32. A
    float64 tensor is rounded to float32 as a whole.

    Args:
        checkpoint: the open file or folder.
        names: key of the flow to the name in the checkpoint, or to a part of a tensor; a key may be listed that the
            checkpoint lacks.
    """

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str | TensorPart | TensorStack]) -> None:
        self.checkpoint = checkpoint
        self._parts = {key: TensorPart(name) if isinstance(name, str) else name for key, name in names.items()}

    def type_of(self, key: str) -> TensorType:
        """See `WeightSource.type_of`.

        Raises:
            UnsupportedModelError: the tensor has a type RLX cannot compute with.
        """
        part = self._part(key)
        if isinstance(part, TensorStack):
            names = [usable_tensor(self.checkpoint.tensors, name, self.checkpoint.path) for name in part.names]
            return TensorType(*part.type_of(names))
        info = usable_tensor(self.checkpoint.tensors, part.name, self.checkpoint.path)
        return TensorType(f32 if _is_given_as_float32(info) else info.dtype, part.shape(info))

    def __contains__(self, key: object) -> bool:
        part = self._parts.get(str(key))
        return part is not None and all(name in self.checkpoint.tensors for name in _names(part))

    def keys(self) -> Iterable[str]:
        """Every key whose tensor the checkpoint holds."""
        return [key for key in self._parts if key in self]

    def raw(self, key: str) -> NDArray[np.uint8]:
        """See `WeightSource.raw`: a view of the mapped file, or a copy for a converted vector."""
        part = self._part(key)
        if isinstance(part, TensorStack):
            return np.concatenate([self.checkpoint.data(name) for name in part.names])
        info = self.checkpoint.tensors[part.name]
        data = part.bytes_of(info, self.checkpoint.data(part.name))
        if not _is_given_as_float32(info):
            return data
        return decode(info.dtype, data, part.shape(info)).reshape(-1).view(np.uint8)

    def release(self, key: str) -> None:
        """See `WeightSource.release`."""
        for name in _names(self._part(key)):
            self.checkpoint.release(name)

    def describe(self, key: str) -> str:
        """Where a weight is looked for, for a message."""
        part = self._parts.get(key)
        return f"{', '.join(map(repr, _names(part) if part else (key,)))} in {self.checkpoint.path}"

    def identity(self) -> Identity | None:
        """That of the checkpoint together with the names the keys stand for."""
        source = self.checkpoint.identity()
        digest = hashlib.sha256(
            f"{source.digest}\n{sorted((key, repr(part)) for key, part in self._parts.items())}".encode()
        )
        return Identity(digest.hexdigest(), source.name)

    def _part(self, key: str) -> TensorPart | TensorStack:
        if key not in self:
            wanted = _names(self._parts[key]) if key in self._parts else (key,)
            name = next(name for name in wanted if name not in self.checkpoint.tensors)
            raise MissingTensorError(
                "the checkpoint does not hold this tensor",
                where=str(self.checkpoint.path),
                found=f"no {name!r}",
                expected=f"the weight {key}" if name != key else None,
            )
        return self._parts[key]


def _names(part: TensorPart | TensorStack) -> tuple[str, ...]:
    return part.names if isinstance(part, TensorStack) else (part.name,)


def _is_given_as_float32(info: TensorInfo) -> bool:
    is_small = len(info.shape) == 1 or (len(info.shape) == 3 and info.shape[1] == 1)
    return info.dtype == f64 or (is_small and info.dtype in (f16, bf16))
